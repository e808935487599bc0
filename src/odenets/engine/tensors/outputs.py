"""States between the steps' ends, read off the continuous extension, and their gradients given back to the steps."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.engine.tensors.plan import Buffers, Plan, While, rows_of
from odenets.engine.tensors.stops import pick


def read_outputs(
    plan: Plan, while_: While, times: Tensor, t: Tensor, output: Tensor, ys: Tensor, buffers: Buffers
) -> Tensor:
    """Write the states between the first and the last time that this chunk has passed; the next output."""
    outputs = _Outputs(plan, ys[0])
    most = times.shape[0] - 1  # the last output is the state at the end itself

    def pending(index: Tensor, t: Tensor, times: Tensor) -> Tensor:
        return (index < most) & (pick(times, index.clamp(max=most)) <= t)

    def condition(output: Tensor, rounds: Tensor, t: Tensor, times: Tensor, *_: Tensor) -> Tensor:
        return pending(output[None], t, times).any() | (rounds == 0)

    def body(output: Tensor, rounds: Tensor, t: Tensor, times: Tensor, ys: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        index = output + outputs.places
        taken = pending(index, t, times)
        index = index.clamp(max=most)
        step = outputs.step(Buffers.of(plan, kept), pick(times, index))
        states = plan.method.interpolate(step.y, step.dt, step.parts, step.theta)
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
    parts: list[Tensor]


_BLOCK, _NUMBERS = 16, 1024  # outputs taken up at a time: so many, while a sample's states hold so many numbers


class _Outputs:
    """How outputs are taken up: some at a time, since the loop's own cost is that of many small states."""

    def __init__(self, plan: Plan, y: Tensor) -> None:
        self.plan, self.device = plan, y.device
        self.shape = plan.time_shape(y) or (1,) * y.dim()
        sizes = [size for size in y.shape if isinstance(size, int)]
        self.count = max(1, min(_BLOCK, _NUMBERS // max(1, math.prod(sizes))))
        self.axes = tuple(axis + 1 for axis in (plan.within(y) if plan.per_sample else range(y.dim())))

    @property
    def places(self) -> Tensor:
        return torch.arange(self.count, device=self.device).reshape(-1, *(1,) * len(self.shape))

    def step(self, buffers: Buffers, t_out: Tensor) -> _Within:
        times = buffers.times.reshape(buffers.times.shape[0], *self.shape)
        ends = times.unflatten(0, (buffers.y.shape[0], 4))[:, 2]
        row = (ends[:, None] < t_out).sum(0).clamp(max=ends.shape[0] - 1)  # the first step that ends at t_out or after
        start, dt = self.at(times, row * 4), self.at(times, row * 4 + 1)
        count = 0 if buffers.parts is None else self.plan.method.parts
        parts = [self.at(buffers.parts, row * count + i) for i in range(count)]  # pyright: ignore
        return _Within(row, dt, (t_out - start) / torch.where(dt > 0, dt, 1.0), self.at(buffers.y, row), parts)

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
        return product(a, b, self.axes)


def product(a: Tensor, b: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The real inner product over these axes, which are kept with size 1, in float64."""
    each = ((a.conj() * b).real if a.is_complex() else a * b).to(torch.float64)
    return each.sum(axes, keepdim=True) if axes else each  # PyTorch takes no axis for all


class Bars(NamedTuple):
    """What the steps of a chunk get from the outputs that lie in them."""

    steps: Tensor  # ∂L/∂(y, the parts), (capacity · (parts + 1), *y.shape)
    times: Tensor  # ∂L/∂(t, dt), (capacity · 2, *S)

    def read(self, row: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The gradients to y, to the parts and to (t, dt) of a row."""
        y, *parts = rows_of(self.steps, row, self.steps.shape[0] * 2 // self.times.shape[0])
        return y, parts, rows_of(self.times, row, 2)

    @staticmethod
    def of_dense(buffers: Buffers) -> "Bars":
        """Those that dense output gives: ∂L/∂(each entry of the buffers)."""
        rows, parts = len(buffers.y), buffers.y[:0] if buffers.parts is None else buffers.parts
        steps = torch.cat([buffers.y[:, None], parts.unflatten(0, (rows, -1))], dim=1)
        return Bars(steps.flatten(0, 1), buffers.times.unflatten(0, (rows, 4))[:, :2].flatten(0, 1))


def take_up_outputs(
    plan: Plan,
    while_: While,
    times: Tensor,
    output: Tensor,
    y: Tensor,
    grad_ys: Tensor,
    buffers: Buffers,
    dense: Bars | None = None,
) -> tuple[Any, ...]:
    """The gradients of the outputs that lie in a chunk, for its steps, and of `dense` output.

    Returns the bars, the next output, and ∂L/∂times.
    """
    outputs = _Outputs(plan, y)
    capacity = buffers.y.shape[0]
    if dense is None:
        steps = y.new_zeros((capacity * (plan.method.parts + 1), *y.shape))
        step_times = buffers.times.new_zeros((capacity * 2, *outputs.shape))
    else:
        steps, step_times = dense
    begin = buffers.times[0].reshape(outputs.shape).clone()

    def pending(index: Tensor, begin: Tensor, times: Tensor) -> Tensor:
        return (index >= 0) & (pick(times, index.clamp(min=0)) > begin)

    def condition(output: Tensor, rounds: Tensor, grad_times: Tensor, *constants: Tensor) -> Tensor:
        return pending(output[None], constants[0], constants[1]).any() | (rounds == 0)

    def body(output: Tensor, rounds: Tensor, grad_times: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
        begin, times, grad_ys, steps, step_times, *kept = constants
        index = output - outputs.places
        taken = pending(index, begin, times)
        index = index.clamp(min=0)
        step = outputs.step(Buffers.of(plan, kept), pick(times, index))
        grad = torch.where(taken, outputs.at(grad_ys, index), 0.0)
        theta = torch.where(taken, step.theta, 0.0)
        inner = outputs.inner if plan.timed else None
        bars, rise, dt_bar = plan.method.pull_output(step.dt, step.parts, theta, grad, inner)
        for i, bar in enumerate((grad, *bars)):
            outputs.add(steps, step.row * (len(bars) + 1) + i, torch.where(taken, bar, 0.0))
        if plan.timed:
            rise = torch.where(taken, rise, 0.0)
            for i, bar in enumerate((-rise, torch.where(taken, dt_bar, 0.0))):
                outputs.add(step_times, step.row * 2 + i, bar)
            if plan.own:
                grad_times = grad_times.scatter_add(0, index, rise)
            else:
                grad_times = grad_times.index_add(0, index.flatten(), rise.flatten())
        return output - taken.sum(0), rounds + 1, grad_times.clone()

    rounds = torch.zeros((), dtype=torch.int64, device=output.device)
    carry = (output.to(torch.int64).reshape(outputs.shape), rounds, torch.zeros_like(times))
    constants = (begin, times, grad_ys, steps, step_times, *buffers.tensors)
    place, _, grad_times = while_(condition, body, carry, constants, (3, 4))
    step_times = step_times.reshape(capacity * 2, *plan.time_shape(y))
    return Bars(steps, step_times), place.reshape(output.shape).to(output.dtype), grad_times
