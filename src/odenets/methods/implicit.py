"""Implicit Runge–Kutta methods, for stiff problems: their stages are found by Newton's method.

Notation and tableaus are those of Hairer and Wanner, *Solving Ordinary Differential Equations II* (1996), chapter IV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.methods.base import Carry, Differentiable, Field, Inner, NotConverged, Pull, Step
from odenets.methods.newton import solve_linear, wide
from odenets.methods.runge_kutta import PullBack, RungeKutta, close
from odenets.methods.stages import Equations, weighted
from odenets.methods.sums import Time, combine, stage_times


@dataclass(frozen=True)
class ImplicitRungeKutta(RungeKutta):
    """An implicit Runge–Kutta method with s stages, as a tableau.

    `k_i = f(t + c_i dt, y + dt Σ_j a_ij k_j)`, all j, and `y1 = y + dt Σ_i b_i k_i`; f1 = f(t + dt, y1) counts as stage
    s + 1. The stages are found to rounding by a Newton–Krylov method, one after the other where the tableau is lower
    triangular, else all together. No Jacobian is formed: a direction of it costs an evaluation of f for each stage.

    When to use: for stiff problems, whose steps would be far smaller than the solution demands with an explicit method.
    When not: everywhere else, since a step costs 10 to 100 evaluations of f. Without `b_error` it takes fixed steps.

    The gradient is that of the stages as functions of y, t, dt and what f reaches (implicit function theorem); it needs
    no iteration to be differentiated. `Direct` has second derivatives too.

    Args:
        name: The name in `METHODS`.
        order: The order p: the global error is O(dt^p) where the problem is not stiff.
        a: The s rows, each of s entries.
        b: The s weights of the solution.
        c: The s nodes.
        b_error: The s + 1 weights of the error estimate, as of `ExplicitRungeKutta`; a step whose equations could not
            be solved is tried again shorter, as after a large error.
        max_iterations: The most iterations of Newton's method in a step.

    Raises:
        ValueError: If the coefficients contradict each other.

    Source: Hairer and Wanner, chapter IV.
    """

    max_iterations: int = 50

    iterates = True

    def _row_length(self, i: int) -> int:
        return len(self.b)

    def _check(self) -> None:
        super()._check()
        self._require(self.max_iterations >= 1, f"`max_iterations` must be ≥ 1, got {self.max_iterations}")

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage is f at the end of the step."""
        return self.a[-1] == self.b

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The stages that are found together."""
        s = len(self.b)
        triangular = not any(any(row[i + 1 :]) for i, row in enumerate(self.a))
        return tuple((i,) for i in range(s)) if triangular else (tuple(range(s)),)

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        try:
            return self._step(f, t, y, dt, carry)
        except NotConverged as trouble:
            (t,) = stage_times(t, 0.0, (0.0,), y)
            return Step(y, carry, t, trouble=trouble)

    def _step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        times = stage_times(t, dt, self.nodes, y)
        start = wide(y)
        stages: list[Tensor] = []
        precise = True
        for block in self.blocks:
            first = block[0]
            if self._is_explicit(block):
                if carry and not any(self.a[first]):
                    known = carry[0]
                else:
                    known = f(times[first], self.stage_input(first, y, dt, stages).to(y.dtype))
                stages.append(known.to(start.dtype))
                continue
            before = [combine(start, dt, self.a[i][:first], stages) for i in block]
            weights = [[self.a[i][j] for j in block] for i in block]
            equations = Equations(weights, f, [times[i] for i in block], before, dt, y.dtype)
            found = equations.solve(self.max_iterations)
            precise = precise and equations.precise
            stages += (equations.attach(found) if _is_differentiated() else found).unbind()
        y1 = combine(start, dt, self.b, stages).to(y.dtype)
        stages = [k.to(y.dtype) for k in stages]
        known = self.stiffly_accurate and precise
        return Step(y1, (*stages, stages[-1]) if known else tuple(stages), times[-1], known)

    def _is_explicit(self, block: tuple[int, ...]) -> bool:
        return len(block) == 1 and self.a[block[0]][block[0]] == 0

    def carry_again(self, step: Step, carry: Carry) -> Carry:
        if carry or any(self.a[0]):
            return carry
        return tuple(step.parts[:1])

    def solved_stages(self, f: Field, t: Time, y: Tensor, dt: float | Tensor) -> Sequence[Tensor] | None:
        with torch.no_grad():
            return self._step(f, t, y, dt, ()).parts

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
        if stages is None:
            raise ValueError("`stages` of an implicit method are solved before f is linearized: pass `solved_stages`")
        s = len(self.b)
        times = stage_times(t, dt, self.nodes, y)
        known = list(stages[:s])
        pulls = [tracked.at(times[i], self.stage_input(i, y, dt, known))[1] for i in range(s)]
        if with_f1 and self.stiffly_accurate:
            known.append(known[-1])
        elif with_f1:
            f1, pull = tracked.at(times[s], self.stage_input(s, y, dt, known))
            known.append(f1)
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
        given = [torch.zeros_like(y)] * s if stage_cotangents is None else list(stage_cotangents[:s])
        if stage_cotangents is not None and self.stiffly_accurate:
            given[-1] = given[-1] + stage_cotangents[s]
        elif stage_cotangents is not None:
            cotangent = cotangent + pull(s, stage_cotangents[s])
        pull.end(cotangent)
        bars: dict[int, Tensor] = {}  # ∂L/∂Y_j of the blocks done
        total = cotangent
        for block in reversed(self.blocks):
            k_bars = torch.stack(
                [
                    combine(given[i], dt, (self.b[i], *(self.a[j][i] for j in bars)), (cotangent, *bars.values()))
                    for i in block
                ]
            )
            if not self._is_explicit(block):
                k_bars = solve_linear(self._transposed(block, pulls, dt), k_bars)
            found = {i: pull(i, k_bar) for i, k_bar in zip(block, k_bars.unbind())}
            bars |= found
            for bar in found.values():
                total = total + bar
        return total, pull.t_bar, pull.dt_bar

    def _transposed(self, block: tuple[int, ...], pulls: Sequence[Pull], dt: float | Tensor) -> Any:
        """w ↦ w − dt (A ⊗ J)ᵀ w on the stages of a block."""

        def apply(w: Tensor) -> Tensor:
            bars = [pulls[i](w_i, last=False)[0] for i, w_i in zip(block, w.unbind())]
            return w - torch.stack([weighted(dt, [self.a[i][j] for i in block], bars) for j in block])

        return apply

    def _dense(self) -> Sequence[Sequence[float]]:
        """The slopes at the nodes, interpolated and integrated, where that leads to y1; else Hermite interpolation."""
        rows = [[0.0] * 4 for _ in self.nodes]
        nodes = sorted(set(self.nodes))
        for c in nodes if len(nodes) <= 4 else ():
            slope = [1.0]  # the Lagrange polynomial of this node, by rising powers
            for other in (d for d in nodes if d != c):
                shifted = [0.0, *slope]
                slope = [(high - other * low) / (c - other) for high, low in zip(shifted, [*slope, 0.0])]
            for power, coefficient in enumerate(slope):
                rows[self.nodes.index(c)][power] = coefficient / (power + 1)
        if all(close(sum(row), b_i) for row, b_i in zip(rows, (*self.b, 0.0))):
            return rows
        self._require(self.c[0] == 0 and not any(self.a[0]), "there is no continuous extension through its nodes")
        return super()._dense()


def _is_differentiated() -> bool:
    return torch.is_grad_enabled() or transforms.active()
