"""The loop in tensors, and its reverse: time, step size and every decision are tensors, so no host is needed.

Two engines run it: Python's `while` (a step size for each sample, in eager mode) and one compiled loop
(`compile=True`). Nothing here knows which. The state is y; everything that belongs to time has the shape S: () with
one step size for the batch, (batch, 1, …, 1) with a step size for each sample.

A run goes in chunks of as many accepted steps as the buffers have room for; so the number of steps is no constant of
a compiled loop. The pieces of a chunk: `forward` marches until the buffers are full or the end is reached,
then reads the outputs off the continuous extension; `backward` undoes the steps from the last to the first.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from odenets.controller import Controller, FirstStep, Number, Start, rms
from odenets.loop import Problem, conclude, cut, sample_shape
from odenets.methods import Field, Pull, RungeKutta, Since, real_dtype

# while_(condition, body, carry, constants, mutated): the carry after the loop; `mutated` are the indices of those
# constants that the body writes into. Every loop here makes at least one round, harmless if there was nothing to do:
# a compiled loop without a round returns memory that the compiler takes to be free.
While = Callable[..., tuple[Tensor, ...]]
T = TypeVar("T")
# bind(tensors): f, computing with these; where activations are kept, it returns (f(t, y), *activations).
Bind = Callable[[Sequence[Tensor]], Callable[..., Any]]
# vjp(tensors, t, y, k, activations): f(t, y), and its pullback to (t, y, *wanted tensors); k and the activations are
# those of this evaluation, where they are kept, else None.
Vjp = Callable[..., tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]]


class Activation(NamedTuple):
    """A tensor that an evaluation of f keeps for its pullback."""

    shape: tuple[Any, ...]  # numbers, or symbols while a loop is compiled
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """What is fixed in a compiled loop."""

    method: RungeKutta
    controller: Controller  # its tunable numbers are inputs of the loop
    per_sample: bool
    keep: bool  # keep the steps for a backward pass
    outputs: bool  # states are wanted between the first and the last time
    stages: bool  # keep the stages, so that the backward pass need not make them again
    timed: bool  # gradients to the times are wanted
    batch_last: bool = False  # the samples lie along the last axis of y, so that small states make long loops
    open: bool = False  # autograd sees each operation: what it has read must not be written into
    activations: Sequence[Activation] | None = None  # what each evaluation keeps beside the stages; None: nothing is

    @property
    def carries_f0(self) -> bool:
        return self.controller.adaptive or self.outputs

    @property
    def carried(self) -> int:
        """How many tensors that are: f there, and what its evaluation keeps."""
        return 1 + len(self.activations or ()) if self.carries_f0 else 0

    @property
    def buffered(self) -> bool:
        return self.keep or self.outputs

    @property
    def chooses_first_step(self) -> bool:
        return self.controller.chooses_first_step

    @property
    def nfe_start(self) -> int:
        """Evaluations of f at the start of a chunk."""
        return int(self.carries_f0) + int(self.chooses_first_step)

    @property
    def nfe_step(self) -> int:
        """Evaluations of f in each step that is tried."""
        return len(self.method.b)  # f1 in place of the first stage, where that is carried

    @property
    def pulled(self) -> int:
        """Evaluations of f in each step that the backward pass goes through."""
        return len(self.method.b) + int(self.outputs)

    @property
    def nfe_undo(self) -> int:
        """Evaluations of f that it makes again in each step."""
        return self.pulled if self.activations is None else 0

    @property
    def row_states(self) -> int:
        """The states that a step takes in the buffers: its own and its stages."""
        return 1 + (len(self.method.b) + 1 if self.stages else 0)

    def row_bytes(self, y: Tensor) -> int:
        """What a step takes in the buffers, but for its times."""
        kept = sum(activation.nbytes for activation in self.activations or ())
        return self.row_states * y.numel() * y.element_size() + self.pulled * kept


class Buffers(NamedTuple):
    """What a chunk writes: for each accepted step its times, state, stages and activations, one row a tensor."""

    times: Tensor  # (capacity · 4, *S): t, dt (0 for a sample that took no step), t + dt, whether the step was final
    y: Tensor  # (capacity, *y.shape)
    stages: Tensor | None  # (capacity · (s + 1), *y.shape)
    activations: tuple[Tensor, ...]  # each (capacity · Plan.pulled, *its shape)

    @staticmethod
    def empty(plan: Plan, y: Tensor, capacity: int) -> "Buffers":
        times = torch.empty((capacity * 4, *time_shape(plan, y)), dtype=torch.float64, device=y.device)
        if plan.outputs:
            times.fill_(math.inf)  # of rows that are not written yet: no output lies before their end
        stages = y.new_empty((capacity * (len(plan.method.b) + 1), *y.shape)) if plan.stages else None
        activations = (
            y.new_empty((capacity * plan.pulled, *shape), dtype=dtype) for shape, dtype in plan.activations or ()
        )
        return Buffers(times, y.new_empty((capacity, *y.shape)), stages, tuple(activations))

    @staticmethod
    def of(plan: Plan, tensors: Sequence[Tensor]) -> "Buffers":
        """The buffers with these `tensors`."""
        times, y, *rest = tensors
        return Buffers(times, y, rest.pop(0) if plan.stages else None, tuple(rest))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.times, self.y, *_present(self.stages), *self.activations

    def write(
        self,
        row: Tensor,
        times: Sequence[Tensor],
        y: Tensor,
        stages: Sequence[Tensor],
        activations: Sequence[Sequence[Tensor]],
    ) -> None:
        """Row `row`; a step that is not accepted is overwritten by the next."""
        self.y.index_copy_(0, row.reshape(1), y[None])
        kept = zip(self.activations, zip(*activations))
        for buffer, values in ((self.times, times), (self.stages, stages), *kept):
            for i, value in enumerate(values if buffer is not None else ()):
                buffer.index_copy_(0, (row * len(values) + i).reshape(1), value[None])  # pyright: ignore

    def read(self, row: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor] | None]:
        """The times, the state and the stages of a row."""
        stages = None if self.stages is None else _rows(self.stages, row, self.stages.shape[0] // self.y.shape[0])
        return _rows(self.times, row, 4), _at(self.y, row), stages

    def read_activations(self, row: Tensor, count: int) -> list[tuple[Tensor, ...]]:
        """Those of each of the `count` evaluations of a row."""
        return [tuple(_at(buffer, row * count + i) for buffer in self.activations) for i in range(count)]


def _rows(buffer: Tensor, row: Tensor, count: Any) -> list[Tensor]:
    return [_at(buffer, row * count + i) for i in range(count)]


NUMBERS = 7  # t0, end, …: see `forward`
BACK = 5  # next output, ∂L/∂t, …: see `backward`
CLOCK = 6  # t, dt, accepted, rejected, next output, size of y0; then the controller's memory


class Now(NamedTuple):
    """Where a solve stands: what a step changes. Of shape S, but for the last four fields."""

    t: Tensor
    dt: Tensor
    accepted: Tensor
    rejected: Tensor
    memory: tuple[Tensor, ...]
    row: Tensor  # the next row of the buffers
    tried: Tensor  # steps tried in this chunk
    y: Tensor
    f0: tuple[Tensor, ...]  # where it is carried: f(t, y) and what its evaluation keeps

    @property
    def flat(self) -> tuple[Tensor, ...]:
        return (*self[:4], *self.memory, *self[5:8], *self.f0)

    @staticmethod
    def of(plan: Plan, items: Sequence[Tensor]) -> "Now":
        m = 4 + len(plan.controller.start)
        t, dt, accepted, rejected, *_ = items
        row, tried, y = items[m : m + 3]
        return Now(
            t, dt, accepted, rejected, tuple(items[4:m]), row, tried, y, tuple(items[m + 3 : m + 3 + plan.carried])
        )

    def alive(self, numbers: Tensor) -> Tensor:
        """Which samples have not reached the end, still have steps left, and are not stuck."""
        return (self.t < numbers[1]) & (self.dt > 0) & (self.accepted + self.rejected < numbers[2])


def time_shape(plan: Plan, y: Tensor) -> tuple[int, ...]:
    """S."""
    if not plan.per_sample:
        return ()
    return (*(1,) * (y.dim() - 1), y.shape[-1]) if plan.batch_last else sample_shape(y)


def _within(plan: Plan, y: Tensor) -> tuple[int, ...]:
    """The axes within a sample."""
    return tuple(range(y.dim() - 1)) if plan.batch_last else tuple(range(1, y.dim()))


def norm_of(plan: Plan) -> Callable[[Tensor], Tensor]:
    """The norm in which the error is measured, of shape S, in float64."""
    if not plan.per_sample:
        return lambda x: rms(_double(x))
    return lambda x: rms(_double(x), dims=_within(plan, x))


def _double(x: Tensor) -> Tensor:
    """x in float64, where no square is too large."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def arranged(plan: Plan, y: Tensor, axis: int = 0) -> Tensor:
    """A state with the samples along `axis`, as the loops take it."""
    return y.movedim(axis, -1).contiguous() if plan.batch_last else y


def restored(plan: Plan, y: Tensor, axis: int = 0) -> Tensor:
    """`arranged`, undone."""
    return y.movedim(-1, axis) if plan.batch_last else y


def arranged_field(plan: Plan, bind: Bind) -> Bind:
    """f of arranged states."""
    if not plan.batch_last:
        return bind

    def bind_arranged(tensors: Sequence[Tensor]) -> Field:
        f = bind(tensors)
        return lambda t, y: f(t.movedim(-1, 0), y.movedim(-1, 0)).movedim(0, -1).contiguous()

    return bind_arranged


def forward(
    plan: Plan, while_: While, bind: Bind, numbers: Tensor, times: Tensor, clock: Tensor, y: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    """A chunk of the solve.

    Args:
        numbers: t0, end, max_steps, the first step (where it is given), whether this is the first chunk, the number
            of outputs at t0, the time of f at time 0, then the controller's tunable numbers.
        times: (T,) in float64.
        clock: (CLOCK + memory, *S) from the chunk before.
        y: The state.
        rest: f0 and what its evaluation keeps (where it is carried), ys to write into (where there are outputs), the
            buffers (where there are any), the tensors that f reaches.

    Returns:
        A report for the host: (accepted steps in the buffers, whether samples are still on their way, steps tried,
        the beginning of the clock where there is one for the batch); then the clock, the state, and f0
        with what its evaluation keeps, where it is carried.
    """
    f0, ys, buffers, tensors = _parts(plan, rest)
    clock, f0 = _begin(plan, _Evaluations(plan, bind(tensors)), numbers, clock, y, f0)
    zero = torch.zeros((), dtype=torch.int64, device=y.device)
    t, dt, accepted, rejected, output, size, *memory = (x.clone() for x in clock.unbind())
    start = Now(t, dt, accepted, rejected, tuple(memory), zero, zero.clone(), y.clone(), f0)
    shared = (numbers, *_tensors(buffers), *tensors)

    def here(arguments: Sequence[Tensor]) -> tuple[Now, Tensor, Buffers | None, Sequence[Tensor]]:
        numbers, *inner = arguments[len(start.flat) :]
        return Now.of(plan, arguments), numbers, *_split_buffers(plan, inner)

    def condition(*arguments: Tensor) -> Tensor:
        now, numbers, buffers, _ = here(arguments)
        going = now.alive(numbers).any()
        going = going if buffers is None else going & (now.row < buffers.y.shape[0])
        return going | (now.tried == 0)  # see `While`

    def body(*arguments: Tensor) -> tuple[Tensor, ...]:
        now, numbers, buffers, tensors = here(arguments)
        return _advance(plan, _Evaluations(plan, bind(tensors)), numbers, buffers, now).flat

    written = tuple(range(1, 1 + len(_tensors(buffers))))
    end = Now.of(plan, while_(condition, body, start.flat, shared, written))
    if ys is not None and buffers is not None:
        output = _read_outputs(plan, while_, times, end.t, output, ys, buffers)
    clock = torch.stack([end.t, end.dt, end.accepted, end.rejected, output, size, *end.memory])
    report = torch.stack([x.double() for x in (end.row, end.alive(numbers).any(), end.tried)])
    if not plan.per_sample:
        report = torch.cat([report, clock[:CLOCK]])
    return report, clock, end.y, *end.f0


class _Evaluations:
    """f, and what each of its evaluations keeps."""

    def __init__(self, plan: Plan, f: Callable[..., Any]) -> None:
        self._f, self._keeps = f, plan.activations is not None
        self.kept: list[tuple[Tensor, ...]] = []

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        k, *kept = self._f(t, y) if self._keeps else (self._f(t, y),)
        self.kept.append(tuple(kept))
        return k


def _parts(
    plan: Plan, rest: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor | None, Buffers | None, Sequence[Tensor]]:
    """f0 and what its evaluation keeps, ys, the buffers and the tensors that f reaches."""
    f0, items = tuple(rest[: plan.carried]), list(rest[plan.carried :])
    ys = items.pop(0) if plan.outputs else None
    return f0, ys, *_split_buffers(plan, items)


def _split_buffers(plan: Plan, items: Sequence[Tensor]) -> tuple[Buffers | None, Sequence[Tensor]]:
    if not plan.buffered:
        return None, tuple(items)
    count = 2 + int(plan.stages) + len(plan.activations or ())
    return Buffers.of(plan, items[:count]), tuple(items[count:])


def _tensors(buffers: Buffers | None) -> tuple[Tensor, ...]:
    return () if buffers is None else buffers.tensors


def _begin(
    plan: Plan, f: _Evaluations, numbers: Tensor, clock: Tensor, y: Tensor, f0: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The clock and f0 at the start of the solve, or those of the chunk before."""
    t0, t_end, _, dt, first, output, origin = numbers[:NUMBERS].unbind()
    shape = time_shape(plan, y)
    fresh = first > 0
    t0, dt, output = (x.expand(shape) if shape else x for x in (t0, dt, output))
    size = torch.zeros_like(t0)
    controller = tuned(plan.controller, numbers)
    begun = (f((origin + t0).to(real_dtype(y)), y), *f.kept[0]) if plan.carries_f0 else ()
    if begun and plan.chooses_first_step:
        step: FirstStep = controller.first_step(
            Start(f, y, begun[0], origin + t0, t_end - t0, plan.method.order, norm_of(plan), Tensor.unbind)
        )
        dt, size = step.dt.detach(), step.size.detach()  # constants to the gradient
    zero = torch.zeros_like(t0)
    memory = [zero + value for value in controller.start]
    start = torch.stack([t0 + zero, dt + zero, zero, zero, output + zero, size + zero, *memory])
    chosen = tuple(torch.where(fresh, new, old) for new, old in zip(begun, f0))
    return torch.where(fresh, start, clock), chosen


def _advance(plan: Plan, f: _Evaluations, numbers: Tensor, buffers: Buffers | None, now: Now) -> Now:
    """Try a step, judge it, write it down."""
    controller, t_end = tuned(plan.controller, numbers), numbers[1]
    alive = now.alive(numbers)
    final, dt = cut(now.t, now.dt, t_end)
    dt = torch.where(alive, dt, 0.0)
    f0, *of_f0 = now.f0 or (None,)
    step = plan.method.step(f, Since(numbers[6], now.t), now.y, dt, f0)
    if plan.carries_f0:
        step = step.with_f1(f)
    ratio: Number = torch.zeros_like(now.t)
    if controller.adaptive:
        error = plan.method.error(dt, [k.detach() for k in step.stages])  # step sizes are constants to the gradient
        ratio = controller.error_ratio(now.y.detach(), step.y.detach(), error, norm_of(plan))
    accept, t1, dt_next, memory = conclude(
        controller, plan.method.order, ratio, now.dt, dt, final, now.t, t_end, now.memory
    )
    accept = accept & alive
    t1 = torch.where(accept, t1, now.t)
    if buffers is not None:
        stages = step.stages if step.complete else (*step.stages, torch.zeros_like(now.y))
        times = (now.t, torch.where(accept, dt, 0.0), t1, final.to(t1.dtype))
        kept = (tuple(of_f0), *f.kept) if now.f0 else f.kept
        buffers.write(now.row, times, now.y, stages, kept[: plan.pulled])
    return Now(
        t1,
        torch.where(alive, dt_next, now.dt),
        now.accepted + accept,
        now.rejected + (alive & ~accept),
        tuple(torch.where(alive, new, old) for new, old in zip(memory, now.memory)),
        now.row + accept.any(),
        now.tried + 1,
        torch.where(accept, step.y, now.y),
        tuple(torch.where(accept, new, old) for new, old in zip((step.stages[-1], *f.kept[-1]), now.f0)),
    )


def _read_outputs(
    plan: Plan, while_: While, times: Tensor, t: Tensor, output: Tensor, ys: Tensor, buffers: Buffers
) -> Tensor:
    """Write the states between the first and the last time that this chunk has passed; the next output."""
    outputs = _Outputs(plan, ys[0])
    most = times.shape[0] - 1  # the last output is the state at the end itself

    def pending(index: Tensor, t: Tensor, times: Tensor) -> Tensor:
        return (index < most) & (_entry(times, index.clamp(max=most)) <= t)

    def condition(output: Tensor, rounds: Tensor, t: Tensor, times: Tensor, *_: Tensor) -> Tensor:
        return pending(output, t, times).any() | (rounds == 0)

    def body(output: Tensor, rounds: Tensor, t: Tensor, times: Tensor, ys: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        index = output + outputs.places
        taken = pending(index, t, times)
        index = index.clamp(max=most)
        step = outputs.step(Buffers.of(plan, kept), _entry(times, index))
        states = plan.method.interpolate(step.y, step.dt, step.stages, step.theta)
        outputs.put(ys, index, torch.where(taken, states, outputs.at(ys, index)))
        return output + taken.sum(0), rounds + 1

    rounds = torch.zeros((), dtype=torch.int64, device=output.device)
    carry = (output.to(torch.int64).reshape(outputs.shape), rounds)
    constants = (t.reshape(outputs.shape), times, ys, *buffers.tensors)
    return while_(condition, body, carry, constants, (2,))[0].reshape(output.shape).to(output.dtype)


class _Within(NamedTuple):
    """The step in which each of some outputs lies: of shape (outputs, *state)."""

    row: Tensor
    dt: Tensor
    theta: Tensor
    y: Tensor
    stages: list[Tensor]


_BLOCK, _NUMBERS = 16, 1024  # outputs taken up at a time: so many, while a sample's states hold so many numbers


class _Outputs:
    """How outputs are taken up: some at a time, since the loop's own cost is that of many small states."""

    def __init__(self, plan: Plan, y: Tensor) -> None:
        self.plan, self.device = plan, y.device
        self.shape = time_shape(plan, y) or (1,) * y.dim()
        sizes = [size for size in y.shape if isinstance(size, int)]
        self.count = max(1, min(_BLOCK, _NUMBERS // max(1, math.prod(sizes))))
        self.axes = tuple(axis + 1 for axis in (_within(plan, y) if plan.per_sample else range(y.dim())))

    @property
    def places(self) -> Tensor:
        return torch.arange(self.count, device=self.device).reshape(-1, *(1,) * len(self.shape))

    def step(self, buffers: Buffers, t_out: Tensor) -> _Within:
        times = buffers.times.reshape(buffers.times.shape[0], *self.shape)
        ends = times.unflatten(0, (buffers.y.shape[0], 4))[:, 2]
        row = (ends[:, None] < t_out).sum(0).clamp(max=ends.shape[0] - 1)  # the first step that ends at t_out or after
        start, dt = self.at(times, row * 4), self.at(times, row * 4 + 1)
        count = 0 if buffers.stages is None else len(self.plan.method.b) + 1
        stages = [self.at(buffers.stages, row * count + i) for i in range(count)]  # pyright: ignore
        return _Within(row, dt, (t_out - start) / torch.where(dt > 0, dt, 1.0), self.at(buffers.y, row), stages)

    def at(self, buffer: Tensor, row: Tensor) -> Tensor:
        """These rows of a buffer (rows, …): each sample's own where it has its own times."""
        if not self.plan.per_sample:
            return buffer.index_select(0, row.flatten())
        if self.plan.open:
            buffer = buffer.clone()  # which the derivative of `gather` keeps
        return buffer.gather(0, row.expand(-1, *buffer.shape[1:]))

    def put(self, buffer: Tensor, row: Tensor, values: Tensor) -> None:
        if not self.plan.per_sample:
            buffer.index_copy_(0, row.flatten(), values)
        else:
            buffer.scatter_(0, row.expand(values.shape), values)

    def add(self, buffer: Tensor, row: Tensor, values: Tensor) -> None:
        if not self.plan.per_sample:
            buffer.index_add_(0, row.flatten(), values)
        else:
            buffer.scatter_add_(0, row.expand(values.shape), values)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """The real inner product of each output, of shape (outputs, *self.shape)."""
        return _product(a, b).sum(self.axes, keepdim=True)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return ((a.conj() * b).real if a.is_complex() else a * b).to(torch.float64)


def _entry(times: Tensor, index: Tensor) -> Tensor:
    """times[index], without reading the index back."""
    return times.index_select(0, index.reshape(-1)).reshape(index.shape)


def _at(buffer: Tensor, row: Tensor) -> Tensor:
    """Row `row` of a buffer (rows, …)."""
    return buffer.index_select(0, row.reshape(1))[0]


def backward(
    plan: Plan,
    while_: While,
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
        clock: (BACK, *S): the next output to take up; ∂L/∂t at the end of the chunk; ∂L/∂(the last time);
            ∂L/∂(the interval's length) by steps that have a share in it; the time of f at time 0.
        lam: ∂L/∂y at the end of the chunk.
        rest: ∂L/∂ys (where there are outputs), the buffers, the tensors.

    Returns:
        The clock and ∂L/∂y at the start of the chunk; ∂L/∂times (where there are outputs) and the gradients, of this
        chunk alone.
    """
    grad_ys = rest[0] if plan.outputs else None
    buffers, tensors = _split_buffers(plan, rest[1 if plan.outputs else 0 :])
    buffers = _certain(buffers)
    sums = [torch.zeros_like(tensors[i]) for i in wanted]
    bars, grad_times = None, ()
    if grad_ys is not None:
        bars, output, *grad_times = _take_up_outputs(plan, while_, times, clock[0], lam, grad_ys, buffers)
        clock = torch.stack([output, *clock[1:].unbind()])
    carry = (rows.reshape(()).clone(), clock.clone(), lam.clone(), *sums)
    shared = (*_tensors(buffers), *_present(*(bars or ())), *tensors)

    def condition(*arguments: Tensor) -> Tensor:
        return arguments[0] > 0

    def body(*arguments: Tensor) -> tuple[Tensor, ...]:
        now, inner = arguments[: len(carry)], arguments[len(carry) :]
        kept, inner = _split_buffers(plan, inner)
        given = None if bars is None else _Bars(*inner[: len(bars)])
        tensors = inner[len(bars or ()) :]
        return _Undo(plan, vjp, tensors, given)(_certain(kept), *now)

    clock, lam, *sums = while_(condition, body, carry, shared, ())[1:]
    return clock, lam, *grad_times, *sums


class _Bars(NamedTuple):
    """What the steps of a chunk get from the outputs that lie in them."""

    steps: Tensor  # ∂L/∂(y, the s + 1 stages), (capacity · (s + 2), *y.shape)
    times: Tensor  # ∂L/∂(t, dt), (capacity · 2, *S)

    def read(self, row: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The gradients to y, to the stages and to (t, dt) of a row."""
        y, *stages = _rows(self.steps, row, self.steps.shape[0] * 2 // self.times.shape[0])
        return y, stages, _rows(self.times, row, 2)


def _take_up_outputs(
    plan: Plan, while_: While, times: Tensor, output: Tensor, y: Tensor, grad_ys: Tensor, buffers: Buffers
) -> tuple[Any, ...]:
    """The gradients of the outputs that lie in a chunk, for its steps.

    Returns the bars, the next output, and ∂L/∂times.
    """
    outputs = _Outputs(plan, y)
    capacity = buffers.y.shape[0]
    steps = y.new_zeros((capacity * (len(plan.method.b) + 2), *y.shape))
    step_times = buffers.times.new_zeros((capacity * 2, *outputs.shape))
    begin = buffers.times[0].reshape(outputs.shape).clone()

    def pending(index: Tensor, begin: Tensor, times: Tensor) -> Tensor:
        return (index >= 0) & (_entry(times, index.clamp(min=0)) > begin)

    def condition(output: Tensor, rounds: Tensor, grad_times: Tensor, *constants: Tensor) -> Tensor:
        return pending(output, constants[0], constants[1]).any() | (rounds == 0)

    def body(output: Tensor, rounds: Tensor, grad_times: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
        begin, times, grad_ys, steps, step_times, *kept = constants
        index = output - outputs.places
        taken = pending(index, begin, times)
        index = index.clamp(min=0)
        step = outputs.step(Buffers.of(plan, kept), _entry(times, index))
        grad = torch.where(taken, outputs.at(grad_ys, index), 0.0)
        theta = torch.where(taken, step.theta, 0.0)
        inner = outputs.inner if plan.timed else None
        bars, rise, dt_bar = plan.method.pull_output(step.dt, step.stages, theta, grad, inner)
        for i, bar in enumerate((grad, *bars)):
            outputs.add(steps, step.row * (len(bars) + 1) + i, torch.where(taken, bar, 0.0))
        if plan.timed:
            rise = torch.where(taken, rise, 0.0)
            for i, bar in enumerate((-rise, torch.where(taken, dt_bar, 0.0))):
                outputs.add(step_times, step.row * 2 + i, bar)
            grad_times = grad_times.index_add(0, index.flatten(), rise.flatten())
        return output - taken.sum(0), rounds + 1, grad_times.clone()

    rounds = torch.zeros((), dtype=torch.int64, device=output.device)
    carry = (output.to(torch.int64).reshape(outputs.shape), rounds, torch.zeros_like(times))
    constants = (begin, times, grad_ys, steps, step_times, *buffers.tensors)
    place, _, grad_times = while_(condition, body, carry, constants, (3, 4))
    step_times = step_times.reshape(capacity * 2, *time_shape(plan, y))
    return _Bars(steps, step_times), place.reshape(output.shape).to(output.dtype), grad_times


@dataclass
class _Undo:
    """One accepted step in reverse."""

    plan: Plan
    vjp: Vjp
    tensors: Sequence[Tensor]
    bars: _Bars | None

    def __call__(self, buffers: Buffers, rows: Tensor, clock: Tensor, lam: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
        method, timed = self.plan.method, self.plan.timed
        row = rows - 1
        (t, dt, _, final), y, kept = buffers.read(row)
        self.taken = dt > 0
        kept = None if kept is None else [self._finite(k) for k in kept]
        self.sums = list(sums)
        activations = None if self.plan.activations is None else buffers.read_activations(row, self.plan.pulled)
        self.known = itertools.repeat((None, None)) if activations is None else zip(_certain(kept), activations)
        stages, pulls = method.linearize(
            self._linearize, Since(clock[4], t), y, dt, with_f1=self.plan.outputs, stages=kept
        )
        y_bar, stage_bars, time_bars = None, None, None
        if self.bars is not None:
            y_bar, stage_bars, time_bars = self.bars.read(row)
        lam, t_bar, dt_bar = method.pullback(pulls, y, dt, stages, lam, stage_bars, self._inner if timed else None)
        if y_bar is not None and time_bars is not None:
            lam, t_bar, dt_bar = lam + y_bar, t_bar + time_bars[0], dt_bar + time_bars[1]
        return row, self._clock(clock, t_bar, dt_bar, dt, final), lam, *self.sums

    def _linearize(self, t: Tensor, y: Tensor) -> tuple[Tensor, Pull]:
        k, pullback = self.vjp(self.tensors, t, y, *next(self.known))  # called for one stage after the other

        def pull(k_bar: Tensor, /, *, last: bool = True) -> tuple[Tensor, Tensor]:
            t_bar, y_bar, *bars = pullback(k_bar)
            if last:
                self.sums = [total + bar for total, bar in zip(self.sums, bars)]
            return y_bar, t_bar.to(torch.float64)

        return self._finite(k), pull

    def _finite(self, k: Tensor) -> Tensor:
        """A stage, 0 for a sample that took no step here: it may have been tried where f is infinite."""
        return torch.where(self.taken, k, 0.0) if self.plan.per_sample else k

    def _inner(self, a: Tensor, b: Tensor) -> Tensor:
        """The real inner product, of shape S."""
        product = _product(a, b)
        return product.sum(_within(self.plan, a), keepdim=True) if self.plan.per_sample else product.sum()

    def _clock(self, clock: Tensor, t_bar: Tensor, dt_bar: Tensor, dt: Tensor, final: Tensor) -> Tensor:
        """The clock at the start of the step."""
        if not self.plan.timed:
            return clock.clone()
        # dt = t_end − t in the last step; elsewhere it is a constant, or a part of the interval.
        ended = (final > 0) & (dt > 0)
        output, lam_t, lam_end, lam_span, origin = clock.unbind()
        lam_end = lam_end + torch.where(ended, dt_bar, 0.0)
        lam_span = lam_span + torch.where(ended | ~(dt > 0), 0.0, dt_bar + lam_t)
        lam_t = torch.where(ended, t_bar - dt_bar, lam_t + t_bar)
        return torch.stack([output, lam_t, lam_end, lam_span, origin])


def _certain(x: T | None) -> T:
    """x, where the plan says that there is one."""
    if x is None:
        raise RuntimeError("a loop got less than its plan says")
    return x


def numbers_of(problem: Problem, t0: float, t_end: float, first: bool) -> tuple[float, ...]:
    """The numbers that `forward` gets, from t0 to t_end."""
    controller = problem.controller
    dt = 0.0 if controller.chooses_first_step else controller.given_step(t0, t_end)
    tunable = (getattr(controller, name) for name in controller.tunable)
    at_start = problem.times.count(problem.times[0])
    return t0, t_end, float(problem.max_steps), dt, float(first), float(at_start), problem.origin, *tunable


def tuned(controller: Controller, numbers: Tensor) -> Controller:
    """The controller with its tunable numbers taken from the loop's inputs."""
    names = controller.tunable
    if not names:
        return controller
    copy = object.__new__(type(controller))
    copy.__dict__.update(controller.__dict__)
    copy.__dict__.update(zip(names, numbers[NUMBERS : NUMBERS + len(names)].unbind()))
    return copy


def _present(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(t for t in tensors if t is not None)
