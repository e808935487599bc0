"""Why a solve got no further. Only here is a state inspected element by element."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from odenets.controller import PID, Controller
from odenets.solution import Status
from odenets.transforms import all_finite, unwrapped, value_of


class Reason(NamedTuple):
    """How a solve ended, and what was seen."""

    status: Status
    detail: str = ""


def at_start(y: Tensor, f0: Tensor) -> Reason:
    """Why no first step could be chosen."""
    if not all_finite(y):
        return Reason(Status.NON_FINITE_START, f"y0: {locate_non_finite(y)}.")
    if not all_finite(f0):
        return Reason(Status.NON_FINITE_FIELD, f"f(t0, y0): {locate_non_finite(f0)}.")
    largest = value_of(f0.abs().max())
    return Reason(
        Status.STEP_SIZE_UNDERFLOW,
        f"f(t0, y0) is as large as {largest:.3g}, which in tolerances {f0.dtype} cannot hold.",
    )


def stops_at_dt_min(controller: Controller, t: float) -> bool:
    """Whether its own bound keeps a controller from trying a shorter step at t, not the digits of the time."""
    return isinstance(controller, PID) and t + controller.dt_min > t


def of_a_tiny_step(y: Tensor, parts: tuple[Tensor, ...], dt: float, ratio: float, bounded: bool = False) -> Reason:
    """Why no step from y is short enough: parts and error, in tolerances, are those of the last one, of size dt.

    Args:
        bounded: Whether the controller tries no shorter step.
    """
    y = unwrapped(y)
    seen = f"The largest |y| is {float(y.abs().max()):.3g}, the last error was {ratio:.3g} tolerances."
    broken = next((k for k in parts if not all_finite(k)), None)
    jumps_off = broken is not None and bool(torch.isnan(unwrapped(broken)).any())  # log, sqrt, 0 / 0
    outgrown = value_of(y.abs().max()) > math.sqrt(torch.finfo(y.dtype).max)
    if bounded and not outgrown and broken is None:
        return Reason(Status.DT_MIN, seen)
    if outgrown or (not jumps_off and len(parts) > 0 and blows_up(y, parts[0], dt)):
        return Reason(Status.DIVERGED, f"{seen} Largest at {_position(y, int(y.abs().argmax()))}.")
    if broken is not None:
        return Reason(Status.NON_FINITE_FIELD, f"Just after this t, f: {locate_non_finite(broken)}. {seen}")
    return Reason(Status.STEP_SIZE_UNDERFLOW, seen)


def blows_up(y: Tensor, k: Tensor, dt: float) -> bool:
    """Whether the state, of slope k, would double within a few steps as short as dt, where that is too short to go on.

    It does just before it becomes infinite; not where f breaks off, or jumps, or is stiff.
    """
    rise, size = value_of(k.abs().max()), value_of(y.abs().max())
    return not rise * dt < 1e-4 * size if size > 0 and not math.isnan(rise) else False


def runs_away(y: Tensor, k: Tensor, y0: Tensor, k0: Tensor, elapsed: float, remaining: float) -> bool:
    """Whether a component has grown a hundredfold, at a rate that went up with it and leads to infinity before the end.

    Growth by that factor has the mean rate log(grown) / elapsed. Exponential growth has no other rate; before a
    blow-up in finite time the last one is far above the mean. Slopes are k at y, and k0 at the start y0.
    """
    usual = torch.maximum(y0.abs(), k0.abs() * elapsed)  # of a component that starts at 0
    grown = (y.abs() / usual).log()
    rate = torch.real(k / y)
    away = (grown > math.log(100)) & (rate * min(elapsed, remaining) > 10 * grown)
    return value_of(away.any()) > 0


def locate_non_finite(x: Tensor) -> str:
    """Say where x is not finite, and in how many places."""
    x = unwrapped(x)
    bad = ~torch.isfinite(x)
    index = int(bad.flatten().to(torch.int8).argmax())
    return (
        f"{_position(x, index)} is {x.flatten()[index].item()} ({int(bad.sum())} of {x.numel()} values are not finite)"
    )


def _position(x: Tensor, flat_index: int) -> str:
    if x.dim() == 0:
        return "the state"
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat_index), x.shape)]
    return f"sample {index[0]}" + (f", component {tuple(index[1:])}" if len(index) > 1 else "")
