"""Times of shape (batch, T), a row for each sample: read, checked, and counted from each sample's own start."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.arguments import given_rows
from odenets.given_stops import Stops, in_rows
from odenets.problem import Own
from odenets.resolution import check_rows


@dataclass(frozen=True)
class OwnTimes:
    """Rows of times, all of which go one way.

    Args:
        ts: The rows, as tensors that gradients flow through.
        values: The same on the host, (batch, T) in float64.
        sign: −1 where they decrease.
    """

    ts: Tensor
    values: Tensor
    sign: float

    @property
    def lags(self) -> Tensor:
        """The time since the start of each row, ≥ 0."""
        return self.sign * (self.values - self.values[:, :1])

    @property
    def latest(self) -> list[float]:
        """At each of the T places the time since the start, in the caller's direction, of the row that has gone on
        longest.
        """
        lags = self.lags if len(self.values) else torch.zeros(1, self.values.shape[1])
        return (self.sign * lags.amax(0)).tolist()

    @property
    def counted(self) -> Tensor:
        """The rows in the solver's time, from 0."""
        return self.sign * (self.ts - self.ts.detach()[:, :1])

    @staticmethod
    def repeated(ts: Tensor, times: Sequence[float], batch: int) -> "OwnTimes":
        """The same times for each sample."""
        values = torch.tensor(times, dtype=torch.float64).expand(batch, -1)
        return OwnTimes(ts.expand(batch, -1), values, -1.0 if times[-1] < times[0] else 1.0)

    def own(self, stops: Sequence[Stops], jumps: Sequence[Stops]) -> Own:
        """What each sample has of its own."""
        at_start = (self.lags == 0).sum(1)
        most = int(at_start.max()) if len(at_start) else self.values.shape[1]
        found = (self.sign * self.values[:, 0], at_start, self._inside(stops), self._inside(jumps))
        origin, at_start, *inside = (x.to(self.ts.device, self.ts.dtype) for x in found)
        return Own(origin, at_start, most, *inside)

    def _inside(self, stops: Sequence[Stops]) -> Tensor:
        """Those of the times that lie in each sample's interval, each once, in its own time: (most, batch)."""
        own = self.sign * (in_rows(stops, len(self.values)) - self.values[:, :1])
        own = own.where((own >= 0) & (own <= self.lags[:, -1:]), math.inf).sort(1).values
        own[:, 1:] = own[:, 1:].where(own.diff(dim=1) > 0, math.inf)
        own = own.sort(1).values
        return own[:, : int(own.isfinite().sum(1).amax()) if own.numel() else 0].T


def read(t: Any, y0: Tensor) -> OwnTimes:
    """Rows of times for the samples of y0.

    Raises:
        TypeError, ValueError: If they are none; the text names the row.
    """
    rows = given_rows(t)
    digits = rows.dtype if rows.dtype.is_floating_point else torch.float64
    if transforms.is_mapped(rows):
        raise TypeError("`t` cannot be mapped over by `vmap`: put the samples into its rows instead")
    if len(rows) != len(y0):
        raise ValueError(
            f"`t` of shape (batch, T) must have a row for each of the {len(y0)} samples of `y0`, got shape "
            f"{tuple(rows.shape)}: write t.expand({len(y0)}, -1) for the same times, or give them as (T,)"
        )
    dtype = torch.float32 if y0.device.type == "mps" else torch.float64
    values = transforms.unwrapped(rows.detach()).to("cpu", torch.float64)
    return OwnTimes(rows.to(y0.device, dtype), values, _direction(values, digits))


def _direction(values: Tensor, digits: torch.dtype) -> float:
    """1 where the rows increase, −1 where they decrease; checked on the way."""
    i = _first(~values.isfinite().all(1))
    if i is not None:
        wrong = next(v for v in values[i].tolist() if not math.isfinite(v))
        raise ValueError(f"`t` must be finite, got {wrong} in row {i}: repeat its last time where a row has fewer")
    steps = values.diff(dim=1)
    up, down = (steps > 0).any(1), (steps < 0).any(1)
    i = _first(up & down)
    if i is not None:
        step = steps[i] * (1 if values[i, -1] >= values[i, 0] else -1)
        j = int(_first(step < 0) or 0)
        before, after = values[i, j : j + 2].tolist()
        raise ValueError(
            f"`t` must be monotone in each row, increasing or decreasing; t[{i}, {j}] = {before!r} is followed by "
            f"{after!r}: sort row {i}, and pad it with its last time"
        )
    i, j = _first(up), _first(down)
    if i is not None and j is not None:
        raise ValueError(f"`t` must go one way in all rows; row {i} increases and row {j} decreases: solve them apart")
    check_rows(values, digits)
    return -1.0 if j is not None else 1.0


def _first(rows: Tensor) -> int | None:
    """The first row for which it holds."""
    return int(rows.int().argmax()) if bool(rows.any()) else None
