"""The equations of an implicit method's stages: solved by Newton's method, and differentiated where they are solved.

Notation of Hairer and Wanner, *Solving Ordinary Differential Equations II* (1996), chapter IV.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.methods.base import Field
from odenets.methods.newton import (
    FEW,
    Linear,
    as_real_vector,
    by_differences,
    newton,
    rounding_of,
    solve_linear,
    units,
)
from odenets.methods.sums import combine


class Equations:
    """The equations of the stages of a block: k_i = f(t_i, before_i + dt Σ_j a_ij k_j).

    The stages and what comes `before` are of one dtype; f gets and returns `dtype`, which may be less precise.
    """

    def __init__(
        self,
        weights: Sequence[Sequence[float]],
        f: Field,
        times: Sequence[Tensor],
        before: Sequence[Tensor],
        dt: float | Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.weights, self.f, self.times, self.before, self.dt, self.dtype = weights, f, times, before, dt, dtype
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
        return w - torch.stack([weighted(self.dt, column, bars) for column in zip(*self.weights)])

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
        moves = [weighted(self.dt, row, parts) for row in self.weights]
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


def weighted(dt: float | Tensor, weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
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
