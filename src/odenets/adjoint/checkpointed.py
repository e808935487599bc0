"""Keep the accepted steps and replay them in reverse."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets.adjoint.direct import integrate_openly
from odenets.adjoint.marched import march_compiled, march_samples
from odenets.adjoint.outside import (
    ByAutograd,
    Call,
    GradientSum,
    LinearizeAndSum,
    inner_product,
    outside_autograd,
    plus,
    refuse_backward,
)
from odenets.adjoint.replay import SameAgain
from odenets.arguments import shown
from odenets.evaluation import CountedField
from odenets.loop import Kept, Problem, Tape, Trajectory, reversal, run, stretch
from odenets.solution import Stats

_SMALL = 4 * 2**20  # bytes that a step of a compiled loop keeps beside its state rather than make them again


@dataclass(frozen=True)
class Checkpointed:
    """Keep the accepted steps, replay each in the backward pass (the default).

    When to use: always, unless you need second derivatives. Exact: the same gradient as `Direct`, to rounding.
    Memory: one state a step, or no more than `memory`; and the activations of one step. It does not grow with the
    evaluations of f.
    Cost: the backward pass evaluates f again, once for each stage of each accepted step, never for a rejected one;
    with `memory`, also to make the states again that were not kept: n steps cost about n r evaluations of the step
    more, where r is the least number with (k + r)! / (k! r!) ≥ n and k is half the states that may be kept.
    With `compile=True` and without `memory`, the stages of a step are kept too, and the activations of f that its
    pullback reads, where together they take no more than 4 MiB a step: then nothing is evaluated again. Stages are
    kept wherever states inside the interval are wanted. There, and with `per_sample=True`, `memory` holds pieces of
    many steps: at least one with its stages, 2 s + 6 states.
    When not: for a field that draws random numbers or changes a state of its own (dropout, a counter): its replay ends
    elsewhere, which raises a `ReplayError`; second derivatives raise.

    Args:
        memory: The most states that are kept at any time beside y0 and the outputs: a number of states, or bytes as
            text ("64 MiB", "1.5 GB"). None: as many as there are steps. About log2(number of steps) states cost
            that many times the evaluations of a forward pass; 1 is allowed, and slow.

    Raises:
        ValueError: If `memory` is not a number of states ≥ 1 or a size in bytes; in the solve, if the bytes do not
            hold one state.

    Source: checkpointing of a time-stepping loop, Griewank and Walther, *Evaluating Derivatives* (2008), chapter 12,
    with states kept at a doubling spacing while the number of steps is not known; for ODE-Nets, Zhuang et al.,
    "Adaptive checkpoint adjoint method", ICML 2020.
    """

    memory: int | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.memory, str):
            _bytes(self.memory)
        elif self.memory is not None and (not _is_count(self.memory)):
            raise ValueError(
                f"`memory` must be a number of states ≥ 1, or bytes such as '64 MiB', got {shown(self.memory)}"
            )

    def integrate(self, problem: Problem) -> Trajectory:
        states = self._states(problem.y0)
        most = _SMALL if states is None else 0
        trajectory = march_compiled(problem, states, most) if problem.compile else None
        if trajectory is not None:
            return trajectory
        problem = replace(problem, compile=False)
        if problem.per_sample:
            return march_samples(problem, states)
        return outside_autograd(problem, CheckpointedSolve, states)

    def integrate_openly(self, problem: Problem) -> Trajectory:
        return integrate_openly(problem)

    def _states(self, y: Tensor) -> int | None:
        """How many states may be kept."""
        if not isinstance(self.memory, str):
            return self.memory
        size = y.numel() * y.element_size()
        count = _bytes(self.memory) // size
        if count < 1:
            raise ValueError(f"`memory={self.memory!r}` does not hold one state of {size} bytes; allow more")
        return count


def _is_count(memory: Any) -> bool:
    return isinstance(memory, int) and not isinstance(memory, bool) and memory >= 1


_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?|)B\s*", text.upper())
    if found is None:
        raise ValueError(
            f"`memory` must be bytes such as '64 MiB' or '1.5 GB', or a number of states, got {shown(text)}"
        )
    return int(float(found[1]) * _UNITS[found[2]])


class CheckpointedSolve(torch.autograd.Function):
    """The loop, and its reverse: each accepted step again, with grad, from the last to the first."""

    @staticmethod
    def forward(ctx: Any, call: Call, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        states = call.extra
        # Half of them: the other half makes the states between them again.
        tape: Tape[Kept, Tensor] = Tape(None if states is None else states // 2)
        timed = ctx.needs_input_grad[2]
        trajectory = run(call.problem, y0.detach(), call.f0, tape=tape, timed=timed)
        call.trajectory = trajectory
        ctx.call = call
        ctx.steps, ctx.places = tape.steps, list(tape.states)
        ctx.count = len(tensors)
        ctx.save_for_backward(t, *tensors, tape.end, *tape.states.values())
        if not trajectory.dense:
            return (trajectory.ys,)
        dense = [torch.stack(column) for column in zip(*((d.y, d.stages) for d in trajectory.dense))]
        if timed:
            clock = [(d.t, d.dt) for d in trajectory.dense]
            dense.append(torch.tensor(clock, dtype=torch.float64, device=y0.device))
        return trajectory.ys, *dense

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_backward("Checkpointed", grad_outputs)
        grad_ys, *grad_dense = grad_outputs
        t, *saved = ctx.saved_tensors
        end, *states = saved[ctx.count :]
        states = dict(zip(ctx.places, states))
        call: Call = ctx.call
        pass_ = _ReversePass(call, t if ctx.needs_input_grad[2] else None, end, grad_ys, grad_dense)
        free = 0 if call.extra is None else call.extra - (len(states) - 1)  # without a bound every state is there
        passing = grad_ys[0]  # from then on the state that the last move has reached
        with call.then:
            for start, end, keep in reversal(len(ctx.steps), ctx.places, free):
                y = states.get(start, passing)
                if start == end:
                    pass_.undo(start, ctx.steps[start], y)
                    states.pop(start, None)
                    continue
                passing = pass_.replay(ctx.steps[start:end], y)
                if keep:
                    states[end] = passing
        grad_y0 = pass_.finish()
        return None, grad_y0, pass_.grad_t, *pass_.grads.values


class _ReversePass:
    """The running cotangents of a reverse sweep over the kept steps."""

    def __init__(
        self, call: Call, t: Tensor | None, end: Tensor, grad_ys: Tensor, grad_dense: Sequence[Tensor]
    ) -> None:
        self.problem = call.problem
        self.end, self.same = end, SameAgain("Checkpointed")  # the state after the step about to be undone
        self.grad_ys, self.grad_dense = grad_ys, grad_dense
        self.lam: Tensor | None = None  # ∂L/∂y at the end of the step about to be undone
        self.grads = GradientSum(len(call.wanted.tensors))
        self.timed = t is not None
        self.grad_t = None if t is None else torch.zeros_like(t)
        self.lam_t: Tensor | float = 0.0  # ∂L/∂t at the end of that step, the time being the sum of the steps so far
        self.lam_span: Tensor | float = 0.0  # ∂L/∂(the interval's length) by the steps that have a share in it
        self.stats = Stats()
        self.f = CountedField(self.problem.f, self.stats)
        self.linearize = LinearizeAndSum(ByAutograd(self.f, call, self.timed), self.grads)

    @torch.no_grad()
    def replay(self, steps: Sequence[Kept], y: Tensor) -> Tensor:
        """The state after these steps."""
        for step in steps:
            y = self.problem.method.step(self.f, self.problem.at(step.t), y, step.dt, None).y
        return y

    def undo(self, k: int, kept: Kept, y: Tensor) -> None:
        """Pull the cotangents back through step k, which starts at y."""
        lam = self.lam
        for j in kept.ends:
            lam = plus(lam, self.grad_ys[j])
        if lam is None and not kept.inside and not self.grad_dense:
            self.end = y
            return
        method, t, dt = self.problem.method, self.problem.at(kept.t), kept.dt
        with_f1 = bool(kept.inside or self.grad_dense)
        stages, pulls = self.linearize.of_step(method, t, y, dt, with_f1)
        self.same.check(method.stage_input(len(method.b), y, dt, stages), self.end, y)
        inner = inner_product if self.timed else None
        stage_bars, direct, t_bar, dt_bar = self._outputs(k, kept, stages, inner)
        lam = torch.zeros_like(y) if lam is None else lam
        lam, d_t, d_dt = method.pullback(pulls, y, dt, stages, lam, stage_bars, inner)
        for bar in direct:
            lam = lam + bar
        self.lam, self.end = lam, y
        if self.timed:
            self._time_cotangents(kept, t_bar + d_t, dt_bar + d_dt)

    def finish(self) -> Tensor:
        """∂L/∂y0, with the outputs that are y0 itself."""
        self.same.finish()
        self.problem.stats.add_backward(self.stats.nfe)
        if self.grad_t is not None:
            self.grad_t[0] += self.lam_t
            stretch(self.grad_t, self.lam_span, self.problem.controller)
        reached = 1 if self.timed else self.problem.times.count(self.problem.times[0])
        return plus(self.lam, self.grad_ys[:reached].sum(0))

    def _outputs(
        self, k: int, kept: Kept, stages: Sequence[Tensor], inner: Any
    ) -> tuple[list[Tensor] | None, list[Tensor], Any, Any]:
        """What the outputs inside the step, and dense output, give to its stages, its y, its t and its dt."""
        bars = list(self.grad_dense[1][k].unbind()) if self.grad_dense else None
        direct = [self.grad_dense[0][k]] if self.grad_dense else []
        t_bar, dt_bar = self.grad_dense[2][k] if self.grad_dense and self.timed else (0.0, 0.0)
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
        else:  # t_next = t + dt, where dt is a constant, or a part of the interval
            self.lam_span = self.lam_span + dt_bar + self.lam_t
            self.lam_t = self.lam_t + t_bar
