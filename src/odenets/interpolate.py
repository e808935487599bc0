"""Dense output: the state at any time of a solved interval."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.loop import DenseStep, caller_time
from odenets.methods import RungeKutta


@dataclass(frozen=True)
class DenseOutput:
    """The continuous extensions of all steps of a solve, as one function of time.

    Args:
        method: The method whose extension it is.
        steps: The steps in order of time. A step of no length, of which f(t, y) alone is known, is the whole of a solve
            of no length.
        origin, sign: The caller's time is sign · (origin + the solver's).
        unflatten: Gives the caller's structure to states (..., *y.shape).
    """

    method: RungeKutta
    steps: Sequence[DenseStep]
    origin: float
    sign: float
    unflatten: Callable[[Tensor], Any]

    def __call__(self, t: float | Tensor) -> Any:
        """The state at t (any shape): (*t.shape, *y.shape)."""
        given = torch.as_tensor(t)
        if given.is_floating_point() and not isinstance(t, Tensor):
            given = torch.as_tensor(t, dtype=torch.float64)  # a number's own precision, not the default dtype's
        if given.dtype.is_complex or given.dtype == torch.bool:
            raise TypeError(f"`t` must be real numbers, got dtype {given.dtype}")
        times = self.sign * given.flatten().to(torch.float64) - self.origin
        states = [self._at(value, times[i]) for i, value in enumerate(times.tolist())]
        y = self.steps[0][2]
        flat = torch.stack(states) if states else y.new_empty((0, *y.shape))
        return self.unflatten(flat.reshape((*given.shape, *y.shape)))

    def _at(self, value: float, t: Tensor) -> Tensor:
        first, last = self.steps[0][0], self.steps[-1][0] + self.steps[-1][1]
        slack = 1e-9 * (last - first)
        if not first - slack <= value <= last + slack:
            low, high = sorted(caller_time(edge, self.origin, self.sign) for edge in (first, last))
            got = caller_time(value, self.origin, self.sign)
            raise ValueError(f"`t` must lie in the solved interval [{low!r}, {high!r}], got {got!r}")
        index = max(bisect.bisect_right(self.steps, value, key=lambda step: step[0]) - 1, 0)
        start, dt, y, stages, clock = self.steps[index]
        if clock is not None:
            start, dt = clock.unbind()
        past = (t if t.requires_grad else value) - start
        if self.steps[index].dt == 0:
            return y + past * stages[0]
        return self.method.interpolate(y, dt, stages.unbind(), past / dt)
