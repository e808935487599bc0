"""A chunk of a solve, forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.controller import FirstStep, Number, Start
from odenets.engine.clock import conclude, shortened
from odenets.engine.tensors.history import History
from odenets.engine.tensors.outputs import read_outputs
from odenets.engine.tensors.plan import Buffers, Clock, Flow, Numbers, Plan, Report, tuned
from odenets.engine.tensors.stops import Stops
from odenets.methods import Carry, Since, Step, real_dtype, slopes_of
from odenets.pullback.bound import Bind


class Now(NamedTuple):
    """Where a solve stands: what a step changes. Of shape S, but for the last fields, from `row` on."""

    t: Tensor
    dt: Tensor
    accepted: Tensor
    rejected: Tensor
    memory: tuple[Tensor, ...]
    places: tuple[Tensor, ...]  # see `Stops.places`
    row: Tensor  # the next row of the buffers
    nfe: Tensor  # evaluations of f in this chunk
    y: Tensor
    carry: tuple[Tensor, ...]  # see `Plan.carried`

    @property
    def flat(self) -> tuple[Tensor, ...]:
        return (*self[:4], *self.memory, *self.places, *self[6:9], *self.carry)

    @staticmethod
    def of(plan: Plan, items: Sequence[Tensor]) -> "Now":
        m = 4 + len(plan.controller.start)
        t, dt, accepted, rejected, *_ = items
        p = m + plan.places
        row, nfe, y = items[p : p + 3]
        carry = tuple(items[p + 3 : p + 3 + plan.carried])
        return Now(t, dt, accepted, rejected, tuple(items[4:m]), tuple(items[m:p]), row, nfe, y, carry)

    def alive(self, numbers: Numbers) -> Tensor:
        """Which samples have not reached the end, still have steps left, and are not stuck."""
        return (self.t < numbers.t_end) & (self.dt > 0) & (self.accepted + self.rejected < numbers.max_steps)


def forward(
    plan: Plan, flow: Flow, bind: Bind, numbers: Tensor, times: Tensor, clock: Tensor, y: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    """A chunk of the solve.

    Args:
        numbers: `Numbers`.
        times: (T,) in float64.
        clock: The `Clock` of the chunk before.
        y: The state.
        rest: `Stops`, what is carried, ys to write into (where there are outputs), the buffers (where there are any),
            the tensors that f reaches.

    Returns:
        A `Report` for the host; then the clock, the state, and what is carried.
    """
    stops, rest = Stops.split(plan, rest)
    carry, items = tuple(rest[: plan.carried]), list(rest[plan.carried :])
    ys = items.pop(0) if plan.outputs else None
    buffers, tensors = Buffers.split(plan, items)
    f = _Evaluations(plan, bind(tensors))
    clock, carry = _begin(plan, f, stops, numbers, clock, y, carry)
    zero = torch.zeros((), dtype=torch.int64, device=y.device)
    t, dt, accepted, rejected, output, size, *memory = (x.clone() for x in clock.unbind())
    start = Now(t, dt, accepted, rejected, tuple(memory), stops.places(t), zero, zero + f.count, y.clone(), carry)
    before = (numbers, *stops.tensors)
    written = tuple(range(len(before), len(before) + (0 if buffers is None else len(buffers.tensors))))
    shared = (*before, *(() if buffers is None else buffers.tensors), *tensors)

    def here(arguments: Sequence[Tensor]) -> tuple[Now, Tensor, Stops, Buffers | None, Sequence[Tensor]]:
        numbers, *inner = arguments[len(start.flat) :]
        stops, inner = Stops.split(plan, inner)
        return Now.of(plan, arguments), numbers, stops, *Buffers.split(plan, inner)

    def condition(*arguments: Tensor) -> Tensor:
        now, numbers, _, buffers, _ = here(arguments)
        going = now.alive(Numbers.read(numbers)).any()
        going = going if buffers is None else going & (now.row < buffers.y.shape[0])
        return going | (now.nfe == f.count)  # see `While`

    def body(*arguments: Tensor) -> tuple[Tensor, ...]:
        now, numbers, stops, buffers, tensors = here(arguments)
        trial = _Trial(plan, flow, bind, tensors, stops, numbers)
        return _advance(trial, buffers, now).flat

    end = Now.of(plan, flow.loop(condition, body, start.flat, shared, written))
    if ys is not None and buffers is not None:
        output = read_outputs(plan, flow.loop, times, end.t, output, ys, buffers)
    clock = torch.stack([*Clock(end.t, end.dt, end.accepted, end.rejected, output, size), *end.memory])
    going = end.alive(Numbers.read(numbers)).any()
    report = torch.stack([x.double() for x in Report(end.row, going, end.nfe)])
    if not plan.per_sample:
        report = torch.cat([report, clock[: len(Clock._fields)]])
    return report, clock, end.y, *end.carry


class _Evaluations:
    """f, and what each of its evaluations keeps."""

    def __init__(self, plan: Plan, f: Callable[..., Any]) -> None:
        self._f, self._keeps = f, plan.activations is not None
        self.kept: list[tuple[Tensor, ...]] = []

    @property
    def count(self) -> int:
        return len(self.kept)

    def within(self, stops: Stops, places: Sequence[Tensor], origin: Tensor) -> None:
        """Take f as it is in a step from there."""
        inside, f = stops.inside(places, origin), self._f
        self._f = lambda at, y: f(inside(at), y)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        k, *kept = self._f(t, y) if self._keeps else (self._f(t, y),)
        self.kept.append(tuple(kept))
        return k


def _begin(
    plan: Plan, f: _Evaluations, stops: Stops, numbers: Tensor, clock: Tensor, y: Tensor, carry: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The clock and what is carried at the start of the solve, or those of the chunk before."""
    given = Numbers.read(numbers)
    shape = plan.time_shape(y)
    t0, dt, output = (x.expand(shape) if shape else x for x in (given.t0, given.dt, given.at_start))
    size = torch.zeros_like(t0)
    controller = tuned(plan.controller, numbers)
    f.within(stops, stops.places(t0), given.origin)
    begun = (f((given.origin + t0).to(real_dtype(y)), y), *f.kept[0]) if plan.begins else ()
    if begun and controller.chooses_first_step:
        t_start, span = given.origin + t0, given.t_end - t0
        step: FirstStep = controller.first_step(
            Start(f, y, begun[0], t_start, span, plan.method.order, plan.norm, Tensor.unbind)
        )
        dt, size = step.dt.detach(), step.size.detach()  # constants to the gradient
    zero = torch.zeros_like(t0)
    memory = [zero + value for value in controller.start]
    start = torch.stack([*Clock(t0 + zero, dt + zero, zero, zero, output + zero, size + zero), *memory])
    fresh = given.first > 0
    if plan.carries:
        carry = tuple(torch.where(fresh, new, old) for new, old in zip(begun, carry))
    return torch.where(fresh, start, clock), carry


class _Tried(NamedTuple):
    """A step that was tried."""

    y: Tensor
    parts: Sequence[Tensor]
    nfe: Any
    following: tuple[Tensor, ...]  # of what is carried: f at the end and what its evaluation keeps, or f at the start
    kept: Sequence[Sequence[Tensor]]  # what each evaluation keeps


@dataclass
class _Trial:
    """What steps are tried with."""

    plan: Plan
    flow: Flow
    bind: Bind
    tensors: Sequence[Any]
    stops: Stops
    numbers: Tensor

    def step(self, now: Now, dt: Tensor) -> _Tried:
        """The step of size dt from where the solve stands."""
        plan = self.plan
        if not plan.past:
            f, step = self._made(now, dt, now.carry[:1])
            following = (*plan.method.carry(step)[-1:], *f.kept[-1]) if plan.carries else ()
            kept = (now.carry[1:], *f.kept) if plan.carries else f.kept
            return _Tried(step.y, step.parts, f.count, following, kept)
        count = len(now.flat)

        def one_of(full: bool) -> Callable[..., tuple[Tensor, ...]]:
            def tried(dt: Tensor, numbers: Tensor, *items: Any) -> tuple[Tensor, ...]:
                now, (stops, tensors) = Now.of(plan, items), Stops.split(plan, items[count:])
                trial = replace(self, tensors=tensors, stops=stops, numbers=numbers)
                f, step = trial._made(now, dt, History(*now.carry).past if full else ())
                nfe = torch.full((), f.count, dtype=torch.int64, device=dt.device)
                none = [torch.zeros_like(now.y) for _ in range(plan.method.parts - len(step.parts))]
                return step.y, nfe, slopes_of(plan.method, step)[0], *((*step.parts, *none) if plan.completes else ())

            return tried

        operands = (dt, self.numbers, *now.flat, *self.stops.tensors, *self.tensors)
        y, nfe, slope, *parts = self.flow.branch(History(*now.carry).full, one_of(True), one_of(False), operands)
        return _Tried(y, parts, nfe, (slope,), ())

    def _made(self, now: Now, dt: Tensor, carry: Carry) -> tuple[_Evaluations, Step]:
        """The step, and its evaluations of f."""
        plan, origin = self.plan, Numbers.read(self.numbers).origin
        f = _Evaluations(plan, self.bind(self.tensors))
        f.within(self.stops, now.places, origin)
        step = plan.method.step(f, Since(origin, now.t), now.y, dt, carry)
        return f, plan.method.complete(f, step) if plan.completes else step


def _advance(trial: _Trial, buffers: Buffers | None, now: Now) -> Now:
    """Try a step, judge it, write it down."""
    plan, stops = trial.plan, trial.stops
    controller, given = tuned(plan.controller, trial.numbers), Numbers.read(trial.numbers)
    alive = now.alive(given)
    goal = stops.goal(now.places, given.t_end)
    final, dt = shortened(now.t, now.dt, goal)
    dt = torch.where(alive, dt, 0.0)
    step = trial.step(now, dt)
    ratio: Number = torch.zeros_like(now.t)
    if controller.adaptive:
        error = plan.method.error(dt, [k.detach() for k in step.parts])  # step sizes are constants to the gradient
        ratio = controller.error_ratio(now.y.detach(), step.y.detach(), error, plan.norm)
    accept, t1, dt_next, memory = conclude(
        controller, plan.method.order, ratio, now.dt, dt, final, now.t, goal, now.memory
    )
    accept = accept & alive
    t1 = torch.where(accept, t1, now.t)
    places = stops.passed(now.places, t1)
    if buffers is not None:
        none = torch.zeros_like(now.y)
        parts = (*step.parts, *[none] * plan.method.parts)[: plan.kept_parts]
        cut = torch.where(final, torch.where(goal < given.t_end, 2.0, 1.0).to(t1.dtype), 0.0)
        times = (now.t, torch.where(accept, dt, 0.0), t1, cut)
        buffers.write(now.row, times, now.y, parts, step.kept[: plan.pulled])
    following = step.following
    if plan.past:
        (slope,), history = following, History(*now.carry)
        if buffers is not None:
            buffers.write_history(now.row, slope, history)
        following = history.after(slope, dt, places[-1] > now.places[-1] if plan.jumps else None)
    return Now(
        t1,
        torch.where(alive, dt_next, now.dt),
        now.accepted + accept,
        now.rejected + (alive & ~accept),
        tuple(torch.where(alive, new, old) for new, old in zip(memory, now.memory)),
        places,
        now.row + accept.any(),
        now.nfe + step.nfe,
        torch.where(accept, step.y, now.y),
        tuple(torch.where(accept, new, old) for new, old in zip(following, now.carry)),
    )
