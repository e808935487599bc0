"""What a solve returns, and how it fails: `Solution`, `Stats`, `Status`, `SolveError`."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Status(Enum):
    """How a solve ended. The value is the sentence a person reads, with the remedy."""

    SUCCESS = "the solve reached its last time"
    EVENT = "an event ended the solve"
    MAX_STEPS = (
        "the solve took `max_steps` steps and did not reach its last time; raise `max_steps`, or loosen "
        "`rtol`/`atol`; if the steps are far smaller than the solution's own time scale, the problem is stiff for "
        "an explicit method: take an implicit one, `method='trbdf2'`"
    )
    STEP_SIZE_UNDERFLOW = (
        "the step size fell below what the time can resolve; f may be discontinuous here, or the tolerances are finer "
        "than y's dtype can represent: loosen `rtol`/`atol` or solve in float64; or the problem is stiff: take an "
        "implicit method, `method='trbdf2'`"
    )
    DT_MIN = (
        "the error asks for a step shorter than the controller's `dt_min`; lower `dt_min`, or loosen `rtol`/`atol`; if "
        "f is discontinuous here, name the time in `jumps`; if the problem is stiff, take an implicit method, "
        "`method='trbdf2'`"
    )
    DIVERGED = (
        "the solution grew without bound and the step size shrank, to nothing or beyond what `max_steps` allows: it "
        "probably blows up in finite time, or outgrows its dtype; end the solve earlier, or bound f (tanh, weight "
        "decay, smaller weights)"
    )
    NON_FINITE_FIELD = (
        "f returned NaN or infinity for a finite state; look for a division, logarithm or root in f, or for "
        "weights that are no longer finite"
    )
    NON_FINITE_STATE = (
        "the state became NaN or infinite although f was finite: the fixed steps are too large for this "
        "problem; take smaller ones, or a method that adapts its steps"
    )
    NOT_CONVERGED = (
        "the equations of an implicit step could not be solved, or have no solution; take smaller steps (more "
        "`steps` or a smaller `dt` in `controller=Fixed(...)`, a smaller 'step_size' in odenets.torchdiffeq), or solve "
        "in float64; where f is not smooth, an explicit method needs no such equations"
    )
    UNSTABLE_PAIR = (
        "the two states of `adjoint=Reversible()` drifted apart: its scheme is unstable where f decays fast beside the "
        "steps; take `adjoint=Checkpointed()`, or far smaller steps"
    )
    NO_EVENT = "the event that was to end the solve did not come; check its condition, and which way time runs"
    NON_FINITE_START = "`y0` contains NaN or infinity; check the input of the ODE layer and what precedes it"


@dataclass(frozen=True)
class Failure:
    """Where a solve stopped, in the caller's terms."""

    status: Status
    t: float  # the last time reached
    dt: float  # the step size that was tried there
    detail: str  # what was seen, with sample and component where that is known
    sample: int | None = None  # with `per_sample=True` the first that failed


class SolveError(RuntimeError):
    """A solve that did not reach its last time. `status`, `t`, `dt`, `failure` and `stats` say more than the text.

    Pass `on_failure="status"` to get the partial solution instead.
    """

    def __init__(self, failure: Failure, stats: "Stats") -> None:
        self.failure, self.stats = failure, stats
        self.status, self.t, self.dt = failure.status, failure.t, failure.dt
        steps, rejected = (int(torch.as_tensor(count).max()) for count in (stats.steps, stats.rejected))
        super().__init__(
            f"{failure.status.name} at t = {failure.t!r} with dt = {failure.dt:.3g}: {failure.status.value}. "
            f"{failure.detail} ({steps} steps, {rejected} rejected, nfe {stats.nfe})"
        )

    def __reduce__(self) -> tuple[type, tuple]:
        """Made again from its parts, so that it comes out of a worker process."""
        return type(self), (self.failure, self.stats)


@dataclass
class Stats:
    """The effort of one solve, in counts.

    `nfe` evaluations of f in the forward pass; `steps` = `accepted` + `rejected`; `nfe_backward` evaluations of f
    in the backward pass: None before it has run, and with `Direct`, whose backward pass evaluates no f. `kept`: of how
    many of the accepted steps `Checkpointed` has kept all that their gradient needs, so that none of them is made
    again.

    With `per_sample=True`, `accepted`, `rejected` and `steps` are tensors (batch,) of each sample's own counts; an
    evaluation of f is one call, for all samples together, those included that have arrived.
    """

    nfe: int = 0
    accepted: Any = 0
    rejected: Any = 0
    nfe_backward: int | None = None
    kept: int = 0

    def add_backward(self, nfe: int) -> None:
        """Count evaluations of a backward pass."""
        self.nfe_backward = (self.nfe_backward or 0) + nfe

    def add(self, before: "Stats") -> None:
        """Count what was done before, too."""
        self.nfe, self.accepted = self.nfe + before.nfe, self.accepted + before.accepted
        self.rejected = self.rejected + before.rejected
        self.kept = self.kept + before.kept

    def reset(self) -> None:
        """Count anew."""
        self.nfe, self.accepted, self.rejected, self.nfe_backward, self.kept = 0, 0, 0, None, 0

    @property
    def steps(self) -> Any:
        return self.accepted + self.rejected


class Occurrences(NamedTuple):
    """When an event has happened: the times, (n,) in order, and the states there, (n, *y0.shape) in y0's structure.

    Of a state that a `jump` has changed it is the one before. With `per_sample=True` those of one sample come after the
    other; `sample`, (n,), is whose each is, and the states are (n, *y0.shape[1:]).
    """

    t: Tensor
    y: Any
    sample: Tensor | None = None


@dataclass(frozen=True)
class Solution:
    """The solution of an initial value problem at the times asked for.

    Attributes:
        ts: The times as they were given, (T,), or (batch, T) where each sample has its own, or its own end by an event.
            Behind an event that has ended the solve they are its time.
        ys: The states there, (T, *y0.shape), in y0's structure. NaN from a failure on (`on_failure="status"`).
        stats: Counts of evaluations and steps.
        status: `Status.SUCCESS`, `Status.EVENT` where an event has ended the solve, or what went wrong.
        failure: Where and how it went wrong; None after success.
        statuses: With `per_sample=True`, the status of each sample.
        events: For each of `event`, its `Occurrences`: t and y.
    """

    ts: Tensor
    ys: Any
    stats: Stats
    status: Status
    failure: Failure | None = None
    interpolant: Callable[[Any], Any] | None = None
    statuses: tuple[Status, ...] | None = None
    events: tuple[Occurrences, ...] = ()

    def __call__(self, t: Any) -> Any:
        """The state at any time of the solved interval: t a number or a tensor of any shape; (*t.shape, *y0.shape).

        With `per_sample=True` t is a number, times (K,) of all samples, or (batch, K), a row of times for each: the
        states are (K, *y0.shape), as `ys` is for such times.

        Needs `solve(..., dense=True)`. Accurate to the order of the method, differentiable where `ys` is.

        Raises:
            TypeError: If the solve kept no dense output.
            ValueError: If a time lies outside the solved interval.
        """
        if self.interpolant is None:
            raise TypeError("this solution has no dense output: pass `dense=True` to solve()")
        return self.interpolant(t)
