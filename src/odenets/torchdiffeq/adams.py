"""torchdiffeq's Adams methods, on a grid of fixed steps, differentiated by autograd."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenets.methods import combine, real_dtype
from odenets.methods.divided import Polynomial
from odenets.torchdiffeq.call import count, number
from odenets.torchdiffeq.solvers import RK4_38, FixedGridODESolver, Perturb, tableau_increment
from odenets.torchdiffeq.words import brief


class AdamsBashforthMoulton(FixedGridODESolver):
    """The derivatives at the last points of the grid, after a start with the 3/8 rule; iterated where `implicit`.

    On an uneven grid the weights are those of the grid (torchdiffeq takes the even grid's).

    Args:
        rtol, atol: Where the iteration ends.
        implicit: Adams–Moulton, started from Adams–Bashforth; False for the latter alone.
        max_iters: The most iterations of a step; where they do not converge, a warning says so.
        max_order: One more than the most derivatives taken; at most 12. Below 4 every step is that of the 3/8 rule.
        options: As for `FixedGridODESolver`.
    """

    order = 4
    hint = "Adams methods of high order are stable for short steps only: give a lower 'max_order' (12 if not given)."

    def __init__(
        self,
        func: Any,
        y0: Tensor,
        rtol: Any = 1e-3,
        atol: Any = 1e-4,
        implicit: bool = True,
        max_iters: int = 4,
        max_order: int = 12,
        **options: Any,
    ) -> None:
        super().__init__(func, y0, rtol=rtol, atol=atol, **options)
        max_iters = count("max_iters", max_iters)
        if not 1 <= number("max_order", max_order) <= 12:
            raise ValueError(f"`options` 'max_order' must be from 1 to 12, got {brief(max_order)}")
        if max_order < 4:
            warnings.warn(f"'max_order' {max_order} is below 4: every step is one of \"rk4\"", stacklevel=6)
        self.rtol, self.implicit, self.max_iters, self.most = rtol, implicit, max_iters, max(int(max_order) - 1, 1)
        self.history: list[tuple[float, Tensor]] = []  # times and derivatives, the newest first

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        f0 = func(t0, y0, perturb=Perturb.NEXT if self.perturb else Perturb.NONE)
        self.history = [(t0.item(), f0), *self.history][: self.most]
        if len(self.history) < 3:
            return tableau_increment(RK4_38, func, t0, dt, t1, y0, f0, self.perturb), f0
        dy = self._increment(t0, dt, self.history)
        return (self._correct(func, t0, dt, t1, y0, dy) if self.implicit else dy), f0

    def _increment(self, t0: Tensor, dt: Tensor, history: Sequence[tuple[float, Tensor]]) -> Tensor:
        """∫ f dt over the step, by the polynomial through the derivatives."""
        times, slopes = zip(*history)
        start, size = t0.item(), dt.item()
        rounding = 16 * torch.finfo(t0.dtype).eps * max(map(abs, (*times, start + size))) / size
        nodes = [(time - start) / size for time in times]
        even = [round(x) if abs(x - round(x)) <= rounding else x for x in nodes]  # but for rounding errors of the times
        weights = Polynomial.through(list(map(float, even))).weights(len(slopes))
        return combine(None, dt.to(real_dtype(slopes[0])), weights, slopes)

    def _correct(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, dy: Tensor) -> Tensor:
        for _ in range(self.max_iters):
            before = dy
            f1 = func(t1, y0 + dy, perturb=Perturb.PREV if self.perturb else Perturb.NONE)
            dy = self._increment(t0, dt, [(t1.item(), f1), *self.history])
            scale = self.atol + self.rtol * torch.maximum(before.abs(), dy.abs())
            if bool(((dy - before).abs() < scale).all()):
                return dy
        when = getattr(func, "sign", 1.0) * t0.item() + 0.0
        warnings.warn(
            f"implicit_adams did not converge in {self.max_iters} iterations at t = {when:g}: take smaller steps, "
            "looser tolerances, or a larger 'max_iters'",
            stacklevel=7,
        )
        self.history.pop()  # go on with one derivative less, as torchdiffeq does
        return dy


class AdamsBashforth(AdamsBashforthMoulton):
    """The explicit one."""

    def __init__(self, func: Any, y0: Tensor, **options: Any) -> None:
        super().__init__(func, y0, **{"implicit": False, **options})
