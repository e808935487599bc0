"""Keep the accepted steps and replay them in reverse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets.adjoint.marched import march_compiled, march_samples
from odenets.adjoint.outside import (
    ByAutograd,
    Call,
    GradientSum,
    LinearizeAndSum,
    inner_product,
    outside_autograd,
    plus,
    refuse_second_derivative,
)
from odenets.loop import CountedField, Kept, Problem, Trajectory, run
from odenets.solution import Stats


@dataclass(frozen=True)
class Checkpointed:
    """Keep the accepted steps, replay each in the backward pass (the default).

    When to use: always, unless you need second derivatives. Exact: the same gradient as `Direct`, to rounding.
    Memory: one state a step, and the activations of one step; it does not grow with the evaluations of f.
    Cost: the backward pass evaluates f again, once for each stage of each accepted step, never for a rejected one.
    With `compile=True` the stages of a step are kept too where they take no more than 4 MiB, which spares the
    evaluations that would make them again; and wherever states inside the interval are wanted.
    When not: for a field that draws random numbers (the replay would draw others); second derivatives raise.

    Source: checkpointing of a time-stepping loop, Griewank and Walther, *Evaluating Derivatives* (2008), chapter 12;
    for ODE-Nets, Zhuang et al., "Adaptive checkpoint adjoint method", ICML 2020.
    """

    def integrate(self, problem: Problem) -> Trajectory:
        trajectory = march_compiled(problem) if problem.compile else None
        if trajectory is not None:
            return trajectory
        problem = replace(problem, compile=False)
        if problem.per_sample:
            return march_samples(problem)
        return outside_autograd(problem, _Replay, keep=True)


class _Replay(torch.autograd.Function):
    """The loop, and its reverse: each accepted step again, with grad, from the last to the first."""

    @staticmethod
    def forward(ctx: Any, call: Call, keep: bool, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        trajectory = run(call.problem, y0.detach(), call.f0, keep=keep, timed=ctx.needs_input_grad[3])
        call.trajectory = trajectory
        ctx.call = call
        ctx.kept = [kept._replace(y=_NOTHING) for kept in trajectory.kept]
        ctx.count = len(tensors)
        ctx.save_for_backward(t, *tensors, *(kept.y for kept in trajectory.kept))
        trajectory.kept = []
        if not trajectory.dense:
            return (trajectory.ys,)
        return trajectory.ys, *(torch.stack(column) for column in zip(*((d.y, d.stages) for d in trajectory.dense)))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("Checkpointed")
        grad_ys, *grad_dense = grad_outputs
        t, *saved = ctx.saved_tensors
        states = saved[ctx.count :]
        pass_ = _ReversePass(ctx.call, t if ctx.needs_input_grad[3] else None, grad_ys, grad_dense)
        with ctx.call.autocast:
            for k in reversed(range(len(states))):
                pass_.undo(k, ctx.kept[k]._replace(y=states[k]))
        grad_y0 = pass_.finish()
        return None, None, grad_y0, pass_.grad_t, *pass_.grads.values


_NOTHING = torch.empty(0)


class _ReversePass:
    """The running cotangents of a reverse sweep over the kept steps."""

    def __init__(self, call: Call, t: Tensor | None, grad_ys: Tensor, grad_dense: Sequence[Tensor]) -> None:
        self.problem, self.call = call.problem, call
        self.grad_ys, self.grad_dense = grad_ys, grad_dense
        self.lam: Tensor | None = None  # ∂L/∂y at the end of the step about to be undone
        self.grads = GradientSum(len(call.wanted.tensors))
        self.timed = t is not None
        self.grad_t = None if t is None else torch.zeros_like(t)
        self.lam_t: Tensor | float = 0.0  # ∂L/∂t at the end of that step, the time being the sum of the steps so far
        self.stats = Stats()
        by_autograd = ByAutograd(CountedField(self.problem.f, self.stats), call, self.timed)
        self.linearize = LinearizeAndSum(by_autograd, self.grads)

    def undo(self, k: int, kept: Kept) -> None:
        """Pull the cotangents back through step k."""
        lam = self.lam
        for j in kept.ends:
            lam = plus(lam, self.grad_ys[j])
        if lam is None and not kept.inside and not self.grad_dense:
            return
        method, (t, dt, y) = self.problem.method, kept[:3]
        with_f1 = bool(kept.inside or self.grad_dense)
        stages, pulls = method.linearize(self.linearize, t, y, dt, with_f1=with_f1)
        inner = inner_product if self.timed else None
        stage_bars, direct, t_bar, dt_bar = self._outputs(k, kept, stages, inner)
        lam = torch.zeros_like(y) if lam is None else lam
        lam, d_t, d_dt = method.pullback(pulls, y, dt, stages, lam, stage_bars, inner)
        for bar in direct:
            lam = lam + bar
        self.lam = lam
        if self.timed:
            self._time_cotangents(kept, t_bar + d_t, dt_bar + d_dt)

    def finish(self) -> Tensor:
        """∂L/∂y0, with the outputs that are y0 itself."""
        self.problem.stats.nfe_backward = (self.problem.stats.nfe_backward or 0) + self.stats.nfe
        if self.grad_t is not None:
            self.grad_t[0] += self.lam_t
        reached = 1 if self.timed else self.problem.times.count(self.problem.times[0])
        return plus(self.lam, self.grad_ys[:reached].sum(0))

    def _outputs(
        self, k: int, kept: Kept, stages: Sequence[Tensor], inner: Any
    ) -> tuple[list[Tensor] | None, list[Tensor], Any, Any]:
        """What the outputs inside the step, and dense output, give to its stages, its y, its t and its dt."""
        bars = list(self.grad_dense[1][k].unbind()) if self.grad_dense else None
        direct = [self.grad_dense[0][k]] if self.grad_dense else []
        t_bar: Any = 0.0
        dt_bar: Any = 0.0
        for j in kept.inside:
            theta = (self.problem.times[j] - kept.t) / kept.dt
            given, rise, d_dt = self.problem.method.pull_output(kept.dt, stages, theta, self.grad_ys[j], inner)
            bars = given if bars is None else [bar + more for bar, more in zip(bars, given)]
            direct.append(self.grad_ys[j])
            t_bar, dt_bar = t_bar - rise, dt_bar + d_dt
            if self.grad_t is not None:
                self.grad_t[j] += rise
        return bars, direct, t_bar, dt_bar

    def _time_cotangents(self, kept: Kept, t_bar: Any, dt_bar: Any) -> None:
        if self.grad_t is None:
            return
        if kept.final:  # dt = t_end − t
            self.grad_t[-1] += dt_bar
            self.lam_t = t_bar - dt_bar
        else:  # t_next = t + dt, dt constant
            self.lam_t = self.lam_t + t_bar
