"""The spirals of torchdiffeq's example `latent_ode`, and what is seen of them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from odenets.series import Series

START, STOP, POINTS = 0.0, 6 * math.pi, 1000  # a spiral and its points, as the example of torchdiffeq
GAP = (STOP - START) / (POINTS - 1)
RADIUS, GROWTH, CENTRE = 0.0, 0.3, 5.0
NOISE = 0.3
SEEN, AHEAD, BEFORE = 100, 100, 100  # points that a sample is seen among, predicted behind them, and shown before
SCALE = 5.0  # the networks compute with coordinates in units of this


class Spirals(NamedTuple):
    """Pieces of spirals: `BEFORE` points before time 0, `SEEN` from there, `AHEAD` behind them, `GAP` apart.

    Where a spiral ends sooner the points are NaN: they are not asked for.
    """

    clean: Tensor  # (N, BEFORE + SEEN + AHEAD, 2)
    noisy: Tensor
    clockwise: Tensor  # (N,)


def draw(count: int, seed: int) -> Spirals:
    """Pieces of the two spirals from random places; the first half is clockwise.

    One spiral grows evenly around (5, 0), counter-clockwise, the other in inverse proportion to the angle that is left,
    around (−5, 0), clockwise, as in the example `latent_ode` of torchdiffeq.
    """
    generator = torch.Generator().manual_seed(seed)
    begin = torch.randint(BEFORE, POINTS - SEEN, (count, 1), generator=generator)
    at = begin + torch.arange(-BEFORE, SEEN + AHEAD)
    clockwise = torch.arange(count) < count // 2
    there = at.clamp(max=POINTS - 1).double()
    clean = torch.where(clockwise[:, None, None], curve(True, there), curve(False, there)).float()
    clean = clean.masked_fill((at >= POINTS)[..., None], math.nan)
    return Spirals(clean, clean + NOISE * torch.randn(clean.shape, generator=generator), clockwise)


def curve(clockwise: bool, at: Tensor) -> Tensor:
    """The points of a spiral, (..., 2), at places that are counted in points and need not be whole."""
    angle, left = START + GAP * at, STOP + 1.0 - START - GAP * at
    if clockwise:
        return _polar(RADIUS + GROWTH * 50.0 / left, left, -CENTRE)
    return _polar(RADIUS + GROWTH * angle, angle, CENTRE)


def _polar(radius: Tensor, angle: Tensor, centre: float) -> Tensor:
    return torch.stack([radius * angle.cos() + centre, radius * angle.sin()], dim=-1)


def seen(spirals: Spirals, number: int, seed: int) -> Series:
    """`number` random points of each piece's `SEEN`, the first always one of them, scaled; times from 0."""
    values = spirals.noisy[:, BEFORE : BEFORE + SEEN] / SCALE
    return Series(grid(0, SEEN).expand(len(values), -1), values).thinned(number / SEEN, seed)


def grid(first: int, last: int) -> Tensor:
    """The times of the points `first` to `last` (exclusive)."""
    return GAP * torch.arange(first, last, dtype=torch.float64)


def places(series: Series) -> Tensor:
    """(N, L), which of the `SEEN` points the rows are."""
    return (series.times / GAP).round().long()
