"""The arguments of torchdiffeq in normal form: one tensor, increasing times, names resolved. All else assumes it."""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.controller import Norm, rms
from odenets.resolution import check_time_of, check_times
from odenets.tolerance import NormOfState, given, of_components
from odenets.torchdiffeq.watch import Watch, find_watch
from odenets.torchdiffeq.words import brief

RTOL, ATOL = 1e-7, 1e-9  # torchdiffeq's defaults, which None stands for too
MOST_STEPS = 20_000  # to an event, as of torchdiffeq's fixed steps


@dataclass(frozen=True)
class Call:
    """A solve in normal form; what is the caller's is in the caller's terms."""

    func: Callable[..., Any]
    user_y0: Any
    f: "CallersField"
    y0: Tensor
    t: Tensor  # (T,), increasing, of the caller's dtype; may require grad
    sign: float  # −1 where the caller's time runs backward
    split: Callable[[Tensor], Any]  # (..., *y0.shape) in the caller's structure
    name: str  # of the method
    norm: Norm  # of a state
    rtol: Any  # a number, or a tensor that broadcasts against y0
    atol: Any
    options: dict[str, Any]
    watch: Watch | None
    scheme: Any = None  # how its method makes its steps: `schemes.resolve`


def normalise(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    params: tuple[Tensor, ...] = (),
    event: bool = False,
) -> Call:
    """The arguments of `odeint`, checked, in normal form; `params` are the caller's `adjoint_params`.

    Args:
        event: Whether t is a start and a direction.

    Raises:
        TypeError, ValueError: If an argument is not as `odeint` describes it.
    """
    if not callable(func):
        raise TypeError(f"`func` must be a function of (t, y), got {brief(func)}")
    if not isinstance(options, dict | None):
        raise TypeError(f"`options` must be a dict, got {brief(options)}")
    check_given_times(t, event)
    flat, shapes = _flatten(y0)
    split = same if shapes is None else Split(tuple(shapes))
    sign = -1.0 if len(t) > 1 and bool(t[0] > t[1]) else 1.0
    options = dict(options or {})
    t = t.to(flat.device)
    f = CallersField(func, split, sign, params)
    start, end = (sign * t.detach()[[0, -1]].double()).tolist()
    if event or end > start:
        check_time_of(f, flat, start, _UNKNOWN if event else end - start, sign, name="func")
    return Call(
        func=func,
        user_y0=y0,
        f=f,
        y0=flat,
        t=t if sign > 0 else -t,
        sign=sign,
        split=split,
        name="dopri5" if method is None else method,
        norm=_state_norm(options.get("norm"), split),
        rtol=tolerance("rtol", RTOL if rtol is None else rtol, flat, split),
        atol=tolerance("atol", ATOL if atol is None else atol, flat, split),
        options=options,
        watch=find_watch(func, lambda t, y, dt: (sign * t, split(y), dt)),
    )


_UNKNOWN = 100.0  # the length of a solve until an event, so that a unit of time has to be resolved


def check_given_times(t: Any, event: bool = False, name: str = "t") -> None:
    """Refuse what are no times in order, or times that their dtype cannot tell apart.

    Args:
        event: Whether they are a start and a direction.
        name: What the caller calls them.

    Raises:
        TypeError, ValueError: With what to write instead.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"`t` must be a tensor, got {type(t).__name__}: write torch.tensor(t)")
    if not t.is_floating_point():
        raise TypeError(f"`t` must be floating point, got {t.dtype}: write t.double()")
    if t.dim() != 1 or len(t) == 0:
        raise ValueError(f"`t` must be 1-D with at least one time, got shape {tuple(t.shape)}: write t.flatten()")
    values = t.detach().tolist()
    if not all(map(math.isfinite, values)):
        i = next(i for i, value in enumerate(values) if not math.isfinite(value))
        raise ValueError(f"`t` must be finite, got t[{i}] = {values[i]}")
    steps = [b - a for a, b in itertools.pairwise(values)]
    if event:
        check_times([values[0]] * 2, [0.0], t.dtype, name)
    else:
        check_times(values, steps, t.dtype, name)
    if all(step > 0 for step in steps) or all(step < 0 for step in steps):
        return
    i = next(i for i, step in enumerate(steps) if step * steps[0] <= 0)
    between = f"t[{i}] = {t[i].item()!r} is followed by t[{i + 1}] = {t[i + 1].item()!r}"
    hint = " Times that close need float64." if t.dtype != torch.float64 and bool(steps[i] == 0) else ""
    raise ValueError(f"`t` must be strictly increasing or decreasing, but {between}: leave one out.{hint}")


def _flatten(y0: Any) -> tuple[Tensor, list[torch.Size] | None]:
    if isinstance(y0, Tensor):
        flat, shapes = y0, None
    elif not isinstance(y0, tuple) or not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise TypeError(f"`y0` must be a tensor or a tuple of tensors, got {brief(y0)}: write tuple(y0)")
    else:
        flat, shapes = torch.cat([part.reshape(-1) for part in y0]), [part.shape for part in y0]
    if not (flat.is_floating_point() or flat.is_complex()):
        raise TypeError(f"`y0` must be floating-point or complex, got {flat.dtype}: write y0.float()")
    return flat, shapes


def same(y: Tensor) -> Tensor:
    """A state that is a tensor already."""
    return y


@dataclass(frozen=True)
class Split:
    """States (..., n) as tuples of states (..., *shape)."""

    shapes: tuple[torch.Size, ...]

    def __call__(self, y: Tensor) -> tuple[Tensor, ...]:
        parts = y.split([shape.numel() for shape in self.shapes], dim=-1)
        return tuple(part.reshape((*y.shape[:-1], *shape)) for part, shape in zip(parts, self.shapes))


class CallersField:
    """The caller's func in normal form; `adjoint_params` lie here to be found."""

    resolved = True  # that y's dtype holds the times of the whole solve has been checked, so each piece is let be

    def __init__(self, func: Callable[..., Any], split: Any, sign: float, params: tuple[Tensor, ...]) -> None:
        self.func, self.split, self.sign, self.adjoint_params = func, split, sign, params

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if self.split is same:
            out = fit(self.func(t if self.sign > 0 else -t, y), y)
        else:
            parts = self.split(y)
            out = self.func(t if self.sign > 0 else -t, parts)
            if not isinstance(out, tuple | list) or len(out) != len(parts):
                raise ValueError(f"`func` must return a tuple of {len(parts)} tensors as y is, returned {brief(out)}")
            out = torch.cat([fit(x, part).reshape(-1) for x, part in zip(out, parts)])
        return out if self.sign > 0 else -out


def fit(out: Any, y: Tensor) -> Tensor:
    """A derivative in y's shape and dtype, where axes of size 1 and a real dtype are all that differs."""
    if isinstance(out, Tensor) and out.shape == y.shape and out.dtype == y.dtype:
        return out
    if isinstance(out, int | float | complex):
        out = torch.as_tensor(out, device=y.device)
    if not isinstance(out, Tensor):
        raise TypeError(f"`func` must return a tensor for each tensor of y, returned {type(out).__name__}")
    if out.dtype != y.dtype:
        if out.dtype.is_complex and not y.dtype.is_complex:
            raise TypeError(f"`func` returned {out.dtype} for a y of {y.dtype}: make `y0` complex")
        out = out.to(y.dtype)
    if out.shape == y.shape:
        return out
    if [n for n in out.shape if n != 1] == [n for n in y.shape if n != 1]:
        return out.reshape(y.shape)
    if out.dim() <= y.dim() and all(n in (1, m) for n, m in zip(reversed(out.shape), reversed(y.shape))):
        return out.expand(y.shape)
    raise ValueError(f"`func` must return a tensor of y's shape {tuple(y.shape)}, returned {tuple(out.shape)}")


def tolerance(name: str, value: Any, y0: Tensor, split: Callable[[Tensor], Any] = same) -> Any:
    """A tolerance as a number, or as a tensor that broadcasts against the flat state.

    Raises:
        TypeError, ValueError: If it is neither, requires grad, is negative, or has another length than a tuple y0.
    """
    state = split(y0)
    if isinstance(state, tuple):
        value = tuple(value.unbind()) if isinstance(value, Tensor) and value.dim() > 0 else value
        if isinstance(value, tuple | list):
            if len(value) != len(state):
                wanted = f"one entry for each tensor of `y0`, {len(state)}"
                raise ValueError(f"`{name}` must have {wanted}, got {len(value)}")
            value = tuple(v.reshape(y.shape) if _size(v) == y.numel() > 1 else v for v, y in zip(value, state))
    return of_components(name, given(name, value), y0, split)


def _size(value: Any) -> int:
    """How many numbers it holds: of a tensor or an array; else 1."""
    return math.prod(shape) if isinstance(shape := getattr(value, "shape", ()), tuple) else 1


def number(option: str, value: Any, least: float = 0.0) -> float:
    """An option as a number.

    Raises:
        TypeError, ValueError: If it is none, or below `least`.
    """
    if isinstance(value, str) or not hasattr(value, "__float__") or _size(value) != 1:
        raise TypeError(f"`options` {option!r} must be a number, got {brief(value)}")
    value = float(value)
    if not value >= least:
        raise ValueError(f"`options` {option!r} must be a number ≥ 0, got {value}")
    return value


def count(option: str, value: Any) -> int:
    """An option as a whole number from 1, of Python's or NumPy's.

    Raises:
        ValueError: If it is none.
    """
    whole = operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else 0
    if whole < 1:
        raise ValueError(f"`options` {option!r} must be an integer ≥ 1, got {brief(value)}")
    return whole


def _state_norm(norm: Callable[[Any], Any] | None, split: Callable[[Tensor], Any]) -> Norm:
    """The caller's norm as one of the flat state; by default the root mean square, of a tuple the largest of them."""
    if norm is None and split is same:
        return rms
    if norm is not None and not callable(norm):
        raise TypeError(f"`options` 'norm' must be a function of the state, got {brief(norm)}")
    return NormOfState(norm or (lambda parts: torch.stack([rms(part) for part in parts]).max()), split)
