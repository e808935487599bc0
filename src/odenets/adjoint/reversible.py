"""A step that can be taken back: the backward pass makes the states again instead of keeping them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from odenets import transforms
from odenets.arguments import number
from odenets.engine.clock import TimeBars, stretch
from odenets.engine.eager import clock_of
from odenets.engine.engines import Engine, applied
from odenets.engine.going import Going, failure_of_fixed_steps
from odenets.engine.tape import Accepted
from odenets.evaluation import FieldInPieces
from odenets.methods import Carry, Field, Method, RungeKutta, Step, Time, combine, stage_times
from odenets.problem import Problem, Trajectory
from odenets.pullback.by_autograd import ByAutograd, GradientSum, Summed, Wanted, inner_product
from odenets.pullback.function import Outside, Prepared, prepare
from odenets.pullback.replay import check_start
from odenets.solution import Failure, Stats, Status


@dataclass(frozen=True)
class Reversible:
    """Solve with a pair of states whose step can be inverted, and invert it in the backward pass.

    The method of `solve` becomes the base of a reversible one: beside y goes z, with z(t0) = y0, and

        y1 = λ y + (1 − λ) z + Ψ(t, z, dt),    z1 = z − Ψ(t + dt, y1, −dt),

    where Ψ is what a step of the base adds. It has the base's order, and its own numbers: not those of the base.

    When to use: long solves for which even `Checkpointed(memory=...)` is too much or too slow: memory is two states,
    whatever the number of steps, and the gradient is that of what was computed. When not: each step costs two steps
    of the base, forward and backward; where f decays fast beside the steps (rate · dt of about 1) the pair is unstable,
    which fails; rounding errors grow by λ^(−steps) on the way back; outputs cut steps, so many
    of them cost steps; second derivatives and dense output raise.

    Args:
        coupling: λ in (0, 1]: below 1 damps the difference of y and z, which stability wants, and amplifies rounding
            on the way back, so the nearer to 1 the more steps.

    Raises:
        ValueError: If `coupling` lies outside (0, 1].
        TypeError: In the solve, with `dense=True`.

    Source: McCallum and Foster, "Efficient, accurate and stable gradients for neural ODEs", arXiv 2410.11648 (2024).
    """

    coupling: float = 0.999

    interpolates = False

    def __post_init__(self) -> None:
        coupling = number(
            "coupling", self.coupling, "in (0, 1]; 0.999 suits up to 1000s of steps", lambda x: 0 < x <= 1
        )
        object.__setattr__(self, "coupling", coupling)  # it is frozen, and still being made

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        if engine.open:
            return _solve(problem, self.coupling, None, clock_of(problem)).trajectory
        prepared = prepare(problem)
        if not prepared.differentiable:
            with torch.no_grad():
                return _solve(prepared.problem, self.coupling, prepared.f0).trajectory
        solve = _TakenBack(prepared, self.coupling)
        return solve.finished(*applied(solve, prepared))


@dataclass(frozen=True)
class _Pair(Method):
    """The reversible step as a method: its state is y and z, stacked; its parts are the stages of the base's from z."""

    base: RungeKutta
    coupling: float

    @staticmethod
    def of(base: RungeKutta, coupling: float) -> "_Pair":
        return _Pair(base.name, base.order, base, coupling)

    @property
    def adaptive(self) -> bool:
        return self.base.adaptive

    @property
    def error_needs_all(self) -> bool:
        return False  # the step has evaluated f1 where the error needs it, since z1 is not at hand any more

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        y, z = y.unbind()
        forth = self.base.step(f, t, z, dt, carry)
        if forth.trouble is not None:
            return forth
        y1 = self.coupling * y + (1 - self.coupling) * z + combine(None, dt, self.base.b, forth.parts)
        if self.base.error_needs_all:
            forth = self.base.complete(f, forth)
        back = self.base.step(f, t + dt, y1, -dt, ())
        if back.trouble is not None:
            return back
        z1 = z - combine(None, -dt, self.base.b, back.parts)
        return Step(torch.stack([y1, z1]), forth.parts, forth.t1)

    def carry(self, step: Step) -> Carry:
        return ()

    def carry_again(self, step: Step, carry: Carry) -> Carry:
        return self.base.carry_again(step, carry)

    def evaluated_at(self, i: int, y: Tensor, dt: float | Tensor, step: Step) -> Tensor:
        return self.base.evaluated_at(i, y[1], dt, step)

    def error(self, dt: float | Tensor, parts: Sequence[Tensor]) -> Tensor:
        return self.base.error(dt, parts)


@dataclass
class _Solved:
    trajectory: Trajectory
    steps: list[list[Accepted]]  # those that lead to each output
    pair: Tensor


def _solve(problem: Problem, coupling: float, f0: Tensor | None, clock: Tensor | None = None) -> _Solved:
    """Solve from output to output; `clock` are the times, where derivatives to them go through the loop itself."""
    y0, times = problem.y0, problem.times
    pair = torch.stack([y0, y0])
    paired = replace(problem, method=_Pair.of(cast(RungeKutta, problem.method), coupling))
    stepper = Going(paired, pair, times[0], None if clock is None else (clock[0], clock[0]))
    start = Going(problem, y0, times[0])
    start.carry = () if f0 is None else problem.method.begin(f0)
    start.choose_first_step(times[-1])
    stepper.dt, stepper.failure = start.dt, start.failure
    ys, steps = [y0], [[]]
    for j, t in enumerate(times[1:], 1):
        steps.append([])
        if clock is not None:
            _set_off(problem, stepper, clock, j)
        while stepper.t < t and stepper.failure is None:
            taken = stepper.advance(t)
            if taken is not None:
                steps[-1].append(Accepted(taken.t, taken.dt, taken.final, taken.stopped))
                if problem.told is not None:
                    stepper.tell(problem.told, taken, stepper.t)
        if stepper.failure is not None:
            break
        ys.append(stepper.y[0])
        if _drifted(problem, *stepper.y):
            stepper.failure = Failure(Status.UNSTABLE_PAIR, stepper.t, stepper.dt or 0.0, "")
            ys.pop()
            break
    failure = stepper.failure
    if failure is None and not problem.controller.adaptive:
        failure = failure_of_fixed_steps(paired, pair, stepper.y)
    return _Solved(Trajectory(torch.stack(ys), failure=failure), steps, stepper.y)


@torch.no_grad()
def _drifted(problem: Problem, y: Tensor, z: Tensor) -> bool:
    """Whether the two states, which solve one problem, lie far apart: beside their size, and beside the tolerances."""
    if transforms.is_recorded():
        return False  # nobody looks
    apart = transforms.value_of((y - z).abs().max()) if y.numel() else 0.0
    size = transforms.value_of(torch.maximum(y.abs(), z.abs()).max()) if apart else 0.0
    if not problem.controller.adaptive:
        return apart > size
    return apart > 0.05 * size and transforms.value_of(problem.controller.error_ratio(y, z, y - z)) > 100


def _set_off(problem: Problem, stepper: Going, clock: Tensor, j: int) -> None:
    """Let the derivatives of the times go on to output j: by a step of no length where it is at the present time."""
    start, _ = stepper.clock or (clock[0], clock[0])
    if problem.times[j] == stepper.t:
        (t,) = stage_times(problem.at(start), 0.0, (0.0,), stepper.y)
        stepper.y = stepper.y + (clock[j] - start) * stepper.f(t, stepper.y[0])
        start = clock[j]
    stepper.clock = (start, clock[j])


@dataclass
class _TakenBack(Outside):
    """The loop without a memory, and its steps taken back."""

    prepared: Prepared
    coupling: float
    name: str = "`adjoint=Reversible()`"

    def __post_init__(self) -> None:
        self.then, self.wanted = self.prepared.then, Wanted(self.prepared.reached)

    def forward(self, y0: Tensor, t: Tensor, tensors: Sequence[Tensor], timed: bool) -> tuple[Tensor, ...]:
        f0, self.prepared.f0 = self.prepared.f0, None
        if f0 is None:
            raise RuntimeError("f has not been evaluated at the start")
        solved = _solve(replace(self.prepared.problem, y0=y0), self.coupling, f0)
        self._trajectory, self.steps, self.timed = solved.trajectory, solved.steps, timed
        self._kept = [solved.pair, y0, f0]
        return (solved.trajectory.ys,)

    def backward(
        self, t: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor], bars: Sequence[Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
        (pair, y0, f0), (grad_ys,) = kept, bars
        sweep = _Sweep(self, pair, t)
        for j in reversed(range(1, len(grad_ys))):
            sweep.take_up(j, grad_ys[j])
            if not self.steps[j]:
                sweep.stand_still(j)
            for step in reversed(self.steps[j]):
                sweep.undo(j, step)
        check_start(self.name, self.prepared.problem, y0, f0)
        return sweep.finish() + grad_ys[0], sweep.grad_t, sweep.grads.values


class _Sweep:
    """The pair of states on its way back, with its cotangents."""

    def __init__(self, solve: _TakenBack, pair: Tensor, t: Tensor) -> None:
        self.problem, self.coupling = solve.prepared.problem, solve.coupling
        self.y, self.z = pair.unbind()
        self.y_bar, self.z_bar = torch.zeros_like(self.y), torch.zeros_like(self.z)
        self.grads = GradientSum(len(solve.wanted.tensors))
        self.grad_t = torch.zeros_like(t) if solve.timed else None
        self.times = TimeBars()
        self.stats = Stats()
        self.f = FieldInPieces(self.problem, self.stats, self.problem.times[-1])
        pullback = ByAutograd(self.f, solve.prepared.reached, solve.wanted, solve.timed)
        self.tracked = Summed(pullback, self.grads)

    def take_up(self, j: int, grad_y: Tensor) -> None:
        self.y_bar = self.y_bar + grad_y
        if self.grad_t is not None:
            self.grad_t[j] += self.times.t
            self.times = self.times._replace(t=0.0)

    def stand_still(self, j: int) -> None:
        """Output j is at the time of the one before it: a step of no length."""
        if self.grad_t is None:
            return
        (t,) = stage_times(self.problem.at(self.problem.times[j]), 0.0, (0.0,), self.y)
        with torch.no_grad():
            rise = inner_product(self.y_bar + self.z_bar, self.f(t, self.y))
        self.grad_t[j] += rise
        self.times = self.times._replace(t=-rise)

    def undo(self, j: int, step: Accepted) -> None:
        self.f.enter(step.t)
        t, dt = self.problem.at(step.t), step.dt
        base, c = cast(RungeKutta, self.problem.method), self.coupling
        inner = None if self.grad_t is None else inner_product
        back = base.remake(self.tracked, t + dt, self.y, -dt)
        z = self.z + combine(None, -dt, base.b, back.parts)
        total, t1_bar, back_bar = back.pull(-self.z_bar, None, inner, ())[:3]
        y1_bar = self.y_bar + total + self.z_bar
        forth = base.remake(self.tracked, t, z, dt)
        y = (self.y - (1 - c) * z - combine(None, dt, base.b, forth.parts)) / c
        total, t_bar, dt_bar = forth.pull(y1_bar, None, inner, ())[:3]
        self.y, self.z = y, z
        self.y_bar, self.z_bar = c * y1_bar, self.z_bar + total - c * y1_bar
        if self.grad_t is not None:
            self.times = self.times.before(t_bar + t1_bar, dt_bar + t1_bar - back_bar, step.final, step.stopped)
            self.grad_t[j] += self.times.end
            self.times = self.times._replace(end=0.0)

    def finish(self) -> Tensor:
        """∂L/∂y0 through both states."""
        self.problem.stats.add_backward(self.stats.nfe)
        if self.grad_t is not None:
            self.grad_t[0] += self.times.t
            stretch(self.grad_t, self.times.span, self.problem.controller)
        return self.y_bar + self.z_bar
