"""torchdiffeq's adaptive steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.controller import PID, Decision, FirstStep, Norm, Number, Start, choose_first_step, rms
from odenets.methods import RungeKutta
from odenets.torchdiffeq.call import MOST_STEPS, Call, number
from odenets.torchdiffeq.watch import CALLBACKS, Watch, watched
from odenets.torchdiffeq.words import brief


@dataclass(frozen=True)
class Adaptive:
    """Steps chosen by their error, as torchdiffeq chooses them: by integral feedback, never shorter after a success.

    Args:
        norm: The size of a state.
        first_step: None to choose it.
        step_t: Times that no step passes. jump_t: such times where f jumps; there it is evaluated anew.
        safety, ifactor, dfactor: The next step is dt · safety · ratio^(−1/order), at most ifactor and at least
            dfactor times dt.
        min_step: A step as short as this is accepted whatever its error. max_step: The longest.
        max_num_steps: The most steps, for each interval of t; they may be spread over all. None: 2**31 - 1, and 20,000
            to an event.
        dtype: Of the times in torchdiffeq; here they are kept in float64.
    """

    method: RungeKutta
    rtol: Any
    atol: Any
    norm: Norm = rms
    first_step: Any = None
    step_t: Any = None
    jump_t: Any = None
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    min_step: float = 0.0
    max_step: float = math.inf
    max_num_steps: float | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        for name in ("safety", "ifactor", "dfactor", "min_step", "max_step"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if self.first_step is not None and not 0 < number("first_step", self.first_step) < math.inf:
            raise ValueError(f"`options` 'first_step' must be above 0 and finite, got {float(self.first_step)}")
        if self.max_num_steps is not None and not number("max_num_steps", self.max_num_steps) >= 1:
            raise ValueError(f"`options` 'max_num_steps' must be at least 1, got {brief(self.max_num_steps)}")
        if not bool((torch.as_tensor(self.rtol + self.atol) > 0).all()):
            raise ValueError("`rtol` and `atol` must not both be 0: write atol=1e-9")
        for name in ("step_t", "jump_t"):
            given = getattr(self, name)
            times = [] if given is None else torch.as_tensor(given, dtype=torch.float64).flatten().tolist()
            object.__setattr__(self, name, tuple(times))
        if len(set(self.step_t + self.jump_t)) < len(self.step_t + self.jump_t):
            raise ValueError("`options` 'step_t' and 'jump_t' must not name a time twice, not even one in each")
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"`options` 'dtype' must be a floating-point dtype, got {brief(self.dtype)}")

    callbacks = CALLBACKS
    further = "It took as many steps as 'max_num_steps' in `options` allows (20,000 if not given): more go further."

    perturb = False

    def moves(self, t: Tensor) -> bool:
        """Whether times at which steps end have derivatives."""
        return False

    def stops(self, call: Call, t: Tensor, sign: float) -> tuple[Sequence[float], Sequence[float]]:
        """Where steps end, in a time that times `sign` is the caller's; and those where f jumps."""
        of_steps, of_jumps = ([sign * x for x in times if math.isfinite(x)] for times in (self.step_t, self.jump_t))
        return of_steps, of_jumps

    def solver_method(self, call: Call, watch: Watch | None) -> RungeKutta:
        """The method for `odenets.solve`."""
        return watched(self.method, watch)

    def controller(self, watch: Watch | None) -> "ErrorControl":
        """The controller of a solve."""
        return ErrorControl(self, watch)

    def most_steps(self, t: Tensor, event: bool = False) -> int:
        """The most steps of a solve for the times t, or until an event, which may never come."""
        default = MOST_STEPS if event else 2**31 - 1
        most = default if self.max_num_steps is None else min(float(self.max_num_steps), 2**31 - 1)
        return int(most) * max(len(t) - 1, 1)


_NEARLY = 1 + 1e-6  # a step is as long as the time resolves


class ErrorControl:
    """The controller of `Adaptive`."""

    adaptive = True
    share = 0.0
    tunable = ()
    start = ()

    def __init__(self, scheme: Adaptive, watch: Watch | None) -> None:
        self.scheme, self.watch = scheme, watch
        self.judge = PID(scheme.rtol, scheme.atol, norm=scheme.norm)

    @property
    def chooses_first_step(self) -> bool:
        return self.scheme.first_step is None

    def given_step(self, t0: float, t1: float) -> float:
        return self._within(float(self.scheme.first_step))

    def first_step(self, start: Start) -> FirstStep:
        def f(t: Tensor, y: Tensor) -> Tensor:  # of a state that requires grad where y0 does: f may differentiate by it
            return start.f(t, y if transforms.active() else y.requires_grad_(start.y0.requires_grad))

        scale = self.judge.scale(start.y0.abs())
        dt, size = choose_first_step(start._replace(f=f, norm=self.scheme.norm), scale, math.inf, unit=1.0)
        return FirstStep(self._within(dt), size)

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        return self.judge.error_ratio(y, y1, error)

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        scheme = self.scheme
        shortest = dt <= scheme.min_step * _NEARLY
        accept = ratio <= 1 or (shortest and math.isfinite(ratio))
        if self.watch is not None:
            self.watch.end(accept)
        if ratio == 0:
            factor = scheme.ifactor
        elif math.isfinite(ratio):
            least = 1.0 if ratio < 1 else scheme.dfactor
            factor = min(scheme.ifactor, max(scheme.safety / ratio ** (1 / order), least))
        else:  # the step led out of f's domain
            factor = scheme.dfactor
            if shortest:
                return Decision(False, 0.0, memory)  # stuck
        return Decision(accept, self._within(dt * factor), memory)

    def _within(self, dt: float) -> float:
        """The step size within its bounds."""
        return min(max(dt, self.scheme.min_step), self.scheme.max_step)
