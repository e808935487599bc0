"""Inputs u(t) of a vector field: controls, measured signals, the paths of neural CDEs.

A path is a function of time through given values, made of polynomial pieces that are worked out once. An evaluation
finds its piece by bisection and sums up one polynomial. docs/paths.md says which one to take.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from odenets import transforms
from odenets.arguments import given_times, number, shown

_OUTSIDE = ("error", "hold", "extend")
_UNOBSERVED = ("error", "zeros")


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """What all paths share; make one of `Constant`, `Linear`, `Rectilinear`, `CubicHermite`, `NaturalCubic`.

    Args:
        t: The knots, (T,): strictly increasing, in any unit. They are kept in float64 (on MPS in float32) whatever the
            dtype of u, so seconds since 1970 lose nothing; integers, lists and arrays are taken as they are.
        u: The values there, floating-point or complex: (T,), one signal without an axis of channels, or
            (*batch, T, channels). So in two axes or more, time is the last but one; one channel for each of a
            batch is u[..., None]. NaN means missing, see below. It may require grad.
        outside: What holds before the first and after the last knot: an "error", "hold" the first and the last value,
            or "extend" the first and the last piece. Where the time cannot be looked at without waiting or breaking
            a graph (compiled, recorded, on a GPU), the "error" is NaN, which ends a solve with its time.
            Times outside by no more than the rounding of their own dtype are let pass.
        unobserved: What to do with a channel that is NaN throughout: "error", or "zeros" in its place.

    A missing value is put in, channel by channel, on the straight line between the observed ones beside it (`Constant`
    and `Rectilinear`: the last one, so that nothing comes from the future); before the first and after the last
    observation, that one holds. Gradients go to what was observed alone.

    A path is computed when it is made. Where u is trained, make it anew in every forward pass.

    Raises:
        TypeError, ValueError: If an argument is not as described; the text says what would be.
    """

    t: Tensor
    u: Tensor
    outside: str = "error"
    unobserved: str = "error"
    _starts: Tensor = field(init=False)  # of the pieces, (pieces,)
    _lengths: Tensor = field(init=False)
    _table: Tensor = field(init=False)  # their coefficients, (pieces, degree + 1, *batch, channels)
    _ends: tuple[float, float] | None = field(init=False)  # the first and the last knot, where they could be looked at

    _holds = False  # whether a missing value is the last observed one, or lies between its neighbours

    def __post_init__(self) -> None:
        if type(self) is Path:
            raise TypeError("`Path` is what all paths share: write Linear(t, u), or another of the kinds")
        _check_choice("outside", self.outside, _OUTSIDE)
        _check_choice("unobserved", self.unobserved, _UNOBSERVED)
        _check_values(self.u)
        looks = _can_look(self.u) and not transforms.is_captured(self.u)
        t = _knots(self.t, self.u, looks)
        _check_lengths(t, self.u)
        values = self.u if self.u.dim() == 1 else self.u.movedim(-2, 0)  # (T, *batch, channels)
        if not (looks and transforms.all_finite(self.u)):
            values = _filled(t, values, self._holds, self.unobserved == "zeros", looks)
        narrow = values.dtype.itemsize < 4  # float16, bfloat16
        starts, lengths, parts = self._pieces(t, values.float() if narrow else values)
        table = torch.stack(parts, dim=1).to(self.u.dtype)
        # PyTorch's compiler takes no two tensors of one storage into a loop: a start is not a view of t.
        made: dict[str, Any] = {"t": t, "_starts": starts.clone(), "_lengths": lengths, "_table": table}
        made["_ends"] = (t[0].item(), t[-1].item()) if looks else None
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def __call__(self, t: float | Tensor) -> Tensor:
        """u(t), in the dtype of u.

        Args:
            t: One time: a number or a 0-dimensional tensor, which gives (*batch, channels). Many times, of any shape,
                come first: (*t.shape, *batch, channels). But t of shape (n, 1, …, 1), as f gets it with
                `per_sample=True`, is one time for each of n samples, and the value goes with the state by
                broadcasting: (n, …, channels), with as many axes as t at least; u has no batch, or n along its first
                axis. For a state of shape (n,), where f gets t as (n,), write path(t[:, None]).
        """
        return self._at(t, derivative=False)

    def derivative(self, t: float | Tensor) -> Tensor:
        """du/dt at t, as `path(t)`: at a kink that after it, at the last knot that before it; 0 where a value holds."""
        return self._at(t, derivative=True)

    @property
    def knots(self) -> Tensor:
        """The times, (K,), at which the path is not smooth, where a step of a solver should end.

        The jumps of `Constant`, the kinks of `Linear` and `Rectilinear`, and where the second derivative of
        `CubicHermite` jumps; none for `NaturalCubic`. Where "hold" makes kinks of the two ends, those too.
        """
        inner = self._kinks()
        if self.outside != "hold" or len(self.t) == 1 or len(self.jumps):
            return inner
        return torch.cat([self.t[:1], inner, self.t[-1:]])

    @property
    def jumps(self) -> Tensor:
        """The times among the knots at which the value itself jumps, (J,): of `Constant` all but the first."""
        return self.t[:0]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same path with `u.to(...)`: another device, another dtype. Times stay in float64."""
        return type(self)(self.t, self.u.to(*args, **kwargs), self.outside, self.unobserved)

    def __repr__(self) -> str:
        times = "" if self._ends is None else " in [{!r}, {!r}]".format(*self._ends)
        return f"{type(self).__name__}({len(self.t)} knots{times}, u: {shown(self.u)}, outside={self.outside!r})"

    def __reduce__(self) -> tuple[Callable[..., Self], tuple]:
        """A copy is made anew of t and u, so that its gradients go to the u of the copy."""
        return type(self), (self.t, self.u, self.outside, self.unobserved)

    def _pieces(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The start and the length of every piece, and its coefficients: of 1, s, s², … for s from 0 to 1 in it."""
        raise NotImplementedError

    def _kinks(self) -> Tensor:
        return self._starts[1:]

    def _at(self, t: Any, derivative: bool) -> Tensor:
        at, slack = _time(t, self.t)
        each = at.dim() > 1 and math.prod(at.shape[1:]) == 1  # a time for each sample
        flat, within = self._placed(at.reshape(-1), slack)
        value = self._values(flat, each, derivative)
        if within is not None and (derivative or self.outside == "error"):
            lost = math.nan if self.outside == "error" else 0.0
            value = torch.where(within.reshape(-1, *(1,) * (value.dim() - 1)), value, lost)
        inner = value.shape[1:]
        if each and inner:  # as many axes as the times have at least
            return value.reshape(value.shape[:-1] + (1,) * (at.dim() - value.dim()) + inner[-1:])
        return value.reshape(at.shape if each else at.shape + inner)

    def _values(self, at: Tensor, each: bool, derivative: bool) -> Tensor:
        """(times, *batch, channels); of each sample at its own time, (samples, …, channels)."""
        i = torch.searchsorted(self._starts[1:], at.detach(), right=True)
        if each and self.u.dim() > 2:
            samples = len(i)
            if self.u.shape[0] != samples:
                raise ValueError(
                    f"`t` of shape ({samples}, 1, ...) is one time for each of {samples} samples, and `u` of shape "
                    f"{tuple(self.u.shape)} has {self.u.shape[0]}: write path(t.flatten()) for all at many times"
                )
            rows = self._table[i, :, torch.arange(samples, device=i.device)]
        else:
            rows = self._table.index_select(0, i)
        parts = rows.unbind(1)
        if len(parts) == 1:
            return torch.zeros_like(parts[0]) if derivative else parts[0]
        lengths = self._lengths.index_select(0, i)
        s = (at - self._starts.index_select(0, i)) / lengths
        value = _polynomial(parts, _column(s, parts[0]), derivative)
        return value / _column(lengths, value) if derivative else value

    def _placed(self, at: Tensor, slack: float) -> tuple[Tensor, Tensor | None]:
        """The times where the path is looked up, and which of them lie within it, where that matters later."""
        if self.outside == "extend":
            return at, None
        looks = at.device.type == "cpu" and _can_look(at)  # on a GPU, looking waits
        if self.outside == "error" and looks and self._ends is not None:
            _refuse_outside(transforms.unwrapped(at), *self._ends, slack)
            return at, None
        first, last = self.t[0], self.t[-1]
        slack_there = slack * torch.maximum(first.abs(), last.abs())
        within = (at >= first - slack_there) & (at <= last + slack_there)
        return (at.clamp(first, last) if self.outside == "hold" else at), within


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
        ratio = _column(lengths[1:] / lengths[:-1], u)
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
        h, rise = _column(unit, u), u.diff(dim=0)
        inner = _tridiagonal(unit[:-1], 2 * (unit[:-1] + unit[1:]), unit[1:], 6 * (rise / h).diff(dim=0))
        bend = torch.cat([torch.zeros_like(u[:1]), inner, torch.zeros_like(u[:1])])  # the second derivatives
        here, change = bend[:-1] * h * h, bend.diff(dim=0) * h * h
        return t[:-1], lengths, [u[:-1], rise - here / 2 - change / 6, here / 2, change / 6]

    def _kinks(self) -> Tensor:
        return self.t[:0]


def _can_look(x: Tensor) -> bool:
    return not (torch.compiler.is_compiling() or transforms.is_recorded() or x.is_meta)


def _one_each(t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    return t, torch.ones_like(t), [u]


def _lines(t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    return (t[:-1], t.diff(), [u[:-1], u.diff(dim=0)]) if len(t) > 1 else _one_each(t, u)


def _column(x: Tensor, u: Tensor) -> Tensor:
    """A number for each entry along the first axis, as wide as u."""
    return x.to(u.real.dtype).reshape(-1, *(1,) * (u.dim() - 1))


def _polynomial(parts: tuple[Tensor, ...], s: Tensor, derivative: bool) -> Tensor:
    """Σ parts[j] sʲ, or its derivative by s, by Horner's rule."""
    terms = [j * part for j, part in enumerate(parts)][1:] if derivative else parts
    value = terms[-1]
    for term in reversed(terms[:-1]):
        value = value * s + term
    return value


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
        before, after = _column(up, right) * right[:-far], _column(down, right) * right[far:]
        right = right - torch.cat([empty, before]) - torch.cat([after, empty])
        below = torch.cat([none, -up * below[:-far]])
        above = torch.cat([-down * above[far:], none])
    return right / _column(diagonal, right)


def _filled(t: Tensor, u: Tensor, holds: bool, zeros: bool, looks: bool) -> Tensor:
    """u, (T, ...), with the missing values put in."""
    seen, knots = ~u.isnan(), len(t)
    if looks:
        _check_observed(u, seen, zeros)
    step = torch.arange(knots, device=u.device).reshape(-1, *(1,) * (u.dim() - 1))
    before = torch.where(seen, step, -1).cummax(0).values  # −1: none
    after = torch.where(seen, step, knots).flip(0).cummin(0).values.flip(0)  # T: none
    left = torch.where(before < 0, after, before).clamp(0, knots - 1)
    right = left if holds else torch.where(after == knots, before, after).clamp(0, knots - 1)
    start, span = t[left], t[right] - t[left]
    share = torch.where(span > 0, (t.reshape(step.shape) - start) / torch.where(span > 0, span, 1), 0)
    first, last = u.gather(0, left), u.gather(0, right)
    put_in = first + share.to(u.real.dtype) * (last - first)
    if zeros:
        put_in = torch.where(seen.any(0), put_in, 0)
    return torch.where(seen, u, put_in)


def _check_observed(u: Tensor, seen: Tensor, zeros: bool) -> None:
    if transforms.unwrapped(u).isinf().any():
        raise ValueError("`u` must be finite, or NaN where a value is missing, got an infinity: write u.nan_to_num()")
    observed = transforms.unwrapped(seen.any(0))
    if not zeros and not observed.all():
        index = [str(i) for i in (~observed).nonzero()[0].tolist()]
        where = ", ".join([*index[:-1], ":", *index[-1:]])
        raise ValueError(
            f"`u` must have an observation in every channel, u[{where}] is NaN throughout: leave the channel out, or "
            'write unobserved="zeros"'
        )


def _refuse_outside(at: Tensor, first: float, last: float, slack: float) -> None:
    slack *= max(abs(first), abs(last))
    for value in [x.item() for x in ([at] if at.numel() == 1 else at.aminmax() if at.numel() else ())]:
        if not first - slack <= value <= last + slack:
            raise ValueError(
                f"`t` must lie within the knots, [{first!r}, {last!r}], got {value!r}: "
                'make the path with outside="hold" or outside="extend"'
            )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        names = " or ".join(f'"{x}"' for x in allowed)
        raise ValueError(f"`{name}` must be {names}, got {shown(value)}")


def _check_values(u: Any) -> None:
    if not isinstance(u, Tensor):
        raise TypeError(f"`u` must be a tensor, got {shown(u)}: write torch.as_tensor(u); the order is (t, u)")
    if not (u.dtype.is_floating_point or u.dtype.is_complex):
        raise TypeError(f"`u` must be floating-point or complex, got {u.dtype}: write u.float()")
    if u.dim() == 0:
        raise ValueError("`u` must be (T,) or (..., T, channels), got shape (): write u[None] for one knot")


def _check_lengths(t: Tensor, u: Tensor) -> None:
    axis = -1 if u.dim() == 1 else -2
    if u.shape[axis] == len(t):
        return
    wrong = f"`u` must be (T,) or (..., T, channels) with one value a knot, T = {len(t)}, got shape {tuple(u.shape)}"
    remedy = "give t and u one length"
    if u.dim() == 1 and len(t) == 1:
        remedy = "write u[None] for one knot"
    elif u.shape[-1] == len(t):
        remedy = "write u[..., None] for one channel, or u.mT where channels come first"
    elif len(t) in u.shape[:-2]:
        remedy = f"write u.movedim({u.shape.index(len(t))}, -2)"
    raise ValueError(f"{wrong}: {remedy}")


def _knots(t: Any, u: Tensor, looks: bool) -> Tensor:
    """The knots in float64, beside u, checked."""
    t = given_times(t)
    tensors = [t] if isinstance(t, Tensor) else [x for x in t if isinstance(x, Tensor)]
    if any(x.requires_grad or (looks and transforms.is_wrapped(x)) for x in tensors):
        raise TypeError("`t` must be times without a gradient and outside of transforms: write t.detach()")
    dtype = torch.float32 if u.device.type == "mps" else torch.float64
    if not isinstance(t, Tensor):
        t = torch.tensor([float(value) for value in t], dtype=dtype)
    t = t.to(device=u.device, dtype=dtype, copy=True).contiguous()
    if looks and not bool(torch.isfinite(t).all()):
        raise ValueError(f"`t` must be finite, got {t[~t.isfinite()][0].item()}: leave those knots out")
    if looks and not bool((t.diff() > 0).all()):
        i = int((t.diff() <= 0).nonzero()[0])
        now, then = t[i].item(), t[i + 1].item()
        repeated = "keep one value a time, and give the times in float64"
        remedy = repeated if now == then else "sort both: order = t.argsort(), t[order] and u[..., order, :]"
        raise ValueError(f"`t` must increase from knot to knot, t[{i}] = {now!r} is followed by {then!r}: {remedy}")
    return t


def _time(t: Any, knots: Tensor) -> tuple[Tensor, float]:
    """Times beside the knots, and the rounding of their own dtype, relative to them."""
    if not isinstance(t, Tensor):
        if not hasattr(t, "__array__"):
            t = number("t", t, "a number or a tensor of times", lambda _: True)
        t = torch.as_tensor(t) if hasattr(t, "__array__") else torch.tensor(t, dtype=torch.float64)
    if t.dtype.is_complex or t.dtype == torch.bool:
        raise TypeError(f"`t` must be real numbers, got dtype {t.dtype}: write the times in float64")
    digits = t.dtype if t.dtype.is_floating_point else torch.float64
    return t.to(device=knots.device, dtype=knots.dtype), 4 * torch.finfo(digits).eps
