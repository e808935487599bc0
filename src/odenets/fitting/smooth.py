"""Noisy values at irregular times, smoothed: a local quadratic whose bandwidth is chosen by leaving one out.

At each time the values nearest to it, as many as the bandwidth says, are fitted by a quadratic with tricube weights (J.
Fan and I. Gijbels, "Local polynomial modelling and its applications", 1996). Nearest ones, and not those within a
distance, for times that are irregular and have gaps. What the others predict of a value follows from the fit with it:
it misses by r / (1 − h), where h is its weight in its own fit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_FEWEST = 5  # neighbours of a quadratic
_REACH = 1.2  # times the distance of the farthest of them, where the weight is zero
_OWN = 0.99  # of the weight of a value in its own fit, above which the others say nothing of it
_RIDGE = 1e-9


def smooth(times: Tensor, values: Tensor, seen: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The smoothed values and their derivatives.

    Args:
        times: (T,) in float64.
        values, seen: (N, T, d), and where they are no gap.
        at: The times wanted, (Q,).

    Returns:
        Both (N, Q, d); the mean and zero where a column has fewer than three values.
    """
    trajectories, _, columns = values.shape
    out = values.new_zeros(2, trajectories, len(at), columns)
    for i in range(trajectories):
        for j in range(columns):
            there = seen[i, :, j]
            out[:, i, :, j] = torch.stack(_column(times[there], values[i, there, j], at))
    return out[0], out[1]


def _column(times: Tensor, values: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    if len(times) < 3:
        mean = values.mean() if len(values) else values.new_zeros(())
        return mean.expand(len(at)), torch.zeros_like(at)
    choices = list(_bandwidths(len(times)))
    best = min(reversed(choices), key=lambda k: _left_out(times, values, k))  # the widest where none tells
    value, slope, _ = _fit(times, values, at, best)
    inside = at.clamp(times[0], times[-1])  # beyond the last value, a line
    if (inside != at).any():
        value, slope, _ = _fit(times, values, inside, best)
        value = value + slope * (at - inside)
    return value, slope


def _bandwidths(count: int) -> Iterator[int]:
    k = float(min(_FEWEST, count))
    while k < count:
        yield int(k)
        k = max(k + 1, 1.3 * k)
    yield count


def _left_out(times: Tensor, values: Tensor, k: int) -> float:
    """The mean square by which values are missed when they are left out."""
    fitted, _, own = _fit(times, values, times, k)
    if bool((own > _OWN).any()):
        return torch.inf
    return float(((values - fitted) / (1 - own)).square().mean())


def _fit(times: Tensor, values: Tensor, at: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Value, slope, and the part that a value at that time has in its own fit."""
    distance = (times - at[:, None]).abs()  # (Q, T)
    reach = distance.kthvalue(k, dim=1).values[:, None]
    reach = _REACH * reach.clamp(min=1e-300)
    u = (times - at[:, None]) / reach
    weights = (1 - u.abs().clamp(max=1) ** 3) ** 3
    powers = torch.stack([torch.ones_like(u), u, u * u], -1)  # (Q, T, 3)
    moments = powers.mT @ (weights[..., None] * powers)
    moments = moments + _RIDGE * torch.eye(3, dtype=times.dtype) * moments[:, :1, :1]
    inverse = torch.linalg.inv(moments)
    found = (inverse @ (powers.mT @ (weights * values)[..., None]))[..., 0]
    return found[:, 0], found[:, 1] / reach[:, 0], inverse[:, 0, 0]
