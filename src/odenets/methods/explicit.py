"""Explicit Runge–Kutta methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.methods.base import Carry, Differentiable, Field, Inner, Pull, Step
from odenets.methods.runge_kutta import PullBack, RungeKutta
from odenets.methods.sums import Time, combine, stage_times


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
        dense_correction_slope: s + 1 weights e that lift it to `hermite(θ) + θ²(1 − θ)² dt Σ_i (d_i + e_i θ) k_i`; None
            where that is accurate enough (order ≤ 5).

    Raises:
        ValueError: If the coefficients contradict each other.

    Source: Hairer, Nørsett and Wanner, chapter II; the step in reverse is the transpose of the tableau: Hager,
    "Runge–Kutta methods in optimal control and the transformed adjoint system", Numer. Math. 87 (2000).
    """

    def _row_length(self, i: int) -> int:
        return i

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        times = stage_times(t, dt, self.nodes, y)
        stages = [carry[0] if carry else f(times[0], y)]
        for a_i, t_i in zip(self.a[1:], times[1:-1]):
            stages.append(f(t_i, combine(y, dt, a_i, stages)))
        return Step(combine(y, dt, self.b, stages), tuple(stages), times[-1])

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
        known: list[Tensor] = []
        pulls: list[Pull] = []
        times = stage_times(t, dt, self.nodes, y)
        for i, t_i in enumerate(times if with_f1 else times[:-1]):
            k, pull = tracked.at(t_i, self.stage_input(i, y, dt, known))
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
