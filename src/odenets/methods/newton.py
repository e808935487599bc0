"""Newton–Krylov: the equations of an implicit step, and the linear ones of its derivative, without a matrix.

Sources: Knoll and Keyes, "Jacobian-free Newton–Krylov methods", J. Comput. Phys. 193 (2004); Saad and Schultz,
"GMRES", SIAM J. Sci. Stat. Comput. 7 (1986).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]  # of a tensor, real or complex, to one of its shape

_SPACE = 60  # directions that GMRES keeps before it starts anew
_ENOUGH, _LEAST = 30, 1e4  # units of rounding: what is aimed at, and what will do where rounding stops the progress


class NotConverged(RuntimeError):
    """The equations of an implicit step could not be solved; the text says how far it got.

    `undefined` says that the function was not finite where the iteration began.
    """

    def __init__(self, text: str, undefined: bool = False) -> None:
        super().__init__(text)
        self.undefined = undefined


def newton(function: Function, start: Tensor, size: float, most: int) -> Tensor:
    """x with function(x) = x, to rounding.

    The derivative is never formed: GMRES needs it along directions only, and gets differences of the function. So the
    function need not be differentiable by autograd, and each direction costs one evaluation.

    Args:
        start: Where to begin.
        size: What a change of x is small beside, together with the largest |x|.
        most: The most iterations.

    Raises:
        NotConverged: If so many do not suffice, or the function is not finite.
    """
    x, before, change, scale = start, math.inf, math.inf, size
    rounding = _rounding(start)
    for iteration in range(most):
        value = function(x)
        residual = value - x
        largest, extent = torch.stack([residual.abs().max(), x.abs().max()]).tolist()
        if not math.isfinite(largest):
            raise NotConverged(f"f was not finite in iteration {iteration + 1} of Newton's method.", iteration == 0)
        scale = size + extent or 1.0
        step, _ = gmres(_derivative(function, x, value, scale), residual, rounding**0.25)
        x = x + step
        change = float(step.abs().max())
        rate = min(change / before, 1.0) if math.isfinite(before) else 1.0
        if change * rate <= _ENOUGH * rounding * scale:  # what is left after this step
            return x
        if rate > 0.5 and change <= _LEAST * rounding * scale:
            return x
        before = change
    raise NotConverged(
        f"Newton's method has not converged in {most} iterations: the last one still changed the stages by "
        f"{change / scale:.1g} of their size."
    )


def _derivative(function: Function, x: Tensor, value: Tensor, scale: float) -> Function:
    """v ↦ v − F'(x) v, by a difference of F whose step is small beside `scale`."""
    small = math.sqrt(_rounding(x)) * scale

    def along(v: Tensor) -> Tensor:
        epsilon = small / v.abs().max()
        return v - (function(x + epsilon * v) - value) / epsilon

    return along


def solve_linear(operator: Function, rhs: Tensor) -> Tensor:
    """x with operator(x) = rhs, to rounding.

    Raises:
        NotConverged: If it cannot be found.
    """
    x, left = gmres(operator, rhs, _ENOUGH * _rounding(rhs))
    if left > _LEAST * _rounding(rhs):
        raise NotConverged(
            f"The linear equations of the gradient of an implicit step could not be solved: {left:.1g} of the "
            "right-hand side is left. Take smaller steps, or solve in float64."
        )
    return x


def gmres(operator: Function, rhs: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """x with |operator(x) − rhs| ≤ tolerance |rhs|, the 2-norm, and what is left of it, as a part of |rhs|.

    It ends earlier where no progress is made any more. One host read for each application of the linear operator.
    """
    flat, shaped = as_real_vector(rhs)

    def apply(v: Tensor) -> Tensor:
        return flat(operator(shaped(v)))

    b = flat(rhs)
    size = left = float(b.norm())
    if not math.isfinite(size):
        return torch.full_like(rhs, math.nan), math.nan
    x, residual = torch.zeros_like(b), b
    while left > tolerance * size:
        before = left
        found, left = _cycle(apply, residual, left, tolerance * size)
        x = x + found
        if left > tolerance * size:
            residual = b - apply(x)
            left = float(residual.norm())
            if not left < 0.5 * before:
                break
    return shaped(x), left / size if size else 0.0


def as_real_vector(like: Tensor) -> tuple[Function, Function]:
    """There and back. A complex tensor is one of real and imaginary parts: f need not be analytic."""
    if like.is_complex():
        shape = torch.view_as_real(like).shape
        return lambda x: torch.view_as_real(x).reshape(-1), lambda v: torch.view_as_complex(v.reshape(shape))
    return lambda x: x.reshape(-1), lambda v: v.reshape(like.shape)


def _cycle(apply: Function, residual: Tensor, size: float, goal: float) -> tuple[Tensor, float]:
    """GMRES from zero in one Krylov space: the solution in it, and the norm of what is left.

    The Hessenberg matrix lives on the host, made triangular by Givens rotations as it grows.
    """
    most = min(_SPACE, residual.numel())
    basis = residual.new_empty((most + 1, residual.numel()))
    basis[0] = residual / size
    columns: list[list[float]] = []
    rotations: list[tuple[float, float]] = []
    left = [size]
    for k in range(most):
        known, w = basis[: k + 1], apply(basis[k])
        along = known @ w
        w = w - along @ known
        again = known @ w  # once more, against rounding
        w = w - again @ known
        column = torch.cat([along + again, w.norm()[None]]).tolist()
        length = column[-1]
        for i, (c, s) in enumerate(rotations):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        radius = math.hypot(column[k], column[k + 1])
        if not radius > 10 * _rounding(residual) * max(map(abs, column)) or not math.isfinite(radius):
            break  # the matrix is singular on this space
        c, s = column[k] / radius, column[k + 1] / radius
        rotations.append((c, s))
        columns.append([*column[:k], radius])
        left[k:] = [c * left[k], -s * left[k]]
        if abs(left[-1]) <= goal or length == 0:
            break
        basis[k + 1] = w / length
    weights: list[float] = []
    for k in reversed(range(len(columns))):
        total = left[k] - sum(columns[k + 1 + j][k] * weight for j, weight in enumerate(weights))
        weights.insert(0, total / columns[k][k])
    return residual.new_tensor(weights) @ basis[: len(weights)], abs(left[-1]) if columns else size


def _rounding(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps
