"""A chunk of a solve, in reverse."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from odenets.engine.clock import TimeBars
from odenets.engine.tensors.history import HistoryBars
from odenets.engine.tensors.outputs import Bars, product, take_up_outputs
from odenets.engine.tensors.plan import BackClock, Buffers, Flow, Plan, rows_of
from odenets.engine.tensors.stops import Stops
from odenets.methods import Bars as Gradients
from odenets.methods import Carry, Past, Pull, Since, Time, wide
from odenets.pullback.bound import Vjp

T = TypeVar("T")


def backward(
    plan: Plan,
    flow: Flow,
    vjp: Vjp,
    wanted: Sequence[int],
    rows: Tensor,
    times: Tensor,
    clock: Tensor,
    lam: Tensor,
    *rest: Tensor,
) -> tuple[Tensor, ...]:
    """A chunk in reverse.

    Args:
        vjp: The pullback of f.
        wanted: Which of the tensors that f reaches a gradient is due to.
        rows: How many steps are to be undone.
        clock: The `BackClock` at the end of the chunk.
        lam: ∂L/∂y there.
        rest: `Stops`, `HistoryBars` (where steps are made of those before), ∂L/∂ys (where there are outputs), `Bars`
            (of dense output), the buffers, the tensors.

    Returns:
        The clock and ∂L/∂y at the start of the chunk; the evaluations of f; the `HistoryBars` there; ∂L/∂times (where
        there are outputs) and the gradients, of this chunk alone.
    """
    stops, rest = Stops.split(plan, rest)
    behind, rest = _history_bars(plan, rest)
    grad_ys = rest[0] if plan.outputs else None
    rest = rest[1 if plan.outputs else 0 :]
    dense, rest = (Bars(*rest[:2]), rest[2:]) if plan.dense else (None, rest)
    buffers, tensors = Buffers.split(plan, rest)
    buffers = _certain(buffers)
    sums = [torch.zeros_like(wide(tensors[i])) for i in wanted]
    bars, grad_times = None, ()
    if grad_ys is not None:
        bars, output, *grad_times = take_up_outputs(plan, flow.loop, times, clock[0], lam, grad_ys, buffers, dense)
        clock = torch.stack([output, *clock[1:].unbind()])
    rows = rows.reshape(())
    places = stops.places(rows_of(buffers.times, rows - 1, 4)[0])[-1:] if plan.jumps else ()
    behind = tuple(x.clone() for x in behind)
    carry = (rows.clone(), torch.zeros_like(rows), clock.clone(), lam.clone(), *behind, *places, *sums)
    shared = (*stops.tensors, *buffers.tensors, *(bars or ()), *tensors)

    def condition(*arguments: Tensor) -> Tensor:
        return arguments[0] > 0

    def body(*arguments: Tensor) -> tuple[Tensor, ...]:
        if not plan.past:
            return undo(None, *arguments)
        kept, _ = Buffers.split(plan, Stops.split(plan, arguments[len(carry) :])[1])
        full = _certain(kept).read_history(arguments[0] - 1, plan.past).full
        ways = (functools.partial(undo, with_past) for with_past in (True, False))
        return tuple(flow.branch(full, *ways, arguments))

    def undo(with_past: bool | None, *arguments: Tensor) -> tuple[Tensor, ...]:
        now, inner = arguments[: len(carry)], arguments[len(carry) :]
        stops, inner = Stops.split(plan, inner)
        kept, inner = Buffers.split(plan, inner)
        given = None if bars is None else Bars(*inner[: len(bars)])
        tensors = inner[len(bars or ()) :]
        return _Undo(plan, vjp, tensors, given, stops, with_past)(_certain(kept), *now)

    nfe, clock, lam, *found = flow.loop(condition, body, carry, shared, ())[1:]
    behind, found = _history_bars(plan, found)
    sums = found[int(plan.jumps) :]
    return clock, lam, nfe, *behind, *grad_times, *sums


def _history_bars(plan: Plan, items: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """`HistoryBars`, where there are any, at the beginning of these tensors, and the others."""
    count = len(HistoryBars._fields) if plan.past else 0
    return tuple(items[:count]), tuple(items[count:])


@dataclass
class _Undo:
    """One accepted step in reverse; as a `Differentiable`, f there."""

    plan: Plan
    vjp: Vjp
    tensors: Sequence[Tensor]
    bars: Bars | None
    stops: Stops
    with_past: bool | None = None  # whether the step was made of those before it, where its method remembers some

    def __call__(
        self, buffers: Buffers, rows: Tensor, nfe: Tensor, clock: Tensor, lam: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        bars, rest = _history_bars(self.plan, rest)
        places, sums = rest[: int(self.plan.jumps)], rest[int(self.plan.jumps) :]
        behind = HistoryBars(*bars) if bars else None
        carry = buffers.read_history(rows - 1, self.plan.past).past if self.with_past else ()
        method, row, back = self.plan.method, rows - 1, BackClock(*clock.unbind())
        (t, dt, _, cut), y, kept = buffers.read(row)
        self.taken = dt > 0
        places = self.stops.returned(places, t)
        self.inside = self.stops.inside(places, back.origin)
        kept = None if kept is None else [self._finite(k) for k in kept]
        self.sums, self.nfe = list(sums), 0
        activations = None if self.plan.activations is None else buffers.read_activations(row, self.plan.pulled)
        self.known = itertools.repeat((None, None)) if activations is None else zip(_certain(kept), activations)
        remade = method.remake(self, Since(back.origin, t), y, dt, complete=self.plan.outputs, known=kept, carry=carry)
        y_bar, part_bars, time_bars = None, None, None
        if self.bars is not None:
            y_bar, part_bars, time_bars = self.bars.read(row)
        inner = self._inner if self.plan.timed else None
        slope_bars = () if behind is None else behind.slopes.unbind()
        lam, t_bar, dt_bar, slope_bars, step_bars = remade.pull(lam, part_bars, inner, slope_bars)
        if behind is not None:
            dt_bar, behind = dt_bar + behind.of_step, behind.before(slope_bars, step_bars)
        if y_bar is not None and time_bars is not None:
            lam, t_bar, dt_bar = lam + y_bar, t_bar + time_bars[0], dt_bar + time_bars[1]
        clock = self._clock(back, t_bar, dt_bar, cut) if self.plan.timed else clock.clone()
        return row, nfe + self.nfe, clock, lam, *(behind or ()), *places, *self.sums

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("a step whose equations have to be solved is none of a loop in tensors")

    def at(self, t: Tensor, y: Tensor) -> tuple[Tensor, Pull]:
        k, activations = next(self.known)  # called for one stage after the other
        self.nfe += int(k is None)
        k, pullback = self.vjp(self.tensors, self.inside(t), y, k, activations)

        def pull(k_bar: Tensor, /, *, last: bool = True) -> tuple[Tensor, Tensor]:
            t_bar, y_bar, *bars = pullback(k_bar)
            if last:
                self.sums = [total + bar for total, bar in zip(self.sums, bars)]
            return y_bar, t_bar.to(torch.float64)

        return self._finite(k), pull

    def through(
        self, step: Callable[..., Sequence[Tensor]], t: Time, y: Tensor, dt: float | Tensor, carry: Carry = ()
    ) -> tuple[Sequence[Tensor], Callable[[Sequence[Tensor | None]], Gradients]]:
        origin, t = (t.origin, t.t) if isinstance(t, Since) else (0.0, t)
        past = Past(*carry)
        n = len(past.slopes)

        def of_field(f: Callable[..., Tensor], t: Tensor, y: Tensor, dt: Tensor, *rest: Tensor) -> Sequence[Tensor]:
            def counted(at: Tensor, y: Tensor) -> Tensor:
                self.nfe += 1
                return self._finite(f(self.inside(at), y))

            memory = past._replace(slopes=rest[:n], steps=rest[n:]) if carry else ()
            return tuple(step(counted, Since(origin, t), y, dt, memory))

        given = (torch.as_tensor(t), y, torch.as_tensor(dt), *past.slopes, *map(torch.as_tensor, past.steps))
        moved = range(len(given)) if self.plan.timed else (1, *range(3, 3 + n))  # y and the slopes alone
        out, pullback = self.vjp.through(self.tensors, of_field, *given, moved=moved)

        def pull(bars: Sequence[Tensor | None]) -> Gradients:
            given = [torch.zeros_like(x) if bar is None else bar for x, bar in zip(out, bars)]
            t_bar, y_bar, dt_bar, *rest = pullback(given)
            self.sums = [total + bar for total, bar in zip(self.sums, rest[2 * n :])]
            return Gradients(y_bar, t_bar.to(torch.float64), dt_bar.to(torch.float64), rest[:n], rest[n : 2 * n])

        return out, pull

    def _finite(self, k: Tensor) -> Tensor:
        """A part, 0 for a sample that took no step here: it may have been tried where f is infinite."""
        return torch.where(self.taken, k, 0.0) if self.plan.per_sample else k

    def _inner(self, a: Tensor, b: Tensor) -> Tensor:
        """The real inner product, of shape S."""
        axes = self.plan.within(a) if self.plan.per_sample else tuple(range(a.dim()))
        return product(a, b, axes).reshape(self.plan.time_shape(a))

    def _clock(self, back: BackClock, t_bar: Tensor, dt_bar: Tensor, cut: Tensor) -> Tensor:
        """The clock at the start of the step."""
        bars = TimeBars(back.t, back.end, back.span).before(t_bar, dt_bar, cut == 1, cut == 2, ~self.taken)
        return torch.stack([back.output, *bars, back.origin])


def _certain(x: T | None) -> T:
    """x, where the plan says that there is one."""
    if x is None:
        raise RuntimeError("a loop got less than its plan says")
    return x
