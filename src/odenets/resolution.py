"""Can the numbers carry the times that are asked for? Said before solving, since a solve would not notice."""

from collections.abc import Sequence

import torch

from odenets.evaluation import CountedField
from odenets.loop import Problem
from odenets.methods import real_dtype
from odenets.solution import Stats

_PART = 1e-2  # of the interval that neighbouring numbers may lie apart


def check_times(values: Sequence[float], steps: Sequence[float], dtype: torch.dtype) -> None:
    """Refuse times, given in that dtype, that lie so far from zero that it cannot tell them apart.

    Args:
        steps: The differences of neighbouring `values`.

    Raises:
        ValueError: With what to give instead.
    """
    largest, span = max(map(abs, values)), abs(values[-1] - values[0])
    eps = torch.finfo(dtype).eps
    if eps * largest <= 2 and all(value.is_integer() for value in values):
        return  # which are exact
    # Some are equal, and others are as near as can be: a finer grid, rounded.
    collapsed = 0.0 in steps and any(
        0 < abs(step) <= 2 * eps * max(abs(a), abs(b)) for step, a, b in zip(steps, values, values[1:])
    )
    coarse = eps * largest > _PART * span if span > 0 else len(values) > 1 and largest * eps >= 1
    if coarse or collapsed:
        raise ValueError(
            f"`t` is in {dtype}, which near {largest:.9g} tells apart only times that differ by "
            f"{eps * largest:.2g}, and the interval has a length of {span:.2g}: give the times in float64 from the "
            "start, or count them from the first one"
        )


def check_field(problem: Problem) -> None:
    """Refuse an f that depends on t where y's dtype, in which it gets t, cannot resolve the interval.

    Raises:
        ValueError: With what to write instead.
    """
    if torch.compiler.is_compiling():
        return
    dtype, span = real_dtype(problem.y0), problem.times[-1]
    largest = max(abs(problem.origin), abs(problem.origin + span))
    info = torch.finfo(dtype)
    if span == 0 or info.eps * largest <= max(_PART, 4 * info.eps) * span or not _depends_on_time(problem):
        return
    apart = f"resolves times only to {info.eps * largest:.2g}" if largest <= info.max else "has no such time"
    raise ValueError(
        f"`f` depends on t, which it gets in y's dtype {dtype}, and near t = {problem.caller_time(0.0):.9g} that "
        f"{apart}: count time from the start of the solve (`t - t[0]`) and add the start inside `f`, or give `y0` in "
        "a wider dtype"
    )


@torch.no_grad()
def _depends_on_time(problem: Problem) -> bool:
    y = problem.y0.detach()
    f = CountedField(problem.f, Stats())
    dtype = real_dtype(y)
    at = min(abs(problem.origin), torch.finfo(dtype).max / 2)
    first, *others = (f(problem.field_time(x - problem.origin), y) for x in (at, at * 0.75, at * 0.5))
    return not all(torch.equal(first, other) for other in others)
