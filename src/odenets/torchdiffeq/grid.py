"""torchdiffeq's fixed steps: from point to point of a grid."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets.controller import Decision, FirstStep, Fixed, Norm, Number, Start, rms
from odenets.methods import ImplicitRungeKutta, RungeKutta
from odenets.torchdiffeq.call import MOST_STEPS, Call, count, number
from odenets.torchdiffeq.stops import Stops
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
        largest, finest = float(t.detach().abs().max()), torch.finfo(t.dtype).eps
        if float(step_size) < largest * finest:
            raise ValueError(
                f"`options` 'step_size' {float(step_size):g} is less than what {t.dtype} tells apart near "
                f"t = {largest:.9g}: give the times in float64 from the start, or count them from the first one"
            )
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

    def points(self, call: Call, t: Tensor, sign: float) -> Tensor:
        """The grid for increasing t, which times `sign` is the caller's time; in float64, differentiable."""
        make = self.grid_constructor
        constructed = None if make is None else lambda t: sign * make(call.func, call.user_y0, sign * t)
        return grid_points(t, self.step_size, constructed, sign).to(torch.float64)

    callbacks = CALLBACKS[:1]
    further = "It took 20,000 steps: a larger 'step_size' in `options` goes further."

    @property
    def on_outputs(self) -> bool:
        """Whether the outputs are the points of the grid."""
        return self.step_size is None and self.grid_constructor is None

    @property
    def one_sided(self) -> bool:
        return self.perturb

    def _each_alone(self, t: Tensor) -> bool:
        """Whether each step is a solve of its own: where the sizes of the steps have derivatives of their own."""
        return self.perturb or (self.step_size is None and is_differentiated(t))

    def edges(self, call: Call, t: Tensor) -> Tensor:
        if not self._each_alone(t):
            return t.new_empty(0)
        return self.points(call, t.detach() if self.on_outputs else t, call.sign)

    def solver_method(self, call: Call, watch: Watch | None, event: bool) -> RungeKutta:
        return watched(self.method, watch, linear=self.interp == "linear" and (event or not self.on_outputs))

    def controller(
        self, call: Call, t: Tensor, start: float, sign: float, watch: Watch | None, dt: float | None
    ) -> "Fixed | GridWalk":
        if sign == call.sign:
            return GridWalk([] if self._each_alone(t) else self.points(call, t, sign).tolist(), start)
        if self.on_outputs:  # backward: each interval of the outputs ends a step
            return GridWalk([], start)
        if self.grid_constructor is None:
            return Fixed(dt=float(self.step_size))
        intervals = itertools.pairwise(-t.detach().flip(0))
        return GridWalk([p for ends in intervals for p in self.points(call, torch.stack(ends), sign).tolist()], start)

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


class GridWalk:
    """The controller of `Grid`: from point to point. Its memory is the place on the way."""

    adaptive = False
    share = 0.0
    tunable = ()
    chooses_first_step = False

    def __init__(self, points: Sequence[float], start: float) -> None:
        self.stops = Stops(points, start)
        self.start = self.stops.begin

    def given_step(self, t0: float, t1: float) -> float:
        return self.stops.ahead(self.start)

    def first_step(self, start: Start) -> FirstStep:
        raise TypeError("the size of a fixed step is given")

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        raise TypeError("fixed steps are not judged")

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        place = self.stops.after((memory[0], memory[1]), dt)
        return Decision(True, self.stops.ahead(place), place)
