"""A solve with events: a chain of solves, each from where a state was changed to the next event that changes it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets import transforms
from odenets.adjoint import Adjoint
from odenets.controller import Controller, Fixed
from odenets.engine.eager import run
from odenets.engine.engines import Engine
from odenets.evaluation import CountedField
from odenets.event import Watched
from odenets.methods import real_dtype
from odenets.problem import Extension, Located, Problem, Trajectory
from odenets.pullback.by_autograd import inner_product
from odenets.pullback.reached import LostGradientError
from odenets.solution import Failure, Stats, Status


class Happened(NamedTuple):
    """An event, with what its time and its state depend on."""

    of: int  # which of the problem's events
    t: Tensor  # 0-dimensional, in the solver's time
    y: Tensor
    sample: int | None = None  # whose it is, where each has its own steps


class Chain:
    """The solves of a problem so far, joined."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.happened: list[Happened] = []
        self.end: Happened | None = None  # the event that has ended the whole, if one has
        self.reached = 0  # how many of the states were reached
        self._rows: list[Tensor] = []
        self._extensions: list[Extension] = []
        self._failure: Failure | None = None

    def solved(self, adjoint: Adjoint, engine: Engine) -> Trajectory:
        """Solve to the last time, or until an event ends it: then the states behind are the one there."""
        piece: Problem | None = self.problem
        while piece is not None:
            trajectory = _by_itself(piece, adjoint, engine) if engine.compiled else _until_event(piece, adjoint, engine)
            piece = self._add(piece, trajectory)
        ys = torch.cat(self._rows)
        if self.end is not None:
            ys = torch.cat([ys, self.end.y.expand(len(self.problem.times) - len(ys), *ys.shape[1:])])
        return Trajectory(ys, _joined(self._extensions) if self._extensions else None, self._failure)

    @property
    def ended(self) -> bool:
        """Whether an event has ended the solve."""
        return self.end is not None

    def times(self, ts: Tensor) -> Tensor:
        """The caller's times, with that of the end in place of those behind it."""
        if self.end is None:
            return ts
        end = self.problem.sign * (self.problem.origin + self.end.t)
        return torch.cat([ts[: self.reached], end.to(ts).expand(len(ts) - self.reached)])

    def _add(self, piece: Problem, trajectory: Trajectory) -> Problem | None:
        """Take up a piece; the one that follows, if one does."""
        since = piece.origin - self.problem.origin
        self._rows.append(trajectory.ys[1:] if self._rows else trajectory.ys)
        self.reached += len(self._rows[-1])
        if trajectory.dense is not None:
            self._extensions.append(_later(trajectory.dense, since))
        if trajectory.failure is not None:
            self._failure = replace(trajectory.failure, t=since + trajectory.failure.t)
            return None
        happened = [
            differentiable(piece.events[one.of], piece.origin, piece.t.detach().new_tensor(one.t), one)
            for one in trajectory.events
        ]
        self.happened += [event._replace(t=since + event.t) for event in happened]
        return self._following(piece, happened, since) if trajectory.ended else None

    def _following(self, piece: Problem, happened: Sequence[Happened], since: float) -> Problem | None:
        """The piece behind the last of these, which has ended the one before."""
        left = [_fewer(w, sum(e.of == i for e in happened)) for i, w in enumerate(piece.events)]
        t, y = happened[-1].t, happened[-1].y
        if any(watched.left == 0 for watched in left):
            self.end = self.happened[-1]
        if self.end is not None or self.reached == len(self.problem.times):
            return None
        now = _number(t)
        here = {e.of: _size(piece, e.of, t, y) for e in happened if _number(e.t) == now}
        for watched in (left[i] for i in here):
            y = y if watched.jump is None else watched.jump((piece.origin + t).to(real_dtype(y)), y)
        start = since + now
        return replace(
            self.problem,
            y0=y,
            t=torch.cat([(t - now)[None], self.problem.t[self.reached :] - start]),
            times=[0.0, *(time - start for time in self.problem.times[self.reached :])],
            controller=_as_before(piece),
            stops=_behind(self.problem.stops, start),
            jumps=_behind(self.problem.jumps, start),
            origin=self.problem.origin + start,
            events=tuple(replace(watched, residual=here.get(i)) for i, watched in enumerate(left)),
        )


def _number(t: Tensor) -> float:
    return float(transforms.unwrapped(t.detach()))


@torch.no_grad()
def _size(problem: Problem, i: int, t: Tensor, y: Tensor) -> float:
    """How far from 0 the condition of an event is where it was located."""
    return abs(_number(problem.events[i].value((problem.origin + t.detach()).to(real_dtype(y)), y.detach())))


def _fewer(watched: Watched, count: int) -> Watched:
    """With so many fewer left until it ends the solve."""
    return watched if watched.left is None else replace(watched, left=watched.left - count)


def _behind(times: Sequence[float], start: float) -> tuple[float, ...]:
    return tuple(time - start for time in times if time >= start)


def _as_before(problem: Problem) -> Controller:
    """The controller for another interval: fixed steps keep their size."""
    controller = problem.controller
    return Fixed(dt=controller.given_step(problem.times[0], problem.times[-1])) if controller.share else controller


def _later(extension: Extension, since: float) -> Extension:
    """The same, counting time from `since` earlier."""
    return replace(
        extension,
        t=[t + since for t in extension.t],
        clock=None if extension.clock is None else extension.clock + extension.clock.new_tensor([since, 0.0]),
        end=None if extension.end is None else extension.end + since,
    )


def _joined(extensions: Sequence[Extension]) -> Extension:
    """One after the other: where one ends inside of its last step, the next begins."""
    if len(extensions) == 1:
        return extensions[0]
    clocks = [x.clock for x in extensions]
    if any(clock is not None for clock in clocks):
        device = extensions[0].y.device
        made = (torch.tensor([x.t, x.dt], dtype=torch.float64, device=device).T for x in extensions)
        clocks = [known if clock is None else clock for clock, known in zip(clocks, made)]
    return Extension(
        [t for x in extensions for t in x.t],
        [dt for x in extensions for dt in x.dt],
        torch.cat([x.y for x in extensions]),
        torch.cat([x.parts for x in extensions]),
        None if clocks[0] is None else torch.cat([clock for clock in clocks if clock is not None]),
        extensions[-1].end,
    )


def _by_itself(problem: Problem, adjoint: Adjoint, engine: Engine) -> Trajectory:
    """The same by compiled loops, each of which counts its own steps."""
    before = replace(problem.stats)
    problem.stats.reset()
    alone = replace(problem, max_steps=max(1, problem.max_steps - before.steps))
    trajectory = _until_event(alone, adjoint, engine)
    problem.stats.add(before)
    return trajectory


def _until_event(problem: Problem, adjoint: Adjoint, engine: Engine) -> Trajectory:
    """Solve to the last time, or until an event that ends the solve or changes the state."""
    if adjoint.interpolates and not engine.compiled:
        return _without_end(problem, adjoint.integrate(problem, engine))
    stats = Stats()
    with torch.no_grad():
        y0 = problem.y0.detach()
        found = run(replace(problem, y0=y0, stats=stats), y0)
    problem.stats.nfe += stats.nfe
    if found.failure is None and found.events:
        return _once_more(problem, found, adjoint, engine)
    return _without_end(problem, adjoint.integrate(replace(problem, events=()), engine))


def _without_end(problem: Problem, trajectory: Trajectory) -> Trajectory:
    """The trajectory, which has failed where it was to go on until an event that did not come."""
    failure = trajectory.failure
    if problem.times[-1] < math.inf or trajectory.ended:
        return trajectory
    if failure is not None and failure.status is Status.MAX_STEPS:
        detail = "It took `max_steps` steps: a larger `max_steps` goes further."
        return replace(trajectory, failure=replace(failure, status=Status.NO_EVENT, detail=detail))
    return trajectory


def _once_more(problem: Problem, found: Trajectory, adjoint: Adjoint, engine: Engine) -> Trajectory:
    """The same solve, with the times of its events among its outputs.

    Where these are interpolated, the last step ends where it did, so that all steps are the same.
    """
    outputs = problem.times[: len(found.ys)] if found.ended else problem.times
    places = sorted([*((t, 0, j) for j, t in enumerate(outputs)), *((e.t, 1, k) for k, e in enumerate(found.events))])
    t = [problem.t.new_tensor(time) if kind else problem.t[i] for time, kind, i in places]
    times = [time for time, *_ in places]
    if adjoint.interpolates and found.end is not None:
        moved = problem.t[0] - problem.t[0].detach()  # as all its steps do, the end moves with the start
        t, times = [*t, found.end + moved], [*times, found.end]
    solved = replace(problem, events=(), t=torch.stack(t), times=times)
    trajectory = adjoint.integrate(replace(solved, controller=_as_before(problem)) if found.ended else solved, engine)
    rows = trajectory.ys.unbind()
    f = CountedField(problem.f, problem.stats)
    events: list[Located] = []
    for (time, kind, k), y in zip(places, rows):
        if kind:
            slope = found.events[k].slope
            if not adjoint.interpolates:  # y is another one then
                with torch.no_grad():
                    slope = f(problem.field_time(time), y.detach())
            events.append(Located(found.events[k].of, time, y, slope))
    ys = torch.stack([y for (_, kind, _), y in zip(places, rows) if not kind])
    return replace(trajectory, ys=ys, events=events, end=None if trajectory.failure else found.end)


def differentiable(watched: Watched, origin: float, t: Tensor, located: Located) -> Happened:
    """The event, at the time t of a solve from `origin` on, with the derivatives of its time and its state, if any.

    Where g(t, y(t)) = 0 defines the time, one step of Newton's method from there has its first derivative, and two
    have all up to the third.
    """
    at = located.at or _along(t, located)
    if not (torch.is_grad_enabled() or transforms.active()):
        return Happened(located.of, t, located.y)
    for _ in range(1 if located.at is None else 2):
        y, slope = at(t)
        time = (origin + t).to(real_dtype(y))
        g = watched.value(time, y)
        if not (transforms.is_differentiated(g) or transforms.is_differentiated(y)):
            break
        rate = _rate(watched.value, time, y, slope, again=located.at is not None)
        size = abs(_number(rate))
        if math.isfinite(size) and size >= torch.finfo(rate.dtype).tiny:
            moved = ((g - g.detach()) / rate).to(t.dtype)
            t = t - (moved if located.at is not None or transforms.active() else Once.apply(moved))
        else:
            held = watched.event.without_slope(t, y, size)
            t = _refusing(t, y) if held is None else held
    return Happened(located.of, t, at(t)[0])


class Once(torch.autograd.Function):
    """A number as it is, whose derivative has none itself: that of an event's time by its first derivatives alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # only with create_graph=True
            raise NotImplementedError(
                "the time of an event has no second derivative here (create_graph=True); use `adjoint=Direct()`, "
                "or `odeint` in odenets.torchdiffeq"
            )
        return grad_outputs[0]


def _along(t0: Tensor, located: Located) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The state near an event, to first order."""
    return lambda t: (located.y + (t - t0).to(real_dtype(located.y)) * located.slope, located.slope)


def _rate(value: Callable[[Tensor, Tensor], Tensor], time: Tensor, y: Tensor, slope: Tensor, again: bool) -> Tensor:
    """The derivative of the condition along the solution; `again` says that it has derivatives itself."""
    y, time, slope = (y, time, slope) if again else (y.detach(), time.detach(), slope.detach())
    if transforms.active():
        g, pull, *_ = torch.func.vjp(value, time, y)
        time_bar, y_bar = pull(torch.ones_like(g))
        return time_bar + inner_product(y_bar, slope)
    with torch.enable_grad():
        time_bar, y_bar = derivatives(value, time, y, again)
        return time_bar + inner_product(y_bar, slope)


def derivatives(
    value: Callable[[Tensor, Tensor], Tensor], time: Tensor, y: Tensor, again: bool = False
) -> tuple[Tensor, Tensor]:
    """Those of the sum of a condition by the time and the state, zeros where it has none; `again` as for `_rate`."""
    with torch.enable_grad():
        time, y = (x if x.requires_grad else x.detach().requires_grad_() for x in (time, y))
        g = value(time, y).sum()
        if not g.requires_grad:
            return torch.zeros_like(time), torch.zeros_like(y)
        bars = torch.autograd.grad(g, (time, y), create_graph=again, allow_unused=True)
        time_bar, y_bar = (torch.zeros_like(x) if bar is None else bar for x, bar in zip((time, y), bars))
        return time_bar, y_bar


def _refusing(t: Tensor, y: Tensor) -> Tensor:
    """The time of an event, which refuses derivatives."""
    if transforms.active():
        raise LostGradientError(_FLAT)
    return Flat.apply(t, y)


_FLAT = (
    "the derivative of an event's time is wanted, and its `condition` has no slope there that autograd sees: let it go "
    "through 0 smoothly, without `torch.no_grad()` or `detach`, or detach the time and the state of the event"
)


class Flat(torch.autograd.Function):
    """The time of an event as it is; a gradient that arrives there would be lost."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, y: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        if bool((grad_outputs[0] != 0).any()):
            raise LostGradientError(_FLAT)
        return None, None
