"""`stops` and `jumps` as the caller gives them: times of all samples, or a row for each sample."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenets.arguments import has_rows, number, shown

# One list of times of all samples, or rows (batch, K) on the host in float64, in which what is not finite is no time.
Stops = list[float] | Tensor


def given_stops(name: str, times: Any, batch: int | None) -> Stops:
    """The times of an argument; with `per_sample` in rows, too, one for each sample of the `batch`.

    Raises:
        TypeError, ValueError: If they are none.
    """
    if isinstance(times, Tensor) and times.requires_grad:
        raise ValueError(f"`{name}` get no gradient: write {name}.detach()")
    if has_rows(times):
        return _rows(name, times, batch)
    given: Any = times
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, list | tuple | range):
        raise TypeError(f"`{name}` must be a sequence of times, got {shown(times)}: write `{name}=(time,)`")
    return [float(number(name, value, "finite times", math.isfinite)) for value in given]


def _rows(name: str, times: Any, batch: int | None) -> Tensor:
    if batch is None:
        raise TypeError(f"`{name}` in rows are of each sample its own: pass `per_sample=True`, or times of all samples")
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in times]
    if len(rows) != batch:
        raise ValueError(f"`{name}` in rows must have one for each of the {batch} samples of `y0`, got {len(rows)}")
    longest = max(map(len, rows), default=0)
    padded = [[*row, *[math.nan] * (longest - len(row))] for row in rows]
    numbers = [[float(number(name, value, "rows of times", lambda _: True)) for value in row] for row in padded]
    return torch.tensor(numbers, dtype=torch.float64).reshape(batch, longest)


def of_all(stops: Sequence[Stops]) -> list[float] | None:
    """All of them, where they are the same for all samples; else None."""
    shared = [times for times in stops if isinstance(times, list)]
    return list(itertools.chain(*shared)) if len(shared) == len(stops) else None


def in_rows(stops: Sequence[Stops], batch: int) -> Tensor:
    """All of them, (batch, K)."""
    rows = (torch.as_tensor(times, dtype=torch.float64).expand(batch, -1) for times in stops)
    return torch.cat([*rows, torch.empty((batch, 0), dtype=torch.float64)], dim=1)


def times_inside(times: Sequence[float], sign: float, origin: float, span: float) -> tuple[float, ...]:
    """Those of the times that lie in the interval, in the solver's own time, in order.

    The ends are among them: no step has to be made for a stop there, but where f jumps there, the solve is to see it
    as it is inside.
    """
    own = {sign * (value - origin) for value in times}
    return tuple(sorted(value for value in own if 0 <= value <= span))
