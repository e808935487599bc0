"""Step size policy: accept the step or not, and how long the next one is. No mathematics of the ODE here."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from odenets.methods import ExplicitRungeKutta, Field


class Decision(NamedTuple):
    """What the controller makes of a step that was tried."""

    accept: bool
    dt: float  # the next step size: of the next step if accepted, of the same step again if not
    memory: tuple[float, ...]  # the controller's own, handed back at the next step


class Controller(Protocol):
    """What the loop asks of a controller."""

    @property
    def adaptive(self) -> bool:
        """Whether steps are judged by their error; if not, every step is accepted and nothing is read back."""
        ...

    def first_step(self, f: Field, y0: Tensor, f0: Tensor, t0: float, t1: float, order: int) -> float:
        """The size of the first step of a solve from t0 to t1 > t0."""
        ...

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor) -> Tensor:
        """The size of the error in units of the tolerance, a 0-dimensional tensor."""
        ...

    def decide(self, ratio: float, dt: float, memory: tuple[float, ...], order: int) -> Decision:
        """Judge a step of size dt whose error, in units of the tolerance, was `ratio`."""
        ...


@dataclass(frozen=True)
class PID:
    """Adaptive steps by proportional, integral and derivative feedback on the error (the default).

    A step is accepted when its error estimate e satisfies rms(e / (atol + rtol max(|y|, |y1|))) ≤ 1, the mean
    taken over all elements of the state: the whole batch shares one step size. The next step is
    dt · safety · r_n^(−β1) · r_(n−1)^(−β2) · r_(n−2)^(−β3), with r the ratios of the last accepted steps and β made
    from `p`, `i` and `d` as in Söderlind, "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003), where the
    error of a step is taken as O(dt^order).

    When to use: always, except to reproduce a residual network or to spend a fixed budget (`Fixed`).
    The first step is chosen as in Hairer, Nørsett and Wanner II.4 and costs one evaluation of f.

    Args:
        rtol, atol: Relative and absolute tolerance of a step's error, in the units of y.
        p, i, d: Feedback coefficients. (0, 1, 0) is the classical controller; (0.4, 0.3, 0) smooths the step sizes
            where steps are often rejected.
        safety: Aim below the tolerance by this factor.
        factor_min, factor_max: Bounds of the change from one step to the next.
        dt0: The first step; None to choose it.
        dt_max: Bound of the step size.
    """

    rtol: float = 1e-3
    atol: float = 1e-6
    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    dt0: float | None = None
    dt_max: float = math.inf

    adaptive = True

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "a number ≥ 0")
        _require("rtol", self.rtol, self.rtol > 0 or self.atol > 0, "above 0 where `atol` is 0")
        _require("safety", self.safety, 0 < self.safety <= 1, "in (0, 1]")
        _require("factor_min", self.factor_min, 0 < self.factor_min < 1, "in (0, 1)")
        _require("factor_max", self.factor_max, self.factor_max > 1, "above 1")
        _require("dt0", self.dt0, self.dt0 is None or self.dt0 > 0, "None or a number above 0")
        _require("dt_max", self.dt_max, self.dt_max > 0, "a number above 0")

    def first_step(self, f: Field, y0: Tensor, f0: Tensor, t0: float, t1: float, order: int) -> float:
        if self.dt0 is not None:
            return min(self.dt0, self.dt_max)
        longest = min(t1 - t0, self.dt_max)
        scale = torch.add(self._atol(y0), y0.abs(), alpha=self.rtol)
        d0, d1 = torch.stack([_rms(y0 / scale), _rms(f0 / scale)]).tolist()  # one host read
        self._check_resolution(d0, scale.dtype)
        h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        h0 = min(h0, longest)
        # The trial step uses t0 + h0 in y's dtype, like every other evaluation.
        t_trial = torch.tensor(t0 + h0, dtype=scale.dtype, device=y0.device)
        f1 = f(t_trial, torch.add(y0, f0, alpha=h0))
        d2 = _rms((f1 - f0) / scale).item() / h0
        if not math.isfinite(d2):  # the trial left f's domain: start carefully, the controller grows dt soon
            return h0 * 1e-3
        largest = max(d1, d2)
        h1 = max(1e-6, h0 * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** (1 / order)
        return min(100 * h0, h1, longest)

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor) -> Tensor:
        magnitude = torch.maximum(y.abs(), y1.abs())
        return _rms(error / torch.add(self._atol(y), magnitude, alpha=self.rtol))

    def decide(self, ratio: float, dt: float, memory: tuple[float, ...], order: int) -> Decision:
        if not math.isfinite(ratio):
            return Decision(False, dt * self.factor_min, memory)
        accept = ratio <= 1
        ratios = (max(ratio, 1e-10), *memory)
        betas = (self.p + self.i + self.d, -(self.p + 2 * self.d), self.d)
        factor = self.safety * math.prod(r ** (-beta / order) for r, beta in zip(ratios, betas))
        factor = min(max(factor, self.factor_min), self.factor_max if accept else 1.0)
        return Decision(accept, min(dt * factor, self.dt_max), ratios[:2] if accept else memory)

    def _check_resolution(self, size: float, dtype: torch.dtype) -> None:
        """Refuse tolerances below the rounding error of a state of that size (in units of the tolerance)."""
        rounding = torch.finfo(dtype).eps / 2
        if size * rounding > 1:
            raise ValueError(
                f"`rtol` = {self.rtol:g} and `atol` = {self.atol:g} ask for {size * rounding:.3g} times the accuracy "
                f"that y's dtype {dtype} can represent: give at least `rtol={4 * rounding:.0e}`, or solve in float64"
            )

    def _atol(self, y: Tensor) -> Tensor:
        real = y.dtype.to_real() if y.dtype.is_complex else y.dtype
        return torch.full((), self.atol, dtype=real, device=y.device)


@dataclass(frozen=True)
class Fixed:
    """Steps of one size, none of them judged: nothing is read back from the device while solving.

    When to use: to reproduce a residual network (Euler, dt = 1), for a fixed budget of evaluations, for methods
    without an error estimate. When not: where you do not know how large a step the field allows; nothing here
    notices a step that is too large, unless the state stops being finite.

    Args:
        dt: The step size, in the units of t; the last step is shortened to end on the last time.
        steps: Instead of `dt`: the number of equal steps from the first time to the last.
    """

    dt: float | None = None
    steps: int | None = None

    adaptive = False

    def __post_init__(self) -> None:
        if (self.dt is None) == (self.steps is None):
            raise TypeError(f"Fixed takes either `dt` or `steps`, got dt={self.dt}, steps={self.steps}")
        _require("dt", self.dt, self.dt is None or self.dt > 0, "a number above 0 (backward in time too)")
        _require("steps", self.steps, self.steps is None or self.steps >= 1, "an integer ≥ 1")

    def size(self, t0: float, t1: float) -> float:
        """The step size on an interval from t0 to t1 > t0."""
        return (t1 - t0) / self.steps if self.steps is not None else float(self.dt or 0)

    def first_step(self, f: Field, y0: Tensor, f0: Tensor, t0: float, t1: float, order: int) -> float:
        return self.size(t0, t1)

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor) -> Tensor:
        raise TypeError("Fixed judges no step")

    def decide(self, ratio: float, dt: float, memory: tuple[float, ...], order: int) -> Decision:
        return Decision(True, dt, memory)


def check_pair(method: ExplicitRungeKutta, controller: Controller) -> None:
    """Refuse an adaptive controller with a method that cannot estimate its error."""
    if controller.adaptive and not method.adaptive:
        raise TypeError(
            f"`method` {method.name!r} has no error estimate, so it cannot adapt its steps: "
            f"pass `controller=Fixed(dt=...)` or `Fixed(steps=...)`, or another method"
        )


def _rms(x: Tensor) -> Tensor:
    """The root mean square over all elements: 0-dimensional, real."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(x.numel(), 1))


def _require(name: str, value: object, condition: bool, allowed: str) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}")
