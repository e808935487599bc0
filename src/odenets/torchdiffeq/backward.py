"""The gradient of torchdiffeq's `odeint_adjoint`: exact, or by the backward solve that its arguments ask for."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets.adjoint import Backsolve, Checkpointed
from odenets.adjoint.continuous import Backward
from odenets.controller import Controller, Norm
from odenets.engine.engines import Engine
from odenets.methods import Method
from odenets.problem import Problem, Trajectory
from odenets.torchdiffeq.adaptive import Adaptive
from odenets.torchdiffeq.call import Call, tolerance
from odenets.torchdiffeq.schemes import find_scheme
from odenets.torchdiffeq.scipy_solver import Scipy
from odenets.torchdiffeq.solvers import Own
from odenets.torchdiffeq.watch import Watch, watched
from odenets.torchdiffeq.words import brief, callers_words, words_of_the_backward_solve


@dataclass(frozen=True)
class Exact(Checkpointed):
    """`Checkpointed`, whose errors name what callers of `odeint_adjoint` have."""

    _around = staticmethod(callers_words)

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        with callers_words():
            return super().integrate(problem, engine)


@dataclass(frozen=True)
class AskedFor(Backsolve):
    """`Backsolve`, whose errors name what callers of `odeint_adjoint` have, with a limit of its own."""

    max_steps: int = 2**62
    sign: float = 1.0
    stops_of: Callable[[Tensor], Sequence[float]] = lambda t: ()  # where steps end, from the times, both in −time
    stops: tuple[float, ...] = ()  # the same in the solver's time
    heard: Watch | None = None  # whose callbacks have seen the forward steps, which are made once more

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        stops = tuple(-s - problem.origin for s in self.stops_of(problem.origin + problem.t.detach()))
        if self.heard is not None:
            self.heard.silence()
        with callers_words():
            return Backsolve.integrate(replace(self, stops=stops), problem, engine)

    def how(self, method: Method, controller: Controller) -> Backward:
        around = functools.partial(words_of_the_backward_solve, self.sign)
        return replace(super().how(method, controller), max_steps=self.max_steps, stops=self.stops, around=around)


def backward_scheme(
    call: Call,
    params: tuple[Tensor, ...],
    method: str | None,
    rtol: Any,
    atol: Any,
    options: dict[str, Any] | None,
) -> Any:
    """The scheme of the backward solve: the arguments `adjoint_…` where they are given, else those of the forward one.

    Raises:
        TypeError, ValueError: If an argument is not as `odeint_adjoint` describes it.
    """
    if method not in (None, call.name) and call.options and options is None:
        raise ValueError(
            f"`adjoint_method` {brief(method)} is not `method` {call.name!r}, so `options` cannot be taken over: "
            "pass `adjoint_options` too, at least `adjoint_options={}`"
        )
    if options is None:
        options = {name: value for name, value in call.options.items() if name != "norm"}
    scheme = find_scheme(
        call.name if method is None else method,
        {**options, "norm": _norm(call, options.get("norm"), params)},
        call.rtol if rtol is None else tolerance("adjoint_rtol", rtol, call.y0),
        call.atol if atol is None else tolerance("adjoint_atol", atol, call.y0),
        "adjoint_method",
    )
    if isinstance(scheme, Scipy | Own) and not isinstance(call.scheme, Scipy | Own):
        raise ValueError('`adjoint_method` must be a Runge–Kutta method: write `adjoint_method="dopri5"`')
    return scheme


def with_jumps(call: Call, scheme: Any) -> Call:
    """The call, whose forward solve also begins anew where the backward one is to: it has the jumps of that."""
    if not (isinstance(scheme, Adaptive) and isinstance(call.scheme, Adaptive)):
        return call
    more = tuple(jump for jump in scheme.jump_t if jump not in call.scheme.jump_t)
    return replace(call, scheme=replace(call.scheme, jump_t=call.scheme.jump_t + more)) if more else call


def backsolve(call: Call, scheme: Any, watch: Watch | None, t: Tensor, heard: Watch | None) -> AskedFor:
    """The adjoint of the solve for the times t, whose backward solve counts the time from its start down."""
    start = t[0].item()
    if watch is not None:
        watch = replace(watch, show=lambda s, y, dt: (call.sign * (start - s), (s.new_zeros(()), *y.unbind()), dt))
    method, most = watched(scheme.method, watch), scheme.most_steps(t)

    def stops_of(times: Tensor) -> Sequence[float]:
        return scheme.stops(call, times.to(call.t.dtype), -call.sign)[0]

    return AskedFor(method, scheme.controller(watch), most, call.sign, stops_of, heard=heard)


def _norm(call: Call, norm: Any, params: tuple[Tensor, ...]) -> Norm:
    """The size of a pair (y, its adjoint): by default the larger of theirs."""
    if norm is None or norm == "seminorm":
        return lambda x: torch.maximum(call.norm(x[0]), call.norm(x[1]))
    if not callable(norm):
        raise ValueError(f"`adjoint_options` 'norm' must be a function or \"seminorm\", got {brief(norm)}")

    def given(x: Tensor) -> Tensor:
        parts = [part if isinstance(part, tuple) else (part,) for part in map(call.split, x.unbind())]
        zeros = [torch.zeros_like(p) for p in params]
        return torch.as_tensor(norm((x.real.new_zeros(()), *parts[0], *parts[1], *zeros)), device=x.device).abs()

    return given
