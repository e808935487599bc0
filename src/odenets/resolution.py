"""Can the numbers carry the times that are asked for? Said before solving, since a solve would not notice."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from odenets.evaluation import CountedField
from odenets.methods import Field, filled, real_dtype
from odenets.problem import Problem
from odenets.solution import Stats

_PART = 1e-2  # of the interval that neighbouring numbers may lie apart


def check_times(values: Sequence[float], steps: Sequence[float], dtype: torch.dtype, name: str = "t") -> None:
    """Refuse times, given in that dtype, that lie so far from zero that it cannot tell them apart.

    Args:
        steps: The differences of neighbouring `values`.
        name: What the caller calls them.

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
        length = f", and the interval has a length of {span:.2g}" if span else ""
        raise ValueError(
            f"`{name}` is in {dtype}, which near {largest:.9g} tells apart only times that differ by "
            f"{eps * largest:.2g}{length}: give the times in float64 from the start, or count them from the first one"
        )


def check_rows(rows: Tensor, dtype: torch.dtype) -> None:
    """The same of rows of times, (rows, T) in float64, each of which its last time may pad."""
    eps, steps, size = torch.finfo(dtype).eps, rows.diff(dim=1), rows.abs()
    near = (steps != 0) & (steps.abs() <= 2 * eps * torch.maximum(size[:, 1:], size[:, :-1]))
    doubtful = near.any(1) | (eps * size.amax(1) > _PART * (rows[:, -1] - rows[:, 0]).abs())
    for i in doubtful.nonzero().flatten().tolist():
        row = rows[i].tolist()
        while len(row) > 2 and row[-1] == row[-2]:
            row.pop()
        check_times(row, [b - a for a, b in itertools.pairwise(row)], dtype, f"t[{i}]")


def check_field(problem: Problem) -> None:
    """Refuse an f that depends on t where y's dtype, in which it gets t, cannot resolve the interval.

    Raises:
        ValueError: With what to write instead.
    """
    origin, span = problem.origin, problem.times[-1]
    if torch.compiler.is_compiling() or span == 0 or getattr(problem.watched, "resolved", False):
        return
    if problem.own is not None:  # that of the sample for which it is hardest
        origins, spans = problem.own.origin, problem.t.detach()[:, -1]
        largest = torch.maximum(origins.abs(), (origins + spans).abs())
        i = torch.where(spans > 0, largest / spans, -1.0).argmax()
        origin, span = torch.stack([origins[i], spans[i]]).tolist()
    shape = problem.field_time(0.0).shape
    check_time_of(problem.f, problem.y0.to(problem.dtype), origin, span, problem.sign, shape)


def check_time_of(
    f: Field, y0: Tensor, start: float, span: float, sign: float = 1.0, shape: Sequence[int] = (), name: str = "f"
) -> None:
    """The same of f(t, y) from `start` on, over a length of `span`; t has that shape.

    Args:
        sign: What times the time is the caller's.
        name: What the caller calls f.
    """
    dtype = real_dtype(y0)
    info, largest = torch.finfo(dtype), max(abs(start), abs(start + span))
    if info.eps * largest <= max(_PART, 4 * info.eps) * span or not _depends_on_time(f, y0, start, shape):
        return
    apart = f"resolves times only to {info.eps * largest:.2g}" if largest <= info.max else "has no such time"
    raise ValueError(
        f"`{name}` depends on t, which it gets in y's dtype {dtype}, and near t = {sign * start:.9g} that "
        f"{apart}: count time from the start of the solve (`t - t[0]`) and add the start inside `{name}`, or give `y0` "
        "in a wider dtype"
    )


@torch.no_grad()
def _depends_on_time(f: Field, y0: Tensor, start: float, shape: Sequence[int]) -> bool:
    y, counted = y0.detach(), CountedField(f, Stats())
    at = min(abs(start), torch.finfo(real_dtype(y)).max / 2)
    first, *others = (counted(filled(shape, x, y), y) for x in (at, at * 0.75, at * 0.5))
    return not all(torch.equal(first, other) for other in others)
