"""How torchdiffeq makes its steps: its arguments in normal form, its methods, options and callbacks.

What `odenets.torchdiffeq` is made of; nothing here is meant to be called by itself.
"""

import bisect
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from odenets.captured import LostGradientError
from odenets.controller import Decision, FirstStep, Fixed, Norm, Number, Start, choose_first_step, rms
from odenets.methods import (
    METHODS,
    ExplicitRungeKutta,
    Field,
    ImplicitRungeKutta,
    RungeKutta,
    Step,
    combine,
    real_dtype,
)
from odenets.methods.multistep import adams_weights, step_nodes
from odenets.solution import Failure, SolveError, Stats, Status

# torchdiffeq estimates the error of dopri5 by another formula of order 4 than the usual one:
# Shampine, "Some practical Runge–Kutta formulas", Math. Comp. 46 (1986).
_DOPRI5 = replace(
    METHODS["dopri5"],
    b_error=(
        35 / 384 - 1951 / 21600,
        0.0,
        500 / 1113 - 22642 / 50085,
        125 / 192 - 451 / 720,
        -2187 / 6784 + 12231 / 42400,
        11 / 84 - 649 / 6300,
        -1 / 60,
    ),
)
_ADAPTIVE = {
    "dopri8": METHODS["dopri8"],
    "dopri5": _DOPRI5,
    "tsit5": METHODS["tsit5"],
    "bosh3": METHODS["bosh3"],
    "fehlberg2": METHODS["fehlberg2"],
    "adaptive_heun": METHODS["heun"],
}
_FIXED = {
    "euler": METHODS["euler"],
    "midpoint": METHODS["midpoint"],
    "heun2": METHODS["heun"],
    "heun3": METHODS["heun3"],
    "rk4": METHODS["rk4_38"],
}
_ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
_IMPLICIT = {name: method for name, method in METHODS.items() if isinstance(method, ImplicitRungeKutta)}
_NAMES = (*_ADAPTIVE, *_FIXED, *_IMPLICIT, *_ADAMS, "scipy_solver")


# The normal form: one tensor, increasing times, names resolved. All below assumes it.


@dataclass(frozen=True)
class Call:
    """A solve in normal form; what is the caller's is in the caller's terms."""

    func: Callable[..., Any]
    user_y0: Any
    f: "_Field"
    y0: Tensor
    t: Tensor  # (T,), increasing, of the caller's dtype; may require grad
    sign: float  # −1 where the caller's time runs backward
    split: Callable[[Tensor], Any]  # (..., *y0.shape) in the caller's structure
    name: str  # of the method
    norm: Norm  # of a state
    scheme: Any
    watch: "Watch | None"


def normalise(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    params: tuple[Tensor, ...] = (),
) -> Call:
    """The arguments of `odeint`, checked, in normal form; `params` are the caller's `adjoint_params`.

    Raises:
        TypeError, ValueError: If an argument is not as `odeint` describes it.
    """
    _check_times(t)
    flat, shapes = _flatten(y0)
    split = _same if shapes is None else _Split(tuple(shapes))
    sign = -1.0 if len(t) > 1 and bool(t[0] > t[1]) else 1.0
    options = dict(options or {})
    norm = _state_norm(options.get("norm"), split)
    name = "dopri5" if method is None else method
    scheme = find_scheme(
        name,
        {**options, "norm": norm},
        tolerance("rtol", rtol, flat, shapes),
        tolerance("atol", atol, flat, shapes),
        "method",
    )
    watch = find_watch(func, lambda t, y, dt: (sign * t, split(y), dt))
    if watch is not None and isinstance(scheme, Grid):
        unsupported = [n for n in _CALLBACKS[1:] if callable(getattr(func, n, None))]
        if unsupported:
            warnings.warn(
                f"method {name!r} accepts every step and does not call {', '.join(unsupported)}", stacklevel=3
            )
    t = t.to(flat.device)
    f = _Field(func, split, sign, params)
    return Call(func, y0, f, flat, t if sign > 0 else -t, sign, split, name, norm, scheme, watch)


def _check_times(t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"`t` must be a tensor, got {type(t).__name__}: write torch.tensor(t)")
    if not t.is_floating_point():
        raise TypeError(f"`t` must be floating point, got {t.dtype}: write t.float()")
    if t.dim() != 1 or len(t) == 0:
        raise ValueError(f"`t` must be 1-D with at least one time, got shape {tuple(t.shape)}: write t.flatten()")
    steps = t.detach().diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise ValueError(f"`t` must be strictly increasing or decreasing, got {t.tolist()}: write t.unique()")


def _flatten(y0: Any) -> tuple[Tensor, list[torch.Size] | None]:
    if isinstance(y0, Tensor):
        return y0, None
    if not isinstance(y0, tuple) or not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise TypeError(f"`y0` must be a tensor or a tuple of tensors, got {y0!r}: write tuple(y0), torch.tensor(...)")
    return torch.cat([part.reshape(-1) for part in y0]), [part.shape for part in y0]


def _same(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class _Split:
    """States (..., n) as tuples of states (..., *shape)."""

    shapes: tuple[torch.Size, ...]

    def __call__(self, y: Tensor) -> tuple[Tensor, ...]:
        parts = y.split([shape.numel() for shape in self.shapes], dim=-1)
        return tuple(part.reshape((*y.shape[:-1], *shape)) for part, shape in zip(parts, self.shapes))


class _Field:
    """The caller's func in normal form; `params` lie here to be found."""

    def __init__(self, func: Callable[..., Any], split: Any, sign: float, params: tuple[Tensor, ...]) -> None:
        self.func, self.split, self.sign, self.params = func, split, sign, params

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.func(t if self.sign > 0 else -t, self.split(y))
        if self.split is _same:
            out = fit(out, y)
        else:
            parts = self.split(y)
            if not isinstance(out, tuple | list) or len(out) != len(parts):
                raise ValueError(f"`func` must return a tuple of {len(parts)} tensors as y is, returned {_brief(out)}")
            out = torch.cat([fit(x, part).reshape(-1) for x, part in zip(out, parts)])
        return out if self.sign > 0 else -out


def fit(out: Any, y: Tensor) -> Tensor:
    """A derivative in y's shape and dtype, where axes of size 1 and a real dtype are all that differs."""
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


def _brief(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, tuple | list) else type(value).__name__


@dataclass(frozen=True)
class Between:
    """f inside of (low, high): at these ends, where f may jump, it gives the value on this side."""

    f: Field
    low: float
    high: float

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        low, high = torch.full_like(t, self.low), torch.full_like(t, self.high)
        inside = t.detach().clamp(torch.nextafter(low, high), torch.nextafter(high, low))
        return self.f(t + (inside - t.detach()), y)


def tolerance(name: str, value: Any, y0: Tensor, shapes: Sequence[torch.Size] | None = None) -> Any:
    """A tolerance as a number, or as a tensor that broadcasts against the flat state.

    Raises:
        TypeError, ValueError: If it is neither, requires grad, is negative, or has another length than a tuple y0.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"`{name}` must not require grad: write {name}.detach()")
    dtype = real_dtype(y0)
    if shapes is not None and (isinstance(value, tuple | list) or (isinstance(value, Tensor) and value.dim() > 0)):
        if len(value) != len(shapes):
            raise ValueError(f"`{name}` must have one entry for each tensor of `y0`, {len(shapes)}, got {len(value)}")
        parts = [torch.as_tensor(v, dtype=dtype, device=y0.device) for v in value]
        value = torch.cat([v.reshape(-1).expand(shape.numel()) for v, shape in zip(parts, shapes)])
    if shapes is None and isinstance(value, tuple | list):
        raise TypeError(f"`{name}` must be a number or a tensor where `y0` is a tensor, got {value!r}")
    value = value.to(y0.device, dtype) if isinstance(value, Tensor) and value.dim() > 0 else float(value)
    if not bool(torch.as_tensor(value >= 0).all()):
        raise ValueError(f"`{name}` must be numbers ≥ 0, got {value}")
    return value


def _state_norm(norm: Callable[[Any], Any] | None, split: Callable[[Tensor], Any]) -> Norm:
    """The caller's norm as one of the flat state; by default the root mean square, of a tuple the largest of them."""
    if norm is None and split is _same:
        return rms
    given = norm if norm is not None else lambda parts: torch.stack([rms(part) for part in parts]).max()
    return lambda x: torch.as_tensor(given(split(x)), device=x.device).abs()


def raise_failure(call: Call, failure: Failure, stats: Stats) -> None:
    """Raise the `SolveError` of a failed solve, in the caller's time and words."""
    detail = failure.detail
    if failure.status is Status.MAX_STEPS:
        detail = f"{detail} Here it is the option 'max_num_steps'.".strip()
    raise SolveError(replace(failure, t=call.sign * failure.t, dt=call.sign * failure.dt, detail=detail), stats)


# Callbacks.

_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclass
class Watch:
    """The callbacks of a solve, and the step that they hear of."""

    before: Callable[..., Any]
    accepted: Callable[..., Any]
    rejected: Callable[..., Any]
    show: Callable[[Tensor, Tensor, Tensor], tuple]  # a step as the callbacks get it
    step: tuple = ()

    def begin(self, t: float | Tensor, y: Tensor, dt: float | Tensor) -> None:
        """A step of size dt from y(t) is about to be made."""
        t, dt = (torch.as_tensor(x, dtype=torch.float64, device=y.device) for x in (t, dt))
        self.step = self.show(t, y, dt)
        self.before(*self.step)

    def end(self, accept: bool) -> None:
        """It has been judged."""
        (self.accepted if accept else self.rejected)(*self.step)


def find_watch(func: Any, show: Callable[[Tensor, Tensor, Tensor], tuple], suffix: str = "") -> Watch | None:
    """The callbacks that are attributes of func, by their names and a suffix; None where there are none."""
    found = [getattr(func, name + suffix, None) for name in _CALLBACKS]
    if not any(callable(callback) for callback in found):
        return None
    before, accepted, rejected = (callback if callable(callback) else _nothing for callback in found)
    return Watch(before, accepted, rejected, show)


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class _Watched(RungeKutta):
    """A method that tells each step before it is made, and interpolates linearly where that is asked for."""

    watch: Watch | None = field(default=None, compare=False)
    linear: bool = False

    def step(self, f: Field, t: float | Tensor, y: Tensor, dt: float | Tensor, f0: Tensor | None) -> Step:
        if self.watch is not None:
            self.watch.begin(t, y, dt)
        return super().step(f, t, y, dt, f0)

    def _dense(self) -> tuple[tuple[float, float, float, float], ...]:
        if self.linear:
            return tuple((b_i, 0.0, 0.0, 0.0) for b_i in (*self.b, 0.0))
        return super()._dense()


@dataclass(frozen=True)
class _WatchedExplicit(_Watched, ExplicitRungeKutta):
    pass


@dataclass(frozen=True)
class _WatchedImplicit(_Watched, ImplicitRungeKutta):
    pass


def watched(method: RungeKutta, watch: Watch | None, linear: bool = False) -> RungeKutta:
    """The method with its steps watched, and with linear interpolation if asked for."""
    if watch is None and not linear:
        return method
    kind = _WatchedImplicit if isinstance(method, ImplicitRungeKutta) else _WatchedExplicit
    given = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    return kind(**given, watch=watch, linear=linear)


# Schemes: which method, and how it chooses its steps. `Adaptive` and `Grid` say to `odenets.solve` where solves of
# their own begin (`edges`), which method and which controller to take; the others solve by themselves (`solve`).


def find_scheme(name: Any, options: dict[str, Any], rtol: Any, atol: Any, argument: str) -> Any:
    """The scheme of that name with those options; `argument` is what errors call the name.

    Raises:
        TypeError, ValueError: If there is no such method, or an option has a value that is not allowed.
    """
    kinds: dict[str, Any] = {**dict.fromkeys(_ADAPTIVE, Adaptive), **dict.fromkeys(_FIXED, Grid)}
    kinds |= {**dict.fromkeys(_IMPLICIT, Implicit), "scipy_solver": Scipy}
    kinds |= {"explicit_adams": ExplicitAdams, "implicit_adams": ImplicitAdams, "fixed_adams": ImplicitAdams}
    kind = kinds.get(name)
    if kind is None:
        raise ValueError(f"`{argument}` must be one of {', '.join(_NAMES)}; got {name!r}")
    known = {f.name for f in fields(kind) if f.name not in ("method", "rtol", "atol")}
    unknown = sorted(set(options) - known - {"norm"})
    if unknown:
        warnings.warn(
            f"method {name!r} ignores the unknown options {', '.join(unknown)}; known are {', '.join(sorted(known))}",
            stacklevel=4,
        )
    return kind(
        method={**_ADAPTIVE, **_FIXED, **_IMPLICIT}.get(name, METHODS["rk4_38"]),
        rtol=rtol,
        atol=atol,
        **{key: value for key, value in options.items() if key in known},
    )


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
        max_num_steps: The most steps, for each interval of t; they may be spread over all.
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
    max_num_steps: int = 2**31 - 1
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        for name in ("safety", "ifactor", "dfactor", "min_step", "max_step"):
            value = float(getattr(self, name))
            if not value >= 0:
                raise ValueError(f"`options` {name!r} must be a number ≥ 0, got {value}")
            object.__setattr__(self, name, value)
        for name in ("step_t", "jump_t"):
            given = getattr(self, name)
            times = [] if given is None else torch.as_tensor(given, dtype=torch.float64).flatten().tolist()
            object.__setattr__(self, name, tuple(times))
        if len(set(self.step_t + self.jump_t)) < len(self.step_t + self.jump_t):
            raise ValueError("`options` 'step_t' and 'jump_t' must not name a time twice, not even one in each")
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"`options` 'dtype' must be a floating-point dtype, got {self.dtype!r}")

    @property
    def one_sided(self) -> bool:
        """Whether f is to be evaluated inside of the pieces only, not at their edges."""
        return True

    def edges(self, call: Call, t: Tensor) -> list[float]:
        """Where a solve of its own begins."""
        return sorted(call.sign * jump for jump in self.jump_t)

    def solver_method(self, call: Call, watch: Watch | None, event: bool) -> RungeKutta:
        """The method for `odenets.solve`."""
        return watched(self.method, watch)

    def controller(
        self, call: Call, t: Tensor, start: float, sign: float, watch: Watch | None, dt: float | None
    ) -> "_ErrorControl":
        """The controller of a solve from `start` on, in a time that times `sign` is the caller's; dt to start with."""
        stops = sorted(sign * stop for stop in self.step_t)
        given = None if self.first_step is None else float(self.first_step)
        return _ErrorControl(self, start, stops, watch, given if dt is None else dt)

    def most_steps(self, t: Tensor) -> int:
        """The most steps of a solve for the times t."""
        return int(self.max_num_steps) * max(len(t) - 1, 1)

    def scale(self, magnitude: Tensor) -> Tensor:
        """The tolerance of a state of that magnitude."""
        return magnitude * self.rtol + self.atol


class _ErrorControl:
    """The controller of `Adaptive`. Its memory is the time, so that it can stop at given times."""

    adaptive = True
    tunable = ()

    def __init__(
        self, scheme: Adaptive, start: float, stops: list[float], watch: Watch | None, dt: float | None
    ) -> None:
        self.scheme, self.stops, self.watch = scheme, stops, watch
        self.start = (start,)
        self.planned = dt  # the next step size, before it is cut to end on a stop
        self.given = dt  # and after

    @property
    def chooses_first_step(self) -> bool:
        return self.planned is None

    def given_step(self, t0: float, t1: float) -> float:
        return self._within(t0, self.planned or 0.0)

    def first_step(self, start: Start) -> FirstStep:
        scale = self.scheme.scale(start.y0.abs())
        dt, size = choose_first_step(start._replace(norm=self.scheme.norm), scale, math.inf)
        return FirstStep(self._within(start.t0, dt), size)

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        return self.scheme.norm(error / self.scheme.scale(torch.maximum(y.abs(), y1.abs())))

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        scheme = self.scheme
        accept = ratio <= 1 or (dt <= scheme.min_step and math.isfinite(ratio))
        if self.watch is not None:
            self.watch.end(accept)
        if ratio == 0:
            factor = scheme.ifactor
        elif math.isfinite(ratio):
            least = 1.0 if ratio < 1 else scheme.dfactor
            factor = min(scheme.ifactor, max(scheme.safety / ratio ** (1 / order), least))
        else:  # the step led out of f's domain
            factor = scheme.dfactor
            if dt <= scheme.min_step:
                return Decision(False, 0.0, memory)  # stuck
        if not accept:
            return Decision(False, self._within(memory[0], dt * factor), memory)
        following = dt * factor
        if self.planned is not None and self.given is not None and dt < self.given:
            following = max(following, self.planned)  # that it was cut to end on an output says nothing against it
        t1 = memory[0] + dt
        return Decision(True, self._within(t1, following), (t1,))

    def _within(self, t: float, dt: float) -> float:
        """The step size within its bounds, cut to end on the next stop."""
        self.planned = min(max(dt, self.scheme.min_step), self.scheme.max_step)
        self.given = min(self.planned, _to_next(self.stops, t))
        return self.given


@dataclass(frozen=True)
class Grid:
    """Fixed steps from point to point of a grid: the output times, multiples of a step size, or what a function says.

    Args:
        step_size: Of equal steps from the first time on; the last is shortened.
        grid_constructor: Called as `grid_constructor(func, y0, t)`; returns the points, from t[0] to t[-1].
        interp: Between the points: "linear", or "cubic" (Hermite).
        perturb: Evaluate f just after the start and just before the end of a step, never at them.
    """

    method: RungeKutta
    rtol: Any
    atol: Any
    step_size: Any = None
    grid_constructor: Callable[..., Tensor] | None = None
    interp: str = "linear"
    perturb: bool = False

    def __post_init__(self) -> None:
        if self.step_size is not None and self.grid_constructor is not None:
            raise ValueError("`options` 'step_size' and 'grid_constructor' exclude each other: leave one out")
        if self.step_size is not None and not float(self.step_size) > 0:
            raise ValueError(f"`options` 'step_size' must be above 0 (backward in time too), got {self.step_size}")
        if self.interp not in ("linear", "cubic"):
            raise ValueError(f'`options` \'interp\' must be "linear" or "cubic", got {self.interp!r}')

    def grid(self, call: Call, t: Tensor, sign: float) -> Tensor:
        """The grid for increasing t, which times `sign` is the caller's time; differentiable, in t's dtype."""
        if self.grid_constructor is not None:
            grid = sign * self.grid_constructor(call.func, call.user_y0, sign * t)
            if not bool((grid[0] == t[0]) & (grid[-1] == t[-1])):
                ends = [f"{end:g}" for end in (sign * t[[0, -1]]).tolist()]
                raise ValueError(
                    f"`options` 'grid_constructor' must return times from {ends[0]} to {ends[1]}, "
                    f"returned {(sign * grid).tolist()}"
                )
            return grid
        if self.step_size is not None:
            count = math.ceil(((t[-1] - t[0]) / self.step_size).item())  # in t's dtype: 1 / 0.1 makes 10 steps
            return torch.cat([t[0] + torch.arange(count, dtype=t.dtype, device=t.device) * self.step_size, t[-1:]])
        return t

    def points(self, call: Call, t: Tensor, sign: float) -> list[float]:
        """The same as numbers."""
        return self.grid(call, t.detach(), sign).detach().to(torch.float64).tolist()

    @property
    def on_outputs(self) -> bool:
        """Whether the outputs are the points of the grid."""
        return self.step_size is None and self.grid_constructor is None

    @property
    def one_sided(self) -> bool:
        return self.perturb

    def edges(self, call: Call, t: Tensor) -> list[float]:
        # Where the outputs are the steps, their gradient is that of the step sizes.
        each = self.perturb or (self.on_outputs and t.requires_grad)
        return self.points(call, t, call.sign) if each else []

    def solver_method(self, call: Call, watch: Watch | None, event: bool) -> RungeKutta:
        return watched(self.method, watch, linear=self.interp == "linear" and (event or not self.on_outputs))

    def controller(
        self, call: Call, t: Tensor, start: float, sign: float, watch: Watch | None, dt: float | None
    ) -> "Fixed | _GridWalk":
        if sign == call.sign and not (self.on_outputs and len(t) == 2):
            return _GridWalk(self.points(call, t, sign), start)
        if self.grid_constructor is None:  # backward: each interval of the outputs ends a step
            return Fixed(dt=math.inf if self.step_size is None else float(self.step_size))
        intervals = itertools.pairwise(-t.detach().flip(0))
        return _GridWalk([p for ends in intervals for p in self.points(call, torch.stack(ends), sign)], start)

    def most_steps(self, t: Tensor) -> int:
        return 2**62


@dataclass(frozen=True)
class Implicit(Grid):
    """Fixed steps of an implicit method.

    Args:
        max_iters: The most iterations of Newton's method in a step; where they do not converge, the solve fails.
    """

    method: ImplicitRungeKutta
    max_iters: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "method", replace(self.method, max_iterations=self.max_iters))


class _GridWalk:
    """The controller of `Grid`: from point to point. Its memory is the time."""

    adaptive = False
    tunable = ()
    chooses_first_step = False

    def __init__(self, points: list[float], start: float) -> None:
        self.points, self.start = points, (start,)

    def given_step(self, t0: float, t1: float) -> float:
        return _to_next(self.points, t0)

    def first_step(self, start: Start) -> FirstStep:
        raise TypeError("the size of a fixed step is given")

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        raise TypeError("fixed steps are not judged")

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        t1 = memory[0] + dt
        return Decision(True, _to_next(self.points, t1), (t1,))


def _to_next(points: list[float], t: float) -> float:
    """How far it is from t to the next point; infinite after the last. A rounding error before one is at it."""
    for point in itertools.islice(points, bisect.bisect_right(points, t), None):
        if point - t > 1e-12 * max(abs(point), abs(t)):
            return point - t
    return math.inf


# Adams methods, in a loop of their own, differentiated by autograd.


@dataclass(frozen=True)
class ExplicitAdams(Grid):
    """Adams–Bashforth on a grid: the derivatives at the last points, after a start with the 3/8 rule.

    On an uneven grid the weights are those of the grid (torchdiffeq takes the even grid's).

    Args:
        max_order: One more than the most derivatives taken; at most 12. Below 4 every step is that of the 3/8 rule.
    """

    max_order: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_order <= 12:
            raise ValueError(f"`options` 'max_order' must be from 1 to 12, got {self.max_order}")
        if self.max_order < 4:
            warnings.warn(f"'max_order' {self.max_order} is below 4: every step is one of \"rk4\"", stacklevel=6)

    def solve(self, call: Call) -> Tensor:
        """The states at call.t, (T, *y0.shape)."""
        y, ys, history = call.y0, [call.y0], []
        for t0, t1 in itertools.pairwise(self.grid(call, call.t, call.sign).unbind()):
            f = Between(call.f, t0.item(), t1.item()) if self.perturb else call.f
            if call.watch is not None:
                call.watch.begin(t0, y, t1 - t0)
            history = [(t0.item(), f(t0.to(real_dtype(y)), y)), *history][: self.max_order - 1 or None]
            y1 = self._step(f, t0, t1, y, history)
            while len(ys) < len(call.t) and call.t[len(ys)] <= t1:
                ys.append(self._between(f, t0, t1, y, y1, history[0][1], call.t[len(ys)]))
            y = y1
        if not bool(torch.isfinite(y).all()):
            raise_failure(call, Failure(Status.NON_FINITE_STATE, call.t[-1].item(), 0.0, ""), Stats())
        return torch.stack(ys)

    def _step(self, f: Field, t0: Tensor, t1: Tensor, y: Tensor, history: list[tuple[float, Tensor]]) -> Tensor:
        if len(history) < 3:
            return self.method.step(f, t0, y, t1 - t0, history[0][1]).y
        return y + self._increment(t0, t1, history)

    def _increment(self, t0: Tensor, t1: Tensor, history: Sequence[tuple[float, Tensor]]) -> Tensor:
        """∫ f dt over the step, by the polynomial through the derivatives."""
        times, slopes = zip(*history)
        rounding = torch.finfo(t0.dtype).eps
        weights = adams_weights(step_nodes(times, t0.item(), t1.item() - t0.item(), rounding))
        return combine(None, (t1 - t0).to(real_dtype(slopes[0])), weights, slopes)

    def _between(self, f: Field, t0: Tensor, t1: Tensor, y: Tensor, y1: Tensor, f0: Tensor, t: Tensor) -> Tensor:
        if t == t1:
            return y1
        dt, theta = (t1 - t0).to(real_dtype(y)), ((t - t0) / (t1 - t0)).to(real_dtype(y))
        if self.interp == "linear":
            return y + theta * (y1 - y)
        f1 = f(t1.to(real_dtype(y)), y1)
        rise = y1 - y
        return y + theta * (dt * f0 + theta * (3 * rise - dt * (2 * f0 + f1) + theta * (dt * (f0 + f1) - 2 * rise)))


@dataclass(frozen=True)
class ImplicitAdams(ExplicitAdams):
    """Adams–Moulton, started from Adams–Bashforth and iterated.

    Args:
        max_iters: The most iterations of a step; where they do not converge to `rtol` and `atol`, a warning says so.
        implicit: False for `ExplicitAdams`.
    """

    max_iters: int = 4
    implicit: bool = True

    def _step(self, f: Field, t0: Tensor, t1: Tensor, y: Tensor, history: list[tuple[float, Tensor]]) -> Tensor:
        y1 = super()._step(f, t0, t1, y, history)
        if len(history) < 3 or not self.implicit:
            return y1
        for _ in range(self.max_iters):
            before = y1 - y
            f1 = f(t1.to(real_dtype(y)), y1)
            change = self._increment(t0, t1, [(t1.item(), f1), *history])
            y1 = y + change
            scale = self.atol + self.rtol * torch.maximum(before.abs(), change.abs())
            if bool(((change - before).abs() < scale).all()):
                return y1
        warnings.warn(
            f"implicit_adams did not converge in {self.max_iters} iterations at t = {t0.item():g}: take smaller steps, "
            "looser tolerances, or a larger 'max_iters'",
            stacklevel=6,
        )
        history.pop()  # go on with one derivative less, as torchdiffeq does
        return y1


# SciPy.


@dataclass(frozen=True)
class Scipy:
    """`scipy.integrate.solve_ivp`, outside of autograd.

    Args:
        solver: The name of its method. min_step, max_step: Bounds of its steps; it honours the first with "LSODA" only.
    """

    method: Any  # without effect
    rtol: Any
    atol: Any
    solver: str = "LSODA"
    min_step: float = 0.0
    max_step: float = math.inf
    grid_points: Any = None  # without effect in torchdiffeq too
    eps: Any = None

    def solve(self, call: Call) -> Tensor:
        """The states at call.t, (T, *y0.shape)."""
        try:
            from scipy.integrate import solve_ivp  # noqa: PLC0415 — scipy is optional
        except ImportError as error:
            raise ImportError('`method` "scipy_solver" needs SciPy: pip install scipy') from error
        self._refuse_gradient(call)
        y0, t = call.y0.detach(), call.t.detach().to(torch.float64).cpu().numpy()
        if len(t) == 1:
            return y0[None].clone()

        @torch.no_grad()
        def f(time: float, y: Any) -> Any:
            state = torch.as_tensor(y, device=y0.device).to(y0.dtype).reshape(y0.shape)
            out = call.f(torch.tensor(time, dtype=real_dtype(y0), device=y0.device), state)
            return out.cpu().numpy().reshape(-1)

        settings: dict[str, Any] = {"rtol": self._flat(self.rtol, y0), "atol": self._flat(self.atol, y0)}
        settings |= {"max_step": self.max_step} | ({"min_step": self.min_step} if self.min_step else {})
        start = y0.cpu().numpy().reshape(-1)
        found = solve_ivp(f, (t[0], t[-1]), start, method=self.solver, t_eval=t, **settings)
        if not found.success:
            raise RuntimeError(f"SciPy's {self.solver} failed: {found.message}")
        return torch.as_tensor(found.y.T.copy(), device=y0.device).to(y0.dtype).reshape(-1, *y0.shape)

    @staticmethod
    def _flat(tolerance: Any, y0: Tensor) -> Any:
        if not isinstance(tolerance, Tensor):
            return tolerance
        return tolerance.expand(y0.shape).reshape(-1).double().cpu().numpy()

    @staticmethod
    def _refuse_gradient(call: Call) -> None:
        if not torch.is_grad_enabled():
            return
        f0 = call.f(call.t[0].detach().to(real_dtype(call.y0)), call.y0.detach())
        wanting = {"`y0`": call.y0, "`t`": call.t, "a tensor that `func` reaches": f0}
        lost = [name for name, tensor in wanting.items() if tensor.requires_grad]
        if lost:
            raise LostGradientError(
                f'`method` "scipy_solver" has no gradient, and {" and ".join(lost)} requires grad: solve inside of '
                'torch.no_grad(), or take another method, such as "dopri5"'
            )
