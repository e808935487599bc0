"""The loop in numbers: one accepted step after the other, and what falls inside of each is handed out."""

import contextlib
import functools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.engine import failures
from odenets.engine.events import Place, Watch
from odenets.engine.going import Going, failure_of_fixed_steps
from odenets.engine.recorded import Recorded
from odenets.engine.straight import cast_anew, goes_straight, straight
from odenets.engine.tape import Accepted, Tape
from odenets.evaluation import evaluate_at_start
from odenets.methods import Field, real_dtype
from odenets.problem import Extension, Located, OwnExtension, Problem, Trajectory
from odenets.solution import Failure, Status
from odenets.transforms import all_finite


def stand_still(problem: Problem) -> Trajectory:
    """A solve of no length, all of whose times are one: no step, and y0 is the state at each.

    Whatever the adjoint, gradients are those of y0 + (t − t0) f(t0, y0).
    """
    y0 = problem.y0
    f0 = evaluate_at_start(problem, y0)
    t = problem.t if problem.own is None else problem.t.T
    past = (t - t[0]).to(real_dtype(y0))
    ys = y0 + past.reshape(*past.shape, *(1,) * (y0.dim() - past.dim() + 1)) * f0
    failure = None
    if not all_finite(ys[-1]):
        reason = failures.at_start(y0.detach(), f0.detach())
        failure = Failure(reason.status, problem.times[0], 0.0, reason.detail)
    trajectory = Trajectory(ys, Extension([problem.times[0]], [0.0], y0[None], f0[None, None]), failure)
    if problem.per_sample:
        problem.stats.accepted, problem.stats.rejected = torch.zeros((2, len(y0)), dtype=torch.int64, device=y0.device)
        trajectory.statuses = (Status.SUCCESS if failure is None else failure.status,) * len(y0)
        rest = torch.zeros((1, len(y0)), dtype=torch.float64, device=y0.device)
        trajectory.own_dense = OwnExtension(rest, rest, rest, y0[None], f0[None, None])
    return trajectory


def run(
    problem: Problem,
    y0: Tensor,
    f0: Tensor | None = None,
    *,
    tape: Tape[Accepted, tuple[Tensor, ...]] | None = None,
    clock: Tensor | None = None,
    timed: bool = False,
    read: bool = True,
    slopes: dict[int, Tensor] | None = None,
    recorded: Recorded | None = None,
) -> Trajectory:
    """Solve from the first time to the last.

    Args:
        y0: The start; `problem.y0`, or a copy of it outside of autograd.
        f0: f(t0, y0) where it is known already.
        tape: Where to write what a replay of the accepted steps needs.
        clock: `problem.t`, where gradients to the times shall flow through the loop itself.
        timed: Whether gradients to the times are wanted at all, by the clock or by a replay.
        slopes: Where to write dy/dt at the outputs that lie inside a step, by their index.
        read: Whether the host may read values: without, nobody sees whether fixed steps ended in finite numbers.
        recorded: The first steps, with their graph.
    """
    times, t_end = problem.times, problem.times[-1]
    if tape is None and not timed and clock is None and slopes is None and goes_straight(problem, y0):
        y = straight(problem, y0, f0)
        failure = failure_of_fixed_steps(problem, y0, y) if read else None
        return Trajectory(torch.stack([y0] * problem.at_start + [y] * times.count(t_end)), failure=failure)
    stepper = Going(problem, y0, times[0], None if clock is None else (clock[0], clock[-1]))
    stepper.carry = () if f0 is None else problem.method.begin(f0)
    timed = timed or clock is not None
    ys = [y0] * (1 if timed else problem.at_start)
    dense: list[Accepted] = []
    watch = Watch(problem, y0) if problem.events else None
    events: list[Located] = []
    ended = False
    furthest = t_end if t_end < math.inf else torch.finfo(real_dtype(y0)).max ** 0.75  # beyond, squares have no number
    with contextlib.ExitStack() as recording:
        if recorded is not None:
            recording.enter_context(recorded.wanted.enable_grad())
        while stepper.t < furthest and not ended:
            cast_anew()
            if recorded is not None:
                recorded.enter(stepper)
            taken = stepper.advance(t_end)
            if taken is None:
                break
            reached = stepper.t
            if watch is not None and taken.step is not None:
                taken = taken._replace(step=stepper.complete(taken.step))
                places, ended = watch.look(taken, stepper.t, stepper.y)
                taken = taken._replace(events=tuple(range(len(events), len(events) + len(places))))
                events += [_located(problem, stepper.f, taken, place) for place in places]
                reached = events[-1].t if ended else reached
            taken = _emit(problem, stepper, ys, taken, clock, timed, reached)
            if problem.told is not None:
                stepper.tell(problem.told, taken, reached)
            if problem.dense:
                dense.append(taken)
            if slopes is not None and taken.step is not None:
                pairs = zip(taken.inside, taken.thetas(times))
                slopes |= {j: problem.method.slope(taken.dt, taken.step.parts, x) for j, x in pairs}
            if tape is not None and taken.y is not None:
                tape.add(taken.light, taken.state)
            if recorded is not None and recorded.leave(taken):
                recorded.cut(stepper, ys)
                recorded = recording.close()
        if recorded is not None:
            recorded.cut(stepper, ys)
    if tape is not None:
        tape.end = (stepper.y,)
    failure = stepper.failure
    if (failure is None or failure.status is Status.MAX_STEPS) and read and not problem.controller.adaptive:
        failure = failure_of_fixed_steps(problem, y0, stepper.y if problem.events else ys[-1]) or failure
    if failure is None and t_end == math.inf and not ended:
        detail = "It has gone as far as times have numbers."
        failure = Failure(Status.NO_EVENT, stepper.t, stepper.dt or 0.0, detail)
    extension = extension_of(dense) if dense else None
    if extension is not None and ended:
        extension = replace(extension, end=events[-1].t)
    return Trajectory(torch.stack(ys), extension, failure, events=events, end=stepper.t if ended else None)


def _located(problem: Problem, f: Field, taken: Accepted, place: Place) -> Located:
    """The event in a step that was just taken and is complete."""
    y, step, method = taken.y, taken.step, problem.method
    if y is None or step is None:
        raise RuntimeError("a step came without what it was made of")
    start, dt = taken.clock or (taken.t, taken.dt)

    def at(t: Any) -> tuple[Tensor, Tensor]:
        theta = (t - start) / dt
        return method.interpolate(y, dt, step.parts, theta), method.slope(dt, step.parts, theta)

    t = taken.t + place.theta * taken.dt
    there = (
        at(t)
        if taken.clock is not None
        else (
            method.interpolate(y, dt, step.parts, place.theta),
            method.slope(dt, step.parts, place.theta),
        )
    )
    if not method.smooth:
        state = there[0].detach()
        if step.y.requires_grad and not transforms.active():  # f may differentiate by it
            state = state.requires_grad_()
        return Located(place.of, t, there[0], f(problem.field_time(t), state).detach())
    return Located(place.of, t, *there, at)


def extension_of(steps: list[Accepted]) -> Extension:
    """The continuous extension of these steps, which are complete."""
    y = torch.stack([step.y for step in steps if step.y is not None])
    each = [step.step.parts for step in steps if step.step is not None]
    most = max(map(len, each))
    none = torch.zeros_like(y[0])  # in the place of parts that a step of lower order has not
    parts = torch.stack([part for parts in each for part in (*parts, *[none] * (most - len(parts)))])
    parts = parts.unflatten(0, (len(each), most))
    clock = None
    if steps[0].clock is not None:
        as_time = functools.partial(torch.as_tensor, dtype=torch.float64, device=y.device)
        clock = torch.stack([torch.stack([*map(as_time, step.clock)]) for step in steps if step.clock is not None])
    return Extension([step.t for step in steps], [step.dt for step in steps], y, parts, clock)


def _emit(
    problem: Problem,
    stepper: Going,
    ys: list[Tensor],
    taken: Accepted,
    clock: Tensor | None,
    timed: bool,
    reached: float,
) -> Accepted:
    """Append the outputs up to `reached` in this step; the step with their indices, complete if they need that."""
    first = last = len(ys)
    slack = _ROUNDING * stepper.t
    while last < len(problem.times) and problem.times[last] <= reached + slack:
        last += 1
    if (first == last and not problem.dense) or taken.y is None or taken.step is None:
        return taken
    ends = tuple(j for j in range(first, last) if _ends_step(problem, stepper.t - slack, j, timed))
    inside = tuple(j for j in range(first, last) if j not in ends)
    step = taken.step
    if inside or problem.dense:
        step = stepper.complete(step)
    y, taken = taken.y, taken._replace(step=step, ends=ends, inside=inside)
    if len(inside) >= _MANY and clock is None and not transforms.active():
        thetas = taken.thetas(problem.times)
        ys.extend(problem.method.interpolate_all(y, taken.dt, step.parts, thetas).unbind())  # ends come last
        ys.extend([step.y] * len(ends))
        return taken
    t, dt = taken.clock or (taken.t, taken.dt)
    for j in range(first, last):
        if j in ends:
            ys.append(step.y)
        else:
            t_out = problem.times[j] if clock is None else clock[j]
            ys.append(problem.method.interpolate(y, dt, step.parts, (t_out - t) / dt))
    return taken


_MANY = 4  # outputs inside of a step, from where on they are one product
_ROUNDING = 2.0**-50  # of a time that is the sum of a few


def _ends_step(problem: Problem, t: float, j: int, timed: bool) -> bool:
    """Whether output j is the end of the step itself, not before t, and not an interpolation inside it.

    Where gradients to the times are wanted only the last output is: there alone the step's own length carries
    the gradient; every other one gets it from the interpolation.
    """
    return j == len(problem.times) - 1 if timed else problem.times[j] >= t


def clock_of(problem: Problem) -> Tensor | None:
    """The times, where their derivatives are wanted."""
    return problem.t if transforms.is_differentiated(problem.t) else None
