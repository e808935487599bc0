"""What the drop-in says: values in brief, and errors of the solver in the words of torchdiffeq's arguments."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

from odenets.arguments import shown
from odenets.pullback.reached import LostGradientError
from odenets.pullback.replay import ReplayError
from odenets.solution import Failure, SolveError, Stats, Status


def brief(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, tuple | list):
        kinds = sorted({type(part).__name__ for part in value})
        return f"{type(value).__name__} of {len(value)}" + (f" ({listed(kinds)})" if kinds else "")
    return shown(value)


def listed(names: Iterable[Any]) -> str:
    """Names, but no more than a few."""
    first = list(itertools.islice(map(shown_name, names), 9))
    return ", ".join(first[:8]) + (", …" if len(first) > 8 else "")


def shown_name(name: Any) -> str:
    """A name without quotes, cut where it is long."""
    text = str(name) if isinstance(name, str) else shown(name)
    return text if len(text) <= 24 else f"{text[:23]}…"


ADVICE = {
    Status.MAX_STEPS: (
        "the solve took as many steps as the option 'max_num_steps' allows and did not reach its last time; raise it, "
        "or loosen `rtol` and `atol`; if the steps are far smaller than the solution's own time scale, the problem is "
        'stiff: take an implicit method, such as `method="radauIIA5"` with `options={"step_size": ...}`'
    ),
    Status.NO_EVENT: (
        "`event_fn` has not changed sign; check its sign at the start, and whether time should run the other way"
    ),
    Status.NOT_CONVERGED: (
        "the equations of an implicit step could not be solved; take smaller steps (the option 'step_size'), or raise "
        "the option 'max_iters'; where f is not smooth, an explicit method needs no such equations"
    ),
}


def raise_failure(failure: Failure, stats: Stats, sign: float = 1.0) -> NoReturn:
    """Raise the `SolveError` of a failed solve, in the caller's time and words."""
    raise _reworded(SolveError(replace(failure, t=sign * failure.t, dt=sign * failure.dt + 0.0), stats))


def _reworded(error: SolveError, detail: str = "") -> SolveError:
    status = error.status
    text = str(error).replace(status.value, ADVICE.get(status, status.value))
    text = text.replace("`max_steps`", "the option 'max_num_steps'")
    error.args = (f"{text}{detail}",)
    return error


@contextlib.contextmanager
def callers_words() -> Iterator[None]:
    """Errors raised inside name what callers of `odeint_adjoint` have."""
    try:
        yield
    except LostGradientError as error:
        remedy = "name it in `adjoint_params`, detach it, or use `odeint`, which differentiates through every operation"
        raise LostGradientError(error.what.replace("`f`", "`func`"), remedy) from None
    except ReplayError:
        raise ReplayError(
            "`func` returned something else in the backward pass of `odeint_adjoint` than in the forward pass, at the "
            "same t and y, so the gradient would be wrong: it draws random numbers (dropout) or changes a state of its "
            "own (a counter, a running mean). Use `odeint`, which evaluates it once, or let it depend on t and y alone"
        ) from None


@contextlib.contextmanager
def words_of_the_backward_solve(sign: float) -> Iterator[None]:
    """The same of the backward pass of `odeint_adjoint` where its arguments ask for a solve."""
    try:
        with callers_words():
            yield
    except SolveError as error:
        stats, failed = error.stats, Failure(error.status, sign * error.t, error.dt, "")
        detail = (
            " This was the backward solve that an `adjoint_…` argument or a callback of func asked for: without them "
            "the gradient is exact and needs none."
        )
        raise _reworded(SolveError(failed, stats), detail) from None
