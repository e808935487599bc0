"""The host's side of the loop in tensors: chunk after chunk, forward and backward, as one function of autograd."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from odenets.controller import PID
from odenets.loop import Problem, Trajectory, is_tame, locate_non_finite
from odenets.march import CLOCK, Buffers, Plan, arranged, numbers_of, restored, time_shape
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

    def forward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]: ...

    def backward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]: ...


@dataclass
class Chunk:
    """Steps that were taken."""

    rows: int
    buffers: Buffers


@dataclass
class Marched:
    """Where a solve in tensors ended."""

    ys: Tensor  # (T, *y.shape); NaN where a sample did not get
    clock: Tensor  # as `odenets.march.forward` left it
    y: Tensor
    chunks: list[Chunk]
    report: list[float]  # the beginning of the clock, where there is one for the batch


def march(problem: Problem, plan: Plan, engine: Engine, tensors: Sequence[Tensor]) -> Marched:
    """Solve from the first time to the last, outside of autograd."""
    y0, times = arranged(plan, problem.y0.detach()), problem.t.detach()
    y, at_start = y0, problem.times.count(problem.times[0])
    ys = None
    if plan.outputs:
        ys = y.new_empty((len(times), *y.shape))
        ys[:at_start] = y
    numbers = _numbers(problem, first=True)
    clock = constant((0.0,) * (CLOCK + len(plan.controller.start)), torch.float64, y.device)
    if plan.per_sample:
        clock = clock.reshape(-1, *(1,) * y.dim()).expand(-1, *time_shape(plan, y)).contiguous()
    f0 = (y,) if plan.carries_f0 else ()  # any values: those of the first chunk are not used
    program, chunks, going = engine.forward(plan), [], True
    report: list[float] = []
    buffers = None
    while going:
        if plan.buffered and (plan.keep or buffers is None):
            buffers = Buffers.empty(plan, y, _capacity(plan, y))
        elif buffers is not None:
            buffers.times.fill_(math.inf)
        written = (*(() if ys is None else (ys,)), *(buffers.tensors if buffers else ()))
        report_, clock, y, *f0 = program(
            numbers, times if plan.outputs else times[:1], clock, y, *f0, *written, *tensors
        )
        report = report_.tolist()  # the one host read of a chunk
        rows, going, tried = (int(value) for value in report[:3])
        problem.stats.nfe += plan.nfe_start + tried * plan.nfe_step
        if plan.keep and buffers is not None:
            chunks.append(Chunk(rows, buffers))
        numbers = _numbers(problem, first=False) if going else numbers
    reached = report[3] >= problem.times[-1] if not plan.per_sample else clock[0] >= problem.times[-1]
    if ys is None:
        ys = torch.stack([*[y0] * at_start, y])
    else:
        ys[-1] = y
    if reached is not True:
        _blank(plan, ys, clock, reached)
    return Marched(restored(plan, ys, axis=1).contiguous(), clock, restored(plan, y), chunks, report[3:])


def _capacity(plan: Plan, y: Tensor) -> int:
    states = 1 + (len(plan.method.b) + 1 if plan.stages else 0)
    room = ROOM if plan.keep else CACHE
    return max(FEWEST, min(MOST, room // (states * y.numel() * y.element_size())))


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
        result = march(call.problem, call.plan, call.engine, tensors)
        call.result = result
        ctx.call = call
        ctx.rows = [chunk.rows for chunk in result.chunks]
        kept = [tensor for chunk in result.chunks for tensor in chunk.buffers.tensors]
        ctx.count = len(tensors)
        ctx.save_for_backward(t, result.clock, *tensors, *kept)
        result.chunks = []
        return result.ys

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only with create_graph=True
            raise NotImplementedError(
                "`adjoint=Checkpointed()` has no second derivative (create_graph=True); use `adjoint=Direct()`"
            )
        t, clock, *saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.count], saved[ctx.count :]
        call: Call = ctx.call
        size = 3 if call.plan.stages else 2
        groups = [kept[i : i + size] for i in range(0, len(kept), size)]
        chunks = [Chunk(rows, Buffers(g[0], g[1], g[2] if size == 3 else None)) for rows, g in zip(ctx.rows, groups)]
        with call.autocast:
            grads = march_back(call, chunks, t, clock, grad_outputs[0], tensors)
        return None, *grads


@dataclass
class Call:
    """What the function of autograd keeps beside its tensors."""

    problem: Problem
    plan: Plan
    engine: Engine
    autocast: Any
    backward: Callable[..., Sequence[Tensor]] | None  # the loop of the backward pass, where there will be one
    result: Marched | None = None


def march_back(
    call: Call, chunks: list[Chunk], t: Tensor, clock: Tensor, grad_ys: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """∂L/∂y0, ∂L/∂t (None where it is not wanted), and ∂L/∂(each tensor)."""
    problem, plan, engine = call.problem, call.plan, call.engine
    program = call.backward
    if program is None:
        raise RuntimeError("this solve was to have no backward pass")
    grad_ys = arranged(plan, grad_ys, axis=1).contiguous()
    lam, state = _at_the_end(problem, plan, clock, grad_ys)
    grad_times, sums = torch.zeros_like(t) if plan.timed else t, []
    times = t.detach() if plan.outputs else t.detach()[:1]
    with_outputs = (grad_ys,) if plan.outputs else ()
    for chunk in reversed([chunk for chunk in chunks if chunk.rows > 0]):
        rows = constant((chunk.rows,), torch.int64, t.device)
        state, lam, *rest = program(rows, times, state, lam, *with_outputs, *chunk.buffers.tensors, *tensors)
        if plan.outputs:
            more, *rest = rest
            grad_times = grad_times + more if plan.timed else grad_times
        sums = [a + b for a, b in zip(sums, rest)] if sums else rest
    steps = sum(chunk.rows for chunk in chunks)
    problem.stats.nfe_backward = (problem.stats.nfe_backward or 0) + steps * plan.nfe_undo
    at_start = problem.times.count(problem.times[0])
    grad_y0 = lam + (grad_ys[0] if at_start == 1 else grad_ys[:at_start].sum(0))
    grad_t = _times_gradient(chunks, grad_times, state, grad_ys[:at_start]) if plan.timed else None
    by_index = dict(zip(engine.wanted, sums))
    return restored(plan, grad_y0), grad_t, *(by_index.get(i) for i in range(len(tensors)))


def _at_the_end(problem: Problem, plan: Plan, clock: Tensor, grad_ys: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂y, and the clock of the backward pass."""
    last = float(len(grad_ys) - 2)  # the output before the last
    if not plan.per_sample:
        return grad_ys[-1], constant((last, 0.0, 0.0), torch.float64, grad_ys.device)
    reached = clock[0] >= problem.times[-1]
    output = torch.where(reached, last, clock[4] - 1)
    zero = torch.zeros_like(output)
    return torch.where(reached, grad_ys[-1], 0.0), torch.stack([output, zero, zero])


def _times_gradient(chunks: list[Chunk], grad_times: Tensor, state: Tensor, grad_at_start: Tensor) -> Tensor:
    grad_t = grad_times.clone()
    grad_t[-1] += state[2].sum()
    grad_t[0] += state[1].sum()
    stages = chunks[0].buffers.stages if chunks else None
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


def _statuses(problem: Problem, result: Marched, clock: Tensor) -> list[Status]:
    """How each sample ended."""
    t, _, accepted, rejected = clock[:4].tolist()
    return [
        Status.SUCCESS
        if t[i] >= problem.times[-1]
        else _why(problem, result.y, i, accepted[i] + rejected[i] >= problem.max_steps, accepted[i] + rejected[i] == 0)
        for i in range(len(t))
    ]


@torch.no_grad()
def _why(problem: Problem, y: Tensor, i: int, used_up: bool, never_started: bool) -> Status:
    if used_up:
        return Status.MAX_STEPS
    if not bool(torch.isfinite(problem.y0[i]).all()):
        return Status.NON_FINITE_START
    if never_started:
        return Status.NON_FINITE_FIELD
    return Status.STEP_SIZE_UNDERFLOW if is_tame(y[i], problem.y0[i]) else Status.DIVERGED
