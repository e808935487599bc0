"""Methods with fixed steps that make their steps themselves: what `torchdiffeq._impl.solvers` offers to build on."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from odenets.engine.failures import locate_non_finite
from odenets.engine.roots import locate
from odenets.evaluation import CountedField
from odenets.methods import RungeKutta, combine, real_dtype
from odenets.methods.tableaus import RK4_38
from odenets.solution import Failure, Stats, Status
from odenets.torchdiffeq.call import MOST_STEPS, Call
from odenets.torchdiffeq.grid import Grid, check_options, grid_points
from odenets.torchdiffeq.watch import CALLBACKS, Watch, nothing
from odenets.torchdiffeq.words import listed, raise_failure
from odenets.transforms import all_finite


class Perturb(Enum):
    """On which side of a time f is evaluated, where it may jump: at it, just before it, just after it."""

    NONE = 0
    PREV = 1
    NEXT = 2


class SolverField:
    """f as a solver gets it: `func(t, y, perturb=...)`, and with torchdiffeq's callbacks as attributes."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor], watch: Watch | None = None, sign: float = 1.0) -> None:
        self.f, self.sign = CountedField(f, Stats()), sign  # which times the time is the caller's
        told = (nothing,) * 3 if watch is None else watch.told
        for name, callback in zip(CALLBACKS, told):
            setattr(self, name, callback)

    def __call__(self, t: Tensor, y: Tensor, *, perturb: Perturb = Perturb.NONE) -> Tensor:
        t = torch.as_tensor(t, device=y.device).to(real_dtype(y))
        if perturb is not Perturb.NONE:
            beyond = torch.full_like(t, math.inf if perturb is Perturb.NEXT else -math.inf)
            t = t + (torch.nextafter(t.detach(), beyond) - t.detach())
        return self.f(t, y)


def handle_unused_kwargs(solver: Any, unused: dict[str, Any]) -> None:
    """Warn of options that nobody has taken."""
    if unused:
        warnings.warn(
            f"{type(solver).__name__} ignores the unknown options {listed(sorted(unused, key=str))}", stacklevel=7
        )


class FixedGridODESolver:
    """A method with fixed steps: a subclass has `order` and `_step_func(func, t0, dt, t1, y0)`.

    That returns the increment of the state over the step, and f at its start. Times increase. Register the class,
    `SOLVERS["name"] = Class`, and `odeint(..., method="name")` takes it; gradients are those of autograd.

    Args:
        func: Called as `func(t, y)`, or with `perturb=Perturb.NEXT` to evaluate just after t (`PREV`: before).
        y0: The state, one tensor.
        step_size, grid_constructor, interp, perturb: As `options` of `odeint`.
    """

    order: int

    def __init__(
        self,
        func: Any,
        y0: Tensor,
        step_size: Any = None,
        grid_constructor: Any = None,
        interp: str = "linear",
        perturb: bool = False,
        **unused: Any,
    ) -> None:
        self.atol = unused.pop("atol", None)
        for name in ("rtol", "norm"):
            unused.pop(name, None)
        handle_unused_kwargs(self, unused)
        check_options(step_size, grid_constructor, interp)
        self.func, self.y0, self.dtype, self.device = func, y0, y0.dtype, y0.device
        self.step_size, self.interp, self.perturb = step_size, interp, perturb
        self.grid_constructor = grid_constructor or (lambda func, y0, t: grid_points(t, step_size, None))

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Those that it calls."""
        return {"callback_step"}

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define `_step_func(func, t0, dt, t1, y0)`")

    def integrate(self, t: Tensor) -> Tensor:
        """The states at increasing times, (T, *y0.shape)."""
        grid = grid_points(t, None, lambda t: self.grid_constructor(self.func, self.y0, t))
        wanted, times = t.unbind(), t.tolist()
        y, ys = self.y0, [self.y0]
        for (t0, t1), end in zip(itertools.pairwise(grid.unbind()), grid.tolist()[1:]):
            y1, f0 = self._advance(t0, t1, y)
            while len(ys) < len(times) and times[len(ys)] <= end:
                ys.append(y1 if times[len(ys)] == end else self._between(t0, t1, y, y1, f0, wanted[len(ys)]))
            y = y1
        return torch.stack(ys)

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The time where `event_fn`, positive at t0, ceases to be, and the states (2, *y0.shape) at both ends.

        Raises:
            SolveError: If 20,000 steps do not reach it.
        """
        if self.step_size is None:
            raise ValueError('`event_fn` with fixed steps needs `options={"step_size": ...}`')
        y, start = self.y0, t0.detach()
        if not self._value(event_fn, start, y) > 0:
            return start, torch.stack([y, y])
        for k in range(MOST_STEPS):
            here, t1 = t0 + k * self.step_size, t0 + (k + 1) * self.step_size
            y1, f0 = self._advance(here, t1, y)
            at_end = self._value(event_fn, t1.detach(), y1)
            if not at_end > 0:
                state = self._interpolant(here, t1, y, y1, f0)
                t, theta = self._locate(event_fn, here.detach(), (t1 - here).detach(), state, at_end)
                return t, torch.stack([self.y0, state(theta)])
            y = y1
        status = Status.NO_EVENT if all_finite(y) else Status.NON_FINITE_STATE
        failure = Failure(status, float(start) + MOST_STEPS * self.step_size, float(self.step_size), _further(y))
        raise_failure(failure, Stats(accepted=MOST_STEPS), getattr(self.func, "sign", 1.0))

    @staticmethod
    @torch.no_grad()
    def _value(event_fn: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> float:
        return float(event_fn(t, y))

    @torch.no_grad()
    def _locate(
        self, event_fn: Any, t: Tensor, dt: Tensor, state: Callable[[float], Tensor], at_end: float
    ) -> tuple[Tensor, float]:
        theta = locate(lambda x: self._value(event_fn, t + x * dt, state(x)), at_end)
        return t + theta * dt, theta

    def _advance(self, t0: Tensor, t1: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The state at the end of a step, and f at its start."""
        self.func.callback_step(t0, y, t1 - t0)
        dy, f0 = self._step_func(self.func, t0, t1 - t0, t1, y)
        return y + dy, f0

    def _between(self, t0: Tensor, t1: Tensor, y: Tensor, y1: Tensor, f0: Tensor, t: Tensor) -> Tensor:
        return self._interpolant(t0, t1, y, y1, f0)((t - t0) / (t1 - t0))

    def _interpolant(self, t0: Tensor, t1: Tensor, y: Tensor, y1: Tensor, f0: Tensor) -> Callable[[Any], Tensor]:
        """The state as a function of θ from 0 to 1 in the step."""
        dtype = real_dtype(y)
        dt = (t1 - t0).to(dtype)
        f1 = self.func(t1, y1) if self.interp == "cubic" else None

        def state(theta: Any) -> Tensor:
            theta = theta.to(dtype) if isinstance(theta, Tensor) else theta
            rise = y1 - y
            if f1 is None:
                return y + theta * rise
            cubic = dt * (f0 + f1) - 2 * rise
            return y + theta * (dt * f0 + theta * (3 * rise - dt * (2 * f0 + f1) + theta * cubic))

        return state


def _further(y: Tensor) -> str:
    return Grid.further if all_finite(y) else f"y: {locate_non_finite(y)}, and `event_fn` had not changed sign."


def tableau_increment(
    method: RungeKutta, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor, perturb: bool
) -> Tensor:
    """The increment of a step of an explicit Runge–Kutta method."""
    stages = [f0]
    for a_i, c_i in zip(method.a[1:], method.c[1:]):
        at_end = c_i == 1
        there = y0 + combine(None, dt, a_i, stages)
        side = Perturb.PREV if at_end and perturb else Perturb.NONE
        stages.append(func(t1 if at_end else t0 + c_i * dt, there, perturb=side))
    return combine(None, dt, method.b, stages)


class TableauSolver(FixedGridODESolver):
    """An explicit Runge–Kutta method as a class to build on; `odeint` goes through `odenets.solve` instead."""

    method: RungeKutta

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        f0 = func(t0, y0, perturb=Perturb.NEXT if self.perturb else Perturb.NONE)
        return tableau_increment(self.method, func, t0, dt, t1, y0, f0, self.perturb), f0


def rk4_alt_step_func(
    func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor, f0: Tensor | None = None, perturb: bool = False
) -> Tensor:
    """The increment of a step of the 3/8 rule."""
    known = func(t0, y0, perturb=Perturb.NEXT if perturb else Perturb.NONE) if f0 is None else f0
    return tableau_increment(RK4_38, func, t0, dt, t1, y0, known, perturb)


def solver_options(call: Call, options: dict[str, Any]) -> dict[str, Any]:
    """The caller's options for a solver class, whose times increase; with the norm of a state."""
    options = {**options, "norm": call.norm}
    for name in ("step_t", "jump_t"):
        if isinstance(options.get(name), Tensor):
            options[name] = call.sign * options[name]
    make = options.get("grid_constructor")
    if make is not None:
        options["grid_constructor"] = lambda func, y0, t: call.sign * make(call.func, call.user_y0, call.sign * t)
    return options


@dataclass(frozen=True)
class Own:
    """A solver class, which makes its steps itself and is differentiated by autograd, as a scheme."""

    kind: type
    rtol: Any
    atol: Any
    options: dict[str, Any]

    @property
    def callbacks(self) -> set[str]:
        """Those that it calls."""
        return set(self.kind.valid_callbacks()) if hasattr(self.kind, "valid_callbacks") else set()

    def _solver(self, call: Call) -> Any:
        field, options = SolverField(call.f, call.watch, call.sign), solver_options(call, self.options)
        return self.kind(func=field, y0=call.y0, rtol=self.rtol, atol=self.atol, **options)

    def solve(self, call: Call) -> Tensor:
        """The states at call.t, (T, *y0.shape)."""
        ys = self._solver(call).integrate(call.t)
        if not all_finite(ys[-1]):
            last = next(k for k, y in enumerate(ys) if not all_finite(y))
            detail = f"y: {locate_non_finite(ys[last])}. {getattr(self.kind, 'hint', '')}".strip()
            t, dt = call.t[last].item(), 0.0
            raise_failure(Failure(Status.NON_FINITE_STATE, t, dt, detail), Stats(), call.sign)
        return ys

    def until_event(self, call: Call, value: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """When `value`, positive before the event, ceases to be, and the states (2, *y0.shape)."""
        solver = self._solver(call)
        if not hasattr(solver, "integrate_until_event"):
            raise ValueError(f'`event_fn` does not go with `method` {call.name!r}: take another, such as "dopri5"')
        t0 = call.t[0].to(torch.float64)
        t, states = solver.integrate_until_event(t0, value)
        if not all_finite(states[-1]):
            detail = f"y: {locate_non_finite(states[-1])}, where `event_fn` changed sign."
            raise_failure(Failure(Status.NON_FINITE_STATE, float(t.detach()), 0.0, detail), Stats(), call.sign)
        return t.detach(), states
