"""torchdiffeq's adaptive steps."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.controller import PID, Decision, FirstStep, Norm, Number, Start, choose_first_step, rms
from odenets.methods import RungeKutta
from odenets.torchdiffeq.call import MOST_STEPS, Call, number
from odenets.torchdiffeq.stops import Stops
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

    @property
    def one_sided(self) -> bool:
        """Whether f is to be evaluated inside of the pieces only, not at their edges."""
        return True

    def edges(self, call: Call, t: Tensor) -> Tensor:
        """Where a solve of its own begins, in order."""
        return torch.tensor(sorted(call.sign * jump for jump in self.jump_t), dtype=torch.float64, device=t.device)

    def solver_method(self, call: Call, watch: Watch | None, event: bool) -> RungeKutta:
        """The method for `odenets.solve`."""
        return watched(self.method, watch)

    def controller(
        self, call: Call, t: Tensor, start: float, sign: float, watch: Watch | None, dt: float | None
    ) -> "ErrorControl":
        """The controller of a solve from `start` on, in a time that times `sign` is the caller's; dt to start with."""
        stops = Stops(sorted(sign * stop for stop in self.step_t), start)
        given = None if self.first_step is None else float(self.first_step)
        return ErrorControl(self, stops, watch, given if dt is None else dt)

    def most_steps(self, t: Tensor, event: bool = False) -> int:
        """The most steps of a solve for the times t, or until an event, which may never come."""
        default = MOST_STEPS if event else 2**31 - 1
        most = default if self.max_num_steps is None else min(float(self.max_num_steps), 2**31 - 1)
        return int(most) * max(len(t) - 1, 1)


_NEARLY = 1 + 1e-6  # a step is as long as the time resolves


class ErrorControl:
    """The controller of `Adaptive`. Its memory is the place on the way, so that it can stop at given times."""

    adaptive = True
    share = 0.0
    tunable = ()

    def __init__(self, scheme: Adaptive, stops: Stops, watch: Watch | None, dt: float | None) -> None:
        self.scheme, self.stops, self.watch = scheme, stops, watch
        self.judge = PID(scheme.rtol, scheme.atol, norm=scheme.norm)
        self.start = stops.begin
        self.planned = dt  # the next step size, before it is cut to end on a stop
        self.given = dt  # and after

    @property
    def chooses_first_step(self) -> bool:
        return self.planned is None

    def given_step(self, t0: float, t1: float) -> float:
        return self._within(self.start, self.planned or 0.0)

    def first_step(self, start: Start) -> FirstStep:
        def f(t: Tensor, y: Tensor) -> Tensor:  # of a state that requires grad where y0 does: f may differentiate by it
            return start.f(t, y if transforms.active() else y.requires_grad_(start.y0.requires_grad))

        scale = self.judge.scale(start.y0.abs())
        dt, size = choose_first_step(start._replace(f=f, norm=self.scheme.norm), scale, math.inf, unit=1.0)
        return FirstStep(self._within(self.start, dt), size)

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        return self.judge.error_ratio(y, y1, error)

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        scheme, place = self.scheme, (memory[0], memory[1])
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
        if not accept:
            return Decision(False, self._within(place, dt * factor), memory)
        following = dt * factor
        if self.planned is not None and self.given is not None and dt < self.given / _NEARLY:
            following = max(following, self.planned)  # that it was cut to end on an output says nothing against it
        place = self.stops.after(place, dt)
        return Decision(True, self._within(place, following), place)

    def _within(self, place: tuple[float, float], dt: float) -> float:
        """The step size within its bounds, cut to end on the next stop."""
        self.planned = min(max(dt, self.scheme.min_step), self.scheme.max_step)
        self.given = min(self.planned, self.stops.ahead(place))
        return self.given
