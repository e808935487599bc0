"""torchdiffeq's functions, made of the solver of odenets."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.adjoint import Direct
from odenets.interpolate import DenseOutput
from odenets.torchdiffeq.backward import Exact, backsolve, backward_scheme, with_jumps
from odenets.torchdiffeq.call import ATOL, RTOL, Call, check_given_times, normalise
from odenets.torchdiffeq.events import Moving, check_event_function, until_event
from odenets.torchdiffeq.pieces import AdjointOf, solved, states
from odenets.torchdiffeq.schemes import resolve
from odenets.torchdiffeq.scipy_solver import Scipy
from odenets.torchdiffeq.solvers import Own
from odenets.torchdiffeq.watch import find_watch, warn_of_silence
from odenets.torchdiffeq.words import brief


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = RTOL,
    atol: Any = ATOL,
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
    return _answer(
        resolve(normalise(func, y0, t, rtol, atol, method, options, event=event_fn is not None)), event_fn, None
    )


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = RTOL,
    atol: Any = ATOL,
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
    given = None if adjoint_params is None else tuple(adjoint_params)
    if not all(isinstance(p, Tensor) for p in given or ()):
        raise TypeError(f"`adjoint_params` must hold tensors, got {brief(given)}")
    params = find_parameters(func) if given is None else given
    call = resolve(normalise(func, y0, t, rtol, atol, method, options, given or (), event_fn is not None))
    asked = any(x is not None for x in (adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options))
    watch = find_watch(func, lambda *step: step, "_adjoint")
    if isinstance(call.scheme, Scipy | Own):
        warn_of_silence(func, call.name, (), "_adjoint")
    adjoint: AdjointOf = lambda piece: Exact()  # noqa: E731
    if asked or watch is not None:
        scheme = backward_scheme(call, params, adjoint_method, adjoint_rtol, adjoint_atol, adjoint_options)
        if not isinstance(call.scheme, Scipy | Own):
            warn_of_silence(func, call.name if adjoint_method is None else adjoint_method, scheme.callbacks, "_adjoint")
        call = with_jumps(call, scheme)
        heard = call.watch if event_fn is not None else None
        adjoint = lambda piece: backsolve(call, scheme, watch, piece, heard)  # noqa: E731
    once = None if isinstance(call.scheme, Scipy | Own) else ("`odeint_adjoint`", "use `odeint`")
    answer = _answer(call, event_fn, adjoint)
    wanting = [p for p in params if p.requires_grad]
    if event_fn is None:
        return _with_zeros(answer, wanting, once)
    event_t, ys = answer
    if not isinstance(event_fn, Moving):
        return event_t, _with_zeros(ys, wanting, once)
    event_t, *parts = _with_zeros((event_t, *ys) if isinstance(ys, tuple) else (event_t, ys), wanting, once)
    return event_t, tuple(parts) if isinstance(ys, tuple) else parts[0]


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
        odeint_interface: `odeint`, `odeint_adjoint`, or a function that hands its arguments to one of them.
        kwargs: Its other arguments.

    Returns:
        The time of the event, 0-dimensional, and the states (2, *y0.shape) at the start and at the event.

    Raises:
        SolveError, TypeError, ValueError: As `odeint`.
    """
    if not (isinstance(t0, Tensor) and t0.numel() == 1):
        of = (
            f"{t0.numel()} elements: write `t0[0]`"
            if isinstance(t0, Tensor)
            else f"{brief(t0)}: write torch.tensor({brief(t0)})"
        )
        raise TypeError(f"`t0` must be a tensor with one element, got {of}")
    check_event_function(event_fn)
    start = t0.reshape(1)
    if start.is_floating_point():
        check_given_times(start, event=True, name="t0")
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, states = odeint_interface(func, y0, t, event_fn=Moving(event_fn), **kwargs)
    parts = states if isinstance(states, tuple) else (states,)
    event_t, *parts = _with_zeros((event_t, *parts), [], ("`odeint_event`", "leave it out"))
    return event_t, tuple(parts) if isinstance(states, tuple) else parts[0]


def odeint_dense(
    func: Callable[..., Any],
    y0: Tensor,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = RTOL,
    atol: Any = ATOL,
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
    times = torch.stack([end.to(dtype) for end in ends])
    call = resolve(normalise(func, y0, times, rtol, atol, method, options))
    if isinstance(call.scheme, Scipy | Own):
        raise ValueError(f"`method` of `odeint_dense` must be a Runge–Kutta method, got {brief(method)}")
    at = solved(call, call.t, Direct(), dense=True).interpolant
    if not isinstance(at, DenseOutput):
        raise RuntimeError("a solve came without its dense output")
    return replace(at, sign=call.sign)


def _answer(call: Call, event_fn: Callable[..., Tensor] | None, adjoint: AdjointOf | None) -> Any:
    if event_fn is not None:
        return until_event(call, event_fn, adjoint)
    if isinstance(call.scheme, Scipy | Own):
        return call.split(call.scheme.solve(call))
    return call.split(states(call, call.t, adjoint or (lambda piece: Direct())))


def find_parameters(func: Any) -> tuple[Tensor, ...]:
    """The parameters of a module, those of a replica of `DataParallel` too; none of anything else."""
    if not isinstance(func, torch.nn.Module):
        return ()
    if not getattr(func, "_is_replica", False):
        return tuple(func.parameters())
    # A replica keeps its parameters as plain tensors.
    attributes = (value for module in func.modules() for value in vars(module).values())
    return tuple(value for value in attributes if isinstance(value, Tensor) and value.requires_grad)


def _with_zeros(ys: Any, params: list[Tensor], once: tuple[str, str] | None) -> Any:
    """The states, with gradients of 0 for parameters that they do not depend on: autograd alone would give None.

    Args:
        once: Where they have no second derivative, the function that made them, and what to do instead.
    """
    parts = ys if isinstance(ys, tuple) else (ys,)
    wanted = params or any(part.requires_grad for part in parts)
    if transforms.active() or not torch.is_grad_enabled() or not wanted:
        return ys
    parts = OdeintStates.apply(once, len(parts), *parts, *params)
    return parts if isinstance(ys, tuple) else parts[0]


class OdeintStates(torch.autograd.Function):
    """States as they are; the backward pass gives zeros to the parameters too."""

    @staticmethod
    def forward(ctx: Any, once: tuple[str, str] | None, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.once, ctx.like = once, [(p.shape, p.dtype, p.device) for p in tensors[count:]]
        ctx.set_materialize_grads(False)
        return tuple(part.view_as(part) for part in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.once is not None and torch.is_grad_enabled():  # only with create_graph=True
            name, instead = ctx.once
            raise NotImplementedError(f"{name} has no second derivative (create_graph=True): {instead}")
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return None, None, *grad_outputs, *zeros
