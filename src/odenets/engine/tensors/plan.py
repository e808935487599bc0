"""What is fixed in a loop in tensors, and the tensors that go in and out of it, by name."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.controller import Controller, rms
from odenets.engine.tensors.history import History
from odenets.methods import Field, Method
from odenets.problem import Problem, sample_shape
from odenets.pullback.bound import Activation, Bind

# while_(condition, body, carry, constants, mutated): the carry after the loop; `mutated` are the indices of those
# constants that the body writes into. Every loop here makes at least one round, harmless if there was nothing to do:
# a compiled loop without a round returns memory that the compiler takes to be free.
While = Callable[..., tuple[Tensor, ...]]


class Flow(NamedTuple):
    """How a loop goes round, and how it chooses between two ways."""

    loop: While
    branch: Callable[..., tuple[Tensor, ...]]  # branch(which, one, other, operands): one(*operands) or other(*operands)


_GIVEN = ("dt0", "dt", "steps")  # of a controller: of these a loop gets the size of the first step, as an input


@dataclass(frozen=True)
class Plan:
    """What is fixed in a loop."""

    method: Method
    controller: Controller  # its tunable numbers are inputs of the loop
    per_sample: bool
    keep: bool  # keep the steps for a backward pass
    outputs: bool  # states are wanted between the first and the last time
    parts: bool  # keep the parts of each step, so that the backward pass need not make them again
    timed: bool  # gradients to the times are wanted
    own: bool = False  # each sample has its own times
    dense: bool = False  # the buffers are handed out as dense output
    stops: bool = False  # there are times that a step has to end on
    jumps: bool = False  # at some of them f is discontinuous
    batch_last: bool = False  # the samples lie along the last axis of y, so that small states make long loops
    open: bool = False  # autograd sees each operation: what it has read must not be written into
    activations: Sequence[Activation] | None = None  # what each evaluation keeps beside its result; None: nothing is

    @staticmethod
    def of(problem: Problem, **rest: Any) -> "Plan":
        """That of a problem; the other fields by name."""
        where = problem.own or problem
        given = {
            "own": problem.own is not None,
            "dense": problem.dense,
            "stops": len(where.stops) > 0,
            "jumps": len(where.jumps) > 0,
        }
        return Plan(problem.method, problem.controller, problem.per_sample, **given, **rest)

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """What tells the program of one plan from that of another: all of it but what is an input of the loop."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("controller", "activations")}
        controller = self.controller
        inputs = {*controller.tunable, *(() if controller.chooses_first_step else _GIVEN)}
        fixed = tuple((name, value) for name, value in vars(controller).items() if name not in inputs)
        kind = (type(controller), controller.chooses_first_step, fixed)
        return (*rest.items(), kind, self.activations is not None)

    @property
    def completes(self) -> bool:
        """Whether f at the end of a step is evaluated."""
        return self.controller.adaptive or self.outputs

    @property
    def past(self) -> int:
        """Of how many steps before it a step is made, where there are so many."""
        return self.method.order - 1 if self.method.remembers else 0

    @property
    def begins(self) -> bool:
        """Whether f at the start is evaluated before the first step."""
        return (self.completes or self.method.hands_on) and not self.method.remembers

    @property
    def carries(self) -> bool:
        """Whether f is handed from a step to the next. Where f jumps, it is that of the step alone."""
        return self.begins and not self.jumps

    @property
    def carried(self) -> int:
        """How many tensors are: f there, and what its evaluation keeps; or a `History`."""
        return 2 if self.past else 1 + len(self.activations or ()) if self.carries else 0

    def carry(self, y: Tensor) -> tuple[Tensor, ...]:
        """Those at the start of a solve. Of a history nothing is there; others are not read."""
        if self.past:
            return History.none(self.past, y)
        kept = (torch.empty(x.shape, dtype=x.dtype, device=y.device) for x in self.activations or ())
        return (y, *kept) if self.carries else ()

    @property
    def buffered(self) -> bool:
        return self.keep or self.outputs

    @property
    def pulled(self) -> int:
        """Evaluations of f in each step that the backward pass goes through."""
        return self.method.parts - 1 + int(self.outputs)

    @property
    def kept_parts(self) -> int:
        """How many parts of each step the buffers keep: the backward pass alone has no use for f at its end."""
        return (self.method.parts if self.outputs or self.dense else self.pulled) if self.parts else 0

    @property
    def row_states(self) -> int:
        """The states that a step takes in the buffers: its own, its parts, and f at its start for those behind it."""
        return 1 + self.kept_parts + int(self.keeps_past)

    @property
    def entry_states(self) -> int:
        """The states that a chunk begins with: y, and what is carried."""
        return max(2, 1 + self.past)

    @property
    def keeps_past(self) -> bool:
        return self.keep and self.past > 0

    def row_bytes(self, y: Tensor) -> int:
        """What a step takes in the buffers, but for its times."""
        kept = sum(activation.nbytes for activation in self.activations or ())
        return self.row_states * y.numel() * y.element_size() + self.pulled * kept

    def time_shape(self, y: Tensor) -> tuple[int, ...]:
        """S."""
        if not self.per_sample:
            return ()
        return (*(1,) * (y.dim() - 1), y.shape[-1]) if self.batch_last else sample_shape(y)

    def each(self, x: Any, y: Tensor) -> Any:
        """What each sample has of its own, (…, batch), of shape (…, *S); what the batch has in common as it is."""
        own = isinstance(x, Tensor) and self.own
        return x.reshape(*x.shape[:-1], *self.time_shape(y)).contiguous() if own else x

    def within(self, y: Tensor) -> tuple[int, ...]:
        """The axes within a sample."""
        return tuple(range(y.dim() - 1)) if self.batch_last else tuple(range(1, y.dim()))

    def norm(self, x: Tensor) -> Tensor:
        """The size of an error, of shape S, in float64, where no square is too large."""
        x = x.to(torch.complex128 if x.is_complex() else torch.float64)
        return rms(x, dims=self.within(x)) if self.per_sample else rms(x)

    @property
    def places(self) -> int:
        """How many places among the stops and the jumps a solve keeps in mind."""
        return int(self.stops) + int(self.jumps)

    def arranged(self, y: Tensor, axis: int = 0) -> Tensor:
        """A state with the samples along `axis`, as the loop takes it."""
        return y.movedim(axis, -1).contiguous() if self.batch_last else y

    def restored(self, y: Tensor, axis: int = 0) -> Tensor:
        """`arranged`, undone."""
        return y.movedim(-1, axis) if self.batch_last else y

    def arranged_field(self, bind: Bind) -> Bind:
        """f of arranged states."""
        if not self.batch_last:
            return bind

        def bind_arranged(tensors: Sequence[Tensor]) -> Field:
            f = bind(tensors)
            return lambda t, y: f(t.movedim(-1, 0), y.movedim(-1, 0)).movedim(0, -1).contiguous()

        return bind_arranged


class Numbers(NamedTuple):
    """The numbers that a chunk gets; as a tensor, the controller's tunable ones follow.

    Where each sample has its own times, the tensor has all of them for each: (numbers, *S).
    """

    t0: Any
    t_end: Any
    max_steps: Any
    dt: Any  # the first step, where it is given
    first: Any  # whether this is the first chunk
    at_start: Any  # the number of outputs at t0
    origin: Any  # the time of f at time 0

    @staticmethod
    def of(problem: Problem, t0: float, t_end: float, first: bool) -> tuple[float, ...]:
        """Those of a chunk of a solve from t0 to t_end."""
        controller = problem.controller
        dt = 0.0 if controller.chooses_first_step else controller.given_step(t0, t_end)
        tunable = (getattr(controller, name) for name in controller.tunable)
        most, at_start = float(problem.max_steps), float(problem.at_start)
        return *Numbers(t0, t_end, most, dt, float(first), at_start, problem.origin), *tunable

    @staticmethod
    def read(numbers: Tensor) -> "Numbers":
        return Numbers(*numbers[: len(Numbers._fields)].unbind())

    @staticmethod
    def length(controller: Controller) -> int:
        return len(Numbers._fields) + len(controller.tunable)


class Clock(NamedTuple):
    """Where time stands, each of shape S; as a tensor, the controller's memory follows."""

    t: Any
    dt: Any
    accepted: Any
    rejected: Any
    output: Any  # the next one
    size: Any  # of y0, in tolerances

    @staticmethod
    def read(clock: Tensor) -> "Clock":
        return Clock(*clock[: len(Clock._fields)].unbind())

    @staticmethod
    def length(controller: Controller) -> int:
        return len(Clock._fields) + len(controller.start)


class BackClock(NamedTuple):
    """Where the backward pass stands, each of shape S."""

    output: Any  # the next one to take up
    t: Any  # ∂L/∂t there
    end: Any  # ∂L/∂(the last time)
    span: Any  # ∂L/∂(the interval's length), by the steps that have a share in it
    origin: Any  # the time of f at time 0


class Report(NamedTuple):
    """What the host gets to know of a chunk; where there is one clock for the batch, that follows."""

    rows: Any  # accepted steps in the buffers
    going: Any  # whether samples are still on their way
    nfe: Any  # evaluations of f


def tuned(controller: Controller, numbers: Tensor) -> Controller:
    """The controller with its tunable numbers taken from the loop's inputs."""
    names = controller.tunable
    if not names:
        return controller
    copy = object.__new__(type(controller))
    copy.__dict__.update(controller.__dict__)
    copy.__dict__.update(zip(names, numbers[len(Numbers._fields) :].unbind()))
    return copy


class Buffers(NamedTuple):
    """What a chunk writes: for each accepted step its times, state, parts and activations, one row a tensor."""

    # (capacity · 4, *S): t, dt (0 for a sample that took no step), t + dt, where it was cut: 1 at the end, 2 at a stop
    times: Tensor
    y: Tensor  # (capacity, *y.shape)
    parts: Tensor | None  # (capacity · Plan.kept_parts, *y.shape)
    activations: tuple[Tensor, ...]  # each (capacity · Plan.pulled, *its shape)
    # f where steps began: those before the chunk first, the oldest of them first; (Plan.past + capacity, *y.shape)
    slopes: Tensor | None = None
    sizes: Tensor | None = None  # (capacity · (Plan.past + 1),): of the `History` of each step

    @staticmethod
    def empty(plan: Plan, y: Tensor, capacity: int) -> "Buffers":
        times = torch.empty((capacity * 4, *plan.time_shape(y)), dtype=torch.float64, device=y.device)
        if plan.outputs:
            times.fill_(math.inf)  # of rows that are not written yet: no output lies before their end
        parts = y.new_empty((capacity * plan.kept_parts, *y.shape)) if plan.parts else None
        activations = (
            y.new_empty((capacity * plan.pulled, *shape), dtype=dtype) for shape, dtype in plan.activations or ()
        )
        buffers = Buffers(times, y.new_empty((capacity, *y.shape)), parts, tuple(activations))
        if not plan.keeps_past:
            return buffers
        slopes = y.new_empty((plan.past + capacity, *y.shape))
        return buffers._replace(slopes=slopes, sizes=times.new_empty(capacity * (plan.past + 1)))

    @staticmethod
    def of(plan: Plan, tensors: Sequence[Tensor]) -> "Buffers":
        """The buffers with these `tensors`."""
        times, y, *rest = tensors
        parts = rest.pop(0) if plan.parts else None
        slopes, sizes = (rest.pop(0), rest.pop(0)) if plan.keeps_past else (None, None)
        return Buffers(times, y, parts, tuple(rest), slopes, sizes)

    @staticmethod
    def split(plan: Plan, items: Sequence[Tensor]) -> "tuple[Buffers | None, Sequence[Tensor]]":
        """The buffers, where there are any, at the beginning of these tensors, and the others."""
        if not plan.buffered:
            return None, tuple(items)
        count = 2 + int(plan.parts) + 2 * int(plan.keeps_past) + len(plan.activations or ())
        return Buffers.of(plan, items[:count]), tuple(items[count:])

    def first(self, rows: int) -> "Buffers":
        """The first rows of these, or all where there are no more."""
        capacity = len(self.y)

        def begin(x: Tensor | None) -> Any:
            return None if x is None else x[: len(x) // capacity * rows]

        slopes = None if self.slopes is None else self.slopes[: len(self.slopes) - capacity + rows]
        activations = tuple(begin(x) for x in self.activations)
        times, y, parts, sizes = (begin(x) for x in (self.times, self.y, self.parts, self.sizes))
        return self if rows >= capacity else Buffers(times, y, parts, activations, slopes, sizes)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        some = (x for x in (self.parts, self.slopes, self.sizes) if x is not None)
        return self.times, self.y, *some, *self.activations

    def write(
        self,
        row: Tensor,
        times: Sequence[Tensor],
        y: Tensor,
        parts: Sequence[Tensor],
        activations: Sequence[Sequence[Tensor]],
    ) -> None:
        """Row `row`; a step that is not accepted is overwritten by the next."""
        self.y.index_copy_(0, row.reshape(1), y[None])
        kept = zip(self.activations, zip(*activations))
        for buffer, values in ((self.times, times), (self.parts, parts), *kept):
            for i, value in enumerate(values if buffer is not None else ()):
                buffer.index_copy_(0, (row * len(values) + i).reshape(1), value[None])  # pyright: ignore

    def begin_history(self, carry: Sequence[Tensor]) -> None:
        """Take up the `History` with which a chunk begins, where histories are kept."""
        if self.slopes is not None:
            self.slopes[: len(carry[0])] = carry[0].flip(0)

    def write_history(self, row: Tensor, slope: Tensor, history: History) -> None:
        """That of row `row`, in which f was `slope` at its start."""
        if self.slopes is not None and self.sizes is not None:
            self.slopes.index_copy_(0, (row + len(history.slopes)).reshape(1), slope[None])
            self.sizes.index_copy_(0, row * len(history.sizes) + _places(history.sizes), history.sizes)

    def read_history(self, row: Tensor, length: int) -> History:
        """That of a row, of so many steps."""
        if self.slopes is None or self.sizes is None:
            raise RuntimeError("a loop keeps no history of its steps")
        newest = _places(self.sizes[:length]).flip(0)
        sizes = self.sizes.index_select(0, row * (length + 1) + _places(self.sizes[: length + 1]))
        return History(self.slopes.index_select(0, row + newest), sizes)

    def read(self, row: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor] | None]:
        """The times, the state and the parts of a row."""
        parts = None if self.parts is None else rows_of(self.parts, row, self.parts.shape[0] // self.y.shape[0])
        return rows_of(self.times, row, 4), _at(self.y, row), parts

    def read_activations(self, row: Tensor, count: int) -> list[tuple[Tensor, ...]]:
        """Those of each of the `count` evaluations of a row."""
        return [tuple(_at(buffer, row * count + i) for buffer in self.activations) for i in range(count)]


def rows_of(buffer: Tensor, row: Tensor, count: Any) -> list[Tensor]:
    """The `count` tensors of a row of a buffer."""
    return [_at(buffer, row * count + i) for i in range(count)]


def _places(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _at(buffer: Tensor, row: Tensor) -> Tensor:
    """Row `row` of a buffer (rows, …)."""
    return buffer.index_select(0, row.reshape(1))[0]
