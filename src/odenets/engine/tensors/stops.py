"""The times on which a step has to end, in a loop in tensors."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.engine.tensors.plan import Plan
from odenets.problem import Problem, edges, inside


class Stops(NamedTuple):
    """The times that a step has to end on, after the numbers and the times; as tensors in float64."""

    stops: Tensor | None  # (stops,) or (stops, *S), increasing, the last infinite
    jumps: Tensor | None  # the same, and the first infinite too

    @staticmethod
    def given(plan: Plan, problem: Problem) -> tuple[Tensor, ...]:
        """Those of a problem."""
        where, y = problem.own or problem, plan.arranged(problem.y0)
        given = ((where.stops, ()), (where.jumps, (-math.inf,)))
        return tuple(plan.each(_bounded(times, before, y), y) for times, before in given if len(times))

    @staticmethod
    def split(plan: Plan, items: Sequence[Tensor]) -> "tuple[Stops, tuple[Tensor, ...]]":
        """Those at the beginning of these tensors, and the others."""
        rest = list(items)
        stops = rest.pop(0) if plan.stops else None
        jumps = rest.pop(0) if plan.jumps else None
        return Stops(stops, jumps), tuple(rest)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(x for x in self if x is not None)

    def places(self, t: Tensor) -> tuple[Tensor, ...]:
        """How many of the stops, and how many of the jumps, are not after t, of shape S each.

        By a search over all, once in a chunk; from then on `passed` and `returned` count, as no step passes a stop.
        """
        return tuple(_count(times, t) for times in self.tensors)

    def passed(self, places: Sequence[Tensor], t1: Tensor) -> tuple[Tensor, ...]:
        """The places behind a step to t1, those where it begins being known."""
        return tuple(n + (pick(times, n[None])[0] <= t1) for times, n in zip(self.tensors, places))

    def returned(self, places: Sequence[Tensor], t: Tensor) -> tuple[Tensor, ...]:
        """The places where a step begins, at t, of those behind it; of the jumps, the first of which is infinite."""
        return tuple(n - (pick(self.jumps, n[None] - 1)[0] > t).long() for n in places if self.jumps is not None)

    def goal(self, places: Sequence[Tensor], t_end: Tensor) -> Tensor:
        """The time that a step from there may not pass."""
        return t_end if self.stops is None else torch.minimum(pick(self.stops, places[0][None])[0], t_end)

    def inside(self, places: Sequence[Tensor], origin: Tensor) -> Callable[[Tensor], Tensor]:
        """What moves the times of f to where they are inside of the piece, between two jumps, of a step from there."""
        if self.jumps is None:
            return lambda at: at
        low, high = pick(self.jumps, torch.stack([places[-1] - 1, places[-1]])).unbind()
        low, high = edges(origin, low, high)
        return lambda at: inside(at, low, high)


def _bounded(times: Any, before: tuple[float, ...], y: Tensor) -> Tensor:
    """The times as a tensor, with infinity behind them."""
    if not isinstance(times, Tensor):
        return torch.tensor((*before, *times, math.inf), dtype=torch.float64, device=y.device)
    ends = [torch.full_like(times[:1], x) for x in (*before, math.inf)]
    return torch.cat([*ends[:-1], times, ends[-1]])


def _count(times: Tensor, t: Tensor) -> Tensor:
    """How many of the times are not after t."""
    times = times if times.dim() > 1 else times.reshape(-1, *(1,) * t.dim())
    return (times <= t).sum(0)


def pick(times: Tensor, index: Tensor) -> Tensor:
    """times[index] of shape (n, *S), without reading the index back: of the batch's times (T,), or of (T, *S)."""
    if times.dim() > 1:
        return times.gather(0, index)
    return times.index_select(0, index.reshape(-1)).reshape(index.shape)
