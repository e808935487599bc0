"""The times on which a step has to end, in a loop in tensors."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.engine.tensors.plan import Plan
from odenets.problem import Problem, inside


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

    def goal(self, t: Tensor, t_end: Tensor) -> Tensor:
        """The time that a step from t may not pass."""
        if self.stops is None:
            return t_end
        return torch.minimum(pick(self.stops, _count(self.stops, t)[None])[0], t_end)

    def jumped(self, t: Tensor, t1: Tensor) -> Tensor | None:
        """Whether a step from t to t1 has led to a time at which f jumps; None where it never does."""
        return None if self.jumps is None else _count(self.jumps, t1) > _count(self.jumps, t)

    def inside(self, t: Tensor, origin: Tensor) -> Callable[[Tensor], Tensor]:
        """What moves the times of f to where they are inside of the piece, between two jumps, of a step from t."""
        if self.jumps is None:
            return lambda at: at
        after = _count(self.jumps, t)
        low, high = pick(self.jumps, torch.stack([after - 1, after])).unbind()
        return lambda at: inside(at, origin + low, origin + high)


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
