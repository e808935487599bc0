"""Solves until an event, and the gradients of its time."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from odenets import transforms
from odenets.arguments import shown
from odenets.controller import Fixed
from odenets.engine.failures import locate_non_finite
from odenets.engine.going import Going
from odenets.engine.roots import locate
from odenets.engine.tape import Accepted
from odenets.evaluation import CountedField
from odenets.methods import real_dtype
from odenets.problem import Between, Problem
from odenets.solution import Failure, Stats, Status
from odenets.torchdiffeq.call import Call, fit
from odenets.torchdiffeq.grid import Grid
from odenets.torchdiffeq.pieces import AdjointOf, states
from odenets.torchdiffeq.scipy_solver import Scipy
from odenets.torchdiffeq.solvers import Own
from odenets.torchdiffeq.words import raise_failure
from odenets.transforms import all_finite, is_differentiated

EventFunction = Callable[..., Tensor]


def signs_at_start(event_fn: EventFunction, t0: Tensor, y0: Any) -> Tensor:
    """The signs of the components of `event_fn` there."""
    return torch.sign(torch.as_tensor(_evaluated(event_fn, t0, y0))).detach()


def _evaluated(event_fn: EventFunction, t: Tensor, y: Any) -> Any:
    """`event_fn(t, y)`, which may differentiate by y where y requires grad."""
    parts = y if isinstance(y, tuple) else (y,)
    if not any(part.requires_grad for part in parts):
        with torch.no_grad():
            return event_fn(t, y)
    with torch.enable_grad():
        copies = tuple(part.detach().requires_grad_() for part in parts)
        return event_fn(t, copies if isinstance(y, tuple) else copies[0])


def check_event_function(event_fn: Any) -> None:
    """Refuse what is no function of t and y, and what an event has no derivative by.

    Raises:
        TypeError: If it cannot be called.
        NotImplementedError: Under a transform of functions or in forward mode.
    """
    if not callable(event_fn):
        raise TypeError(f"`event_fn` must be a function of t and y, got {shown(event_fn)}")
    if transforms.active():
        raise NotImplementedError(
            "a solve until an event has derivatives by `torch.autograd.grad` and `backward` only: call it outside of "
            "torch.func's transforms and of forward mode"
        )


def until_event(call: Call, event_fn: EventFunction, adjoint: AdjointOf | None) -> tuple[Tensor, Any]:
    """The time of the event, without gradient, and the states at the start and there.

    Raises:
        SolveError, ValueError: If the solve fails, or an argument does not go with an event.
    """
    _check(call, event_fn)
    t0 = call.t[0].to(torch.float64)
    signs = signs_at_start(event_fn, call.sign * call.t[0].detach(), call.user_y0)

    def value(t: Tensor, y: Tensor) -> Tensor:
        """Positive until the event."""
        y = y.detach().requires_grad_(call.y0.requires_grad)
        with torch.set_grad_enabled(y.requires_grad):
            found = (_evaluated(event_fn, call.sign * t, call.split(y)) * signs).min().detach()
        if not bool(torch.isfinite(found)):
            _explain(call, found, t, y)
        return found

    with torch.no_grad():
        begun = bool(value(t0.detach(), call.y0) > 0)
    if not begun:
        return call.sign * call.t[0].detach(), call.split(torch.stack([call.y0, call.y0]))
    if isinstance(call.scheme, Own):
        event_t, ys = call.scheme.until_event(call, value)
    else:
        event_t, ys = _by_steps(call, t0, value, adjoint)
    if not all_finite(ys[-1]):
        status, detail = Status.NON_FINITE_STATE, f"y: {locate_non_finite(ys[-1])}, where `event_fn` changed sign."
        raise_failure(Failure(status, event_t, 0.0, detail), Stats(), call.sign)
    time = torch.full((), call.sign * event_t, dtype=call.t.dtype, device=call.t.device)
    return time, call.split(ys)


def _explain(call: Call, found: Tensor, t: Tensor, y: Tensor) -> None:
    """Refuse a value of `event_fn` that is not finite, but for an infinite one of a finite state.

    Raises:
        SolveError: If the state is not finite.
        ValueError: If the value is none for a finite state.
    """
    if not all_finite(y):
        status = Status.NON_FINITE_START if float(t) == float(call.t[0]) else Status.NON_FINITE_STATE
        raise_failure(Failure(status, float(t), 0.0, f"y: {locate_non_finite(y)}."), Stats(), call.sign)
    if bool(torch.isnan(found)):
        raise ValueError(f"`event_fn` returned nan at t = {call.sign * float(t):g}")


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


def _by_steps(
    call: Call, t0: Tensor, value: Callable[[Tensor, Tensor], Tensor], adjoint: AdjointOf | None
) -> tuple[float, Tensor]:
    """With the steps of `odenets.solve`: the time of the event, and the states (2, *y0.shape)."""
    through = torch.is_grad_enabled() and adjoint is None
    with torch.set_grad_enabled(through):
        stepper, taken, at_end = _step_past_event(call, t0, value)
        if taken.y is None or taken.step is None:
            raise RuntimeError("a step came without what it was made of")
        y0, dt = taken.y, taken.dt if taken.clock is None else taken.clock[1]
        parts = stepper.method.complete(stepper.f, taken.step).parts

        def state(theta: Any) -> Tensor:
            return stepper.method.interpolate(y0, dt, parts, theta)

        with torch.no_grad():
            theta = locate(lambda x: float(value(_time(taken.t + x * taken.dt, call), state(x))), at_end)
        event_t = taken.t + theta * taken.dt
        y = state(_with_gradient(theta, event_t, taken))
    if adjoint is not None and torch.is_grad_enabled():
        times = torch.cat([t0[None], t0.new_tensor([event_t, stepper.t])])
        y = states(replace(call, watch=None), times, adjoint, event=True)[1]  # callbacks have seen these steps
    return event_t, torch.stack([call.y0, y])


def _with_gradient(theta: float, event_t: float, taken: Accepted) -> Any:
    """θ, and where the step's times have gradients, with theirs: the event's time is held."""
    if taken.clock is None:
        return theta
    place = (event_t - taken.clock[0]) / taken.clock[1]
    return theta + (place - place.detach())


def _time(t: float, call: Call) -> Tensor:
    return torch.full((), t, dtype=torch.float64, device=call.y0.device)


def _step_past_event(
    call: Call, t0: Tensor, value: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Going, Accepted, float]:
    """Step on until the event lies in the step just taken; and the value at the end of it."""
    scheme, start = call.scheme, float(t0.detach())
    fixed = isinstance(scheme, Grid)
    if fixed:
        controller = Fixed(dt=float(scheme.step_size))
    else:
        controller = scheme.controller(call, call.t, start, call.sign, call.watch, None)
    problem = Problem(
        bind=lambda args: call.f,
        args=(),
        f=call.f,
        y0=call.y0,
        t=call.t,
        times=[start],
        method=scheme.solver_method(call, call.watch, True),
        controller=controller,
        max_steps=scheme.most_steps(call.t, event=True),
        dense=False,
        watched=call.func,
    )
    stepper = Going(problem, call.y0, start, (t0, t0) if is_differentiated(t0) else None)
    edges = [
        start,
        *([] if fixed else [edge for edge in scheme.edges(call, call.t).tolist() if edge > start]),
        math.inf,
    ]
    furthest = start + _furthest(call)
    for low, high in itertools.pairwise(edges):
        if len(edges) > 2:
            stepper.f, stepper.carry = CountedField(Between(call.f, low, high), stepper.stats), ()
        if stepper.dt is None:
            stepper.choose_first_step(math.inf)
        while stepper.t < high:
            # A goal far ahead, but not so far that a step could be too small beside it.
            goal = min(high, furthest, stepper.t + 100 * (stepper.dt or 1.0))
            taken = stepper.advance(goal) if stepper.t < furthest else None
            if taken is None:
                _give_up(call, stepper)
            with torch.no_grad():
                at_end = float(value(_time(stepper.t, call), stepper.y))
            if not at_end > 0:
                return stepper, taken, at_end
    raise RuntimeError("time is unbounded")


def _furthest(call: Call) -> float:
    """How long a solve may go on until a time, or a state that grows with it, has no number."""
    return min(torch.finfo(dtype).max for dtype in (call.t.dtype, real_dtype(call.y0))) ** 0.75


def _give_up(call: Call, stepper: Going) -> NoReturn:
    """Raise the `SolveError` of a walk that has ended before the event."""
    failure = stepper.failure or Failure(Status.NO_EVENT, stepper.t, stepper.dt or 0.0, _TOO_FAR)
    if failure.status is Status.MAX_STEPS:
        failure = replace(failure, status=Status.NO_EVENT, detail=call.scheme.further)
    if failure.status is Status.NO_EVENT and not all_finite(stepper.y):
        detail = f"y: {locate_non_finite(stepper.y)}, and `event_fn` had not changed sign."
        failure = replace(failure, status=Status.NON_FINITE_STATE, detail=detail)
    raise_failure(failure, stepper.stats, call.sign)


_TOO_FAR = "It has gone as far as times have numbers."


def with_gradients(
    func: Callable[..., Any], event_fn: EventFunction, t: Tensor, y: Any, signs: Tensor
) -> tuple[Tensor, Any]:
    """The event's time and state, with their gradients where something asks for them."""
    if not torch.is_grad_enabled():
        return t, y
    nested = isinstance(y, tuple)
    parts = y if nested else (y,)

    def rebuilt(tensors: Sequence[Tensor]) -> Any:
        return tuple(tensors) if nested else tensors[0]

    g = (event_fn(t.detach(), y) * signs).min()
    if not any(tensor.requires_grad for tensor in (g, *parts)):
        return t, y
    with torch.no_grad():
        # Copies that require grad: func may differentiate by its state, or change it.
        copies = [part.detach().clone().requires_grad_() for part in parts]
        slope = func(t.detach().to(real_dtype(parts[0])), rebuilt(copies))
    slopes = [fit(s, part).detach().clone() for s, part in zip(slope if nested else (slope,), parts)]
    rate = _rate(event_fn, t, parts, slopes, signs, rebuilt)
    t, *parts = OdeintEvent.apply(t, g, rate, slopes, *parts)
    return t, rebuilt(parts)


def _rate(
    event_fn: EventFunction, t: Tensor, parts: Sequence[Tensor], slopes: Sequence[Tensor], signs: Tensor, rebuilt: Any
) -> float:
    """dg/dt along the solution at the event."""
    leaves = [part.detach().requires_grad_() for part in parts]
    time = t.detach().to(real_dtype(parts[0])).requires_grad_()
    g = (event_fn(time, rebuilt(leaves)) * signs).min()
    along = torch.autograd.grad(g, [time, *leaves], allow_unused=True) if g.requires_grad else ()
    speeds = (torch.ones_like(time), *slopes)
    return sum(float((bar.conj() * s).sum().real) for bar, s in zip(along, speeds) if bar is not None)


class OdeintEvent(torch.autograd.Function):
    """The event's time and state as they are, and what they depend on.

    Where g(t, y(t)) = 0 defines the time, dt = −δg / (dg/dt), δg the change of g at a fixed time; the state moves with
    the time along f.
    """

    @staticmethod
    def forward(
        ctx: Any, t: Tensor, g: Tensor, rate: float, slopes: Sequence[Tensor], *parts: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.rate, ctx.slopes, ctx.g = rate, slopes, g.detach()
        return t.clone(), *(part.clone() for part in parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # only with create_graph=True
            raise NotImplementedError("`odeint_event` has no second derivative (create_graph=True): leave it out")
        t_bar, *bars = grad_outputs
        moved = float(t_bar) + sum(float((bar.conj() * s).sum().real) for bar, s in zip(bars, ctx.slopes))
        if _is_usable(ctx.rate, ctx.g.dtype):
            return None, torch.full_like(ctx.g, -moved / ctx.rate), None, None, *bars
        if moved != 0:
            warnings.warn(
                f"`event_fn` has the slope {ctx.rate:g} at the event, so the gradient takes the event's time for a "
                "constant: let `event_fn` go through 0 smoothly if its time depends on something",
                stacklevel=2,
            )
        return None, None, None, None, *bars


def _is_usable(rate: float, dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and math.isfinite(rate) and abs(rate) >= torch.finfo(dtype).tiny
