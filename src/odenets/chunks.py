"""The host's side of the loop in tensors: chunk after chunk, forward and backward, as one function of autograd."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from odenets import transforms
from odenets.controller import PID
from odenets.evaluation import CountedField
from odenets.loop import (
    Problem,
    Tape,
    Trajectory,
    blows_up,
    escapes,
    evaluate_at_start,
    locate_non_finite,
    reversal,
    runs_away,
    sample_shape,
    stretch,
)
from odenets.march import CLOCK, Activation, Buffers, Plan, arranged, numbers_of, restored, time_shape
from odenets.methods import real_dtype
from odenets.solution import Failure, Status

ROOM = 32 * 2**20  # bytes that the buffers of a chunk may take
CACHE = 2 * 2**20  # the same where a chunk is forgotten once its outputs are read
FEWEST, MOST = 8, 256  # accepted steps in a chunk, whatever their size


class Engine(Protocol):
    """What runs the loops: see `odenets.march` for the arguments of the two functions."""

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


class Start(NamedTuple):
    """Where a chunk begins."""

    clock: Tensor
    y: Tensor
    f0: tuple[Tensor, ...]  # f there and what its evaluation keeps, where that is carried

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.clock, self.y, *self.f0


@dataclass
class Marched:
    """Where a solve in tensors ended."""

    ys: Tensor  # (T, *y.shape); NaN where a sample did not get
    clock: Tensor  # as `odenets.march.forward` left it
    y: Tensor
    chunks: list[Chunk]  # where every step is kept
    tape: Tape[int, Start]  # the rows of each chunk, and where some begin
    report: list[float]  # the beginning of the clock, where there is one for the batch


class _Forward:
    """Chunks of a solve, one after the other."""

    def __init__(self, problem: Problem, plan: Plan, engine: Engine, tensors: Sequence[Tensor]) -> None:
        self.problem, self.plan, self.tensors = problem, plan, tensors
        self.times = problem.t.detach() if plan.outputs else problem.t.detach()[:1]
        self.program = engine.forward(plan)

    def begin(self) -> Start:
        plan, y = self.plan, arranged(self.plan, self.problem.y0)
        clock = constant((0.0,) * (CLOCK + len(plan.controller.start)), torch.float64, y.device)
        if plan.per_sample:
            clock = clock.reshape(-1, *(1,) * y.dim()).expand(-1, *time_shape(plan, y)).contiguous()
        # f0 and what goes with it: any values, those of the first chunk are not used.
        kept = (y.new_empty(shape, dtype=dtype) for shape, dtype in plan.activations or ())
        return Start(clock, y, (y, *kept) if plan.carries_f0 else ())

    def chunk(
        self, start: Start, first: bool, ys: Tensor | None, buffers: Buffers | None
    ) -> tuple[list[float], int, Start]:
        """The report, the evaluations of f, and where the next chunk begins."""
        numbers = _numbers(self.problem, first)
        written = (*(() if ys is None else (ys,)), *(buffers.tensors if buffers else ()))
        report_, clock, y, *f0 = self.program(numbers, self.times, *start.tensors, *written, *self.tensors)
        report = transforms.values_of(report_)  # the one host read of a chunk
        return report, self.plan.nfe_start + int(report[2]) * self.plan.nfe_step, Start(clock, y, tuple(f0))


def march(
    problem: Problem, plan: Plan, engine: Engine, tensors: Sequence[Tensor], states: int | None = None
) -> Marched:
    """Solve from the first time to the last.

    Args:
        states: How many states may be kept for the backward pass; None for any number.
    """
    forward = _Forward(problem, plan, engine, tensors)
    start, at_start = forward.begin(), problem.times.count(problem.times[0])
    ys = None
    if plan.outputs:
        ys = start.y.new_empty((len(problem.times), *start.y.shape))
        ys[:at_start] = start.y
    chunks, going = [], True
    tape: Tape[int, Start] = Tape(0 if states is None else _shares(plan, states).saved)
    report: list[float] = []
    buffers = None
    keep_all = plan.keep and states is None
    while going:
        if plan.buffered and (keep_all or buffers is None):
            buffers = Buffers.empty(plan, start.y, _capacity(plan, start.y, states))
        elif buffers is not None:
            buffers.times.fill_(math.inf)
        report, nfe, end = forward.chunk(start, not tape.steps, ys, buffers)
        rows, going = int(report[0]), report[1] > 0
        problem.stats.nfe += nfe
        if keep_all and buffers is not None:
            chunks.append(Chunk(rows, buffers))
        tape.add(rows, start)
        start = end
    clock, y = start.clock, start.y
    reached = report[3] >= problem.times[-1] if not plan.per_sample else clock[0] >= problem.times[-1]
    if ys is None:
        ys = torch.stack([*[arranged(plan, problem.y0)] * at_start, y])
    else:
        ys[-1] = y
    if reached is not True:
        _blank(plan, ys, clock, reached)
    return Marched(restored(plan, ys, axis=1).contiguous(), clock, restored(plan, y), chunks, tape, report[3:])


class _Shares(NamedTuple):
    """How the states that may be kept are shared out."""

    rows: int  # of the buffers of one chunk
    saved: int  # starts of chunks kept from the forward pass; each is the state and f there
    free: int  # starts that the backward pass may keep beside them


def _shares(plan: Plan, states: int) -> _Shares:
    return _Shares(max(1, states // 2 // plan.row_states), states // 8, states // 4 - states // 8)


def _capacity(plan: Plan, y: Tensor, states: int | None) -> int:
    if plan.keep and states is not None:
        return min(MOST, _shares(plan, states).rows)
    room = ROOM if plan.keep else CACHE
    return max(FEWEST, min(MOST, room // max(1, plan.row_bytes(y))))


def _numbers(problem: Problem, first: bool) -> Tensor:
    """The first argument of `odenets.march.forward`."""
    values = numbers_of(problem, problem.times[0], problem.times[-1], first)
    return constant(values, torch.float64, problem.y0.device)


@functools.lru_cache(maxsize=1024)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that nobody writes into, made once."""
    return torch.tensor(values, dtype=dtype, device=device)


def _blank(plan: Plan, ys: Tensor, clock: Tensor, reached: Any) -> None:
    """NaN in every output that was not reached."""
    if not plan.per_sample:
        ys[int(clock[4]) :] = torch.nan
        return
    missing = torch.arange(len(ys), device=ys.device).reshape(-1, *(1,) * (ys.dim() - 1)) >= clock[4]
    ys.masked_fill_(missing & ~reached, torch.nan)


class March(torch.autograd.Function):
    """`march`, and its reverse."""

    @staticmethod
    def forward(ctx: Any, call: "Call", y0: Tensor, t: Tensor, *tensors: Tensor) -> Tensor:
        result = march(replace(call.problem, y0=y0.detach()), call.plan, call.engine, tensors, call.states)
        call.result = result
        ctx.call, ctx.rows, ctx.count = call, result.tape.steps, len(tensors)
        starts = {} if call.states is None else result.tape.states
        ctx.places = list(starts)
        kept = [*(chunk.buffers for chunk in result.chunks), *starts.values()]
        ctx.sizes = [len(piece.tensors) for piece in kept]
        ctx.save_for_backward(t, result.clock, *tensors, *(x for piece in kept for x in piece.tensors))
        result.chunks, result.tape.states = [], {}
        return result.ys

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only with create_graph=True
            what = "compile" if ctx.call.problem.compile else "per_sample"
            raise NotImplementedError(
                f"`{what}=True` has no second derivative (create_graph=True); use `adjoint=Direct()` without it"
            )
        transforms.refuse_in_backward(grad_outputs, "use `adjoint=Direct()` without `compile` and `per_sample`")
        t, clock, *saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.count], iter(saved[ctx.count :])
        call: Call = ctx.call
        pieces = [[next(kept) for _ in range(size)] for size in ctx.sizes]
        if call.states is not None:
            starts = {place: Start(p[0], p[1], tuple(p[2:])) for place, p in zip(ctx.places, pieces)}
            chunks = _again(call, call.states, ctx.rows, starts, tensors)
        else:
            chunks = (Chunk(rows, Buffers.of(call.plan, p)) for rows, p in zip(ctx.rows[::-1], pieces[::-1]))
        with call.autocast:
            grads = march_back(call, chunks, t, clock, grad_outputs[0], tensors)
            call.engine.check()
        return None, *grads


@dataclass
class Call:
    """What the function of autograd keeps beside its tensors."""

    problem: Problem
    plan: Plan
    engine: Engine
    autocast: Any
    backward: Callable[..., Sequence[Tensor]] | None  # the loop of the backward pass, where there will be one
    states: int | None = None  # how many states may be kept; None for any number
    result: Marched | None = None


def _again(
    call: Call, states: int, rows: Sequence[int], starts: dict[int, Start], tensors: Sequence[Tensor]
) -> Iterator[Chunk]:
    """The chunks, the last first, made again from where some of them begin."""
    problem, plan = call.problem, call.plan
    forward = _Forward(problem, plan, call.engine, tensors)
    passing = starts[0]  # from then on what the last move has reached
    y = passing.y
    buffers = Buffers.empty(plan, y, _capacity(plan, y, states))
    ys = y.new_empty((len(problem.times), *y.shape)) if plan.outputs else None  # written again, and not used
    nfe = 0

    def run(index: int, start: Start) -> Start:
        nonlocal nfe
        buffers.times.fill_(math.inf)
        _, more, end = forward.chunk(start, index == 0, ys, buffers)
        nfe += more
        return end

    for start, end, keep in reversal(len(rows), list(starts), _shares(plan, states).free):
        passing = starts.get(start, passing)
        if start == end:
            run(start, passing)
            starts.pop(start, None)
            yield Chunk(rows[start], buffers)
            continue
        for index in range(start, end):
            passing = run(index, passing)
        if keep:
            starts[end] = passing
    problem.stats.add_backward(nfe)


def march_back(
    call: Call, chunks: Iterable[Chunk], t: Tensor, clock: Tensor, grad_ys: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """∂L/∂y0, ∂L/∂t (None where it is not wanted), and ∂L/∂(each tensor); the chunks come the last first."""
    problem, plan, engine = call.problem, call.plan, call.engine
    program = call.backward
    if program is None:
        raise RuntimeError("this solve was to have no backward pass")
    grad_ys = arranged(plan, grad_ys, axis=1).contiguous()
    lam, state = _at_the_end(problem, plan, clock, grad_ys)
    grad_times, sums = torch.zeros_like(t) if plan.timed else t, []
    times = t.detach() if plan.outputs else t.detach()[:1]
    with_outputs = (grad_ys,) if plan.outputs else ()
    steps, first = 0, None
    for chunk in chunks:
        if chunk.rows == 0:
            continue
        rows, first = constant((chunk.rows,), torch.int64, t.device), chunk
        state, lam, *rest = program(rows, times, state, lam, *with_outputs, *chunk.buffers.tensors, *tensors)
        if plan.outputs:
            more, *rest = rest
            grad_times = grad_times + more if plan.timed else grad_times
        sums = [a + b for a, b in zip(sums, rest)] if sums else rest
        steps += chunk.rows
    problem.stats.add_backward(steps * plan.nfe_undo)
    at_start = problem.times.count(problem.times[0])
    grad_y0 = lam + (grad_ys[0] if at_start == 1 else grad_ys[:at_start].sum(0))
    grad_t = _times_gradient(first, grad_times, state, grad_ys[:at_start]) if plan.timed else None
    if grad_t is not None:
        stretch(grad_t, state[3].sum(), problem.controller)
    by_index = dict(zip(engine.wanted, sums or [torch.zeros_like(tensors[i]) for i in engine.wanted]))
    return restored(plan, grad_y0), grad_t, *(by_index.get(i) for i in range(len(tensors)))


def _at_the_end(problem: Problem, plan: Plan, clock: Tensor, grad_ys: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂y, and the clock of the backward pass."""
    last = float(len(grad_ys) - 2)  # the output before the last
    if not plan.per_sample:
        return grad_ys[-1], constant((last, 0.0, 0.0, 0.0, problem.origin), torch.float64, grad_ys.device)
    reached = clock[0] >= problem.times[-1]
    output = torch.where(reached, last, clock[4] - 1)
    zero = torch.zeros_like(output)
    return torch.where(reached, grad_ys[-1], 0.0), torch.stack([output, zero, zero, zero, zero + problem.origin])


def _times_gradient(first: Chunk | None, grad_times: Tensor, state: Tensor, grad_at_start: Tensor) -> Tensor:
    grad_t = grad_times.clone()
    grad_t[-1] += state[2].sum()
    grad_t[0] += state[1].sum()
    stages = None if first is None else first.buffers.stages
    if len(grad_at_start) > 1 and stages is not None:  # outputs at the first time: dy/dt_out = f(t0, y0) = −dy/dt0
        for j in range(1, len(grad_at_start)):
            rise = (grad_at_start[j].conj() * stages[0]).sum().real
            grad_t[j] += rise
            grad_t[0] -= rise
    return grad_t


def shared_trajectory(problem: Problem, ys: Tensor, result: Marched) -> Trajectory:
    """What the caller gets to know of a solve with one step size for the batch; a failure comes without its reason."""
    t, dt, accepted, rejected, _, size = result.report
    problem.stats.accepted, problem.stats.rejected = int(accepted), int(rejected)
    if isinstance(problem.controller, PID) and math.isfinite(size):
        problem.controller.check_resolution(size, problem.y0.dtype)
    finite = problem.controller.adaptive or bool(torch.isfinite(result.y).all())
    failed = t < problem.times[-1] or not finite
    return Trajectory(ys, [], Failure(Status.STEP_SIZE_UNDERFLOW, t, dt, "") if failed else None)


def sample_trajectory(problem: Problem, ys: Tensor, result: Marched) -> Trajectory:
    """What the caller gets to know of a solve with a step size for each sample."""
    clock = result.clock.flatten(1)
    problem.stats.accepted, problem.stats.rejected = clock[2].long(), clock[3].long()
    sizes = clock[5][clock[5].isfinite()]
    if isinstance(problem.controller, PID) and len(sizes):
        problem.controller.check_resolution(float(sizes.max()), problem.y0.dtype)
    statuses = _statuses(problem, result, clock)
    failed = [i for i, status in enumerate(statuses) if status is not Status.SUCCESS]
    failure = None
    if failed:
        i = failed[0]
        detail = f"This is sample {i}, whose largest |y| is {float(result.y[i].abs().max()):.3g}"
        if len(failed) > 1:
            detail += f", the first of {len(failed)} samples of {len(statuses)} that failed"
        bad = problem.y0[i] if statuses[i] is Status.NON_FINITE_START else result.y[i]
        if not bool(torch.isfinite(bad).all()):
            detail += f"; y: {locate_non_finite(bad[None])}"
        failure = Failure(statuses[i], float(clock[0, i]), float(clock[1, i].nan_to_num()), detail + ".")
    return Trajectory(ys, [], failure, tuple(statuses))


@torch.no_grad()
def _statuses(problem: Problem, result: Marched, clock: Tensor) -> list[Status]:
    """How each sample ended."""
    t, _, accepted, rejected = clock[:4].tolist()
    stuck = clock[0] < problem.times[-1]
    rises = rises_at_start = result.y
    if bool(stuck.any()):
        rises, rises_at_start = _rises(problem, result), evaluate_at_start(problem, problem.y0)
    return [
        Status.SUCCESS
        if t[i] >= problem.times[-1]
        else _why(problem, result.y[i], rises[i], rises_at_start[i], i, t[i], int(accepted[i] + rejected[i]))
        for i in range(len(t))
    ]


@torch.no_grad()
def _rises(problem: Problem, result: Marched) -> Tensor:
    """f where each sample stands."""
    t = (problem.origin + result.clock.flatten(1)[0]).reshape(sample_shape(result.y))
    return CountedField(problem.f, problem.stats)(t.to(real_dtype(result.y)), result.y)


def _alone(problem: Problem, i: int) -> Problem:
    """The problem of sample i, whose f gets the other samples as they were at the start."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        ys = problem.y0.detach().clone()
        ys[i] = y[0]
        return problem.f(t.expand(sample_shape(ys)), ys)[i : i + 1]

    return replace(problem, f=f, y0=problem.y0[i : i + 1].detach(), per_sample=False)


@torch.no_grad()
def _why(problem: Problem, y: Tensor, rise: Tensor, rise_at_start: Tensor, i: int, t: float, steps: int) -> Status:
    """Why sample i, which stands at y at t, got no further."""
    if steps >= problem.max_steps:
        away = runs_away(y, rise, problem.y0[i], rise_at_start, t, problem.times[-1] - t)
        away = away and escapes(_alone(problem, i), y[None], t, None, problem.times[-1])
        return Status.DIVERGED if away else Status.MAX_STEPS
    if not bool(torch.isfinite(problem.y0[i]).all()):
        return Status.NON_FINITE_START
    if steps == 0:
        return Status.NON_FINITE_FIELD
    shortest = max(t * torch.finfo(torch.float64).eps, 1e-30 * problem.times[-1])
    return Status.DIVERGED if blows_up(y, rise, shortest) else Status.STEP_SIZE_UNDERFLOW
