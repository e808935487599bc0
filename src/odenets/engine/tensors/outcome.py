"""What the caller gets to know of a solve in tensors."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from odenets.engine import failures
from odenets.engine.going import escapes
from odenets.engine.tensors.chunks import Chunk, Ended, check_size
from odenets.engine.tensors.plan import Clock
from odenets.evaluation import CountedField, evaluate_at_start
from odenets.methods import real_dtype
from odenets.problem import OwnExtension, Problem, Trajectory, sample_shape
from odenets.solution import Failure, Status


def of_the_batch(problem: Problem, ys: Tensor, ended: Ended) -> Trajectory:
    """Of one step size for the batch; a failure comes without its reason."""
    now = ended.shared
    problem.stats.accepted, problem.stats.rejected = int(now.accepted), int(now.rejected)
    check_size(problem, now.size)
    finite = problem.controller.adaptive or bool(torch.isfinite(ended.y).all())
    failed = now.t < problem.times[-1] or not finite
    return Trajectory(ys, failure=Failure(Status.STEP_SIZE_UNDERFLOW, now.t, now.dt, "") if failed else None)


def of_each_sample(problem: Problem, ys: Tensor, ended: Ended) -> Trajectory:
    """Of a step size for each sample."""
    now = Clock.read(ended.clock.flatten(1))
    problem.stats.accepted, problem.stats.rejected = now.accepted.long(), now.rejected.long()
    sizes = now.size[now.size.isfinite()]
    if len(sizes):
        check_size(problem, float(sizes.max()))
    statuses = _statuses(problem, ended, now)
    failed = [i for i, status in enumerate(statuses) if status is not Status.SUCCESS]
    failure = None
    if failed:
        i = failed[0]
        detail = f"This is sample {i}, whose largest |y| is {float(ended.y[i].abs().max()):.3g}"
        if len(failed) > 1:
            detail += f", the first of {len(failed)} samples of {len(statuses)} that failed"
        bad = problem.y0[i] if statuses[i] is Status.NON_FINITE_START else ended.y[i]
        if not bool(torch.isfinite(bad).all()):
            detail += f"; y: {failures.locate_non_finite(bad[None])}"
        failure = Failure(statuses[i], float(now.t[i]), float(now.dt[i].nan_to_num()), detail + ".", i)
    extension = _extension(ended.chunks) if problem.dense else None
    return Trajectory(ys, failure=failure, statuses=tuple(statuses), own_dense=extension)


def _extension(chunks: Sequence[Chunk]) -> OwnExtension | None:
    """The continuous extension of all steps; None where there were none."""
    taken = [(n, buffers) for n, buffers in chunks if n and buffers.parts is not None]
    if not taken:
        return None
    rows = [[x.unflatten(0, (len(b.y), -1))[:n] for x in (b.times, b.y, b.parts) if x is not None] for n, b in taken]
    times, y, parts = (torch.cat(x) for x in zip(*rows))
    t, dt, ends, _ = times.flatten(2).unbind(1)
    return OwnExtension(t, dt, ends, y[:, 0], parts)


@torch.no_grad()
def _statuses(problem: Problem, ended: Ended, now: Clock) -> list[Status]:
    """How each sample ended."""
    t, steps = now.t.tolist(), (now.accepted + now.rejected).tolist()
    ends = torch.as_tensor(problem.ends, dtype=torch.float64).expand(len(t)).tolist()
    rises = rises_at_start = ended.y
    ends = [end if end > 0 or bool(torch.isfinite(y).all()) else math.inf for y, end in zip(ended.y, ends)]
    if any(x < end for x, end in zip(t, ends)):
        at = (problem.origins + now.t).reshape(sample_shape(ended.y)).to(real_dtype(ended.y))
        rises = CountedField(problem.f, problem.stats)(at, ended.y)
        rises_at_start = evaluate_at_start(problem, problem.y0)
    return [
        Status.SUCCESS
        if t[i] >= end
        else _why(_alone(problem, i), ended.y[i], rises[i], rises_at_start[i], t[i], int(steps[i]))
        for i, end in enumerate(ends)
    ]


def _alone(problem: Problem, i: int) -> Problem:
    """The problem of sample i, whose f gets the other samples as they were at the start."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        ys = problem.y0.detach().clone()
        ys[i] = y[0]
        return problem.f(t.expand(sample_shape(ys)), ys)[i : i + 1]

    alone = replace(problem, f=f, y0=problem.y0[i : i + 1].detach(), per_sample=False)
    if problem.own is None:
        return alone
    stops, jumps = (tuple(times[:, i].tolist()) for times in (problem.own.stops, problem.own.jumps))
    times = problem.t.detach()[i]
    origin = float(problem.own.origin[i])
    return replace(alone, t=times, times=times.tolist(), origin=origin, own=None, stops=stops, jumps=jumps)


def _why(alone: Problem, y: Tensor, rise: Tensor, rise_at_start: Tensor, t: float, steps: int) -> Status:
    """Why a sample, which stands at y at t, got no further."""
    (y0,), t_end = alone.y0, alone.times[-1]
    if steps >= alone.max_steps:
        away = failures.runs_away(y, rise, y0, rise_at_start, t, t_end - t)
        away = away and escapes(alone, y[None], t, None, t_end)
        return Status.DIVERGED if away else Status.MAX_STEPS
    if not bool(torch.isfinite(y0).all()):
        return Status.NON_FINITE_START
    if steps == 0:
        return Status.NON_FINITE_FIELD
    if failures.stops_at_dt_min(alone.controller, t):
        return Status.DT_MIN
    shortest = max(t * torch.finfo(torch.float64).eps, 1e-30 * t_end)
    return Status.DIVERGED if failures.blows_up(y, rise, shortest) else Status.STEP_SIZE_UNDERFLOW
