"""`torchdiffeq._impl.misc`: norms, shapes, and the arguments in normal form."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.controller import rms
from odenets.torchdiffeq._impl.event_handling import combine_event_functions
from odenets.torchdiffeq.call import CallersField, Split, normalise, same
from odenets.torchdiffeq.solvers import Perturb as Perturb
from odenets.torchdiffeq.solvers import SolverField, handle_unused_kwargs, solver_options
from odenets.torchdiffeq.watch import CALLBACKS, nothing

_all_callback_names = list(CALLBACKS)
_all_adjoint_callback_names = [f"{name}_adjoint" for name in CALLBACKS]
_null_callback = nothing
_handle_unused_kwargs = handle_unused_kwargs


def _linf_norm(tensor: Tensor) -> Tensor:
    """The largest of the absolute values."""
    return tensor.abs().max()


def _rms_norm(tensor: Tensor) -> Tensor:
    """The root mean square."""
    return rms(tensor)


def _zero_norm(tensor: Tensor) -> float:
    """0, whatever the tensor."""
    return 0.0


def _mixed_norm(tensors: Sequence[Tensor]) -> Any:
    """The largest of the root mean squares of several tensors; 0 of none."""
    return max((rms(tensor) for tensor in tensors), default=0.0)


def _flat_to_shape(tensor: Tensor, length: Sequence[int], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """States (*length, n) as a tuple of states (*length, *shape)."""
    return Split(tuple(torch.Size(shape) for shape in shapes))(tensor)


def _check_inputs(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    event_fn: Callable[..., Tensor] | None,
    SOLVERS: dict[str, type],
) -> tuple:
    """The arguments in normal form, for a class of `SOLVERS`: of one tensor, in increasing time.

    (shapes or None, func, y0, t, rtol, atol, method, options, event_fn or None, whether time was turned round).
    """
    call = normalise(func, y0, t, rtol, atol, method, options, event=event_fn is not None)
    if call.name not in SOLVERS:
        raise ValueError(f"`method` must be one of {', '.join(SOLVERS)}; got {method!r}")
    if event_fn is not None:
        if len(t) != 2:
            raise ValueError(f"`t` must have two times with `event_fn`, got {len(t)}")
        given, sign = combine_event_functions(event_fn, t[0], y0), call.sign
        event_fn = lambda t, y: given(sign * t, call.split(y))  # noqa: E731
    shapes = None if isinstance(y0, Tensor) else [part.shape for part in y0]
    field = SolverField(call.f, call.watch, call.sign)
    options = solver_options(call, call.options)
    return shapes, field, call.y0, call.t, call.rtol, call.atol, call.name, options, event_fn, call.sign < 0


class _TupleFunc(nn.Module):
    """A func of a tuple of states as one of a flat state."""

    def __init__(self, base_func: Callable[..., Any], shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.base_func = base_func
        self.shapes = tuple(torch.Size(shape) for shape in shapes)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return CallersField(self.base_func, Split(self.shapes), 1.0, ())(t, y)


class _ReverseFunc(nn.Module):
    """A func in the time −t, times `mul`."""

    def __init__(self, base_func: Callable[..., Any], mul: float = 1.0) -> None:
        super().__init__()
        self.base_func, self.mul = base_func, mul

    def forward(self, t: Tensor, y: Any) -> Any:
        return self.mul * self.base_func(-t, y)


class _PerturbFunc(nn.Module):
    """A func that may be evaluated just before or just after a time."""

    def __init__(self, base_func: Callable[..., Any]) -> None:
        super().__init__()
        self.base_func = base_func

    def forward(self, t: Tensor, y: Tensor, *, perturb: Perturb = Perturb.NONE) -> Tensor:
        return SolverField(CallersField(self.base_func, same, 1.0, ()))(t, y, perturb=perturb)
