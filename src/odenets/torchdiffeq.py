"""torchdiffeq's functions, made of the solver of odenets: existing code changes its import and nothing else.

Arguments, method names, options, callbacks and results are those of torchdiffeq 0.2.5, with the methods that came
after it; what is meant to differ is
listed in docs/torchdiffeq.md. In new code use `odenets.solve`, which says more and compiles.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenets.adjoint import Adjoint, Backsolve, Checkpointed, Direct
from odenets.controller import Fixed, Norm
from odenets.loop import CountedField, Problem, Stepper, Taken, interpolate
from odenets.methods import real_dtype
from odenets.solution import Solution
from odenets.solve import solve
from odenets.torchdiffeq_steps import (
    Between,
    Call,
    ExplicitAdams,
    Grid,
    Scipy,
    Watch,
    find_scheme,
    find_watch,
    fit,
    normalise,
    raise_failure,
    tolerance,
    watched,
)


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0; autograd goes through every operation of the solver.

    When to use: in code written for torchdiffeq, for second derivatives, for short solves. When not: where memory
    matters, which here grows with the evaluations of func (`odeint_adjoint`), and in new code (`odenets.solve`).

    Args:
        func: Called as `func(t, y)` with t 0-dimensional and y of y0's structure; returns the derivative. It may
            have the methods `callback_step`, `callback_accept_step` and `callback_reject_step`, called with t, y and
            the step size: before each step, and after its acceptance or rejection.
        y0: The initial state: a tensor of any shape, or a tuple of tensors.
        t: The times, (T,), floating point, strictly increasing or decreasing; the first is that of y0.
        rtol, atol: Tolerances of an adaptive method: numbers, tensors that broadcast against y0, or where y0 is a
            tuple, tuples of them, one for each of its tensors.
        method: Adaptive: "dopri8", "dopri5" (the default), "tsit5", "bosh3", "fehlberg2", "adaptive_heun". With fixed
            steps: "euler", "midpoint", "heun2", "heun3", "rk4" (the 3/8 rule); of Adams: "explicit_adams",
            "implicit_adams", "fixed_adams"; implicit, for stiff problems: "implicit_euler", "implicit_midpoint",
            "trapezoid", "sdirk2", "trbdf2", "radauIIA3", "gl4", "radauIIA5", "gl6". Or "scipy_solver", without
            gradient.
        options: Of adaptive methods: first_step, step_t, jump_t, safety, ifactor, dfactor, min_step, max_step,
            max_num_steps, norm, dtype. Of fixed steps: step_size, grid_constructor, interp, perturb; of implicit ones
            max_iters too, of Adams max_order. Of "scipy_solver": solver, min_step, max_step. An unknown one warns.
        event_fn: Called as `event_fn(t, y)`; the solve ends where (a component of) its result changes sign. Then t
            is a start and a time on the side to which to go.

    Returns:
        The states (T, *y0.shape), for a tuple a tuple of them. With `event_fn`, the pair of the event's time, without
        gradient (`odeint_event` gives it one), and the states (2, *y0.shape) at the start and at the event.

    Raises:
        SolveError: If the solve does not reach its end; it says why.
        TypeError, ValueError: If an argument is not as described; the text says what would be.
        LostGradientError: If "scipy_solver" would lose a gradient.
    """
    call = normalise(func, y0, t, rtol, atol, method, options)
    return _answer(call, event_fn, None)


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """`odeint` with a gradient whose memory does not grow with the number of evaluations of func.

    By default the gradient is exact: the accepted steps are replayed (`odenets.Checkpointed`). Where an argument asks
    for a backward solve, `adjoint_rtol`, `adjoint_atol`, `adjoint_method`, `adjoint_options` or a callback of func
    named `callback_step_adjoint`, `callback_accept_step_adjoint` or `callback_reject_step_adjoint`, the adjoint
    equations are solved backward with it (`odenets.Backsolve`), and the gradient is as accurate as that solve.

    When to use: to train, in code written for torchdiffeq. When not: for second derivatives (`odeint`).

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: As for `odeint`. func may be any callable.
        adjoint_rtol, adjoint_atol, adjoint_method: Of the backward solve; each defaults to that of the forward solve.
        adjoint_options: Of the backward solve; by default `options` without its norm. A "norm" gets the tuple
            (t, y, adjoint of y, adjoints of the parameters) and may be "seminorm". The first and the last are zeros:
            here they take no part in the error.
        adjoint_params: Tensors that func reaches. They need not be given: all are found, and all get their gradients.

    Returns:
        As `odeint`.

    Raises:
        SolveError, TypeError, ValueError: As `odeint`.
        LostGradientError: If func reaches a tensor that requires grad in a way in which its gradient would be lost.
    """
    params = () if adjoint_params is None else tuple(adjoint_params)
    if not all(isinstance(p, Tensor) for p in params):
        raise TypeError(f"`adjoint_params` must hold tensors, got {[type(p).__name__ for p in params]}")
    call = normalise(func, y0, t, rtol, atol, method, options, params)
    asked = any(x is not None for x in (adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options))
    watch = find_watch(func, lambda t, y, dt: _adjoint_step(call, t, y, dt), "_adjoint")
    if not asked and watch is None:
        return _answer(call, event_fn, lambda piece: Checkpointed())
    if adjoint_method not in (None, call.name) and options is not None and adjoint_options is None:
        raise ValueError(
            f"`adjoint_method` {adjoint_method!r} is not `method` {call.name!r}, so `options` cannot be taken over: "
            "pass `adjoint_options` too, at least `adjoint_options={}`"
        )
    if adjoint_options is None:
        adjoint_options = {name: value for name, value in (options or {}).items() if name != "norm"}
    backward = find_scheme(
        call.name if adjoint_method is None else adjoint_method,
        {**adjoint_options, "norm": _adjoint_norm(call, adjoint_options.get("norm"), params or _parameters(func))},
        call.scheme.rtol if adjoint_rtol is None else tolerance("adjoint_rtol", adjoint_rtol, call.y0),
        call.scheme.atol if adjoint_atol is None else tolerance("adjoint_atol", adjoint_atol, call.y0),
        "adjoint_method",
    )
    return _answer(call, event_fn, lambda piece: _backsolve(call, backward, watch, piece))


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solve from t0 until `event_fn(t, y)` changes sign; the event's time and state have their gradients.

    The time of the event depends on y0, t0, func and event_fn by the implicit function theorem: where g(t, y(t)) = 0,
    dt = −δg / (∂g/∂t + ∂g/∂y · f). Gradients reach the parameters of event_fn too. No second derivatives.

    When to use: for collisions, thresholds, "until". When not: to stop a solve at a known time.

    Args:
        func, y0: As for `odeint`.
        t0: The start, a tensor with one element.
        event_fn: Its result may have several components; the first to change sign is the event. It must not be 0 at
            the start.
        reverse_time: Go backward in time from t0.
        odeint_interface: `odeint`, `odeint_adjoint`, or a function with their arguments.
        kwargs: Its other arguments.

    Returns:
        The time of the event, 0-dimensional, and the states (2, *y0.shape) at the start and at the event.

    Raises:
        SolveError, TypeError, ValueError: As `odeint`.
    """
    if not (isinstance(t0, Tensor) and t0.numel() == 1):
        raise TypeError(f"`t0` must be a tensor with one element, got {t0!r}: write torch.tensor({t0!r})")
    start = t0.reshape(1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, states = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    split = isinstance(states, tuple)
    y = tuple(s[-1] for s in states) if split else states[-1]
    event_t, y = _differentiable_event(func, event_fn, event_t.detach(), y, _signs(event_fn, t[0].detach(), y0))
    if split:
        return event_t, tuple(torch.stack([s[0], part]) for s, part in zip(states, y))
    return event_t, torch.stack([states[0], y])


def odeint_dense(
    func: Callable[..., Any],
    y0: Tensor,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Any], Tensor]:
    """The solution from t0 to t1 as a function of time.

    When to use: where the times are not known beforehand. When not: where they are: `odeint` keeps no steps.

    Args:
        func, y0, rtol, atol, options: As for `odeint`; y0 a tensor.
        t0, t1: The ends, numbers or 0-dimensional tensors, either way round.
        method: An adaptive method or one with fixed steps; the default is "dopri5".

    Returns:
        A function of t, a number or a tensor of any shape between t0 and t1: the state (*t.shape, *y0.shape), with
        gradients. It raises a ValueError for other times.

    Raises:
        SolveError, TypeError, ValueError: As `odeint`.
    """
    if not isinstance(y0, Tensor):
        raise TypeError(f"`y0` must be a tensor for `odeint_dense`, got {type(y0).__name__}: join its parts")
    ends = [torch.as_tensor(end).detach().reshape(()) for end in (t0, t1)]
    dtype = next((end.dtype for end in ends if end.dtype.is_floating_point), torch.float64)
    call = normalise(func, y0, torch.stack([end.to(dtype) for end in ends]), rtol, atol, method, options)
    if isinstance(call.scheme, Scipy | ExplicitAdams):
        raise ValueError(f"`method` of `odeint_dense` must be a Runge–Kutta method, got {method!r}")
    pieces = [solution for solution, _ in _pieces(call, call.t, lambda piece: Direct(), dense=True)]
    edges = [float(solution.ts[0]) for solution in pieces[1:]]

    def at(t: Any) -> Tensor:
        """The state at t (any shape) between the ends: (*t.shape, *y0.shape)."""
        given = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
        times = call.sign * given.reshape(-1)
        states = [pieces[bisect.bisect_right(edges, s.item())](s) for s in times.unbind()]
        return torch.stack(states).reshape((*given.shape, *call.y0.shape))

    return at


# Solving.

_AdjointOf = Callable[[Tensor], Adjoint]  # of the solve for those times


def _answer(call: Call, event_fn: Callable[..., Tensor] | None, adjoint: _AdjointOf | None) -> Any:
    if isinstance(call.scheme, Scipy | ExplicitAdams):
        if event_fn is not None:
            raise ValueError(f'`event_fn` does not go with `method` {call.name!r}: take another, such as "dopri5"')
        return call.split(call.scheme.solve(call))
    if event_fn is not None:
        return _until_event(call, event_fn, adjoint)
    return call.split(_states(call, call.t, adjoint or (lambda piece: Direct())))


def _states(call: Call, t: Tensor, adjoint: _AdjointOf, event: bool = False) -> Tensor:
    """The states at the times t, (T, *y0.shape)."""
    ys: list[Tensor] = []
    for solution, wanted in _pieces(call, t, adjoint, event=event):
        ys.append(solution.ys if len(wanted) == len(solution.ys) else solution.ys[wanted])
    return ys[0] if len(ys) == 1 else torch.cat(ys)


def _pieces(
    call: Call, t: Tensor, adjoint: _AdjointOf, *, dense: bool = False, event: bool = False
) -> list[tuple[Solution, list[int]]]:
    """The solutions between the times where f jumps, each with the places of the outputs that are its own."""
    times = t.detach().to(torch.float64).tolist()
    cuts = [edge for edge in call.scheme.edges(call, t) if times[0] < edge < times[-1]]
    method = call.scheme.solver_method(call, call.watch, event)
    y, dt, found = call.y0, None, []
    for low, high in itertools.pairwise([times[0], *cuts, times[-1]]):
        piece, f = t, call.f
        if cuts:
            piece = _cut(t.to(torch.float64), times, low, high)
            f = Between(call.f, low, high) if call.scheme.one_sided else call.f
        if event and isinstance(call.scheme, Grid):
            controller = Fixed(dt=float(call.scheme.step_size))
        else:
            controller = call.scheme.controller(call, t, low, call.sign, call.watch, dt)
        solution = solve(
            f,
            y,
            piece,
            method=method,
            controller=controller,
            adjoint=adjoint(piece),
            dense=dense,
            max_steps=call.scheme.most_steps(t),
            on_failure="status",
        )
        if solution.failure is not None:
            raise_failure(call, solution.failure, solution.stats)
        wanted = list(range(len(piece)))
        if cuts:
            wanted = wanted[0 if low == times[0] else 1 : len(piece) if high in times else -1]
        y, dt = solution.ys[-1], getattr(controller, "planned", None)
        found.append((solution, wanted))
    return found


def _cut(t: Tensor, times: list[float], low: float, high: float) -> Tensor:
    """The times of t between low and high, and these."""
    inside = t[bisect.bisect_right(times, low) : bisect.bisect_left(times, high)]
    ends = [t[times.index(x)][None] if x in times else t.new_tensor([x]) for x in (low, high)]
    return torch.cat([ends[0], inside, ends[1]])


# The continuous adjoint.


def _backsolve(call: Call, scheme: Any, watch: Watch | None, t: Tensor) -> Backsolve:
    if isinstance(scheme, Scipy | ExplicitAdams):
        raise ValueError('`adjoint_method` must be a Runge–Kutta method: write `adjoint_method="dopri5"`')
    controller = scheme.controller(call, t, -t[-1].item(), -call.sign, watch, None)
    return Backsolve(method=watched(scheme.method, watch), controller=controller)


def _adjoint_step(call: Call, t: Tensor, state: Tensor, dt: Tensor) -> tuple:
    return -call.sign * t, (t.new_zeros(()), *state.unbind()), dt


def _parameters(func: Any) -> tuple[Tensor, ...]:
    return tuple(func.parameters()) if isinstance(func, torch.nn.Module) else ()


def _adjoint_norm(call: Call, norm: Any, params: tuple[Tensor, ...]) -> Norm:
    """The size of a pair (y, its adjoint): by default the larger of theirs."""
    if norm is None or norm == "seminorm":
        return lambda x: torch.maximum(call.norm(x[0]), call.norm(x[1]))
    if not callable(norm):
        raise ValueError(f"`adjoint_options` 'norm' must be a function or \"seminorm\", got {norm!r}")

    def given(x: Tensor) -> Tensor:
        parts = [part if isinstance(part, tuple) else (part,) for part in map(call.split, x.unbind())]
        zeros = [torch.zeros_like(p) for p in params]
        return torch.as_tensor(norm((x.real.new_zeros(()), *parts[0], *parts[1], *zeros)), device=x.device).abs()

    return given


# Events.


def _signs(event_fn: Callable[..., Tensor], t0: Tensor, y0: Any) -> Tensor:
    with torch.no_grad():
        return torch.sign(event_fn(t0, y0))


def _until_event(call: Call, event_fn: Callable[..., Tensor], adjoint: _AdjointOf | None) -> tuple[Tensor, Any]:
    if len(call.t) != 2:
        raise ValueError(
            f"`t` must have two times with `event_fn`, a start and one on the side to go to, got {len(call.t)}"
        )
    if isinstance(call.scheme, Grid) and call.scheme.perturb:
        raise ValueError("`event_fn` does not go with the option 'perturb': leave it out")
    if isinstance(call.scheme, Grid) and call.scheme.step_size is None:
        raise ValueError(f'`event_fn` with `method` {call.name!r} needs `options={{"step_size": ...}}`')
    t0 = call.t[0].to(torch.float64)
    signs = _signs(event_fn, call.sign * call.t[0].detach(), call.user_y0)

    def value(t: float, y: Tensor) -> float:
        """Positive until the event."""
        with torch.no_grad():
            time = torch.full((), call.sign * t, dtype=torch.float64, device=y.device)
            return float((event_fn(time, call.split(y)) * signs).min())

    if not value(float(t0.detach()), call.y0) > 0:
        return call.sign * call.t[0].detach(), call.split(torch.stack([call.y0, call.y0]))
    through = torch.is_grad_enabled() and adjoint is None
    with torch.set_grad_enabled(through):
        stepper, taken = _step_past_event(call, t0, value)
        step = taken.step.with_f1(stepper.f)

        def state(t: float) -> Tensor:
            return interpolate(stepper.method, taken.y, step, taken.t_in, taken.dt_in, t)

        tolerance = float(torch.as_tensor(call.scheme.atol).min())
        event_t = _bisect(taken.t, stepper.t, tolerance, lambda t: value(t, state(t)))
        y = state(event_t)
    if adjoint is not None and torch.is_grad_enabled():
        times = torch.cat([t0[None], t0.new_tensor([event_t, stepper.t])])
        y = _states(call, times, adjoint, event=True)[1]
    event_time = torch.full((), call.sign * event_t, dtype=call.t.dtype, device=call.t.device)
    return event_time, call.split(torch.stack([call.y0, y]))


def _step_past_event(call: Call, t0: Tensor, value: Callable[[float, Tensor], float]) -> tuple[Stepper, Taken]:
    """Step on until the event lies in the step just taken."""
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
        max_steps=20_000 if fixed else scheme.most_steps(call.t),
        dense=False,
        watched=call.func,
    )
    stepper = Stepper(problem, call.y0, start, (t0, t0) if t0.requires_grad and torch.is_grad_enabled() else None)
    edges = [start, *([] if fixed else [edge for edge in scheme.edges(call, call.t) if edge > start]), math.inf]
    for low, high in itertools.pairwise(edges):
        if len(edges) > 2:
            stepper.f, stepper.f0 = CountedField(Between(call.f, low, high), stepper.stats), None
        if stepper.dt is None:
            stepper.choose_first_step(math.inf)
        while stepper.t < high:
            # A goal far ahead, but not so far that a step could be too small beside it.
            goal = min(high, stepper.t + 100 * (stepper.dt or 1.0))
            taken = None if stepper.failure is not None else stepper.advance(goal)
            if taken is None:
                break
            if not value(stepper.t, stepper.y) > 0:
                return stepper, taken
        if stepper.failure is not None:
            raise_failure(call, stepper.failure, stepper.stats)
    raise RuntimeError("time is unbounded")


def _bisect(low: float, high: float, tolerance: float, value: Callable[[float], float]) -> float:
    """Where the value, positive at `low`, ceases to be; to the tolerance, or to what a number resolves."""
    while True:
        middle = (low + high) / 2
        if high - low <= tolerance or not low < middle < high:
            return middle
        low, high = (middle, high) if value(middle) > 0 else (low, middle)


def _differentiable_event(
    func: Callable[..., Any], event_fn: Callable[..., Tensor], t: Tensor, y: Any, signs: Tensor
) -> tuple[Tensor, Any]:
    """The event's time and state with their gradients.

    The time's gradient is that of −g / (dg/dt), a step of Newton's method that moves nothing; the state moves with
    the time along f.
    """
    if not torch.is_grad_enabled():
        return t, y
    parts = y if isinstance(y, tuple) else (y,)

    def rebuilt(tensors: Sequence[Tensor]) -> Any:
        return tuple(tensors) if isinstance(y, tuple) else tensors[0]

    leaves = [part.detach().requires_grad_() for part in parts]
    time = t.detach().to(real_dtype(parts[0])).requires_grad_()
    with torch.no_grad():
        slope = func(time.detach(), rebuilt([leaf.detach() for leaf in leaves]))
    slopes = [fit(s, part).detach() for s, part in zip(slope if isinstance(y, tuple) else (slope,), parts)]
    g = (event_fn(time, rebuilt(leaves)) * signs).min()
    along = torch.autograd.grad(g, [time, *leaves], allow_unused=True) if g.requires_grad else ()
    rate = g.detach() * 0  # dg/dt along the solution
    for bar, s in zip(along, (torch.ones_like(time), *slopes)):
        if bar is not None:
            rate = rate + (bar.conj() * s).sum().real
    g = (event_fn(t.detach(), y) * signs).min()
    moved = -(g - g.detach()) / rate  # 0, with the gradient of the event's time
    states = [part + s * moved.to(real_dtype(part)) for part, s in zip(parts, slopes)]
    return t + moved.to(t.dtype), rebuilt(states)
