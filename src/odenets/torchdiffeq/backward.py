"""The backward solve of torchdiffeq's `odeint_adjoint`, where its arguments ask for one."""

from typing import Any

import torch
from torch import Tensor

from odenets.adjoint import Backsolve
from odenets.controller import Norm
from odenets.torchdiffeq.call import Call, tolerance
from odenets.torchdiffeq.schemes import find_scheme
from odenets.torchdiffeq.scipy_solver import Scipy
from odenets.torchdiffeq.solvers import Own
from odenets.torchdiffeq.watch import Watch, watched


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
            f"`adjoint_method` {method!r} is not `method` {call.name!r}, so `options` cannot be taken over: "
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


def backsolve(call: Call, scheme: Any, watch: Watch | None, t: Tensor) -> Backsolve:
    """The adjoint of the solve for the times t."""
    controller = scheme.controller(call, t, -t[-1].item(), -call.sign, watch, None)
    return Backsolve(method=watched(scheme.method, watch), controller=controller)


def _norm(call: Call, norm: Any, params: tuple[Tensor, ...]) -> Norm:
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
