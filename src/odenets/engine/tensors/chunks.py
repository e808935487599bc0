"""The host's side of the loop in tensors: chunk after chunk, forward and backward, as one function of autograd."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from odenets import transforms
from odenets.controller import PID
from odenets.engine.clock import stretch
from odenets.engine.tape import Tape, reversal
from odenets.engine.tensors.history import HistoryBars
from odenets.engine.tensors.outputs import Bars, product
from odenets.engine.tensors.plan import BackClock, Buffers, Clock, Numbers, Plan, Report
from odenets.engine.tensors.stops import Stops
from odenets.problem import Problem
from odenets.pullback.bound import Activation
from odenets.pullback.function import Around, Outside

ROOM = 32 * 2**20  # bytes that the buffers of a chunk may take
CACHE = 2 * 2**20  # the same where a chunk is forgotten once its outputs are read
FEWEST, MOST = 8, 256  # accepted steps in a chunk, whatever their size


class Loops(Protocol):
    """`forward` and `backward` around one f, as Python or as compiled programs."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Those that f reaches."""
        ...

    @property
    def wanted(self) -> Sequence[int]:
        """The indices of those a gradient is due to."""
        ...

    def activations(self) -> Sequence[Activation] | None:
        """What an evaluation of f would have to keep, so that its pullback need not repeat it; None: unknown."""
        ...

    def forward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]: ...

    def backward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]: ...

    def check(self) -> None:
        """After a backward pass: raise a `ReplayError` where f has become another function."""
        ...


class Chunk(NamedTuple):
    """Steps that were taken."""

    rows: int
    buffers: Buffers


class Entry(NamedTuple):
    """Where a chunk begins."""

    clock: Tensor
    y: Tensor
    carry: tuple[Tensor, ...]  # see `Plan.carried`

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.clock, self.y, *self.carry


@dataclass
class Ended:
    """Where a solve in tensors ended."""

    ys: Tensor  # (T, *y.shape); NaN where a sample did not get
    clock: Tensor
    y: Tensor
    chunks: list[Chunk]  # where every step is kept
    tape: Tape[int, Entry]  # the rows of each chunk, and where some begin
    shared: Clock  # the clock as numbers, where there is one for the batch


class Walk:
    """Chunks of a solve, one after the other."""

    def __init__(self, problem: Problem, plan: Plan, loops: Loops, tensors: Sequence[Tensor]) -> None:
        self.problem, self.plan, self.tensors = problem, plan, tensors
        self.times = times_of(problem, plan)
        self.end = plan.each(problem.ends, plan.arranged(problem.y0))
        self.program, self.stops = loops.forward(plan), Stops.given(plan, problem)

    def begin(self) -> Entry:
        plan, y = self.plan, self.plan.arranged(self.problem.y0)
        clock = constant((0.0,) * Clock.length(plan.controller), torch.float64, y.device)
        if plan.per_sample:
            clock = clock.reshape(-1, *(1,) * y.dim()).expand(-1, *plan.time_shape(y)).contiguous()
        return Entry(clock, y, plan.carry(y))

    def chunk(
        self, entry: Entry, first: bool, ys: Tensor | None, buffers: Buffers | None
    ) -> tuple[Report, list[float], Entry]:
        """The report, the clock that follows it, and where the next chunk begins."""
        numbers = self._numbers(entry.y, first)
        if buffers is not None:
            buffers.begin_history(entry.carry)
        written = (*(() if ys is None else (ys,)), *(buffers.tensors if buffers else ()))
        where = (numbers, self.times, entry.clock, entry.y, *self.stops)
        report_, clock, y, *carry = self.program(*where, *entry.carry, *written, *self.tensors)
        report = transforms.values_of(report_)  # the one host read of a chunk
        count = len(Report._fields)
        return Report(*report[:count]), report[count:], Entry(clock, y, tuple(carry))

    def _numbers(self, y: Tensor, first: bool) -> Tensor:
        problem, own = self.problem, self.problem.own
        values = Numbers.of(problem, problem.times[0], problem.times[-1], first)
        numbers = constant(values, torch.float64, y.device)
        if own is None:
            return numbers
        each = Numbers(*numbers[: len(Numbers._fields)].unbind())
        each = each._replace(t_end=problem.ends, at_start=own.at_start, origin=own.origin)
        rest = numbers[len(each) :].unbind()
        return self.plan.each(torch.stack([x.expand(len(own.origin)) for x in (*each, *rest)]), y)


def times_of(problem: Problem, plan: Plan) -> Tensor:
    """The times as a loop gets them, (T,) or (T, *S); without outputs it asks for none."""
    times = problem.t.detach().contiguous()  # the caller's own may be every fourth of a grid
    times = plan.each(times.T, plan.arranged(problem.y0)) if plan.own else times
    return times if plan.outputs else times[:1]


def solve_by_chunks(
    problem: Problem, plan: Plan, loops: Loops, tensors: Sequence[Tensor], states: int | None = None
) -> Ended:
    """Solve from the first time to the last.

    Args:
        states: How many states may be kept for the backward pass; None for any number.
    """
    forward = Walk(problem, plan, loops, tensors)
    entry = forward.begin()
    ys = None
    if plan.outputs:
        ys = entry.y.new_empty((len(problem.times), *entry.y.shape))
        ys[: problem.most_at_start] = entry.y
    chunks, going = [], True
    tape: Tape[int, Entry] = Tape(0 if states is None else _shares(plan, states).saved)
    shared: list[float] = []
    buffers = None
    keep_all = plan.dense or (plan.keep and states is None)
    while going:
        if plan.buffered and (keep_all or buffers is None):
            buffers = Buffers.empty(plan, entry.y, _capacity(plan, entry.y, states))
        elif buffers is not None:
            buffers.times.fill_(math.inf)
        report, shared, end = forward.chunk(entry, not tape.steps, ys, buffers)
        rows, going = int(report.rows), report.going > 0
        problem.stats.nfe += int(report.nfe)
        if keep_all and buffers is not None:
            chunks.append(Chunk(rows, buffers))
        tape.add(rows, entry)
        entry = end
    clock, y = entry.clock, entry.y
    now = Clock.read(clock) if plan.per_sample else Clock(*shared)
    reached = now.t >= forward.end
    if ys is None:
        ys = torch.stack([*[plan.arranged(problem.y0)] * problem.at_start, y])
    else:
        ys[-1] = y
    if reached is not True:
        _blank(ys, now.output, reached)
    return Ended(plan.restored(ys, axis=1).contiguous(), clock, plan.restored(y), chunks, tape, now)


class _Shares(NamedTuple):
    """How the states that may be kept are shared out."""

    rows: int  # of the buffers of one chunk
    saved: int  # starts of chunks kept from the forward pass
    free: int  # starts that the backward pass may keep beside them


def _shares(plan: Plan, states: int) -> _Shares:
    starts, saved = states // (2 * plan.entry_states), states // (4 * plan.entry_states)
    return _Shares(max(1, states // 2 // plan.row_states), saved, starts - saved)


def _capacity(plan: Plan, y: Tensor, states: int | None) -> int:
    if plan.keep and states is not None:
        return min(MOST, _shares(plan, states).rows)
    room = ROOM if plan.keep or plan.dense else CACHE
    return max(FEWEST, min(MOST, room // max(1, plan.row_bytes(y))))


@functools.lru_cache(maxsize=1024)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that nobody writes into, made once."""
    return torch.tensor(values, dtype=dtype, device=device)


def _blank(ys: Tensor, output: Any, reached: Any) -> None:
    """NaN in every output that was not reached."""
    if not isinstance(output, Tensor):
        ys[int(output) :] = torch.nan
        return
    missing = torch.arange(len(ys), device=ys.device).reshape(-1, *(1,) * (ys.dim() - 1)) >= output
    ys.masked_fill_(missing & ~reached, torch.nan)


@dataclass
class InChunks(Outside):
    """A solve by chunks outside of autograd, and its reverse.

    Args:
        states: How many states may be kept; None for any number.
        reverse: The loop of the backward pass.
    """

    problem: Problem
    plan: Plan
    loops: Loops
    states: int | None
    reverse: Callable[..., Sequence[Tensor]]
    then: contextlib.AbstractContextManager
    name: str
    around: Around
    without: str
    ended: Ended | None = field(init=False, default=None)

    def forward(self, y0: Tensor, t: Tensor, tensors: Sequence[Tensor], timed: bool) -> tuple[Tensor, ...]:
        ended = solve_by_chunks(replace(self.problem, y0=y0), self.plan, self.loops, tensors, self.states)
        entries = {} if self.states is None else ended.tape.states
        pieces = [*(chunk.buffers.tensors for chunk in ended.chunks), *(entry.tensors for entry in entries.values())]
        self._kept = [ended.clock, *(x for piece in pieces for x in piece)]
        self.sizes = [len(piece) for piece in pieces]
        self.rows, self.places = ended.tape.steps, list(entries)
        ended.chunks, ended.tape.states = [], {}
        self.ended = ended
        return ended.ys, *(x for piece in pieces if self.plan.dense for x in piece)

    def taken(self, ys: Tensor, *dense: Tensor) -> Ended:
        """Where it ended, with the tensors that autograd has returned."""
        ended, self.ended = self.ended, None
        if ended is None:
            raise RuntimeError("the forward pass left no result")
        ended.ys, ended.chunks = ys, self._chunks(dense) if self.plan.dense else []
        return ended

    def _chunks(self, tensors: Sequence[Tensor]) -> list[Chunk]:
        """The chunks that these tensors are the buffers of."""
        after = iter(tensors)
        return [Chunk(n, Buffers.of(self.plan, [next(after) for _ in range(k)])) for n, k in zip(self.rows, self.sizes)]

    def backward(
        self, t: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor], bars: Sequence[Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
        clock, *rest = kept
        if self.states is not None:
            after = iter(rest)
            pieces = [[next(after) for _ in range(size)] for size in self.sizes]
            entries = {place: Entry(p[0], p[1], tuple(p[2:])) for place, p in zip(self.places, pieces)}
            chunks = self._again(self.states, entries, tensors)
        else:
            chunks = reversed(self._chunks(rest))
        dense = reversed(self._chunks(bars[1:])) if self.plan.dense else itertools.repeat(None)
        found = self._back(chunks, dense, t, clock, bars[0], tensors)
        self.loops.check()
        return found

    def _again(self, states: int, entries: dict[int, Entry], tensors: Sequence[Tensor]) -> Iterator[Chunk]:
        """The chunks, the last first, made again from where some of them begin."""
        problem, plan, rows = self.problem, self.plan, self.rows
        forward = Walk(problem, plan, self.loops, tensors)
        passing = entries[0]  # from then on what the last move has reached
        y = passing.y
        buffers = Buffers.empty(plan, y, _capacity(plan, y, states))
        ys = y.new_empty((len(problem.times), *y.shape)) if plan.outputs else None  # written again, and not used

        def run(index: int, entry: Entry) -> Entry:
            buffers.times.fill_(math.inf)
            report, _, end = forward.chunk(entry, index == 0, ys, buffers)
            problem.stats.add_backward(int(report.nfe))
            return end

        for start, end, keep in reversal(len(rows), list(entries), _shares(plan, states).free):
            passing = entries.get(start, passing)
            if start == end:
                run(start, passing)
                entries.pop(start, None)
                yield Chunk(rows[start], buffers)
                continue
            for index in range(start, end):
                passing = run(index, passing)
            if keep:
                entries[end] = passing

    def _back(
        self,
        chunks: Iterable[Chunk],
        dense: Iterable[Chunk | None],
        t: Tensor,
        clock: Tensor,
        grad_ys: Tensor,
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
        """∂L/∂y0, ∂L/∂t (None where it is not wanted), and ∂L/∂(each tensor); the chunks come the last first.

        `dense` has ∂L/∂(the buffers of each), where they were handed out.
        """
        problem, plan, wanted = self.problem, self.plan, self.loops.wanted
        grad_ys = plan.arranged(grad_ys, axis=1).contiguous()
        lam, state = _at_the_end(problem, plan, clock, grad_ys)
        times = times_of(problem, plan)
        grad_times, sums = times.new_zeros((len(problem.times), *times.shape[1:])), []
        with_outputs = (grad_ys,) if plan.outputs else ()
        counts, first, stops = [], None, Stops.given(plan, problem)
        behind: Sequence[Tensor] = HistoryBars.none(plan.past, lam) if plan.past else ()
        for chunk, given_out in zip(chunks, dense):
            first = chunk
            if chunk.rows == 0:
                continue
            rows = constant((chunk.rows,), torch.int64, t.device)
            # What the outputs give to the steps has a place for each row, so rows that were not taken cost.
            taken = chunk.buffers.first(max(FEWEST, chunk.rows)) if given_out is None else chunk.buffers
            bars = () if given_out is None else Bars.of_dense(given_out.buffers)
            given = (*stops, *behind, *with_outputs, *bars, *taken.tensors, *tensors)
            state, lam, nfe, *rest = self.reverse(rows, times, state, lam, *given)
            behind, rest = rest[: len(behind)], rest[len(behind) :]
            if plan.outputs:
                more, *rest = rest
                grad_times = grad_times + more if plan.timed else grad_times
            sums = [a + b for a, b in zip(sums, rest)] if sums else rest
            counts.append(nfe)
        problem.stats.add_backward(int(sum(counts)))
        at_start = _grad_at_start(problem, plan, grad_ys)
        # The last output is the end, also of a sample that stands still: it is in `lam`.
        grad_y0 = lam + (at_start[0] if len(at_start) == 1 else at_start[: len(grad_ys) - 1].sum(0))
        grad_t = None
        if plan.timed:
            grad_t = _times_gradient(problem, plan, first, grad_times, BackClock(*state.unbind()), at_start)
        by_index = dict(zip(wanted, sums or [torch.zeros_like(tensors[i]) for i in wanted]))
        return plan.restored(grad_y0), grad_t, [by_index.get(i) for i in range(len(tensors))]


def _at_the_end(problem: Problem, plan: Plan, clock: Tensor, grad_ys: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂y, and the clock of the backward pass."""
    last = float(len(grad_ys) - 2)  # the output before the last
    if not plan.per_sample:
        return grad_ys[-1], constant(BackClock(last, 0.0, 0.0, 0.0, problem.origin), torch.float64, grad_ys.device)
    now = Clock.read(clock)
    end, origin = (plan.each(x, grad_ys[0]) for x in (problem.ends, problem.origins))
    reached = now.t >= end
    output = torch.where(reached, last, now.output - 1)
    zero = torch.zeros_like(output)
    back = torch.stack([*BackClock(output, zero, zero, zero, zero + origin)])
    return torch.where(reached, grad_ys[-1], 0.0), back


def _grad_at_start(problem: Problem, plan: Plan, grad_ys: Tensor) -> Tensor:
    """∂L/∂(the outputs that are y0 itself), 0 where that of a sample is none."""
    grad = grad_ys[: problem.most_at_start]
    if problem.own is None:
        return grad
    count = plan.each(problem.own.at_start, grad_ys[0])
    place = torch.arange(len(grad), device=grad.device).reshape(-1, *(1,) * (grad.dim() - 1))
    return torch.where(place < count, grad, 0.0)


def _times_gradient(
    problem: Problem, plan: Plan, first: Chunk | None, grad_times: Tensor, back: BackClock, grad_at_start: Tensor
) -> Tensor:
    def total(x: Tensor) -> Tensor:
        return x if plan.own else x.sum()

    grad_t = grad_times.clone()
    grad_t[-1] += total(back.end)
    grad_t[0] += total(back.t)
    parts = None if first is None else first.buffers.parts
    if parts is not None:
        for j, grad in list(enumerate(grad_at_start))[1:]:  # outputs at the first time: dy/dt_out = f(t0, y0) = −dy/dt0
            f0 = torch.where(grad != 0, parts[0], 0.0)
            rise = total(product(grad, f0, plan.within(f0)))
            grad_t[j] += rise
            grad_t[0] -= rise
    stretch(grad_t, back.span.sum(), problem.controller)
    return grad_t.flatten(1).T if plan.own else grad_t


def check_size(problem: Problem, size: float) -> None:
    """Refuse tolerances that are too small for y0, whose size in tolerances this is."""
    if isinstance(problem.controller, PID) and math.isfinite(size):
        problem.controller.check_resolution(size, problem.dtype)
