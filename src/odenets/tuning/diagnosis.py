"""What `diagnose` returns: its numbers, the table of them, and the sentences that follow from them."""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from odenets.solution import Failure
from odenets.table import aligned

RESOLVED = 1e-2  # relative change of the output under another solver up to which the layer is an ODE
REVERSIBLE = 1e-2  # error of the start solved backward that a replication of Chen et al. (ReScience C) asks for
_STABILITY = 1.0  # decay × step from which stability holds the step: explicit methods end between 2 and 6
_STIFF = 20.0  # decay × interval below which stability costs no more than a few steps
_REJECTED = 0.2  # share of the steps
_IDLE = 1e-6  # a change under a finer solver that is far below what a training can see
_MANY = 100  # evaluations of f
_GROWTH = 1e3  # of a difference between two inputs


@dataclass(frozen=True)
class Point:
    """The field at one time: the largest of each number over the samples (`odenets.spectrum.Spectrum`).

    `step` is the size of the step that the solver takes there.
    """

    t: float
    step: float
    lipschitz: float
    log_norm: float
    decay: float


@dataclass(frozen=True)
class Change:
    """‖output − that of another solver‖ / ‖output‖; NaN with a `note` where there is none."""

    solver: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Printed, it is a table and what follows from it.

    Attributes:
        layer: The solver, the interval and the state, in words.
        points: The field along the trajectories, at times from the first to the last.
        steps: (t, size) of every accepted step.
        estimate: How the numbers of `points` were found, in words.
        nfe, accepted, rejected: The counts of the forward pass; with `per_sample` those of the slowest sample.
        interval: The length of the solve in time.
        explicit: Whether the method is an explicit one.
        finer: The change of the module's output with a hundredth of the tolerance, or half the step.
        other: The same with a method of another order, with the same tolerance or step.
        reconstruction: ‖z(t0) solved backward from z(t_N) − z(t0)‖ / ‖z(t0)‖; infinite where that solve fails, NaN
            where there is no z(t_N).
        failure: Where and how the solve fails; None where it does not.
    """

    layer: str
    points: tuple[Point, ...]
    steps: tuple[tuple[float, float], ...]
    estimate: str
    nfe: int
    accepted: int
    rejected: int
    interval: float
    explicit: bool
    finer: Change
    other: Change
    reconstruction: float
    failure: Failure | None = None

    @property
    def lipschitz(self) -> float:
        """The largest ‖∂f/∂y‖₂ along the trajectories; NaN where nothing is known."""
        return _largest(point.lipschitz for point in self.points)

    @property
    def log_norm(self) -> float:
        """The one-sided Lipschitz constant: the largest eigenvalue of the symmetric part of ∂f/∂y."""
        return _largest(point.log_norm for point in self.points)

    @property
    def stiffness(self) -> float:
        """The fastest decay times the interval: about three times the steps that stability alone costs."""
        return max(0.0, _largest(point.decay for point in self.points)) * self.interval

    @property
    def resolved(self) -> bool:
        """Whether it is an ODE rather than a residual network: another solver changes the output by at most 1 %."""
        return self.finer.value <= RESOLVED and self.other.value <= RESOLVED

    @property
    def recommendation(self) -> str:
        """What to do, a sentence or two a line."""
        return "\n".join(_sentences(self))

    def __str__(self) -> str:
        rows = [_HEAD, *(tuple(f"{x:.4g}" for x in vars(point).values()) for point in self.points)]
        return "\n".join([self.layer, *aligned(rows, range(len(_HEAD))), *self._facts(), self.recommendation])

    def _facts(self) -> Iterator[str]:
        yield from aligned([*self._numbers(), *self._comparisons()])

    def _numbers(self) -> Iterator[tuple[str, str]]:
        yield "Lipschitz constant", f"{self.lipschitz:.4g}, by {self.estimate}"
        yield "one-sided Lipschitz constant", f"{self.log_norm:.4g}"
        yield "stiffness (fastest decay × interval)", f"{self.stiffness:.4g}"
        yield "forward pass", f"nfe {self.nfe}, {self.accepted} steps, {self.rejected} rejected"
        if self.steps:
            (first, small), (last, large) = (f(self.steps, key=lambda step: step[1]) for f in (min, max))
            yield "step sizes", f"from {small:.3g} (t = {first:.3g}) to {large:.3g} (t = {last:.3g})"

    def _comparisons(self) -> Iterator[tuple[str, str]]:
        for change in (self.finer, self.other):
            yield f"change under {change.solver}", change.note or f"{change.value:.1e}"
        yield "error of the start solved backward", f"{self.reconstruction:.1e}"


_HEAD = ("t", "step", "Lipschitz", "one-sided", "decay")


def _largest(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return max(known) if known else math.nan


# What follows.


def _sentences(found: Diagnosis) -> Iterator[str]:
    """One sentence or two for each thing that the numbers say."""
    if found.failure is not None:
        failure = found.failure
        yield f"The solve fails at t = {failure.t:.3g}: {failure.status.value}. {failure.detail}".strip()
        yield from _on_stiffness(found)
        return
    yield _on_resolution(found)
    yield from _on_stiffness(found)
    yield from _on_growth(found)
    yield from _on_the_steps(found)
    yield _on_the_way_back(found)


def _on_resolution(found: Diagnosis) -> str:
    for change in (found.finer, found.other):
        if change.value > RESOLVED:
            return (
                f"A residual network in the guise of an ODE: under {change.solver} the output changes by "
                f"{change.value:.1%}. Keep exactly this solver wherever the layer is used, or train on with a finer "
                "one, until the change is below 1 %."
            )
    worst = max((change.value for change in (found.finer, found.other) if not change.note), default=math.nan)
    lacking = next((change for change in (found.finer, found.other) if change.note), None)
    if lacking is not None:
        return f"Whether it is an ODE is open: under {lacking.solver} there is no output to compare ({lacking.note})."
    return f"An ODE, resolved: other solvers change the output by at most {worst:.1e}."


def _on_stiffness(found: Diagnosis) -> Iterator[str]:
    step = statistics.median(size for _, size in found.steps) if found.steps else math.nan
    decay = found.stiffness / found.interval if found.interval else 0.0
    if found.explicit and found.stiffness >= _STIFF and decay * step >= _STABILITY:
        yield (
            f"Stiff: decay × step is {decay * step:.2g}, so stability holds the steps and not accuracy. Take an "
            "implicit method, `method='trbdf2'`, or train with `regularise=\"jacobian\"`."
        )
    elif found.nfe > _MANY and found.failure is None:
        yield (
            f"Expensive: {found.nfe} evaluations of f for Lipschitz constant × interval "
            f'{found.lipschitz * found.interval:.3g}. Training with `regularise=("kinetic", "jacobian")` or weight '
            "decay keeps a field easier to solve."
        )


def _on_growth(found: Diagnosis) -> Iterator[str]:
    growth = _growth(found)
    if growth > math.log(_GROWTH):
        yield (
            f"Expanding: a difference between two inputs may grow by a factor of up to e^{growth:.0f}, and so may an "
            'error at the start. Weight decay or `regularise="jacobian"` bounds it.'
        )


def _growth(found: Diagnosis) -> float:
    """∫ of the one-sided Lipschitz constant, by the trapezoidal rule."""
    pairs = zip(found.points, found.points[1:])
    return sum(abs(b.t - a.t) * (a.log_norm + b.log_norm) / 2 for a, b in pairs)


def _on_the_steps(found: Diagnosis) -> Iterator[str]:
    if found.rejected > _REJECTED * (found.accepted + found.rejected):
        yield (
            f"{found.rejected} of {found.accepted + found.rejected} steps are rejected: "
            "`controller=PID(p=0.4, i=0.3)` chooses smoother ones."
        )
    if found.resolved and found.finer.value < _IDLE and found.accepted > 1:
        yield "More accurate than anything shows: `odenets.tune` finds a looser tolerance or fewer steps."


def _on_the_way_back(found: Diagnosis) -> str:
    if found.reconstruction <= REVERSIBLE:
        return f"The state can be solved backward ({found.reconstruction:.1e}): `Backsolve` has what it needs."
    return (
        f"The state cannot be solved backward (error {found.reconstruction:.1e}, wanted {REVERSIBLE:g}): do not take "
        "`Backsolve`, whose gradient would be wrong; `Checkpointed` and `Direct` solve nothing backward."
    )
