"""`torchdiffeq._impl.solvers`: a class to build methods on, and those of the table that go by a name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenets.torchdiffeq.interface import odeint
from odenets.torchdiffeq.solvers import FixedGridODESolver as FixedGridODESolver


class ByName:
    """A method of the table as a solver object: `integrate(t)` is `odeint` with its name.

    Args:
        func, y0, rtol, atol: As for `odeint`; y0 one tensor.
        options: The options of the method.
    """

    method: str

    def __init__(self, func: Any, y0: Tensor, rtol: Any = None, atol: Any = None, **options: Any) -> None:
        self.func, self.y0, self.rtol, self.atol, self.options = func, y0, rtol, atol, options

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Those that it calls."""
        return {"callback_step", "callback_accept_step", "callback_reject_step"}

    def integrate(self, t: Tensor) -> Tensor:
        """The states at the times t, (T, *y0.shape)."""
        return self._solve(t)

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """The time where `event_fn` changes sign, and the states at the start and there."""
        return self._solve(torch.stack([t0, t0.detach() + 1]), event_fn=event_fn)

    def _solve(self, t: Tensor, **event: Any) -> Any:
        given = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": self.options}
        return odeint(self.func, self.y0, t, **given, **event)
