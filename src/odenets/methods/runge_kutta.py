"""Runge–Kutta methods: one step is one pure function of tensors, a method is data that checks itself.

What all of them share, and the explicit ones; the implicit ones are in `odenets.methods.implicit`.

Notation and the order conditions are those of Hairer, Nørsett and Wanner, *Solving Ordinary Differential
Equations I* (1993), chapter II.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from odenets.transforms import active

Field = Callable[[Tensor, Tensor], Tensor]  # f(t, y): t 0-dimensional in y's real dtype, y and f of one shape

Inner = Callable[[Tensor, Tensor], Tensor]  # the real inner product of two states


class Pull(Protocol):
    """From ∂L/∂f(t, y): ∂L/∂y and ∂L/∂t (0 where nobody asks); it adds up the gradients to other tensors itself.

    With `last=False` ∂L/∂y alone is meant: nothing is added up, and it may be called again.
    """

    def __call__(self, k_bar: Tensor, /, *, last: bool = True) -> tuple[Tensor, Any]: ...


Linearize = Callable[[Tensor, Tensor], tuple[Tensor, Pull]]  # f(t, y) and its pullback


@dataclass(frozen=True)
class Since:
    """A time counted from an origin.

    The origin is added last, so that the end of a step and the start of the next are one time, far from zero too.
    """

    origin: float | Tensor
    t: float | Tensor

    def __add__(self, dt: float | Tensor) -> "Since":
        return Since(self.origin, self.t + dt)

    @property
    def absolute(self) -> float | Tensor:
        return self.origin + self.t


Time = float | Tensor | Since


class Step(NamedTuple):
    """One step that was tried: where it leads, and the stages it was made of."""

    y: Tensor  # the candidate for y(t + dt), of y's shape
    stages: tuple[Tensor, ...]  # k_1 … k_s, each of y's shape; then f1 where it has been evaluated
    t1: Tensor  # t + dt as f receives it
    complete: bool = False  # whether f1 is among the stages

    def with_f1(self, f: Field) -> "Step":
        """The step with f1 = f(t1, y) among its stages, evaluated once."""
        return self if self.complete else self._replace(stages=(*self.stages, f(self.t1, self.y)), complete=True)


@dataclass(frozen=True)
class RungeKutta:
    """A Runge–Kutta method with s stages, as a tableau: what its explicit and its implicit kind have in common.

    `k_i = f(t + c_i dt, y + dt Σ_j a_ij k_j)` and `y1 = y + dt Σ_i b_i k_i`. The derivative at the end of the
    step, `f1 = f(t + dt, y1)`, counts as stage s + 1: it is the first stage of the next step, the error
    estimate may weigh it, and the continuous extension needs it. So every method here is "first same as last".
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    b_error: tuple[float, ...] | None = None
    dense_correction: tuple[float, ...] | None = field(default=None, repr=False)
    dense: tuple[tuple[float, float, float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "dense", self._dense())

    def _check(self) -> None:
        s = len(self.b)
        self._require(len(self.a) == len(self.c) == s, "`a`, `b` and `c` must have one entry a stage")
        for i, row in enumerate(self.a):
            expected = self._row_length(i)
            self._require(len(row) == expected, f"row {i} of `a` must have {expected} entries, has {len(row)}")
            self._require(close(sum(row), self.c[i]), f"row {i} of `a` sums to {sum(row)}, `c` is {self.c[i]}")
        self._require(close(sum(self.b), 1), f"`b` must sum to 1, sums to {sum(self.b)}")
        for label, weights in (("b_error", self.b_error), ("dense_correction", self.dense_correction)):
            if weights is not None:
                self._require(len(weights) == s + 1, f"`{label}` must have {s + 1} entries, has {len(weights)}")
                self._require(close(sum(weights), 0), f"`{label}` must sum to 0, sums to {sum(weights)}")

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"tableau {self.name!r}: {message}")

    def _row_length(self, i: int) -> int:
        """How many entries row i of `a` has."""
        raise NotImplementedError

    @property
    def adaptive(self) -> bool:
        """Whether the method estimates its error, and so can choose its own step size."""
        return self.b_error is not None

    @property
    def nodes(self) -> tuple[float, ...]:
        """The s nodes, and 1 for f1."""
        return (*self.c, 1.0)

    @property
    def error_needs_f1(self) -> bool:
        """Whether the error estimate weighs the derivative at the end of the step."""
        return self.b_error is not None and self.b_error[-1] != 0

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, f0: Tensor | None) -> Step:
        """The step from y(t) to y(t + dt); `f0` is f(t, y) where it is known already, else None."""
        raise NotImplementedError

    def stage_input(self, i: int, y: Tensor, dt: float | Tensor, stages: Sequence[Tensor]) -> Tensor:
        """The state at which stage i is f: y + dt Σ_j a_ij k_j; for i = s the end of the step."""
        weights = self.b if i == len(self.b) else self.a[i]
        return combine(y, dt, weights, stages[: len(weights)]) if any(weights) else y

    def solved_stages(self, f: Field, t: Time, y: Tensor, dt: float | Tensor) -> Sequence[Tensor] | None:
        """The stages, where they have to be known before f can be linearized at them; else None."""
        return None

    def linearize(
        self,
        linearize: Linearize,
        t: Time,
        y: Tensor,
        dt: float | Tensor,
        *,
        with_f1: bool,
        stages: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Pull]]:
        """The stages of a step, and for each the pullback of f there; made from `stages` where those are known.

        Where `solved_stages` gives some, they have to be known.
        """
        raise NotImplementedError

    def pullback(
        self,
        pulls: Sequence[Pull],
        y: Tensor,
        dt: float | Tensor,
        stages: Sequence[Tensor],
        cotangent: Tensor,
        stage_cotangents: Sequence[Tensor] | None = None,
        inner: Inner | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """The step in reverse: ∂L/∂y, and ∂L/∂t and ∂L/∂dt where `inner` is given (else zeros).

        Args:
            pulls: The pullback of f at each stage, of `linearize`.
            y, dt, stages: The step.
            cotangent: ∂L/∂y1.
            stage_cotangents: ∂L/∂k_i of the s + 1 stages, where outputs inside the step depend on them.
            inner: The inner product that the gradients to the times are made with.
        """
        raise NotImplementedError

    def pull_output(
        self,
        dt: float | Tensor,
        stages: Sequence[Tensor],
        theta: float | Tensor,
        cotangent: Tensor,
        inner: Inner | None = None,
    ) -> tuple[list[Tensor], Any, Any]:
        """The interpolation in reverse: ∂L/∂k_i of the s + 1 stages, and ∂L/∂t_out = −∂L/∂t and ∂L/∂dt.

        ∂L/∂y is the cotangent itself. The times' gradients are zeros where `inner` is not given.
        """
        weights = self.dense_weights(theta)
        scales = [dt * w for w in weights]
        bars = [cotangent * (c.to(cotangent.dtype) if isinstance(c, Tensor) else c) for c in scales]
        if inner is None:
            return bars, 0.0, 0.0
        rise = inner(cotangent, self.slope(stages, theta))
        level = inner(cotangent, combine(None, 1.0, weights, stages))
        return bars, rise, level - theta * rise

    def error(self, dt: float | Tensor, stages: Sequence[Tensor]) -> Tensor:
        """The estimate of the step's local error, of y's shape; `stages` with f1 at its end."""
        if self.b_error is None:
            raise ValueError(f"method {self.name!r} has no error estimate")
        return combine(None, dt, self.b_error, stages)

    def interpolate(self, y: Tensor, dt: float | Tensor, stages: Sequence[Tensor], theta: float | Tensor) -> Tensor:
        """y(t + θ dt) for 0 ≤ θ ≤ 1, of y's shape, at the order of the method; `stages` with f1 at its end."""
        return combine(y, dt, self.dense_weights(theta), stages)

    def slope(self, stages: Sequence[Tensor], theta: float | Tensor) -> Tensor:
        """The derivative of the continuous extension, dy/dt at t + θ dt."""
        return combine(None, 1.0, self.dense_slopes(theta), stages)

    def dense_weights(self, theta: float | Tensor) -> list:
        """b_i(θ), the weights of the continuous extension y(t + θ dt) = y + dt Σ_i b_i(θ) k_i."""
        return [_horner(row, theta) for row in self.dense]

    def dense_slopes(self, theta: float | Tensor) -> list:
        """db_i/dθ: y'(t + θ dt) = Σ_i b_i'(θ) k_i on the continuous extension."""
        return [c1 + theta * (2 * c2 + theta * (3 * c3 + theta * 4 * c4)) for c1, c2, c3, c4 in self.dense]

    def _dense(self) -> tuple[tuple[float, float, float, float], ...]:
        """The coefficients of θ, θ², θ³, θ⁴ in b_i(θ): s + 1 rows.

        Cubic Hermite interpolation through y, k_1, y1 and f1 (Hairer, Nørsett and Wanner, II.6), rewritten in
        the stages, plus the correction. Its error is O(dt⁴) without and O(dt⁵) with the correction.
        """
        rows = [[0.0, 3 * b_i, -2 * b_i, 0.0] for b_i in (*self.b, 0.0)]
        for i, hermite in ((0, (1, -2, 1)), (-1, (0, -1, 1))):
            for power, coefficient in enumerate(hermite):
                rows[i][power] += coefficient
        for row, d_i in zip(rows, self.dense_correction or [0.0] * len(rows)):
            for power, coefficient in enumerate((0, 1, -2, 1)):
                row[power] += coefficient * d_i
        return tuple((row[0], row[1], row[2], row[3]) for row in rows)


@dataclass
class PullBack:
    """∂L/∂(the state at which stage i is f) from ∂L/∂k_i; ∂L/∂t and ∂L/∂dt, where `inner` is given, add up beside."""

    method: RungeKutta
    pulls: Sequence[Pull]
    stages: Sequence[Tensor]
    inner: Inner | None
    t_bar: Any = 0.0
    dt_bar: Any = 0.0

    def __call__(self, i: int, k_bar: Tensor) -> Tensor:
        bar, time_bar = self.pulls[i](k_bar)
        if self.inner is not None:
            self.t_bar = self.t_bar + time_bar
            self.dt_bar = self.dt_bar + self.method.nodes[i] * time_bar
            if i < len(self.method.b) and any(self.method.a[i]):
                self._add(bar, self.method.a[i], self.inner)
        return bar

    def end(self, cotangent: Tensor) -> None:
        """What the end of the step, whose ∂L/∂y1 this is, gives to ∂L/∂dt."""
        if self.inner is not None:
            self._add(cotangent, self.method.b, self.inner)

    def _add(self, bar: Tensor, weights: Sequence[float], inner: Inner) -> None:
        self.dt_bar = self.dt_bar + inner(bar, combine(None, 1.0, weights, self.stages))


@dataclass(frozen=True)
class ExplicitRungeKutta(RungeKutta):
    """An explicit Runge–Kutta method with s stages, as a tableau.

    `k_i = f(t + c_i dt, y + dt Σ_j a_ij k_j)` with j < i, and `y1 = y + dt Σ_i b_i k_i`; f1 = f(t + dt, y1) counts as
    stage s + 1.

    When to use: always, unless the problem is stiff: see `ImplicitRungeKutta`.

    Args:
        name: The name in `METHODS`.
        order: The order p: the global error is O(dt^p).
        a: The s rows of the strictly lower triangle; row i has i entries.
        b: The s weights of the solution.
        c: The s nodes.
        b_error: The s + 1 weights of the error estimate, b − b̂ with b̂ of order p − 1; None where the method
            has no embedded partner and so cannot adapt its step.
        dense_correction: s + 1 weights d that lift the cubic Hermite interpolant to
            `hermite(θ) + θ²(1 − θ)² dt Σ_i d_i k_i`; None where the cubic is accurate enough (order ≤ 4).

    Raises:
        ValueError: If the coefficients contradict each other.

    Source: Hairer, Nørsett and Wanner, chapter II; the step in reverse is the transpose of the tableau: Hager,
    "Runge–Kutta methods in optimal control and the transformed adjoint system", Numer. Math. 87 (2000).
    """

    def _row_length(self, i: int) -> int:
        return i

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, f0: Tensor | None) -> Step:
        times = stage_times(t, dt, self.nodes, y)
        stages = [f(times[0], y) if f0 is None else f0]
        for a_i, t_i in zip(self.a[1:], times[1:-1]):
            stages.append(f(t_i, combine(y, dt, a_i, stages)))
        return Step(combine(y, dt, self.b, stages), tuple(stages), times[-1])

    def linearize(
        self,
        linearize: Linearize,
        t: Time,
        y: Tensor,
        dt: float | Tensor,
        *,
        with_f1: bool,
        stages: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Pull]]:
        known: list[Tensor] = []
        pulls: list[Pull] = []
        times = stage_times(t, dt, self.nodes, y)
        for i, t_i in enumerate(times if with_f1 else times[:-1]):
            k, pull = linearize(t_i, self.stage_input(i, y, dt, known))
            known.append(k if stages is None else stages[i])
            pulls.append(pull)
        return known, pulls

    def pullback(
        self,
        pulls: Sequence[Pull],
        y: Tensor,
        dt: float | Tensor,
        stages: Sequence[Tensor],
        cotangent: Tensor,
        stage_cotangents: Sequence[Tensor] | None = None,
        inner: Inner | None = None,
    ) -> tuple[Tensor, Any, Any]:
        s = len(self.b)
        pull = PullBack(self, pulls, stages, inner)
        if stage_cotangents is not None:
            cotangent = cotangent + pull(s, stage_cotangents[s])
        pull.end(cotangent)
        bars: list[Tensor] = []  # ∂L/∂Y_j for the stages j > i, the last first
        total = cotangent
        for i in reversed(range(s)):
            weights = (self.b[i], *(self.a[j][i] for j in reversed(range(i + 1, s))))
            given = None if stage_cotangents is None else stage_cotangents[i]
            if given is None and not any(weights):
                bars.append(torch.zeros_like(y))
                continue
            bars.append(pull(i, combine(given, dt, weights, (cotangent, *bars))))
            total = total + bars[-1]
        return total, pull.t_bar, pull.dt_bar


def stage_times(t: Time, dt: float | Tensor, nodes: Sequence[float], y: Tensor) -> Sequence[Tensor]:
    """t + c dt for each node c, in y's real dtype; sums are made in float64. 0-dimensional, or of t's shape."""
    dtype = real_dtype(y)
    origin, t = (t.origin, t.t) if isinstance(t, Since) else (0.0, t)
    different = set(nodes)
    if isinstance(t, float) and isinstance(dt, float) and isinstance(origin, float):
        if y.is_cpu and len(different) > _FEW_NODES:
            return torch.tensor([origin + (t + c * dt) for c in nodes], dtype=dtype).unbind()
        # A fill is a kernel of the device's own; for a copy to the device the host would wait at every step.
        at = {c: filled((), origin + (t + c * dt), y) for c in different}
    else:
        at = {c: torch.as_tensor(origin + (t + c * dt)).to(dtype) for c in different}
    return [at[c] for c in nodes]


_FEW_NODES = 3  # a tensor made of a Python list takes as long on a CPU as three that are filled


def filled(shape: Sequence[int], value: float, y: Tensor) -> Tensor:
    """That value in y's real dtype, everywhere; infinite where float16 has no such number."""
    dtype = real_dtype(y)
    wide = torch.float64 if dtype == torch.float16 else dtype  # a GPU refuses to fill what overflows
    return torch.full(shape, value, dtype=wide, device=y.device).to(dtype)


def real_dtype(y: Tensor) -> torch.dtype:
    """The dtype of a real number that goes with y: of t, for f."""
    return y.dtype.to_real() if y.dtype.is_complex else y.dtype


def combine(
    y: Tensor | None, dt: float | Tensor, weights: Sequence[float | Tensor], stages: Sequence[Tensor]
) -> Tensor:
    """y + dt Σ_i w_i k_i (without y: dt Σ_i w_i k_i); a weight that is the number 0 costs nothing.

    The sum is made first and added to y once: so it is not rounded to y's size stage by stage.
    """
    if isinstance(dt, Tensor) or any(isinstance(w, Tensor) for w in weights):
        return _combine_tensors(y, dt, weights, stages)
    # Dynamo traces through a cache, with a warning.
    largest, pivot, terms = (_split if torch.compiler.is_compiling() else _terms)(tuple(weights))
    if not largest or not dt:
        return torch.zeros_like(stages[0]) if y is None else y
    total = stages[pivot]
    in_place = len(terms) > 1 and not active()  # under `vmap` one stage may be mapped and another not
    for n, (i, ratio) in enumerate(terms):  # the first sum is a tensor of our own
        total = total.add_(stages[i], alpha=ratio) if n and in_place else torch.add(total, stages[i], alpha=ratio)
    scale: Any = dt * largest
    return total * scale if y is None else torch.add(y, total, alpha=scale)


def _split(weights: tuple[Any, ...]) -> tuple[float, int, list[tuple[int, Any]]]:
    """The largest weight, its place, and the others that are not 0 in units of it."""
    largest = max(weights, key=abs, default=0.0)
    pivot = weights.index(largest) if largest else 0
    return largest, pivot, [(i, w / largest) for i, w in enumerate(weights) if w and i != pivot]


_terms = functools.lru_cache(maxsize=1024)(_split)


def _combine_tensors(
    y: Tensor | None, dt: float | Tensor, weights: Sequence[float | Tensor], stages: Sequence[Tensor]
) -> Tensor:
    """y + dt Σ_i w_i k_i where dt or a weight is a tensor: differentiable, and one fused loop when compiled."""
    total = None
    for w, k in zip(weights, stages):
        if isinstance(w, Tensor) or w != 0:
            term = k * (w.to(k.dtype) if isinstance(w, Tensor) else w)
            total = term if total is None else total + term
    if total is None:
        return torch.zeros_like(stages[0]) if y is None else y
    total = total * (dt.to(total.dtype) if isinstance(dt, Tensor) else dt)
    return total if y is None else y + total


def _horner(row: tuple[float, ...], theta: float | Tensor) -> float | Tensor:
    c1, c2, c3, c4 = row
    return theta * (c1 + theta * (c2 + theta * (c3 + theta * c4)))


def close(value: float, target: float) -> bool:
    """Equal but for rounding."""
    return math.isclose(value, target, rel_tol=0, abs_tol=1e-12)


EULER = ExplicitRungeKutta("euler", order=1, a=((),), b=(1.0,), c=(0.0,))  # equation (1) of the introduction

MIDPOINT = ExplicitRungeKutta(
    "midpoint",
    order=2,
    a=((), (1 / 2,)),
    b=(0.0, 1.0),
    c=(0.0, 1 / 2),
    b_error=(-1.0, 1.0, 0.0),  # against Euler
)

HEUN = ExplicitRungeKutta(
    "heun",
    order=2,
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    c=(0.0, 1.0),
    b_error=(-1 / 2, 1 / 2, 0.0),  # against Euler
)

# Kutta (1901), the classical method.
RK4 = ExplicitRungeKutta(
    "rk4",
    order=4,
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
)

# Bogacki and Shampine, "A 3(2) pair of Runge–Kutta formulas", Appl. Math. Letters 2 (1989).
BOSH3 = ExplicitRungeKutta(
    "bosh3",
    order=3,
    a=((), (1 / 2,), (0.0, 3 / 4)),
    b=(2 / 9, 1 / 3, 4 / 9),
    c=(0.0, 1 / 2, 3 / 4),
    b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

# Dormand and Prince, "A family of embedded Runge–Kutta formulae", J. Comput. Appl. Math. 6 (1980);
# the continuous extension is the one of Hairer, Nørsett and Wanner's code DOPRI5 (II.6, after Shampine 1986).
DOPRI5 = ExplicitRungeKutta(
    "dopri5",
    order=5,
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    b_error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense_correction=(
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)

# Tsitouras, "Runge–Kutta pairs of order 5(4) satisfying only the first column simplifying assumption",
# Comput. Math. Appl. 62 (2011); its continuous extension, of order 4, as the correction of the cubic.
TSIT5 = ExplicitRungeKutta(
    "tsit5",
    order=5,
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
    ),
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
    b_error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    dense_correction=(
        -1.0530884977290216,
        0.1017,
        2.490627285651253,
        -16.548102889244902,
        47.37952196281928,
        -34.87065786149661,
        2.5,
    ),
)

# Heun (1900), the method of order 3 that bears his name: Hairer, Nørsett and Wanner, II.1.
HEUN3 = ExplicitRungeKutta(
    "heun3", order=3, a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), c=(0.0, 1 / 3, 2 / 3)
)

# Kutta (1901), the "3/8 rule": a smaller error than the classical method, for one more product a step.
RK4_38 = ExplicitRungeKutta(
    "rk4_38",
    order=4,
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    c=(0.0, 1 / 3, 2 / 3, 1.0),
)

# Fehlberg, "Low-order classical Runge–Kutta formulas with stepsize control", NASA TR R-315 (1969): RK1(2), of which
# the second order is carried on. Fehlberg's own estimate, (−1/512, 0, 1/512), is the error of a first order that was
# made 256 times better than Euler's: it says nothing of the second, and lets steps grow until that is unstable. So the
# estimate here is against Euler, as for "midpoint" and "heun"; the drop-in keeps Fehlberg's. For old code alone.
FEHLBERG2 = ExplicitRungeKutta(
    "fehlberg2",
    order=2,
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    c=(0.0, 1 / 2, 1.0),
    b_error=(1 / 512 - 1, 255 / 256, 1 / 512, 0.0),
)

# Prince and Dormand, "High order embedded Runge–Kutta formulae", J. Comput. Appl. Math. 7 (1981): RK8(7)13M.
# Its continuous extension is ours: the quartic whose middle satisfies all order conditions up to 5, of the solutions
# the one of least norm. So states between the steps are accurate to O(dt⁵) only; where that matters, take smaller
# steps there or a method of order 5.
DOPRI8 = ExplicitRungeKutta(
    "dopri8",
    order=8,
    a=(
        (),
        (1 / 18,),
        (1 / 48, 1 / 16),
        (1 / 32, 0.0, 3 / 32),
        (5 / 16, 0.0, -75 / 64, 75 / 64),
        (3 / 80, 0.0, 0.0, 3 / 16, 3 / 20),
        (
            29443841 / 614563906,
            0.0,
            0.0,
            77736538 / 692538347,
            -28693883 / 1125000000,
            23124283 / 1800000000,
        ),
        (
            16016141 / 946692911,
            0.0,
            0.0,
            61564180 / 158732637,
            22789713 / 633445777,
            545815736 / 2771057229,
            -180193667 / 1043307555,
        ),
        (
            39632708 / 573591083,
            0.0,
            0.0,
            -433636366 / 683701615,
            -421739975 / 2616292301,
            100302831 / 723423059,
            790204164 / 839813087,
            800635310 / 3783071287,
        ),
        (
            246121993 / 1340847787,
            0.0,
            0.0,
            -37695042795 / 15268766246,
            -309121744 / 1061227803,
            -12992083 / 490766935,
            6005943493 / 2108947869,
            393006217 / 1396673457,
            123872331 / 1001029789,
        ),
        (
            -1028468189 / 846180014,
            0.0,
            0.0,
            8478235783 / 508512852,
            1311729495 / 1432422823,
            -10304129995 / 1701304382,
            -48777925059 / 3047939560,
            15336726248 / 1032824649,
            -45442868181 / 3398467696,
            3065993473 / 597172653,
        ),
        (
            185892177 / 718116043,
            0.0,
            0.0,
            -3185094517 / 667107341,
            -477755414 / 1098053517,
            -703635378 / 230739211,
            5731566787 / 1027545527,
            5232866602 / 850066563,
            -4093664535 / 808688257,
            3962137247 / 1805957418,
            65686358 / 487910083,
        ),
        (
            403863854 / 491063109,
            0.0,
            0.0,
            -5068492393 / 434740067,
            -411421997 / 543043805,
            652783627 / 914296604,
            11173962825 / 925320556,
            -13158990841 / 6184727034,
            3936647629 / 1978049680,
            -160528059 / 685178525,
            248638103 / 1413531060,
            0.0,
        ),
    ),
    b=(
        14005451 / 335480064,
        0.0,
        0.0,
        0.0,
        0.0,
        -59238493 / 1068277825,
        181606767 / 758867731,
        561292985 / 797845732,
        -1041891430 / 1371343529,
        760417239 / 1151165299,
        118820643 / 751138087,
        -528747749 / 2220607170,
        1 / 4,
    ),
    c=(
        0.0,
        1 / 18,
        1 / 12,
        1 / 8,
        5 / 16,
        3 / 8,
        59 / 400,
        93 / 200,
        5490023248 / 9719169821,
        13 / 20,
        1201146811 / 1299019798,
        1.0,
        1.0,
    ),
    b_error=(
        14005451 / 335480064 - 13451932 / 455176623,
        0.0,
        0.0,
        0.0,
        0.0,
        -59238493 / 1068277825 + 808719846 / 976000145,
        181606767 / 758867731 - 1757004468 / 5645159321,
        561292985 / 797845732 - 656045339 / 265891186,
        -1041891430 / 1371343529 + 3867574721 / 1518517206,
        760417239 / 1151165299 - 465885868 / 322736535,
        118820643 / 751138087 - 53011238 / 667516719,
        -528747749 / 2220607170 - 2 / 45,
        1 / 4,
        0.0,
    ),
    dense_correction=(
        -1.6821923658358164,
        0.0,
        0.0,
        0.0,
        0.0,
        2.7747989791730876,
        1.8453194787701905,
        -4.392013934451197,
        6.330159505834879,
        -5.527213952636838,
        -1.2663379204863754,
        1.9090776098926623,
        -1.9957987001302893,
        2.004201299869696,
    ),
)

EXPLICIT = (EULER, MIDPOINT, HEUN, HEUN3, RK4, RK4_38, FEHLBERG2, BOSH3, DOPRI5, TSIT5, DOPRI8)
