"""Step size policy: accept the step or not, and how long the next one is. No mathematics of the ODE here.

The policy is written once for numbers and for tensors: the eager loop decides with Python floats, one host read a
step; the compiled loop and the loop with a step size for each sample decide with float64 tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets import tolerance
from odenets.arguments import count, number, shown
from odenets.methods import Field, combine, stage_times, wide

Number = Any  # a Python float, or a float64 tensor: 0-dimensional, or (batch, 1, …, 1) with a step size each
Norm = Callable[[Tensor], Tensor]  # the size of a state
Read = Callable[[Tensor], Any]  # the entries of a tensor as numbers of the loop's kind


def rms(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """The root mean square, real: over all elements, or over some dimensions, which are kept with size 1."""
    if dims == ():  # which PyTorch takes for all
        return x.abs()
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=dims is not None)
    return norm / _root(x.numel() // max(norm.numel(), 1), x)


def rms_of_any_size(x: Tensor) -> Tensor:
    """`rms` over all elements where a square may be too large or too small for a number."""
    x = x.abs().to(torch.float32 if x.device.type == "mps" else torch.float64)
    largest = x.max() if x.numel() else x.sum()
    return largest * rms(x / largest.clamp(min=torch.finfo(x.dtype).tiny))


_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # since torch 2.7


def _root(count: Any, like: Tensor) -> Any:
    if isinstance(count, int) and not _is_exporting():  # ONNX has no root of a size
        return math.sqrt(max(count, 1))
    return torch.full((), count, dtype=torch.float64, device=like.device).sqrt()  # a size that a loop leaves open


def where(condition: Any, a: Number, b: Number) -> Number:
    """a where the condition holds, else b: for numbers and for tensors."""
    if isinstance(condition, Tensor):
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            a = torch.full((), a, dtype=torch.float64, device=condition.device)  # else it would be float32
        return torch.where(condition, a, b)
    return a if condition else b


def maximum(a: Number, b: float) -> Number:
    """The larger of a and the number b; NaN stays NaN."""
    if isinstance(a, Tensor):
        return a.clamp(min=b)
    return a if a >= b or a != a else b


def minimum(a: Number, b: Number) -> Number:
    """The smaller of the two; NaN stays NaN."""
    if isinstance(a, Tensor):
        return a.clamp(max=b)
    return a if a <= b or a != a else b


_FINER = 16.0  # times the rounding error of half precision that tolerances may be


class Decision(NamedTuple):
    """What the controller makes of a step that was tried."""

    accept: Any  # bool, or a tensor of them
    dt: Number  # the next step size: of the next step if accepted, of the same step again if not
    memory: tuple[Number, ...]  # the controller's own, handed back at the next step


class Start(NamedTuple):
    """The start of a solve, of which the first step is chosen."""

    f: Field
    y0: Tensor
    f0: Tensor  # f(t0, y0)
    t0: Number  # as f gets it
    span: Number  # the length of the interval, > 0; may be infinite
    order: int  # of the method
    norm: Norm = rms
    read: Read = Tensor.tolist


class FirstStep(NamedTuple):
    """The size of the first step, and that of y0 in units of the tolerance."""

    dt: Number
    size: Number


class Controller(Protocol):
    """What the loop asks of a controller."""

    @property
    def adaptive(self) -> bool:
        """Whether steps are judged by their error; if not, every step is accepted and nothing is read back."""
        ...

    @property
    def start(self) -> tuple[float, ...]:
        """The memory before the first step."""
        ...

    @property
    def share(self) -> float:
        """What part of a change of the interval's length each step takes."""
        ...

    @property
    def tunable(self) -> tuple[str, ...]:
        """Its numbers that a compiled loop takes as inputs, so that changing them recompiles nothing."""
        ...

    @property
    def chooses_first_step(self) -> bool:
        """Whether `first_step` is to be asked; if not, `given_step` says it."""
        ...

    def given_step(self, t0: float, t1: float) -> float:
        """The size of the first step of a solve from t0 to t1 > t0, where it is given."""
        ...

    def first_step(self, start: Start) -> FirstStep:
        """The size of the first step, made from the problem; not finite where f0 is not."""
        ...

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = ...) -> Tensor:
        """The size of the error in units of the tolerance."""
        ...

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        """Judge a step of size dt whose error, in units of the tolerance, was `ratio`."""
        ...


def choose_first_step(start: Start, scale: Tensor, dt_max: float, unit: Number = None) -> FirstStep:
    """The first step as in Hairer, Nørsett and Wanner II.4, for one evaluation of f; `scale` is the tolerance at y0.

    Their formula adds up quantities of different dimensions, so it depends on the unit of time. None takes the time in
    which y0 would change by its own size; where that says nothing, the interval.
    """
    f, y0, f0, t0, span, order, norm, read = start
    d0, d1 = read(torch.stack([norm(wide(y0) / scale), norm(wide(f0) / scale)]))
    longest = minimum(span, dt_max)
    small = (d0 < 1e-5) | (d1 * (longest if unit is None else unit) < 1e-5)
    own = d0 / maximum(d1, 1e-300)
    unit = where(small, longest, own) if unit is None else unit
    h0 = minimum(where(small, 1e-6 * unit, 0.01 * own), longest)
    (t_trial,) = stage_times(t0, h0, (1.0,), y0)
    f1 = f(t_trial, combine(y0, h0, (1.0,), (f0,)))
    (d2,) = read(norm(wide(f1 - f0) / scale)[None])
    d2 = d2 / maximum(h0, 1e-300)  # h0 is 0 where f0 is infinite
    largest = maximum(d1 * unit, d2 * unit * unit)
    guess = (0.01 / maximum(largest, 1e-300)) ** (1 / order) * unit
    h1 = where(largest <= 1e-15, maximum(h0 * 1e-3, 1e-6 * unit), guess)
    dt = minimum(minimum(100 * h0, h1), longest)
    # Where the trial left f's domain, start carefully: the controller grows dt soon. NaN where f0 is not finite.
    dt = where(d2 < math.inf, dt, h0 * 1e-3)
    return FirstStep(where(d1 < math.inf, dt, math.nan), d0)


@dataclass(frozen=True)
class PID:
    """Adaptive steps by proportional, integral and derivative feedback on the error (the default).

    A step is accepted when its error estimate e satisfies rms(e / (atol + rtol max(|y|, |y1|))) ≤ 1, the mean
    taken over all elements of the state: the whole batch shares one step size. With `per_sample=True` the mean is
    taken over each sample's own elements. The next step is
    dt · safety · r_n^(−β1) · r_(n−1)^(−β2) · r_(n−2)^(−β3), with r the ratios of the last accepted steps and β made
    from `p`, `i` and `d` as in Söderlind, "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003), where the
    error of a step is taken as O(dt^order).

    When to use: always, except to reproduce a residual network or to spend a fixed budget (`Fixed`).
    The first step is chosen as in Hairer, Nørsett and Wanner II.4 and costs one evaluation of f.

    Args:
        rtol, atol: Relative and absolute tolerance of a step's error, in the units of y: numbers; or one for each
            component, as a tensor that broadcasts against y0 (with `per_sample` too: y0 has the samples along its first
            axis), or a nest like y0 of numbers and tensors.
        p, i, d: Feedback coefficients. (0, 1, 0) is the classical controller; (0.4, 0.3, 0) smooths the step sizes
            where steps are often rejected.
        safety: Aim below the tolerance by this factor.
        factor_min, factor_max: Bounds of the change from one step to the next.
        dt0: The first step (`first_step` elsewhere); None to choose it.
        dt_max: Bound of the step size.
        dt_min: The shortest step that is tried, in the units of t. Where the error asks for a shorter one, the solve
            fails with the status `DT_MIN`; nothing is accepted against its error. Only a step that is cut to end on a
            stop or on the last time is shorter.
        norm: The size of the error in units of the tolerance, instead of its root mean square: a function of a state,
            of y0's structure, that returns a number; such as `lambda e: e.abs().max()`, by which each component keeps
            its tolerance. With `per_sample` it gets one sample. In `Backsolve`, whose state is y and its adjoint, the
            larger of the two counts.

    Raises:
        TypeError, ValueError: If an argument is not as described; in the solve, if a tolerance has not y0's structure.
    """

    rtol: Any = 1e-3
    atol: Any = 1e-6
    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    dt0: float | None = None
    dt_max: float = math.inf
    dt_min: float = 0.0
    norm: Callable[[Any], Any] | None = None

    adaptive = True
    share = 0.0

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            object.__setattr__(self, name, tolerance.given(name, getattr(self, name)))
        if not self.by_component:
            _keep_number(self, "rtol", "above 0 where `atol` is 0", lambda x: x > 0 or self.atol > 0)
        for name in ("p", "i", "d"):
            _keep_number(self, name, "a finite number", math.isfinite)
        _keep_number(self, "safety", "in (0, 1]", lambda x: 0 < x <= 1)
        _keep_number(self, "factor_min", "in (0, 1)", lambda x: 0 < x < 1)
        _keep_number(self, "factor_max", "above 1", lambda x: x > 1)
        if self.dt0 is not None:
            _keep_number(self, "dt0", "None or a number above 0", lambda x: 0 < x < math.inf)
        _keep_number(self, "dt_max", "a number above 0", lambda x: x > 0)
        most = min(self.dt_max, self.dt0 or math.inf)
        _keep_number(
            self, "dt_min", "a number ≥ 0, no larger than `dt_max` and `dt0`", lambda x: 0 <= x <= most and x < math.inf
        )
        if self.norm is not None and not callable(self.norm):
            raise TypeError(f"`norm` must be None or a function of a state, got {shown(self.norm)}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @property
    def _values(self) -> tuple[Any, ...]:
        """What tells one from another: tensors by their numbers."""
        return tuple(vars(self).values()) if not self.by_component else tuple(map(_comparable, vars(self).values()))

    @property
    def by_component(self) -> bool:
        """Whether a tolerance is one for each component."""
        return not (tolerance.is_one_number(self.rtol) and tolerance.is_one_number(self.atol))

    @property
    def tunable(self) -> tuple[str, ...]:
        names = ("rtol", "atol", "safety", "factor_min", "factor_max", "dt_max", "dt_min")
        return tuple(name for name in names if not isinstance(getattr(self, name), Tensor))

    def of_state(self, y0: Tensor, split: Callable[[Tensor], Any], per_sample: bool) -> "PID":
        """The same for a state that is one tensor, to which `split` gives the caller's structure.

        Raises:
            ValueError: If a tolerance has not that structure.
        """
        own: dict[str, Any] = {}
        if self.by_component:
            rtol, atol = (tolerance.of_components(name, getattr(self, name), y0, split) for name in ("rtol", "atol"))
            if not bool(torch.as_tensor(rtol + atol > 0).all()):
                raise ValueError("`rtol` must be above 0 wherever `atol` is 0, and in some component both are 0")
            own = {"rtol": rtol, "atol": atol}
        if self.norm is not None:
            own["norm"] = tolerance.NormOfState(self.norm, split, per_sample)
        return replace(self, **own) if own else self

    @property
    def start(self) -> tuple[float, ...]:
        return (1.0,) * (2 if self.d != 0 else 1 if self.p != 0 else 0)

    @property
    def chooses_first_step(self) -> bool:
        return self.dt0 is None

    def given_step(self, t0: float, t1: float) -> float:
        return min(self.dt0 or math.inf, self.dt_max)

    def first_step(self, start: Start) -> FirstStep:
        scale = self.scale(wide(start.y0).abs())
        # Without `atol` a component that is 0 has no scale: it says nothing.
        scale = torch.where(scale > 0, scale, math.inf)
        dt, size = choose_first_step(start._replace(norm=self.norm or start.norm), scale, self.dt_max)
        return FirstStep(maximum(dt, self.dt_min), size)

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        scale = self.scale(torch.maximum(wide(y).abs(), wide(y1).abs()))
        if isinstance(self.atol, Tensor) or self.atol == 0:
            scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)  # the error of a component that stays 0 is 0
        return (self.norm or norm)(wide(error) / scale)

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        accept = ratio <= 1
        ratios = (maximum(ratio, 1e-10), *memory)
        betas = (self.p + self.i + self.d, -(self.p + 2 * self.d), self.d)
        factor = self.safety
        for r, beta in zip(ratios, betas):
            if beta != 0:
                factor = factor * r ** (-beta / order)
        factor = minimum(maximum(factor, self.factor_min), where(accept, self.factor_max, 1.0))
        factor = where(ratio < math.inf, factor, self.factor_min)  # the step led out of f's domain
        memory = tuple(where(accept, new, old) for new, old in zip(ratios, memory))
        return Decision(accept, minimum(maximum(dt * factor, self.dt_min), self.dt_max), memory)

    def check_resolution(self, size: float, dtype: torch.dtype) -> None:
        """Refuse tolerances below the rounding error of a state of that size (in units of the tolerance).

        Half precision is f's alone, and its rounding errors weigh the less the shorter the steps are.
        """
        half = torch.finfo(dtype).bits == 16
        rounding = torch.finfo(dtype).eps / 2
        if size * rounding > (_FINER if half else 1):
            asked = "`rtol` and `atol`" if self.by_component else f"`rtol` = {self.rtol:g} and `atol` = {self.atol:g}"
            raise ValueError(
                f"{asked} ask for {size * rounding:.3g} times the accuracy that y's dtype {dtype} can represent: give "
                f"at least `rtol={rounding if half else 4 * rounding:.0e}`, or solve in float64"
            )

    def scale(self, magnitude: Tensor) -> Tensor:
        """The tolerance for a state of that magnitude."""
        if not isinstance(self.rtol, Tensor) and not isinstance(self.atol, Tensor):
            return magnitude.mul(self.rtol).add_(self.atol)
        # One for each component; or in a compiled loop, where tolerances are inputs.
        rtol, atol = (x.to(magnitude.dtype) if isinstance(x, Tensor) else x for x in (self.rtol, self.atol))
        return atol + rtol * magnitude


def _comparable(value: Any) -> Any:
    leaves, structure = pytree.tree_flatten(value)
    return repr(structure), *((x.shape, *x.flatten().tolist()) if isinstance(x, Tensor) else x for x in leaves)


@dataclass(frozen=True)
class Fixed:
    """Steps of one size, none of them judged: nothing is read back from the device while solving.

    When to use: to reproduce a residual network (Euler, dt = 1), for a fixed budget of evaluations, for methods
    without an error estimate. When not: where you do not know how large a step the field allows; nothing here
    notices a step that is too large, unless the state stops being finite.

    Args:
        dt: The step size, in the units of t; the last step is shortened to end on the last time.
        steps: Instead of `dt`: the number of equal steps from the first time to the last, wherever the outputs lie.
    """

    dt: float | None = None
    steps: int | None = None

    adaptive = False
    chooses_first_step = False
    start = ()
    tunable = ()

    def __post_init__(self) -> None:
        if (self.dt is None) == (self.steps is None):
            raise TypeError(f"Fixed takes either `dt` or `steps`, got dt={shown(self.dt)}, steps={shown(self.steps)}")
        if self.dt is not None:
            _keep_number(self, "dt", "a number above 0 (backward in time too)", lambda x: 0 < x < math.inf)
        elif type(self.steps) is not int or self.steps < 1:
            object.__setattr__(self, "steps", count("steps", self.steps))

    @property
    def share(self) -> float:
        return 0.0 if self.steps is None else 1 / self.steps

    def given_step(self, t0: float, t1: float) -> float:
        return (t1 - t0) / self.steps if self.steps is not None else float(self.dt or 0)

    def first_step(self, start: Start) -> FirstStep:
        raise TypeError("the size of a fixed step is given")

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        raise TypeError("Fixed judges no step")

    def decide(self, ratio: Number, dt: Number, memory: tuple[Number, ...], order: int) -> Decision:
        return Decision(True, dt, memory)


def _keep_number(controller: object, name: str, allowed: str, holds: Callable[[float], bool]) -> None:
    """Check a number of a controller, which keeps it as Python's."""
    given = getattr(controller, name)
    value = number(name, given, allowed, holds)
    if value is not given:
        object.__setattr__(controller, name, value)  # the controller is frozen, and still being made
