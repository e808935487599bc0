"""Dense output: the state at any time of a solved interval."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.methods import Method
from odenets.problem import Extension, OwnExtension, caller_time


@dataclass(frozen=True)
class DenseOutput:
    """The continuous extensions of all steps of a solve, as one function of time.

    Args:
        method: The method whose extension it is.
        steps: What it is made of. A step of no length, whose one part is f(t, y), is the whole of a solve of no length.
        origin, sign: The caller's time is sign · (origin + the solver's).
        unflatten: Gives the caller's structure to states (..., *y.shape).
    """

    method: Method
    steps: Extension
    origin: float
    sign: float
    unflatten: Callable[[Tensor], Any]

    def __call__(self, t: float | Tensor) -> Any:
        """The state at t (any shape): (*t.shape, *y.shape)."""
        given = _given(t)
        times = self.sign * given.flatten().to(torch.float64) - self.origin
        values = times.tolist()
        for value in values:
            self._check(value)
        y = self.steps.y[0]
        if len(values) == 1:
            flat = self._at(values[0], times[0])[None]
        else:
            flat = self._at_all(values, times) if values else y.new_empty((0, *y.shape))
        return self.unflatten(flat.reshape((*given.shape, *y.shape)))

    def _check(self, value: float) -> None:
        first, last = self.steps.t[0], self.steps.end
        last = self.steps.t[-1] + self.steps.dt[-1] if last is None else last
        slack = _SLACK * (last - first)
        if not first - slack <= value <= last + slack:
            low, high = sorted(caller_time(edge, self.origin, self.sign) for edge in (first, last))
            got = caller_time(value, self.origin, self.sign)
            raise ValueError(f"`t` must lie in the solved interval [{low!r}, {high!r}], got {got!r}")

    def _step_of(self, value: float) -> int:
        return max(bisect.bisect_right(self.steps.t, value) - 1, 0)

    def _at(self, value: float, t: Tensor) -> Tensor:
        """At one time: in numbers, where nothing is to be differentiated by it."""
        i = self._step_of(value)
        start, dt, y, parts = self.steps.t[i], self.steps.dt[i], self.steps.y[i], self.steps.parts[i]
        if self.steps.clock is not None:
            start, dt = self.steps.clock[i].unbind()
        past = (t if t.requires_grad else value) - start
        if self.steps.dt[i] == 0:
            return y + past * parts[0]
        return self.method.interpolate(y, dt, parts.unbind(), past / dt)

    def _at_all(self, values: list[float], t: Tensor) -> Tensor:
        """At many times at once."""
        steps, device = self.steps, self.steps.y.device
        index = torch.tensor([self._step_of(value) for value in values], device=device)
        clock = steps.clock
        if clock is None:
            clock = torch.tensor([steps.t, steps.dt], dtype=torch.float64, device=device).T
        axes = (1,) * (steps.y.dim() - 1)
        start, dt = (column.reshape(-1, *axes) for column in clock.index_select(0, index).unbind(1))
        past = t.to(device).reshape(-1, *axes) - start
        y = steps.y.index_select(0, index)
        parts = steps.parts.index_select(0, index).unbind(1)
        if steps.dt[0] == 0:
            return y + past.to(y.real.dtype) * parts[0]
        return self.method.interpolate(y, dt, parts, past / dt)


@dataclass(frozen=True)
class OwnDenseOutput:
    """The same of a solve in which each sample takes its own steps.

    Args:
        steps: What it is made of. Steps of no length have f as their first part.
        origin: Of all samples, or of each, (batch,).
    """

    method: Method
    steps: OwnExtension
    origin: float | Tensor
    sign: float
    unflatten: Callable[[Tensor], Any]

    def __call__(self, t: float | Tensor) -> Any:
        """The states at t: a number, times (K,) of all samples, or (batch, K), a row for each.

        (batch, …) for a number, else (K, batch, …).
        """
        given, (_, batch, *rest) = _given(t), self.steps.y.shape
        if given.dim() > 2 or (given.dim() == 2 and len(given) != batch):
            raise ValueError(
                f"`t` must be a number, times (K,) of all samples, or (batch, K), a row for each of the {batch}; got "
                f"shape {tuple(given.shape)}"
            )
        at = given.to(self.steps.y.device, torch.float64)
        at = (self.sign * (at.T if at.dim() == 2 else at.reshape(-1, 1)) - self.origin).expand(-1, batch)
        self._check(at.detach())
        ends = self.steps.ends.detach()
        # The first step that ends at t or after it; rounds without a step stand behind those.
        row = torch.searchsorted(ends.T.contiguous(), at.detach().T.contiguous()).T.clamp(max=len(ends) - 1)
        start, dt = (x.gather(0, row).reshape(-1, batch, *(1,) * len(rest)) for x in (self.steps.t, self.steps.dt))
        index = row.reshape(-1, batch, *(1,) * len(rest)).expand(-1, -1, *rest)
        y, *parts = (x.gather(0, index) for x in (self.steps.y, *self.steps.parts.unbind(1)))
        past, moves = at.reshape(start.shape) - start, dt > 0
        dt = torch.where(moves, dt, 1.0)
        states = self.method.interpolate(y, dt, parts, past / dt)
        states = torch.where(moves, states, y + past.to(y.real.dtype) * parts[0])
        return self.unflatten(states if given.dim() else states[0])

    def _check(self, at: Tensor) -> None:
        last = self.steps.ends.detach()[-1]
        wrong = ~((at >= -_SLACK * last) & (at <= (1 + _SLACK) * last))
        if not bool(wrong.any()):
            return
        k, i = wrong.nonzero()[0].tolist()
        origin = float(self.origin[i] if isinstance(self.origin, Tensor) else self.origin)
        got, *ends = (caller_time(x, origin, self.sign) for x in (float(at[k, i]), 0.0, float(last[i])))
        low, high = sorted(ends)
        raise ValueError(f"`t` of sample {i} must lie in its solved interval [{low!r}, {high!r}], got {got!r}")


_SLACK = 1e-9  # of the interval, that a time may lie outside of it


def _given(t: float | Tensor) -> Tensor:
    """The times asked for, as a real tensor."""
    given = torch.as_tensor(t)
    if given.is_floating_point() and not isinstance(t, Tensor):
        given = torch.as_tensor(t, dtype=torch.float64)  # a number's own precision, not the default dtype's
    if given.dtype.is_complex or given.dtype == torch.bool:
        raise TypeError(f"`t` must be real numbers, got dtype {given.dtype}")
    return given
