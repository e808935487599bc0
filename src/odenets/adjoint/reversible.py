"""A step that can be taken back: the backward pass makes the states again instead of keeping them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from odenets import transforms
from odenets.adjoint.direct import clock_of
from odenets.adjoint.outside import (
    ByAutograd,
    Call,
    GradientSum,
    LinearizeAndSum,
    inner_product,
    outside_autograd,
    refuse_backward,
)
from odenets.adjoint.replay import check_start
from odenets.arguments import number
from odenets.evaluation import CountedField
from odenets.loop import Problem, Stepper, Trajectory, find_non_finite, stretch
from odenets.methods import Field, RungeKutta, Step, Time, combine, stage_times
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

    def __post_init__(self) -> None:
        coupling = number(
            "coupling", self.coupling, "in (0, 1]; 0.999 suits up to 1000s of steps", lambda x: 0 < x <= 1
        )
        object.__setattr__(self, "coupling", coupling)  # it is frozen, and still being made

    def integrate(self, problem: Problem) -> Trajectory:
        _refuse_dense(problem)
        return outside_autograd(problem, ReversibleSolve, self.coupling, self._without_gradient)

    def integrate_openly(self, problem: Problem) -> Trajectory:
        _refuse_dense(problem)
        return _march(problem, self.coupling, None, clock_of(problem)).trajectory

    def _without_gradient(self, problem: Problem, f0: Tensor | None) -> Trajectory:
        return _march(problem, self.coupling, f0).trajectory


def _refuse_dense(problem: Problem) -> None:
    if problem.dense:
        raise TypeError("`adjoint=Reversible()` keeps no dense output: pass the times that are wanted in `t`")


@dataclass(frozen=True)
class _Pair:
    """The reversible step, in the place of a method: its state is y and z, stacked."""

    base: RungeKutta
    coupling: float
    error_needs_f1: bool = False  # it is evaluated in the step, where z1 is not at hand any more

    @property
    def order(self) -> int:
        return self.base.order

    def step(self, f: Field, t: Time, pair: Tensor, dt: float, f0: Tensor | None) -> Step:
        y, z = pair.unbind()
        forth = self.base.step(f, t, z, dt, f0)
        y1 = self.coupling * y + (1 - self.coupling) * z + combine(None, dt, self.base.b, forth.stages)
        if self.base.error_needs_f1:
            forth = forth.with_f1(f)
        back = self.base.step(f, t + dt, y1, -dt, None)
        z1 = z - combine(None, -dt, self.base.b, back.stages)
        return Step(torch.stack([y1, z1]), forth.stages, forth.t1)

    def stage_input(self, i: int, pair: Tensor, dt: float, stages: Sequence[Tensor]) -> Tensor:
        return self.base.stage_input(i, pair[1], dt, stages)  # Ψ starts at z

    def error(self, dt: float, stages: Sequence[Tensor]) -> Tensor:
        return self.base.error(dt, stages)


class _Done(NamedTuple):
    """A step to be undone."""

    t: float
    dt: float
    final: bool  # it was cut to end on its output


@dataclass
class _Marched:
    trajectory: Trajectory
    steps: list[list[_Done]]  # those that lead to each output
    pair: Tensor


def _march(problem: Problem, coupling: float, f0: Tensor | None, clock: Tensor | None = None) -> _Marched:
    """Solve from output to output; `clock` are the times, where derivatives to them go through the loop itself."""
    y0, times = problem.y0, problem.times
    pair = torch.stack([y0, y0])
    paired = replace(problem, method=cast(RungeKutta, _Pair(problem.method, coupling)))
    stepper = Stepper(paired, pair, times[0], None if clock is None else (clock[0], clock[0]))
    start = Stepper(problem, y0, times[0])
    start.f0 = f0
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
                steps[-1].append(_Done(taken.t, taken.dt, taken.final))
        if stepper.failure is not None:
            break
        ys.append(stepper.y[0])
        if _drifted(problem, *stepper.y):
            stepper.failure = Failure(Status.UNSTABLE_PAIR, stepper.t, stepper.dt or 0.0, "")
            ys.pop()
            break
    failure = stepper.failure
    if failure is None and not problem.controller.adaptive:
        failure = find_non_finite(paired, pair, stepper.y)
    return _Marched(Trajectory(torch.stack(ys), [], failure), steps, stepper.y)


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


def _set_off(problem: Problem, stepper: Stepper, clock: Tensor, j: int) -> None:
    """Let the derivatives of the times go on to output j: by a step of no length where it is at the present time."""
    start, _ = stepper.clock or (clock[0], clock[0])
    if problem.times[j] == stepper.t:
        (t,) = stage_times(problem.at(start), 0.0, (0.0,), stepper.y)
        stepper.y = stepper.y + (clock[j] - start) * stepper.f(t, stepper.y[0])
        start = clock[j]
    stepper.clock = (start, clock[j])


class ReversibleSolve(torch.autograd.Function):
    """The loop without a memory, and its steps taken back."""

    @staticmethod
    def forward(ctx: Any, call: Call, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        marched = _march(replace(call.problem, y0=y0.detach()), call.extra, call.f0)
        call.trajectory = marched.trajectory
        ctx.call, ctx.steps = call, marched.steps
        ctx.save_for_backward(marched.pair, t, y0, call.f0, *tensors)
        return (marched.trajectory.ys,)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_backward("Reversible", grad_outputs)
        (grad_ys,) = grad_outputs
        call: Call = ctx.call
        pair, t, y0, f0 = ctx.saved_tensors[:4]
        pass_ = _BackwardPass(call, pair, t if ctx.needs_input_grad[2] else None)
        with call.then:
            for j in reversed(range(1, len(grad_ys))):
                pass_.take_up(j, grad_ys[j])
                if not ctx.steps[j]:
                    pass_.stand_still(j)
                for step in reversed(ctx.steps[j]):
                    pass_.undo(j, step)
            check_start("Reversible", call.problem, y0.detach(), f0)
        grad_y0 = pass_.finish() + grad_ys[0]
        return None, grad_y0, pass_.grad_t, *pass_.grads.values


class _BackwardPass:
    """The pair of states on its way back, with its cotangents."""

    def __init__(self, call: Call, pair: Tensor, t: Tensor | None) -> None:
        self.problem, self.coupling = call.problem, call.extra
        self.y, self.z = pair.unbind()
        self.y_bar, self.z_bar = torch.zeros_like(self.y), torch.zeros_like(self.z)
        self.grads = GradientSum(len(call.wanted.tensors))
        self.grad_t = None if t is None else torch.zeros_like(t)
        self.lam_t: Any = 0.0  # ∂L/∂t at the start of the step undone last
        self.lam_span: Any = 0.0  # ∂L/∂(the interval's length) by the steps that have a share in it
        self.stats = Stats()
        self.f = CountedField(self.problem.f, self.stats)
        self.linearize = LinearizeAndSum(ByAutograd(self.f, call, t is not None), self.grads)

    def take_up(self, j: int, grad_y: Tensor) -> None:
        self.y_bar = self.y_bar + grad_y
        if self.grad_t is not None:
            self.grad_t[j] += self.lam_t
            self.lam_t = 0.0

    def stand_still(self, j: int) -> None:
        """Output j is at the time of the one before it: a step of no length."""
        if self.grad_t is None:
            return
        (t,) = stage_times(self.problem.at(self.problem.times[j]), 0.0, (0.0,), self.y)
        with torch.no_grad():
            rise = inner_product(self.y_bar + self.z_bar, self.f(t, self.y))
        self.grad_t[j] += rise
        self.lam_t = -rise

    def undo(self, j: int, step: _Done) -> None:
        t, dt, final = self.problem.at(step.t), step.dt, step.final
        base, c = self.problem.method, self.coupling
        inner = None if self.grad_t is None else inner_product
        stages, pulls = self.linearize.of_step(base, t + dt, self.y, -dt)
        z = self.z + combine(None, -dt, base.b, stages)
        total, t1_bar, back_bar = base.pullback(pulls, self.y, -dt, stages, -self.z_bar, None, inner)
        y1_bar = self.y_bar + total + self.z_bar
        stages, pulls = self.linearize.of_step(base, t, z, dt)
        y = (self.y - (1 - c) * z - combine(None, dt, base.b, stages)) / c
        total, t_bar, dt_bar = base.pullback(pulls, z, dt, stages, y1_bar, None, inner)
        self.y, self.z = y, z
        self.y_bar, self.z_bar = c * y1_bar, self.z_bar + total - c * y1_bar
        self._times(j, final, t_bar + t1_bar, dt_bar + t1_bar - back_bar)

    def _times(self, j: int, final: bool, t_bar: Any, dt_bar: Any) -> None:
        if self.grad_t is None:
            return
        if final:  # dt = t_j − t
            self.grad_t[j] += dt_bar
            t_bar = t_bar - dt_bar
        else:
            self.lam_span = self.lam_span + dt_bar + self.lam_t
        self.lam_t = self.lam_t + t_bar

    def finish(self) -> Tensor:
        """∂L/∂y0 through both states."""
        self.problem.stats.add_backward(self.stats.nfe)
        if self.grad_t is not None:
            self.grad_t[0] += self.lam_t
            stretch(self.grad_t, self.lam_span, self.problem.controller)
        return self.y_bar + self.z_bar
