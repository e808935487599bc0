"""Time in both loops, as numbers or as tensors: how long a step is, what follows from it, and ∂L/∂(the times)."""

import math
from typing import Any, NamedTuple

from torch import Tensor

from odenets.controller import Controller, Number, maximum, where


def shortened(t: Number, dt: Number, t_end: Number) -> tuple[Any, Number]:
    """Whether the next step is the last, and its size: cut to end on t_end, which no step passes.

    Of a size dt the time moves by what it can resolve, and y has to move by the same.
    """
    final = dt >= (t_end - t) * (1 - 1e-6)  # rounding errors of t must not cost a sliver of a step
    return final, where(final, t_end, t + dt) - t


def conclude(
    controller: Controller,
    order: int,
    ratio: Number,
    planned: Number,
    dt: Number,
    final: Any,
    t: Number,
    t_end: Number,
    memory: tuple[Number, ...],
) -> tuple[Any, Number, Number, tuple[Number, ...]]:
    """What follows from a step of size dt that was tried: (accepted?, the time now, the next step size, memory).

    The next step size is NaN where it would be too small for the time to move: the solve is stuck.
    """
    accept, dt_next, memory = controller.decide(ratio, dt, memory, order)
    if accept is True:  # by a controller that judges nothing
        return True, where(final, t_end, t + dt), where(final, maximum(dt_next, planned), dt_next), memory
    # A step that was cut short says nothing against the size that was planned.
    dt_next = where(accept & final, maximum(dt_next, planned), dt_next)
    moved = (t + dt_next) - t  # by what the time would move: it has to, and by less than in the step that was tried
    moves = (moved > 0) & (moved < dt) & (dt_next >= 1e-30 * (t_end - t))  # at t = 0 any step would move it
    dt_next = where(accept | moves, dt_next, math.nan)
    return accept, where(accept, where(final, t_end, t + dt), t), dt_next, memory


class TimeBars(NamedTuple):
    """∂L/∂(the times) on the way back, where a reverse sweep stands."""

    t: Any = 0.0  # ∂L/∂(the time there), that being the sum of the steps so far
    end: Any = 0.0  # ∂L/∂(the time that the solve went to)
    span: Any = 0.0  # ∂L/∂(the interval's length), by the steps that have a share in it

    def before(self, t_bar: Any, dt_bar: Any, final: Any, stopped: Any = False, still: Any = False) -> "TimeBars":
        """Those at the start of a step of which ∂L/∂t and ∂L/∂dt are given.

        Where the step was cut, dt = the end − t (`final`), or a stop − t (`stopped`), which nothing depends on;
        elsewhere t1 = t + dt, where dt is a constant or a part of the interval. A sample that stands `still` took no
        step.
        """
        if still is not False:
            final, stopped = final & ~still, stopped & ~still
        return TimeBars(
            where(final | stopped, t_bar - dt_bar, self.t + t_bar),
            self.end + where(final, dt_bar, 0.0),
            self.span + where(final | stopped | still, 0.0, dt_bar + self.t),
        )


def stretch(grad_t: Tensor, span_bar: Any, controller: Controller) -> None:
    """Add what a longer interval changes, ∂L/∂(its length) by the steps with a share in it, to ∂L/∂(its ends)."""
    if controller.share:
        grad_t[0] -= controller.share * span_bar
        grad_t[-1] += controller.share * span_bar
