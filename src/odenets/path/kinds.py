"""The kinds of paths: what goes through the values between two knots. docs/paths.md says which one to take."""

import torch
from torch import Tensor

from odenets.path.base import Path, column


class Constant(Path):
    """The last value holds: piecewise constant (zero-order hold), with the new value at its knot.

    For controls that a computer sets, doses, prices, labels. The solver needs its `jumps`.
    """

    _holds = True

    @property
    def jumps(self) -> Tensor:
        return self.t[1:]

    def _pieces(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        return _one_each(t, u)


class Linear(Path):
    """A straight line from knot to knot. For measured signals without any further knowledge."""

    def _pieces(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        return _lines(t, u)


class Rectilinear(Path):
    """First time moves, then the value: for neural CDEs that answer while the data are still coming in.

    Time is the first channel, counted from t[0]: the value has one channel more than u, which needs an axis of them.
    In the first half of the interval from t[i] to t[i+1] the channel of time runs from t[i] to t[i+1] and u stays; in
    the second half time stays and u goes on a straight line from u[i] to u[i+1]. So at t[i] the path is (t[i] − t[0],
    u[i]), and no state that a solve has there depends on anything later: up to that knot only earlier values were met.
    Within an interval, t is no more than the parameter of the curve.

    Source: Morrill, Kidger, Yang and Lyons (2021), "Neural controlled differential equations for online prediction
    tasks", section 3.
    """

    _holds = True

    def _pieces(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        if u.dim() == 1:
            raise ValueError(f"`u` must be (..., T, channels), got shape {tuple(u.shape)}: write u[:, None]")
        time = (t - t[0]).to(u.dtype).reshape(-1, *(1,) * (u.dim() - 1)).expand(*u.shape[:-1], 1)
        twice = torch.cat([time.repeat_interleave(2, 0)[1:], u.repeat_interleave(2, 0)[:-1]], dim=-1)
        halves = torch.stack([t[:-1], t[:-1] + t.diff() / 2], dim=1)
        return _lines(torch.cat([halves.flatten(), t[-1:]]), twice)


class CubicHermite(Path):
    """A cubic from knot to knot whose slope at a knot is that of the interval before it: once differentiable, causal.

    Up to t[i] nothing depends on a value after u[i], as for `Linear`, but its derivative does not jump: the path of a
    neural CDE. The first knot, before which there is no interval, has the slope of the first one.

    Source: Morrill, Kidger, Yang and Lyons (2021), "Neural controlled differential equations for online prediction
    tasks", section 3: cubic Hermite splines with backward differences.
    """

    def _pieces(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        if len(t) == 1:
            return _one_each(t, u)
        lengths, rise = t.diff(), u.diff(dim=0)
        ratio = column(lengths[1:] / lengths[:-1], u)
        before = torch.cat([rise[:1], rise[:-1] * ratio])  # the slope at the start, times the length
        return t[:-1], lengths, [u[:-1], before, 2 * (rise - before), before - rise]


class NaturalCubic(Path):
    """The natural cubic spline: twice differentiable, with second derivative 0 at both ends; a line for two knots.

    For signals that are known as a whole: each value is felt everywhere, if about a quarter as much from knot to knot.
    """

    def _pieces(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        if len(t) < 3:
            return _lines(t, u)
        lengths = t.diff()
        unit = lengths / lengths.mean()  # so that no unit of time is too small for the dtype of u
        h, rise = column(unit, u), u.diff(dim=0)
        inner = _tridiagonal(unit[:-1], 2 * (unit[:-1] + unit[1:]), unit[1:], 6 * (rise / h).diff(dim=0))
        bend = torch.cat([torch.zeros_like(u[:1]), inner, torch.zeros_like(u[:1])])  # the second derivatives
        here, change = bend[:-1] * h * h, bend.diff(dim=0) * h * h
        return t[:-1], lengths, [u[:-1], rise - here / 2 - change / 6, here / 2, change / 6]

    def _kinks(self) -> Tensor:
        return self.t[:0]


def _one_each(t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    return t, torch.ones_like(t), [u]


def _lines(t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    return (t[:-1], t.diff(), [u[:-1], u.diff(dim=0)]) if len(t) > 1 else _one_each(t, u)


def _tridiagonal(below: Tensor, diagonal: Tensor, above: Tensor, right: Tensor) -> Tensor:
    """The x with below[i] x[i−1] + diagonal[i] x[i] + above[i] x[i+1] = right[i], and nothing beyond either end.

    For a diagonal at least twice as large as what stands beside it. By cyclic reduction of all rows at once: each round
    takes the neighbours out of every row, by the rows of the neighbours, and leaves those twice as far. What stands
    beside the diagonal, relative to it, is squared by each round, from 1/2 to 2⁻⁶⁴ by the sixth: below the rounding
    of float64, however many rows there are. Six rounds of whole tensors, where elimination takes a loop over all rows.

    Args:
        below, diagonal, above: (N,), real, in float64.
        right: (N, ...).
    """
    n = len(diagonal)
    below, above = torch.cat([below.new_zeros(1), below[1:]]), torch.cat([above[:-1], above.new_zeros(1)])
    for far in (1, 2, 4, 8, 16, 32):
        if far >= n:
            break
        up, down = below[far:] / diagonal[:-far], above[:-far] / diagonal[far:]  # what to take of the neighbours
        none = below.new_zeros(far)
        diagonal = diagonal - torch.cat([none, up * above[:-far]]) - torch.cat([down * below[far:], none])
        empty = torch.zeros_like(right[:far])
        before, after = column(up, right) * right[:-far], column(down, right) * right[far:]
        right = right - torch.cat([empty, before]) - torch.cat([after, empty])
        below = torch.cat([none, -up * below[:-far]])
        above = torch.cat([-down * above[far:], none])
    return right / column(diagonal, right)
