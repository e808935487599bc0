"""Solves until an event: the sign of `event_fn` as an `Event` of the core."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.adjoint import Direct
from odenets.arguments import shown
from odenets.engine.failures import locate_non_finite
from odenets.event import Event, Watched
from odenets.methods import real_dtype
from odenets.problem import Located
from odenets.restart import differentiable
from odenets.solution import Failure, Stats, Status
from odenets.torchdiffeq.call import Call
from odenets.torchdiffeq.grid import Grid
from odenets.torchdiffeq.pieces import AdjointOf, solved
from odenets.torchdiffeq.scipy_solver import Scipy
from odenets.torchdiffeq.solvers import Own
from odenets.torchdiffeq.words import raise_failure
from odenets.transforms import all_finite

EventFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Moving:
    """An event function whose event is to have the derivatives of its time; in `odeint` alone the time is held."""

    event_fn: EventFunction

    def __call__(self, t: Tensor, y: Any) -> Tensor:
        return self.event_fn(t, y)


@dataclass(frozen=True)
class SignChange(Event):
    """Where a condition that is positive at the start ceases to be."""

    direction: int = -1
    called = "event_fn"
    wide = True

    def without_slope(self, t: Tensor, y: Tensor, slope: float) -> Tensor:
        return OdeintEvent.apply(t, y, slope) if isinstance(self.condition, Signed) and self.condition.moving else t


@dataclass(frozen=True)
class Signed:
    """The least component of an event function, each with the sign that makes it positive at the start.

    In the time that increases, of flat states. Its derivatives are seen only where the event's time shall have some.
    """

    call: Call
    event_fn: EventFunction
    signs: Any
    moving: bool

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if self.moving and torch.is_grad_enabled():
            found = self.event_fn(self.call.sign * t, self.call.split(y))
        else:
            found = _evaluated(self.call, self.event_fn, t, y)
        return (torch.as_tensor(found) * self.signs).min().to(real_dtype(y))


def _evaluated(call: Call, event_fn: EventFunction, t: Tensor, y: Tensor) -> Tensor:
    """`event_fn` at a flat state, without derivatives; it may differentiate by that where y0 requires grad."""
    differentiates = call.y0.requires_grad and not transforms.active()
    y = y.detach().requires_grad_() if differentiates else y.detach()
    with torch.set_grad_enabled(differentiates):
        return torch.as_tensor(event_fn(call.sign * t, call.split(y)), device=y.device).detach()


def check_event_function(event_fn: Any) -> None:
    """Refuse what is no function of t and y.

    Raises:
        TypeError: If it cannot be called.
    """
    if not callable(event_fn):
        raise TypeError(f"`event_fn` must be a function of t and y, got {shown(event_fn)}")


def until_event(call: Call, event_fn: EventFunction, adjoint: AdjointOf | None) -> tuple[Tensor, Any]:
    """The time of the event, and the states at the start and there.

    Raises:
        SolveError, ValueError: If the solve fails, or an argument does not go with an event.
    """
    _check(call, event_fn)
    start, moving = call.t[0], isinstance(event_fn, Moving)
    signs = torch.sign(_evaluated(call, event_fn, start.detach().to(torch.float64), call.y0))
    if bool((signs == 0).any()):
        return call.sign * (start if moving else start.detach()), call.split(torch.stack([call.y0, call.y0]))
    event = SignChange(Signed(call, event_fn, signs, moving))
    if isinstance(call.scheme, Own):
        t, ys = _by_itself(call, event)
    else:
        times = torch.stack([start, torch.full_like(start, math.inf)])
        solution = solved(call, times, Direct() if adjoint is None else adjoint(times), event=event)
        t, ys = solution.ts[-1], solution.ys
    return call.sign * t, call.split(ys)


def _check(call: Call, event_fn: EventFunction) -> None:
    check_event_function(event_fn)
    if len(call.t) != 2:
        raise ValueError(
            f"`t` must have two times with `event_fn`, a start and one on the side to go to, got {len(call.t)}"
        )
    if isinstance(call.scheme, Scipy):
        raise ValueError(f'`event_fn` does not go with `method` {call.name!r}: take another, such as "dopri5"')
    if isinstance(call.scheme, Grid) and call.scheme.perturb:
        raise ValueError("`event_fn` does not go with the option 'perturb': leave it out")
    if isinstance(call.scheme, Grid) and call.scheme.step_size is None:
        raise ValueError(f'`event_fn` with `method` {call.name!r} needs `options={{"step_size": ...}}`')


def _by_itself(call: Call, event: Event) -> tuple[Tensor, Tensor]:
    """The same by a solver class, which finds the event itself."""

    def value(t: Tensor, y: Tensor) -> Tensor:
        found = event.condition(t, y)
        if bool(torch.isnan(found)):
            if all_finite(y):
                raise ValueError(f"`event_fn` returned nan at t = {call.sign * float(t):g}")
            failure = Failure(Status.NON_FINITE_STATE, float(t), 0.0, f"y: {locate_non_finite(y)}.")
            raise_failure(failure, Stats(), call.sign)
        return found

    t, ys = call.scheme.until_event(call, value)
    if not (torch.is_grad_enabled() or transforms.active()):
        return t.to(call.t.dtype), ys
    y = ys[-1].detach().clone()  # a copy: func may change its state, or differentiate by it
    y = y.requires_grad_() if call.y0.requires_grad and not transforms.active() else y
    slope = call.f(t.to(real_dtype(y)), y).detach().clone()
    located = Located(0, float(t), ys[-1], slope)
    happened = differentiable(Watched(event, event.condition, None, 1), 0.0, t.detach(), located)
    return happened.t.to(call.t.dtype), torch.stack([ys[0], happened.y])


class OdeintEvent(torch.autograd.Function):
    """The time of an event that nothing moves smoothly, as it is."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        return t.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None]:
        if bool((grad_outputs[0] != 0).any()):
            warnings.warn(
                f"`event_fn` has the slope {ctx.slope:g} at the event, so the gradient takes the event's time for a "
                "constant: let `event_fn` go through 0 smoothly if its time depends on something",
                stacklevel=2,
            )
        return None, None, None
