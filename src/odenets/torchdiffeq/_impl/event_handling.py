"""`torchdiffeq._impl.event_handling`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenets.engine.roots import locate

EventFunction = Callable[[Tensor, Any], Tensor]


def combine_event_functions(event_fn: EventFunction, t0: Tensor, y0: Any) -> EventFunction:
    """The least of the components, each with the sign that makes it positive at the start."""
    signs = torch.sign(event_fn(t0, y0)).detach()
    return lambda t, y: (event_fn(t, y) * signs).min()


def find_event(
    interp_fn: Callable[[Tensor], Tensor], sign0: Tensor, t0: Tensor, t1: Tensor, event_fn: EventFunction, tol: float
) -> tuple[Tensor, Tensor]:
    """The time between t0 and t1 where the event is, and the state there; found to rounding, whatever `tol`."""
    with torch.no_grad():
        at_end = float(event_fn(t1, interp_fn(t1)) * sign0)
        theta = locate(lambda x: float(event_fn(t0 + x * (t1 - t0), interp_fn(t0 + x * (t1 - t0))) * sign0), at_end)
    t = t0 + theta * (t1 - t0)
    return t, interp_fn(t)
