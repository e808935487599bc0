"""Where in a step events happen: looked for on its continuous extension, and located there."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odenets import transforms
from odenets.engine.roots import Asking, answered, locating
from odenets.engine.tape import Accepted
from odenets.event import Watched
from odenets.problem import Problem

_PLACES = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 15 / 16)  # in a step, where conditions are looked at, beside its end
_FIRST_PLACES = tuple(2.0**-k for k in range(23, 4, -3))  # and before those while a condition leaves its surface
_SOON = 2.0**-11  # of a step: what is on its surface but for rounding has left it by then
_NOISE = 8  # how many times larger than on the surface a condition has to be to have left it
_TURNS = 12  # the most places at which a turning point is looked for


class Place(NamedTuple):
    """An event in a step."""

    theta: float  # (its time − the step's t) / dt
    of: int  # which of the problem's events
    direction: float  # 1 upward, −1 downward


class Watch:
    """Looks for events in one accepted step after another."""

    def __init__(self, problem: Problem, y0: Tensor) -> None:
        self.problem = problem
        self.left = [watched.left for watched in problem.events]
        self.values = self._read([0.0], [y0])[0]  # at the end of the last step
        self.residuals = [watched.residual for watched in problem.events]
        self.signs = [
            sign_of(v) if r is None else 0.0 for v, r in zip(self.values, self.residuals)
        ]  # 0: on its surface

    def look(self, taken: Accepted, t1: float, y1: Tensor) -> tuple[list[Place], bool]:
        """The events in a complete step that ends with y1 at t1, in order, and whether the last of them ends it.

        Raises:
            ValueError: If a condition is NaN.
        """
        extension = _Extension(self.problem, taken)
        thetas = places_in_a_step(0 in self.signs)
        times = [taken.t + theta * taken.dt for theta in thetas]
        values = self._read([*times, t1], [*extension.states(thetas), y1])
        places: list[Place] = []
        for i in range(len(self.signs)):
            points = [(0.0, self.values[i]), *zip([*thetas, 1.0], (row[i] for row in values))]
            search = Search(self.signs[i], self.residuals[i] or 0.0)
            found = answered(search.among(points), lambda theta, i=i: self._read_at(extension, theta, i))
            places += [Place(theta, i, direction) for theta, direction in found]
            self.signs[i], self.residuals[i] = search.sign, None
        self.values = values[-1]
        return until_the_end(self.problem.events, self.left, places, taken.t, taken.dt)

    def _read_at(self, extension: "_Extension", theta: float, i: int) -> float:
        (y,) = extension.states([theta])
        return self._read([extension.taken.t + theta * extension.taken.dt], [y], (i,))[0][0]

    @torch.no_grad()
    def _read(self, times: Sequence[float], states: Sequence[Tensor], which: Sequence[int] = ()) -> list[list[float]]:
        """The conditions at those times, in one reading."""
        which = which or range(len(self.problem.events))
        pairs = [(t, y.detach()) for t, y in zip(times, states)]
        found = torch.stack([self._value(i, t, y).to(y.device) for t, y in pairs for i in which])
        if transforms.is_mapped(found):
            raise NotImplementedError("`event` ends a solve by values, which `vmap` cannot map over: leave `vmap` out")
        numbers = transforms.values_of(found)
        rows = [numbers[k : k + len(which)] for k in range(0, len(numbers), len(which))]
        for (t, y), row in zip(pairs, rows):
            if any(map(math.isnan, row)) and transforms.all_finite(y):
                called = self.problem.events[which[next(i for i, v in enumerate(row) if math.isnan(v))]].event.called
                raise ValueError(
                    f"`{called}` returned nan at t = {self.problem.caller_time(t):g} for a finite state: look for a "
                    "division, logarithm or root in it"
                )
        return rows

    def _value(self, i: int, t: float, y: Tensor) -> Tensor:
        problem, watched = self.problem, self.problem.events[i]
        if watched.event.wide:
            return watched.value(torch.tensor(problem.origin + t, dtype=torch.float64, device=y.device), y)
        return watched.value(problem.field_time(t), y)


def places_in_a_step(leaves: bool) -> list[float]:
    """The θ at which conditions are looked at, beside 1; more of them where one `leaves` its surface."""
    return [*(_FIRST_PLACES if leaves else ()), *_PLACES]


def until_the_end(
    events: Sequence[Watched], left: list[int | None], places: Sequence[Place], t: float, dt: float
) -> tuple[list[Place], bool]:
    """Of these places in a step, those up to the first that ends it, with those at the same time; whether one does.

    `left`, how many of each are left until it ends the solve, is counted down.
    """
    found, end = [], math.inf
    for place in sorted(places):
        watched = events[place.of]
        if place.theta > end:
            break
        if watched.event.direction in (0, place.direction):
            found.append(place)
            fewer = left[place.of]
            if fewer is not None:
                left[place.of] = fewer = fewer - 1
            if fewer == 0 or watched.jump is not None:
                end = min(end, place.theta + _SAME * (t / dt + 1))
    return found, math.isfinite(end)


_SAME = 8 * 2.0**-52  # the rounding of a time that is the sum of a few


class _Extension(NamedTuple):
    """The continuous extension of a complete step."""

    problem: Problem
    taken: Accepted

    @torch.no_grad()
    def states(self, thetas: Sequence[float]) -> Sequence[Tensor]:
        """y(t + θ dt) for each θ."""
        y, step = self.taken.y, self.taken.step
        if y is None or step is None:
            raise RuntimeError("a step came without what it was made of")
        at = torch.tensor(thetas, dtype=torch.float64, device=y.device).reshape(-1, *(1,) * y.dim())
        return self.problem.method.interpolate(y, self.taken.dt, step.parts, at).unbind()


Point = tuple[float, float]  # θ and the condition there


class Search:
    """Where a condition, of that sign before, changes it among some points of a step.

    Of the sign 0 it begins on its surface, or where a jump has led to from there: `residual` is its size there.
    """

    def __init__(self, sign: float, residual: float = 0.0) -> None:
        self.sign, self.residual = sign, residual

    def among(self, points: Sequence[Point]) -> Asking[list[tuple[float, float]]]:
        """θ and direction of each change; the sign is then that at the last point."""
        if self.sign == 0:
            points = self._off_the_surface(points)
        found: list[tuple[float, float]] = []
        before: list[Point] = list(points[:1])  # the points since the last change
        for point in points[1:]:
            if self.sign == 0:
                self.sign, before = sign_of(point[1]), [point]
            elif point[1] * self.sign > 0:
                before.append(point)
                if len(before) > 2:
                    found += yield from self._turned(*before[-3:])
            elif not math.isnan(point[1]):
                found.append(((yield from self._zero(before[-1], point, self.sign)), -self.sign))
                self.sign = sign_of(point[1])
                before = [point]
        return found

    def _off_the_surface(self, points: Sequence[Point]) -> Sequence[Point]:
        """From where on the condition has left its surface, by more than rounding.

        It is on it where its value is that of an event that was located, or soon grows to be far larger.
        """
        first, noise = points[0][1], _NOISE * abs(points[0][1])
        if abs(first) > _NOISE * self.residual and all(abs(value) <= noise for theta, value in points if theta < _SOON):
            self.sign = sign_of(first)
            return points
        for i, ((_, here), (_, there)) in enumerate(itertools.pairwise(points)):
            if i > 0 and abs(here) > noise and (here * there > 0 or i == len(points) - 2):
                self.sign = sign_of(here)
                return points[i:]
        self.sign = sign_of(points[-1][1]) if abs(points[-1][1]) > noise else 0.0
        return points[-1:]

    def _turned(self, a: Point, b: Point, c: Point) -> Asking[list[tuple[float, float]]]:
        """The two changes around a turning point near b, if it lies beyond 0."""
        for _ in range(_TURNS):
            if not abs(b[1]) < min(abs(a[1]), abs(c[1])):
                return []
            theta, expected = _vertex(a, b, c)
            if abs(theta - b[0]) <= 1e-9 * (c[0] - a[0]):
                return []
            point = (theta, (yield theta))
            if point[1] * self.sign <= 0:
                there = yield from self._zero(a, point, self.sign)
                if point[1] == 0:
                    return [(there, -self.sign)]
                back = yield from self._zero(point, c, -self.sign)
                return [(there, -self.sign), (back, self.sign)]
            if abs(point[1] - expected) < 0.1 * abs(point[1]):  # the parabola is right, and does not reach 0
                return []
            a, b, c = _narrower(a, b, c, point)
        return []

    def _zero(self, a: Point, b: Point, sign: float) -> Asking[float]:
        """Where the condition, of that sign at a, ceases to have it on the way to b."""
        length = b[0] - a[0]
        locate = locating(sign * a[1], sign * b[1])
        share = next(locate)
        while True:
            value = yield a[0] + share * length
            try:
                share = locate.send(sign * value)
            except StopIteration as end:
                return a[0] + end.value * length


def _vertex(a: Point, b: Point, c: Point) -> Point:
    """The turning point of the parabola through three points, of which the middle one is the nearest to 0."""
    left, right = (b[1] - a[1]) / (b[0] - a[0]), (c[1] - b[1]) / (c[0] - b[0])
    bend = (right - left) / (c[0] - a[0])
    theta = (a[0] + b[0]) / 2 - left / (2 * bend)
    return theta, b[1] + (theta - b[0]) * (left + bend * (theta - a[0]))


def _narrower(a: Point, b: Point, c: Point, point: Point) -> tuple[Point, Point, Point]:
    """Three points around the turning point, with the new one among them."""
    points = sorted((a, b, c, point))
    k = min((1, 2), key=lambda k: abs(points[k][1]))
    return points[k - 1], points[k], points[k + 1]


def sign_of(x: float) -> float:
    return 0.0 if x == 0 or math.isnan(x) else math.copysign(1.0, x)
