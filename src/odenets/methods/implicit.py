"""Implicit Runge–Kutta methods, for stiff problems: their stages are found by Newton's method.

Notation and tableaus are those of Hairer and Wanner, *Solving Ordinary Differential Equations II* (1996), chapter IV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.methods.base import (
    Carry,
    Differentiable,
    Field,
    Inner,
    NotConverged,
    Pull,
    Step,
    Time,
    combine,
    stage_times,
)
from odenets.methods.newton import (
    FEW,
    Linear,
    as_real_vector,
    by_differences,
    newton,
    rounding_of,
    solve_linear,
    units,
    wide,
)
from odenets.methods.runge_kutta import PullBack, RungeKutta, close


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
            equations = _Equations(self, block, f, [times[i] for i in block], before, dt, y.dtype)
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
            return w - torch.stack([_sum(dt, [self.a[i][j] for i in block], bars) for j in block])

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


class _Equations:
    """The equations of the stages of a block: k_i = f(t_i, before_i + dt Σ_j a_ij k_j).

    The stages and what comes `before` are of one dtype; f gets and returns `dtype`, which may be less precise.
    """

    def __init__(
        self,
        method: ImplicitRungeKutta,
        block: tuple[int, ...],
        f: Field,
        times: Sequence[Tensor],
        before: Sequence[Tensor],
        dt: float | Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.f, self.times, self.before, self.dt, self.dtype = f, times, before, dt, dtype
        self.weights = [[method.a[i][j] for j in block] for i in block]
        self.rounding = rounding_of(before[0].to(dtype))
        self.precise = True  # whether the stages found are f to the rounding of y

    @torch.no_grad()
    def solve(self, most: int) -> Tensor:
        """The stages, (stages of the block, *y.shape), outside of autograd."""
        dt = _as_float(self.dt)
        before = torch.stack([x.detach() for x in self.before])
        start, size, rounding = torch.zeros_like(before), before / dt, self.rounding

        def function(k: Tensor) -> Tensor:
            return torch.stack(self._values(self._inputs(k, dt)))

        if transforms.active() and transforms.is_mapped(function(start)):
            raise NotImplementedError(
                "an implicit `method` iterates until it has converged, which `vmap` cannot map over: pass an explicit "
                "`method`, or put the samples into the first axis of `y0` instead of `vmap`"
            )
        differences = by_differences(function, size, rounding)
        if transforms.active():
            return self._found(newton(differences, start, size, most, rounding))

        def linearize(k: Tensor) -> tuple[Tensor, Linear]:
            inputs, values = self._tracked(self._inputs(k, dt))
            if not any(value.requires_grad for value in values):
                raise RuntimeError("f is not known to autograd")
            return torch.stack(values).detach(), _Matrix(inputs, values, dt, self.weights, self.rounding).derivative()

        try:
            return self._found(newton(linearize, start, size, most, rounding))
        except RuntimeError:  # autograd does not know f, or not all of it
            return self._found(newton(differences, start, size, most, rounding))

    def _found(self, root: tuple[Tensor, float]) -> Tensor:
        found, rounding = root
        self.precise, self.rounding = rounding == self.rounding, rounding
        return found

    def _tracked(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The inputs as leaves of a graph, and the values there."""
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs]
            return leaves, self._values(leaves)

    def _inputs(self, k: Tensor, dt: float | Tensor) -> list[Tensor]:
        parts = k.unbind()
        return [combine(before, dt, row, parts) for before, row in zip(self.before, self.weights)]

    def attach(self, found: Tensor) -> Tensor:
        """The stages as functions of what they depend on: two steps of Newton's method with the matrix held.

        From the solution, a constant, they move nothing; the first makes the first derivatives right, the second the
        second ones.
        """
        if transforms.active():
            return self._attach_openly(found.detach())
        k, matrix = found, None
        for _ in range(2):
            inputs = self._inputs(k, self.dt)
            values = self._values(inputs)
            if not any(x.requires_grad for x in (*inputs, *values)):
                return found
            matrix = matrix or self._matrix(inputs, values)
            k = k + ImplicitStages.apply(matrix, torch.stack(values) - k)
        return k

    def _attach_openly(self, found: Tensor) -> Tensor:
        """The same where a transform of torch has to see each operation: with the inverse of the matrix itself."""
        inverse = self._inverse(found)
        flat, shaped = as_real_vector(found)
        k = found
        for _ in range(2):
            k = k + shaped(inverse @ flat(torch.stack(self._values(self._inputs(k, self.dt))) - k))
        return k

    def _inverse(self, found: Tensor) -> Tensor:
        """That of the matrix of Newton's method, I − dt A ⊗ J, on the stages as one real vector.

        Raises:
            NotImplementedError: If it is too large.
        """
        flat, shaped = as_real_vector(found)
        function = lambda k: flat(torch.stack(self._values(self._inputs(shaped(k), _as_float(self.dt)))))  # noqa: E731
        start = flat(found)
        if start.numel() > _MOST_ENTRIES:
            raise NotImplementedError(
                f"an implicit method in forward mode or under `torch.func` forms a matrix of its stages, here of "
                f"{start.numel()} numbers, at most {_MOST_ENTRIES}: pass an explicit `method`, or use autograd's "
                "reverse mode outside of transforms"
            )
        pull = torch.func.vjp(function, start)[1]
        unit = torch.eye(start.numel(), dtype=start.dtype, device=start.device)
        return torch.linalg.inv(torch.stack([e - pull(e)[0] for e in unit])).detach()

    def _values(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [self.f(t, x.to(self.dtype)).to(x.dtype) for t, x in zip(self.times, inputs)]

    def _matrix(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> "_Matrix":
        if not all(x.requires_grad for x in inputs):  # the start of a solve whose y0 is a constant
            inputs, values = self._tracked(inputs)
        return _Matrix(inputs, values, _as_float(self.dt), self.weights, self.rounding)


_MOST_ENTRIES = 2048  # of the stages of a block, where their matrix is formed


def _is_differentiated() -> bool:
    return torch.is_grad_enabled() or transforms.active()


class _Matrix:
    """The matrix of Newton's method, I − dt A ⊗ J."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        values: Sequence[Tensor],
        dt: float,
        weights: Sequence[Sequence[float]],
        rounding: float,
    ) -> None:
        self.inputs, self.values, self.dt, self.weights, self.rounding = inputs, values, dt, weights, rounding
        self.pullback: tuple[list[Tensor], list[Tensor]] | None = None  # w and Jᵀ w as a function of it

    def solve(self, rhs: Tensor, transposed: bool) -> Tensor:
        return solve_linear(self._transposed if transposed else lambda v: v - self.jacobian(v), rhs, self.rounding)

    def _transposed(self, w: Tensor) -> Tensor:
        bars = self._pull(w.unbind())
        return w - torch.stack([_sum(self.dt, column, bars) for column in zip(*self.weights)])

    def derivative(self) -> Linear:
        """dt A ⊗ J."""
        if len(self.values) * as_real_vector(self.inputs[0])[0](self.inputs[0]).numel() > FEW:
            return self.jacobian
        flat, _ = as_real_vector(self.inputs[0])
        rows = [torch.stack([flat(bar) for bar in self._pull([e] * len(self.values))]) for e in units(self.inputs[0])]
        j = torch.stack(rows, 1)  # (stages, d, d)
        a = j.new_tensor(self.weights) * self.dt
        return (a[:, None, :, None] * j[:, :, None, :]).reshape(len(a) * j.shape[1], -1)

    def jacobian(self, v: Tensor) -> Tensor:
        """dt (A ⊗ J) v."""
        parts = v.unbind()
        moves = [_sum(self.dt, row, parts) for row in self.weights]
        with torch.enable_grad():  # J u is the pullback of w ↦ Jᵀ w
            if self.pullback is None:
                probes = [torch.zeros_like(x, requires_grad=True) for x in parts]
                self.pullback = probes, self._pull(probes, create_graph=True)
            probes, bars = self.pullback
            along = torch.autograd.grad(
                bars, probes, moves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return torch.stack(along)

    def _pull(self, w: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
        """Jᵀ w, stage by stage."""
        known = [i for i, value in enumerate(self.values) if value.requires_grad]
        found = torch.autograd.grad(
            [self.values[i] for i in known],
            [self.inputs[i] for i in known],
            [w[i] for i in known],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
        bars = dict(zip(known, found))
        return [0 * w_i if bars.get(i) is None else bars[i] for i, w_i in enumerate(w)]


def _as_float(x: float | Tensor) -> float:
    return float(x.detach()) if isinstance(x, Tensor) else x


def _sum(dt: float | Tensor, weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    return combine(torch.zeros_like(parts[0]), dt, weights, parts)


class ImplicitStages(torch.autograd.Function):
    """M⁻¹ r for a residual r that is 0: nothing, but for its derivative."""

    @staticmethod
    def forward(ctx: Any, matrix: _Matrix, residual: Tensor) -> Tensor:
        ctx.matrix = matrix
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        transforms.refuse_in_backward(grad_outputs, "pass an explicit `method`")
        return None, StageEquations.apply(ctx.matrix, True, grad_outputs[0])


class StageEquations(torch.autograd.Function):
    """M⁻¹ r, or M⁻ᵀ r, with M a constant: its derivative is the other."""

    @staticmethod
    def forward(ctx: Any, matrix: _Matrix, transposed: bool, rhs: Tensor) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        return matrix.solve(rhs, transposed)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, Tensor]:
        transforms.refuse_in_backward(grad_outputs, "pass an explicit `method`")
        return None, None, StageEquations.apply(ctx.matrix, not ctx.transposed, grad_outputs[0])
