"""Where the events of each sample are, each with its own step size."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from odenets.engine.events import Place, Search, places_in_a_step, sign_of, until_the_end
from odenets.engine.tensors.by_python import ByPython
from odenets.engine.tensors.chunks import Entry, Walk
from odenets.engine.tensors.plan import Buffers, Clock, Plan
from odenets.methods import real_dtype
from odenets.problem import Problem, sample_shape


class Found(NamedTuple):
    """An event of a sample."""

    of: int  # which of the problem's events
    t: float  # in the solver's time
    slope: Tensor  # dy/dt there, of the sample


@dataclass
class Sample:
    """What was found of one sample."""

    found: list[Found] = field(default_factory=list)
    end: float | None = None  # the end of the step in which the last of them ends its solve

    def ends(self, k: int) -> bool:
        """Whether the k-th is at the time at which the solve ends."""
        return self.end is not None and self.found[k].t == self.found[-1].t


@torch.no_grad()
def events_of_each(
    problem: Problem, left: Sequence[list[int | None]], residuals: list[dict[int, float]]
) -> list[Sample]:
    """The events of each sample up to the first that ends its solve.

    Args:
        left: For each sample, how many of each event are left until it ends the solve; counted down.
        residuals: Behind which events each sample begins, and their conditions' size before the jump; taken away.
    """
    problem = replace(problem, y0=problem.y0.detach(), t=problem.t.detach())
    plan = Plan.of(replace(problem, dense=True), keep=True, outputs=False, parts=True, timed=False)
    walk = Walk(problem, plan, ByPython(problem), ())
    entry, first, going = walk.begin(), True, True
    watch = _Watch(problem, left, residuals)
    buffers = Buffers.empty(plan, entry.y, 1)
    while going:
        report, _, entry = walk.chunk(entry, first, None, buffers)
        first, going = False, report.going > 0
        problem.stats.nfe += int(report.nfe)
        ended = watch.look(buffers, entry.y) if report.rows > 0 else []
        if ended:
            entry = _without(entry, ended)
    return watch.samples


def _without(entry: Entry, samples: Sequence[int]) -> Entry:
    """Where these samples take no more steps."""
    clock = entry.clock.clone()
    clock[Clock._fields.index("dt"), samples] = 0.0
    return entry._replace(clock=clock)


class _Watch:
    """Looks for the events of each sample in one accepted step after another."""

    def __init__(self, problem: Problem, left: Sequence[list[int | None]], residuals: list[dict[int, float]]) -> None:
        self.problem, self.left, self.residuals = problem, left, residuals
        self.samples = [Sample() for _ in problem.y0]
        self.values = self._read(torch.zeros(len(problem.y0), dtype=torch.float64), problem.y0)  # (events, batch)
        self.signs = [
            [0.0 if i in behind else sign_of(v) for v, behind in zip(values, residuals)]
            for i, values in enumerate(self.values)
        ]

    def look(self, buffers: Buffers, y1: Tensor) -> list[int]:
        """Take up the step of each sample in the buffers' one row; the samples that it ends."""
        (t, dt, t1, _), y, parts = buffers.read(torch.zeros((), dtype=torch.int64, device=y1.device))
        self.step = y, dt, parts or []
        self.t, self.dt = t.flatten().cpu(), dt.flatten().cpu()
        taken = [b for b, sample in enumerate(self.samples) if self.dt[b] > 0 and sample.end is None]
        thetas = places_in_a_step(any(0 in (signs[b] for signs in self.signs) for b in taken))
        rows = [self._read_at(torch.full_like(self.t, theta)) for theta in thetas]
        rows.append(self._read(t1.flatten().cpu(), y1))
        searches = {
            (i, b): Search(signs[b], self.residuals[b].pop(i, 0.0)) for i, signs in enumerate(self.signs) for b in taken
        }
        points = [*thetas, 1.0]
        asking = {
            (i, b): search.among([(0.0, self.values[i][b]), *zip(points, (row[i][b] for row in rows))])
            for (i, b), search in searches.items()
        }
        found = self._answered(asking)
        places: dict[int, list[Place]] = {b: [] for b in taken}
        for (i, b), changes in found.items():
            places[b] += [Place(theta, i, direction) for theta, direction in changes]
            self.signs[i][b], self.values[i][b] = searches[i, b].sign, rows[-1][i][b]
        return self._take(places, t1.flatten().tolist())

    def _take(self, places: dict[int, list[Place]], t1: Sequence[float]) -> list[int]:
        kept, ended = {}, []
        for b, of_sample in places.items():
            t, dt = float(self.t[b]), float(self.dt[b])
            kept[b], ends = until_the_end(self.problem.events, self.left[b], of_sample, t, dt)
            if ends:
                self.samples[b].end = t1[b]
                ended.append(b)
        for k in range(max(map(len, kept.values()), default=0)):
            there = {b: of_sample[k] for b, of_sample in kept.items() if k < len(of_sample)}
            theta = torch.ones_like(self.t)
            for b, place in there.items():
                theta[b] = place.theta
            _, dt, parts = self.step
            slopes = self.problem.method.slope(dt, parts, self._each(theta))
            for b, place in there.items():
                t = float(self.t[b] + place.theta * self.dt[b])
                self.samples[b].found.append(Found(place.of, t, slopes[b]))
        return ended

    def _answered(self, asking: dict) -> dict[tuple[int, int], list[tuple[float, float]]]:
        """What comes of the searches, each of which asks for one value at a time; all are answered at once."""
        found, wanted = {}, {}

        def go_on(key: tuple[int, int], value: float | None) -> None:
            try:
                wanted[key] = asking[key].send(value)
            except StopIteration as end:
                wanted.pop(key, None)
                found[key] = end.value

        for key in asking:
            go_on(key, None)
        while wanted:
            for i in {i for i, _ in wanted}:
                theta = torch.ones_like(self.t)
                mine = {b: x for (j, b), x in wanted.items() if j == i}
                for b, x in mine.items():
                    theta[b] = x
                values = self._read_at(theta, (i,))[0]
                for b in mine:
                    go_on((i, b), values[b])
        return found

    def _read_at(self, theta: Tensor, which: Sequence[int] = ()) -> list[list[float]]:
        """The conditions at t + θ dt of each sample."""
        y, dt, parts = self.step
        state = self.problem.method.interpolate(y, dt, parts, self._each(theta))
        return self._read(self.t + theta * self.dt, state, which)

    def _read(self, t: Tensor, y: Tensor, which: Sequence[int] = ()) -> list[list[float]]:
        at = field_times(self.problem, t)
        events = [self.problem.events[i] for i in which] or self.problem.events
        return torch.stack([event.value(at, y).double() for event in events]).tolist()

    def _each(self, x: Tensor) -> Tensor:
        y = self.problem.y0
        return x.to(y.device).reshape(sample_shape(y))


def field_times(problem: Problem, t: Tensor) -> Tensor:
    """Times of the samples, (batch,), as f gets them."""
    y = problem.y0
    return (problem.origins + t.to(y.device)).to(real_dtype(y)).reshape(sample_shape(y))
