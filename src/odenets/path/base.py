"""What all paths share: pieces that are worked out once, found by bisection, and summed up."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from odenets import transforms
from odenets.arguments import shown
from odenets.path.given import (
    can_look,
    check_choice,
    check_lengths,
    check_values,
    given_knots,
    refuse_outside,
    time_beside,
)
from odenets.path.missing import filled

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
        check_choice("outside", self.outside, _OUTSIDE)
        check_choice("unobserved", self.unobserved, _UNOBSERVED)
        check_values(self.u)
        looks = can_look(self.u) and not transforms.is_captured(self.u)
        t = given_knots(self.t, self.u, looks)
        check_lengths(t, self.u)
        values = self.u if self.u.dim() == 1 else self.u.movedim(-2, 0)  # (T, *batch, channels)
        if not (looks and transforms.all_finite(self.u)):
            values = filled(t, values, self._holds, self.unobserved == "zeros", looks)
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
        at, slack = time_beside(t, self.t)
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
        value = _polynomial(parts, column(s, parts[0]), derivative)
        return value / column(lengths, value) if derivative else value

    def _placed(self, at: Tensor, slack: float) -> tuple[Tensor, Tensor | None]:
        """The times where the path is looked up, and which of them lie within it, where that matters later."""
        if self.outside == "extend":
            return at, None
        looks = at.device.type == "cpu" and can_look(at)  # on a GPU, looking waits
        if self.outside == "error" and looks and self._ends is not None:
            refuse_outside(transforms.unwrapped(at), *self._ends, slack)
            return at, None
        first, last = self.t[0], self.t[-1]
        slack_there = slack * torch.maximum(first.abs(), last.abs())
        within = (at >= first - slack_there) & (at <= last + slack_there)
        return (at.clamp(first, last) if self.outside == "hold" else at), within


def column(x: Tensor, u: Tensor) -> Tensor:
    """A number for each entry along the first axis, as wide as u."""
    return x.to(u.real.dtype).reshape(-1, *(1,) * (u.dim() - 1))


def _polynomial(parts: tuple[Tensor, ...], s: Tensor, derivative: bool) -> Tensor:
    """Σ parts[j] sʲ, or its derivative by s, by Horner's rule."""
    terms = [j * part for j, part in enumerate(parts)][1:] if derivative else parts
    value = terms[-1]
    for term in reversed(terms[:-1]):
        value = value * s + term
    return value
