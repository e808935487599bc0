"""Runge–Kutta methods as tableaus: what the explicit and the implicit ones have in common.

Notation and the order conditions are those of Hairer, Nørsett and Wanner, *Solving Ordinary Differential
Equations I* (1993), chapter II.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from odenets.methods.base import Bars, Carry, Differentiable, Field, Inner, Method, Pull, Remade, Step
from odenets.methods.sums import Time, combine


@dataclass(frozen=True)
class RungeKutta(Method):
    """A Runge–Kutta method with s stages, as a tableau: what its explicit and its implicit kind have in common.

    `k_i = f(t + c_i dt, y + dt Σ_j a_ij k_j)` and `y1 = y + dt Σ_i b_i k_i`. The derivative at the end of the
    step, `f1 = f(t + dt, y1)`, counts as stage s + 1: it is the first stage of the next step, the error
    estimate may weigh it, and the continuous extension needs it. So every method here is "first same as last".
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    b_error: tuple[float, ...] | None = None
    dense_correction: tuple[float, ...] | None = field(default=None, repr=False)
    dense_correction_slope: tuple[float, ...] | None = field(default=None, repr=False)

    reuses = True

    def __post_init__(self) -> None:
        self._check()
        super().__post_init__()

    def _check(self) -> None:
        s = len(self.b)
        self._require(len(self.a) == len(self.c) == s, "`a`, `b` and `c` must have one entry a stage")
        for i, row in enumerate(self.a):
            expected = self._row_length(i)
            self._require(len(row) == expected, f"row {i} of `a` must have {expected} entries, has {len(row)}")
            self._require(close(sum(row), self.c[i]), f"row {i} of `a` sums to {sum(row)}, `c` is {self.c[i]}")
        self._require(close(sum(self.b), 1), f"`b` must sum to 1, sums to {sum(self.b)}")
        for label in ("b_error", "dense_correction", "dense_correction_slope"):
            weights = getattr(self, label)
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
        return self.b_error is not None

    @property
    def nodes(self) -> tuple[float, ...]:
        """The s nodes, and 1 for f1."""
        return (*self.c, 1.0)

    @property
    def parts(self) -> int:
        return len(self.b) + 1

    @property
    def error_needs_all(self) -> bool:
        return self.b_error is not None and self.b_error[-1] != 0

    def complete(self, f: Field, step: Step) -> Step:
        """The step with f1 among its stages, evaluated once."""
        return step if step.complete else step._replace(parts=(*step.parts, f(step.t1, step.y)), complete=True)

    def carry(self, step: Step) -> Carry:
        return (step.parts[-1],) if step.complete else ()

    def quadrature(self, step: Step) -> Sequence[tuple[Tensor, float]]:
        return list(zip(step.parts, self.b))

    def carry_again(self, step: Step, carry: Carry) -> Carry:
        return carry or (step.parts[0],)

    def evaluated_at(self, i: int, y: Tensor, dt: float | Tensor, step: Step) -> Tensor:
        return self.stage_input(i, y, dt, step.parts)

    def stage_input(self, i: int, y: Tensor, dt: float | Tensor, stages: Sequence[Tensor]) -> Tensor:
        """The state at which stage i is f: y + dt Σ_j a_ij k_j; for i = s the end of the step."""
        weights = self.b if i == len(self.b) else self.a[i]
        return combine(y, dt, weights, stages[: len(weights)]) if any(weights) else y

    def remake(
        self,
        tracked: Differentiable,
        t: Time,
        y: Tensor,
        dt: float | Tensor,
        *,
        complete: bool = False,
        known: Sequence[Tensor] | None = None,
        carry: Carry = (),
    ) -> Remade:
        stages = self.solved_stages(tracked.f, t, y, dt) if known is None else known
        stages, pulls = self.linearize(tracked, t, y, dt, with_f1=complete, stages=stages)

        def pull(
            y_bar: Tensor,
            part_bars: Sequence[Tensor] | None,
            inner: Inner | None,
            slope_bars: Sequence[Tensor | None] = (),
        ) -> Bars:
            return Bars(*self.pullback(pulls, y, dt, stages, y_bar, part_bars, inner))

        return Remade(self.stage_input(len(self.b), y, dt, stages), stages, pull)

    def solved_stages(self, f: Field, t: Time, y: Tensor, dt: float | Tensor) -> Sequence[Tensor] | None:
        """The stages, where they have to be known before f can be linearized at them; else None."""
        return None

    def linearize(
        self,
        tracked: Differentiable,
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

    def error(self, dt: float | Tensor, parts: Sequence[Tensor]) -> Tensor:
        if self.b_error is None:
            raise ValueError(f"method {self.name!r} has no error estimate")
        return combine(None, dt, self.b_error, parts)

    def _dense(self) -> Sequence[Sequence[float]]:
        """The coefficients of θ, θ², …, θ⁵ in b_i(θ): s + 1 rows.

        Cubic Hermite interpolation through y, k_1, y1 and f1 (Hairer, Nørsett and Wanner, II.6), rewritten in
        the stages, plus the corrections. Its error is O(dt⁴), O(dt⁵) with the first and O(dt⁶) with both.
        """
        rows = [[0.0, 3 * b_i, -2 * b_i, 0.0, 0.0] for b_i in (*self.b, 0.0)]
        for i, hermite in ((0, (1, -2, 1)), (-1, (0, -1, 1))):
            for power, coefficient in enumerate(hermite):
                rows[i][power] += coefficient
        for start, weights in ((1, self.dense_correction), (2, self.dense_correction_slope)):
            for row, weight in zip(rows, weights or ()):
                for power, coefficient in enumerate((1, -2, 1), start):
                    row[power] += coefficient * weight
        return rows


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


def close(value: float, target: float) -> bool:
    """Equal but for rounding."""
    return math.isclose(value, target, rel_tol=0, abs_tol=1e-12)
