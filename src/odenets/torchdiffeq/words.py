"""What the drop-in says: values in brief, and failures of the solver in the words of torchdiffeq's arguments."""

from dataclasses import replace
from typing import Any, NoReturn

from torch import Tensor

from odenets.solution import Failure, SolveError, Stats, Status


def brief(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, tuple | list):
        kinds = sorted({type(part).__name__ for part in value})
        return f"{type(value).__name__} of {len(value)}" + (f" ({', '.join(kinds)})" if kinds else "")
    text = repr(value)
    return f"{type(value).__name__}" if len(text) > 40 or isinstance(value, Tensor) else f"{text}"


def shown(time: Tensor) -> str:
    """A time with all its digits."""
    return repr(time.item())


ADVICE = {
    Status.MAX_STEPS: (
        "the solve took as many steps as the option 'max_num_steps' allows and did not reach its last time; raise it, "
        "or loosen `rtol` and `atol`; if the steps are far smaller than the solution's own time scale, the problem is "
        'stiff: take an implicit method, such as `method="radauIIA5"` with `options={"step_size": ...}`'
    ),
    Status.NOT_CONVERGED: (
        "the equations of an implicit step could not be solved; take smaller steps (the option 'step_size'), or raise "
        "the option 'max_iters'; where f is not smooth, an explicit method needs no such equations"
    ),
}


def raise_failure(failure: Failure, stats: Stats, sign: float = 1.0) -> NoReturn:
    """Raise the `SolveError` of a failed solve, in the caller's time and words."""
    error = SolveError(replace(failure, t=sign * failure.t, dt=sign * failure.dt), stats)
    advice = ADVICE.get(failure.status, failure.status.value)
    error.args = (str(error).replace(failure.status.value, advice),)
    raise error
