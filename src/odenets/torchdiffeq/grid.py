"""torchdiffeq's fixed steps: from point to point of a grid."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets.controller import Fixed
from odenets.methods import ImplicitRungeKutta, RungeKutta
from odenets.torchdiffeq.call import MOST_STEPS, Call, count, number
from odenets.torchdiffeq.watch import CALLBACKS, Watch, watched
from odenets.torchdiffeq.words import brief
from odenets.transforms import is_differentiated

Constructor = Callable[[Any, Any, Tensor], Tensor]


def check_options(step_size: Any, grid_constructor: Any, interp: Any) -> None:
    """Refuse options of fixed steps that exclude each other, or whose values are not allowed.

    Raises:
        TypeError, ValueError: Naming the option.
    """
    if step_size is not None and grid_constructor is not None:
        raise ValueError("`options` 'step_size' and 'grid_constructor' exclude each other: leave one out")
    if step_size is not None and not 0 < number("step_size", step_size, least=-math.inf) < math.inf:
        wrong = float(step_size)
        raise ValueError(f"`options` 'step_size' must be above 0 (backward in time too) and finite, got {wrong}")
    if grid_constructor is not None and not callable(grid_constructor):
        raise TypeError(f"`options` 'grid_constructor' must be a function, got {brief(grid_constructor)}")
    if not isinstance(interp, str) or interp not in ("linear", "cubic"):
        raise ValueError(f'`options` \'interp\' must be "linear" or "cubic", got {brief(interp)}')


def check_step_size(step_size: Any, t: Tensor) -> None:
    """Refuse a step size that does not move the times.

    Raises:
        ValueError: With what to write instead.
    """
    largest, finest = float(t.detach().abs().max()), torch.finfo(t.dtype).eps
    if float(step_size) < largest * finest:
        raise ValueError(
            f"`options` 'step_size' {float(step_size):g} is less than what {t.dtype} tells apart near "
            f"t = {largest:.9g}: give the times in float64 from the start, or count them from the first one"
        )


def grid_points(t: Tensor, step_size: Any, constructed: Callable[[Tensor], Tensor] | None, sign: float = 1.0) -> Tensor:
    """The points of the grid for increasing times, which times `sign` are the caller's; differentiable, in t's dtype.

    Raises:
        ValueError: If the points that were constructed do not lead from the first time to the last.
    """
    if constructed is not None:
        grid = constructed(t)
        if not (bool((grid[0] == t[0]) & (grid[-1] == t[-1])) and bool((grid.diff() >= 0).all())):
            wanted, got = (" to ".join(f"{sign * x:g}" for x in p.detach()[[0, -1]].tolist()) for p in (t, grid))
            raise ValueError(
                f"`options` 'grid_constructor' must return monotone times from {wanted}, got {len(grid)} from {got}"
            )
        return grid
    if step_size is not None:
        check_step_size(step_size, t)
        count = math.ceil(((t[-1] - t[0]) / step_size).item())  # in t's dtype: 1 / 0.1 makes 10 steps
        return torch.cat([t[0] + torch.arange(count, dtype=t.dtype, device=t.device) * step_size, t[-1:]])
    return t


@dataclass(frozen=True)
class Grid:
    """Fixed steps from point to point of a grid: the output times, multiples of a step size, or what a function says.

    Args:
        step_size: Of equal steps from the first time on; the last is shortened.
        grid_constructor: Called as `grid_constructor(func, y0, t)`; returns the points, from t[0] to t[-1].
        interp: Between the points: "linear", or "cubic" (Hermite).
        perturb: Evaluate f just after the start and just before the end of a step, never at them.
    """

    method: RungeKutta
    rtol: Any
    atol: Any
    step_size: Any = None
    grid_constructor: Constructor | None = None
    interp: str = "linear"
    perturb: bool = False

    def __post_init__(self) -> None:
        check_options(self.step_size, self.grid_constructor, self.interp)

    callbacks = CALLBACKS[:1]
    further = "It took 20,000 steps: a larger 'step_size' in `options` goes further."

    @property
    def on_outputs(self) -> bool:
        """Whether the outputs are the points of the grid."""
        return self.step_size is None and self.grid_constructor is None

    @property
    def _even(self) -> bool:
        return self.step_size is not None and not self.perturb

    def moves(self, t: Tensor) -> bool:
        """Whether the points of the grid have derivatives, but for one size of all steps."""
        return is_differentiated(t) and not self._even

    def points(self, call: Call, t: Tensor, sign: float) -> Tensor:
        """The grid for increasing t, which times `sign` is the caller's time; in float64, differentiable."""
        make = self.grid_constructor
        constructed = None if make is None else lambda t: sign * make(call.func, call.user_y0, sign * t)
        return grid_points(t, self.step_size, constructed, sign).to(torch.float64)

    def stops(self, call: Call, t: Tensor, sign: float) -> tuple[Sequence[float], Sequence[float]]:
        """Where steps end, in a time that times `sign` is the caller's; and those that f is not to be evaluated at."""
        if self._even:
            check_step_size(self.step_size, t)
            return (), ()
        if sign == call.sign:
            points = self.points(call, t, sign).tolist()
            return ((), points) if self.perturb else (points, ())
        if self.on_outputs:  # of a backward solve, which begins anew at each of them
            return (), ()
        intervals = itertools.pairwise(-t.detach().flip(0))
        return [p for ends in intervals for p in self.points(call, torch.stack(ends), sign).tolist()], ()

    def solver_method(self, call: Call, watch: Watch | None) -> RungeKutta:
        return watched(self.method, watch, linear=self.interp == "linear" and not self.on_outputs)

    def controller(self, watch: Watch | None) -> Fixed:
        return Fixed(dt=float(self.step_size)) if self._even else Fixed(steps=1)  # cut at the points

    def most_steps(self, t: Tensor, event: bool = False) -> int:
        return MOST_STEPS if event else 2**62


@dataclass(frozen=True)
class Implicit(Grid):
    """Fixed steps of an implicit method.

    Args:
        max_iters: The most iterations of Newton's method in a step; where they do not converge, the solve fails.
    """

    method: ImplicitRungeKutta
    max_iters: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        most = count("max_iters", self.max_iters)
        object.__setattr__(self, "method", replace(self.method, max_iterations=most))
