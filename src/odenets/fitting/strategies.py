"""The ways to an optimum that a plain fit from a poor start misses.

The sum of squares of an oscillating trajectory has many minima: with a wrong period the best that a solution can do
from the first time to the last is to lie flat in the mean of the data. Each strategy but "plain" looks at less of the
trajectory at a time, and leads to parameters and initial states from which a plain fit ends where it should.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from odenets.fitting.field import Model
from odenets.fitting.given import Data, Observe
from odenets.fitting.shooting import Grid, segments_for
from odenets.fitting.smooth import smooth
from odenets.fitting.told import Teller
from odenets.methods import find

CONTINUOUS = 1e-6  # of the size of a component: the largest gap of a trajectory that is one
_GROWTH = 1.5  # of the horizon
_NEWTON = 5  # iterations that look for a state that is observed as the data say


class StartError(RuntimeError):
    """A fit that cannot begin: its solve fails. The text is the stage."""


@dataclass(frozen=True)
class Task:
    """What is to be fitted to what."""

    model: Model
    data: Data
    observe: Observe | None
    start: Tensor  # the initial states to begin with, (N, n)
    free: Tensor  # which components of them are fitted, (n,)
    scale: Tensor  # the size of each component, (n,)
    options: Mapping[str, Any]  # of `odenets.solve`
    iterations: int
    segments: int | None
    tell: Teller

    @property
    def gap_weight(self) -> Tensor:
        """What makes a gap as heavy as a residual that is as large, (n,)."""
        weights = self.data.weights.sum((0, 1)) / self.data.seen.sum((0, 1))
        if self.observe is None:
            return weights
        return (weights * self.data.scale).mean() / self.scale


class Stage(Protocol):
    """What fits: least squares, or gradient descent."""

    most: float  # unknowns that it takes
    penalties: tuple[float, ...]  # of a squared gap, in units of a squared residual, one after the other

    def fit(self, task: Task, name: str, theta: Tensor, nodes: Tensor, penalty: float, loose: bool) -> "Found": ...

    def match(self, task: Task, theta: Tensor, times: Tensor, states: Tensor, slopes: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Found:
    """Parameters (P,), the nodes (N, S, n), and the largest gap between segments."""

    theta: Tensor
    nodes: Tensor
    gap: float


Way = Callable[[Task, Stage, Tensor, Tensor], tuple[Tensor, Tensor]]


def plain(task: Task, stage: Stage, theta: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """Nothing before the fit to all of the trajectory."""
    return theta, y0


def growing(task: Task, stage: Stage, theta: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """The first times, then more and more of them, each fit from where the last ended."""
    total, each = len(task.data.times), max(1, int(task.data.seen.sum() / len(task.data.times)))
    count = max(4, 1 + (len(theta) + y0.numel()) // each)
    while count < total:
        data = task.data.until(count)
        if data.seen.any(1).all():  # each trajectory and column has begun
            part = replace(task, data=data)
            found = stage.fit(part, f"growing, {count} of {total} times", theta, y0[:, None], 0.0, True)
            theta, y0 = found.theta, found.nodes[:, 0]
        count = int(max(count + 1, _GROWTH * count))
    return theta, y0


def multiple_shooting(task: Task, stage: Stage, theta: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """All segments at once, each from a state of its own, with gaps that cost more and more until there are none."""
    n = y0.shape[1]
    segments = task.segments or segments_for(task.data, n, stage.most)
    if segments == 1:
        return theta, y0
    first, *others = stage.penalties
    found = _first_of(task, stage, theta, y0, segments, first)
    for penalty in others:
        if found.gap < CONTINUOUS:
            break
        found = stage.fit(task, _shooting(penalty), found.theta, found.nodes, penalty, True)
    return found.theta, found.nodes[:, 0]


def _shooting(penalty: float) -> str:
    return f"multiple shooting, gaps × {penalty:g}"


def _first_of(task: Task, stage: Stage, theta: Tensor, y0: Tensor, segments: int, penalty: float) -> Found:
    """The first fit of multiple shooting: in more segments where a solve of the length of one fails."""
    most = len(task.data.times) - 1
    while True:
        nodes = states_at(task, Grid.of(task.data.times, segments).starts, y0)
        nodes[:, 0] = torch.where(task.free, nodes[:, 0], y0)
        try:
            return stage.fit(task, _shooting(penalty), theta, nodes, penalty, True)
        except StartError:
            if segments >= most:
                raise
            segments = min(2 * segments, most)


def collocation(task: Task, stage: Stage, theta: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """The data smoothed, and f fitted to the slopes: no solve at all."""
    times, data = torch.tensor(task.data.times, dtype=torch.float64), task.data
    lags = times - times[0]
    states, slopes = smooth(lags, data.values, data.seen, lags)
    rows = data.seen.any(2)  # where there is a value
    theta = stage.match(task, theta, times.expand(len(rows), -1)[rows][:, None], states[rows], slopes[rows])
    return theta, torch.where(task.free, states[:, 0], y0)


def auto(task: Task, stage: Stage, theta: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """Collocation where all of the state is observed, and multiple shooting from there: `odenets run fitting`.

    Implicit methods, whose steps solve equations for all segments at once, take no segments, but a growing horizon
    where there is no collocation.
    """
    whole, implicit = task.observe is None, find(task.options["method"]).iterates
    if whole:
        theta, y0 = collocation(task, stage, theta, y0)
    if implicit:
        return (theta, y0) if whole else growing(task, stage, theta, y0)
    return multiple_shooting(task, stage, theta, y0)


STRATEGIES: dict[str, Way] = {
    "auto": auto,
    "plain": plain,
    "growing": growing,
    "multiple_shooting": multiple_shooting,
    "collocation": collocation,
}


def states_at(task: Task, times: Tensor, y0: Tensor) -> Tensor:
    """States of the smoothed data, (N, S, n): what is observed of them is that, the rest is as in y0.

    Of an `observe` by steps of Gauss and Newton of the least norm, from y0 on.
    """
    data = task.data
    lags = torch.tensor(data.lags, dtype=torch.float64)
    values, _ = smooth(lags, data.values, data.seen, times - data.times[0])
    observe = task.observe
    if observe is None:
        return values
    states = y0[:, None].expand(-1, len(times), -1).flatten(0, 1)  # (N S, n)
    wanted = values.flatten(0, 1)
    for _ in range(_NEWTON):
        moved = states[None] + 1e-6 * torch.eye(states.shape[1], dtype=states.dtype)[:, None] * task.scale
        with torch.no_grad():
            now, beside = observe(states), observe(moved)
        jacobian = ((beside - now) / 1e-6).permute(1, 2, 0)  # by a change in units of the scale
        step = (torch.linalg.pinv(jacobian, rtol=1e-6) @ (wanted - now)[..., None])[..., 0]
        states = states + step * task.scale
    states = torch.where(states.isfinite().all(1, keepdim=True), states, y0.repeat_interleave(len(times), 0))
    return states.view(len(y0), len(times), -1)
