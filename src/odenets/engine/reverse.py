"""The solve in numbers as one function of autograd: the loop with its tape, and the one sweep back over that."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.engine.clock import TimeBars, stretch
from odenets.engine.eager import run
from odenets.engine.recorded import Recorded
from odenets.engine.tape import Accepted, Tape, reversal
from odenets.evaluation import FieldInPieces
from odenets.methods import HALVES, slopes_of
from odenets.problem import Extension, Trajectory
from odenets.pullback.by_autograd import ByAutograd, GradientSum, Summed, Wanted, inner_product, plus
from odenets.pullback.function import Around, Outside, Prepared
from odenets.pullback.replay import SameAgain
from odenets.solution import Stats


@dataclass
class Replayed(Outside):
    """A solve of which states are kept, and each accepted step made again in the backward pass.

    Args:
        states: How many states may be kept at any time; None for any number.
        room: How many bytes of what f keeps for its pullback, beside them, so that steps need not be made again.
    """

    prepared: Prepared
    states: int | None
    room: float
    name: str
    around: Around
    recorded: Recorded | None = None

    def __post_init__(self) -> None:
        self.then, self.wanted = self.prepared.then, Wanted(self.prepared.reached)

    def forward(self, y0: Tensor, t: Tensor, tensors: Sequence[Tensor], timed: bool) -> tuple[Tensor, ...]:
        # Half of them: the other half makes the states between them again.
        room = None if self.states is None else self.states // 2 // self._tensors
        tape: Tape[Accepted, tuple[Tensor, ...]] = Tape(room)
        problem, f0 = self.prepared.problem, self.prepared.f0
        recorded = None if timed else self._recorded()
        if recorded is not None:
            y0, f0 = recorded.begun.y0, recorded.begun.f0
        trajectory = run(problem, y0, f0, tape=tape, timed=timed, recorded=recorded)
        self.prepared.f0 = self.prepared.begun = None
        self.timed, self.recorded = timed, recorded
        problem.stats.kept = recorded.taken if recorded else 0
        self._trajectory, self.steps = trajectory, tape.steps
        shared = {id(x): x for state in (tape.end or (), *tape.states.values()) for x in state}
        place = {key: i for i, key in enumerate(shared)}
        self.places = {k: [place[id(x)] for x in state] for k, state in tape.states.items()}
        self._kept = list(shared.values())
        dense, out = trajectory.dense, [trajectory.ys]
        self.event_times = [event.t for event in trajectory.events]
        if self.event_times:
            out.append(torch.stack([event.y for event in trajectory.events]))
        if dense is not None:
            out += dense.y, dense.parts
            if timed:
                out.append(torch.tensor([dense.t, dense.dt], dtype=torch.float64, device=y0.device).T)
        return tuple(out)

    def finished(self, ys: Tensor, *rest: Tensor) -> Trajectory:
        """The trajectory, with the tensors that autograd has returned."""
        trajectory = super().finished(ys)
        if trajectory.events:
            pairs, rest = zip(trajectory.events, rest[0].unbind()), rest[1:]
            trajectory.events = [event._replace(y=y, at=None) for event, y in pairs]
        if trajectory.dense is not None:
            trajectory.dense = Extension(trajectory.dense.t, trajectory.dense.dt, *rest, end=trajectory.dense.end)
        return trajectory

    def backward(
        self, t: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor], bars: Sequence[Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
        by_place = {k: tuple(kept[i] for i in places) for k, places in self.places.items()}
        sweep = _Sweep(self, t, kept[0], *bars)
        recorded, self.recorded = self.recorded, None  # the graph serves once
        # Without a bound every state is there.
        free = 0 if self.states is None else self.states // self._tensors - (len(by_place) - 1)
        passing = kept[:1]  # from the first move on the state that it has reached
        for start, there, keep in reversal(len(self.steps), list(self.places), free):
            state = by_place.get(start, passing)
            if start == there:
                if recorded is not None and start < recorded.taken:
                    break
                sweep.undo(start, self.steps[start], *state)
                by_place.pop(start, None)
                continue
            passing = sweep.replay(self.steps[start:there], *state)
            if keep:
                by_place[there] = passing
        if recorded is not None:
            sweep.follow(recorded)
        return sweep.finish(), sweep.grad_t, sweep.grads.values

    def _recorded(self) -> Recorded | None:
        """What is recorded of a solve without derivatives to the times; nothing where there is no room for a step."""
        problem, begun = self.prepared.problem, self.prepared.begun
        if begun is None or problem.dense or problem.events or self.wanted.places:
            return None
        if any(x.dtype in HALVES for x in self.wanted.tensors):  # whose gradients autograd would add up in that dtype
            return None
        state = problem.y0.numel() * problem.y0.element_size()
        a_step = problem.method.evaluations * (begun.nbytes + 2 * state)  # the input and the stage
        room = self.room - state * len(problem.times)  # the outputs are kept, too
        steps = math.floor(min(max(room, 0) / max(a_step, 1), problem.max_steps))
        return Recorded(begun, self.wanted, self.prepared.reached, steps) if steps else None

    @property
    def _tensors(self) -> int:
        """How many tensors a state is: with a method that remembers, f where steps before it began, too."""
        method = self.prepared.problem.method
        return method.order if method.remembers else 1


class _Sweep:
    """The running cotangents of a sweep from the last step to the first."""

    def __init__(self, solve: Replayed, t: Tensor, end: Tensor, grad_ys: Tensor, *grad_dense: Tensor) -> None:
        self.event_times, self.grad_events = solve.event_times, None
        if self.event_times:
            self.grad_events, grad_dense = grad_dense[0], grad_dense[1:]
        self.problem, self.timed = solve.prepared.problem, solve.timed
        self.end, self.same = end, SameAgain(solve.name)  # the state after the step about to be undone
        self.grad_ys, self.grad_dense = grad_ys, grad_dense
        self.lam: Tensor | None = None  # ∂L/∂y there
        self.slope_bars: Sequence[Tensor | None] = ()  # ∂L/∂(f where steps before began), the newest first
        self.step_bars: Sequence[Any] = ()  # ∂L/∂(the size of the step about to be undone, and of those before it)
        self.times = TimeBars()
        self.grads = GradientSum(len(solve.wanted.tensors))
        self.grad_t = torch.zeros_like(t) if self.timed else None
        self.stats = Stats()
        self.f = FieldInPieces(self.problem, self.stats, self.problem.times[-1])
        pullback = ByAutograd(self.f, solve.prepared.reached, solve.wanted, self.timed)
        self.tracked = Summed(pullback, self.grads)

    @torch.no_grad()
    def replay(self, steps: Sequence[Accepted], y: Tensor, *slopes: Tensor) -> tuple[Tensor, ...]:
        """The state after these steps."""
        method = self.problem.method
        for step in steps:
            self.f.enter(step.t)
            made = method.step(self.f, self.problem.at(step.t), y, step.dt, step.carried(slopes))
            y, slopes = made.y, slopes_of(method, made)
        return y, *slopes

    def undo(self, k: int, step: Accepted, y: Tensor, *slopes: Tensor) -> None:
        """Pull the cotangents back through step k, which starts at y."""
        lam = self.lam
        for j in step.ends:
            lam = plus(lam, self.grad_ys[j])
        complete = bool(step.inside or step.events or self.grad_dense)
        if lam is None and not complete:
            self.end = y
            return
        self.f.enter(step.t)
        method, t, dt = self.problem.method, self.problem.at(step.t), step.dt
        remade = method.remake(self.tracked, t, y, dt, complete=complete, carry=step.carried(slopes))
        self.same.check(remade.y, self.end, y)
        inner = inner_product if self.timed else None
        part_bars, direct, t_bar, dt_bar = self._outputs(k, step, remade.parts, inner)
        lam = torch.zeros_like(y) if lam is None else lam
        lam, d_t, d_dt, self.slope_bars, before = remade.pull(lam, part_bars, inner, self.slope_bars)
        for bar in direct:
            lam = lam + bar
        self.lam, self.end = lam, y
        if self.timed:
            own, *others = self.step_bars or (0.0,)
            self.step_bars = [a + b for a, b in itertools.zip_longest(others, before, fillvalue=0.0)]
            self.times = self.times.before(t_bar + d_t, dt_bar + d_dt + own, step.final, step.stopped)

    def follow(self, recorded: Recorded) -> None:
        """Pull the cotangents back through the steps whose graph there is."""
        if recorded.taken:
            self.lam, *bars = recorded.pull((self.lam, *self.slope_bars), self.grad_ys)
            self.grads.add(bars)

    def finish(self) -> Tensor:
        """∂L/∂y0, with the outputs that are y0 itself."""
        self.same.finish()
        self.problem.stats.add_backward(self.stats.nfe)
        if self.grad_t is not None:
            self.grad_t[0] += self.times.t
            self.grad_t[-1] += self.times.end
            stretch(self.grad_t, self.times.span, self.problem.controller)
        reached = 1 if self.timed else self.problem.at_start
        return plus(self.lam, self.grad_ys[:reached].sum(0))

    def _outputs(
        self, k: int, step: Accepted, parts: Sequence[Tensor], inner: Any
    ) -> tuple[list[Tensor] | None, list[Tensor], Any, Any]:
        """What the outputs inside the step, and dense output, give to its parts, its y, its t and its dt."""
        bars = list(self.grad_dense[1][k].unbind()) if self.grad_dense else None
        direct = [self.grad_dense[0][k]] if self.grad_dense else []
        t_bar, dt_bar = self.grad_dense[2][k] if self.grad_dense and self.timed else (0.0, 0.0)
        if inner is None and bars is None and not step.events and len(step.inside) > 1:
            grads = self.grad_ys[step.inside[0] : step.inside[-1] + 1]
            bars = self.problem.method.pull_outputs(step.dt, parts, step.thetas(self.problem.times), grads)
            return bars, [grads.sum(0)], t_bar, dt_bar
        for time, grad, j in self._inside(step):
            theta = (time - step.t) / step.dt
            given, rise, d_dt = self.problem.method.pull_output(step.dt, parts, theta, grad, inner)
            bars = given if bars is None else [bar + more for bar, more in zip(bars, given)]
            direct.append(grad)
            t_bar, dt_bar = t_bar - rise, dt_bar + d_dt
            if self.grad_t is not None and j is not None:
                self.grad_t[j] += rise
        return bars, direct, t_bar, dt_bar

    def _inside(self, step: Accepted) -> Iterator[tuple[float, Tensor, int | None]]:
        """The states interpolated in a step: at which time, ∂L/∂(it), and which of the outputs it is, if it is one."""
        for j in step.inside:
            yield self.problem.times[j], self.grad_ys[j], j
        if self.grad_events is not None:
            for k in step.events:
                yield self.event_times[k], self.grad_events[k], None
