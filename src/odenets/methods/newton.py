"""Newton's method for the equations of an implicit step, and the linear equations of its derivative.

Each component is measured by itself, so that one of 1e-12 is found beside one of 1e12. The size of an equation is that
of the terms that meet in it, Σ_j |m_ij| size_j with the matrix m: what is left of it cannot fall below the rounding of
those, and where it has fallen to that, the equation is solved.

Sources: Knoll and Keyes, "Jacobian-free Newton–Krylov methods", J. Comput. Phys. 193 (2004); Saad and Schultz,
"GMRES", SIAM J. Sci. Stat. Comput. 7 (1986); the size of an equation: Oettli and Prager, "Compatibility of approximate
solution of linear equations with given error bounds for coefficients and right-hand sides", Numer. Math. 6 (1964).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from odenets.methods.base import NotConverged

Function = Callable[[Tensor], Tensor]  # of a tensor, real or complex, to one of its shape
Linear = Tensor | Function  # a linear function of such tensors: its matrix, of real vectors, or itself
Linearize = Callable[[Tensor], tuple[Tensor, Linear]]  # x to F(x) and F'(x)

FEW = 32  # unknowns, real numbers, up to which the matrix is formed; GMRES solves for more
_SPACE = 60  # directions that GMRES keeps before it starts anew
_NOISE = 2.0  # units of rounding of the terms of an equation, below which nothing is to be gained
_GUESSED = 4.0  # times as many, where the size of the terms is known along one direction only
_MORE, _MOST = 4.0, 256.0  # times as many will do after each iteration without progress; but no more than so many
_LOOK = 3  # iterations without progress, after which F is watched: it may compute in a coarser dtype than x's
_UNEVEN = 16.0  # units of rounding, up to which F moves unevenly although it computes to that rounding
_STIFF = 1e3  # the ratio of rows from which GMRES gets each divided by its own size
_LINEAR = 20  # the most corrections of the solution of linear equations


def newton(linearize: Linearize, start: Tensor, size: Tensor, most: int, rounding: float) -> tuple[Tensor, float]:
    """x with F(x) = x, each component to rounding; and that rounding.

    Args:
        linearize: F and its derivative; GMRES solves the equations where that is no matrix.
        start: Where to begin.
        size: Of start's shape: what a change of x is small beside, together with |x|.
        most: The most evaluations of F.
        rounding: The relative rounding error of F; where it is coarser, that is found out.

    Raises:
        NotConverged: If so many do not suffice, or F is not finite.
    """
    if start.numel() == 0:
        return start, rounding
    flat, shaped = as_real_vector(start)
    x, size = flat(start), flat(size).abs()
    step, best, stalled, looked, coarse = torch.zeros_like(x), math.inf, 0, False, None
    for iteration in range(most):
        value, derivative = linearize(shaped(x))
        if not isinstance(derivative, Tensor):
            derivative = _of_vectors(derivative, flat, shaped)
        equations = _Equations.at(x, flat(value), derivative, size)
        worst, length = equations.left()
        if not math.isfinite(worst):
            if iteration == 0:
                raise NotConverged("f, or its derivative, was not finite at the start of Newton's method.", True)
            step = step / 2  # it went too far
            x = x - step
            continue
        stalled = 0 if worst < 0.75 * best else stalled + 1
        if stalled == _LOOK and not looked:
            looked = True
            coarse = _coarser(lambda v: flat(linearize(shaped(v))[0]), x, equations.sizes, rounding)
            if coarse is not None:
                rounding, stalled = torch.finfo(coarse).eps, 0
        noise = _NOISE if isinstance(derivative, Tensor) else _NOISE * _GUESSED
        enough = min(min(noise * _MORE**stalled, _MOST) * rounding, rounding**0.5)
        if worst == 0 or (iteration > 0 and worst <= enough):
            return shaped(x), rounding
        best = min(best, worst)
        step = equations.solve(max(min(rounding**0.25, 0.01), 4 * rounding), length)
        x = x + step
    raise NotConverged(
        f"Newton's method has not converged in {most} iterations: its equations hold to {best:.1g} of their terms."
        + (f" f computes in {coarse}, and y is {start.dtype}: let f compute in that." if coarse else "")
    )


def _coarser(function: Function, x: Tensor, sizes: Tensor, rounding: float) -> torch.dtype | None:
    """The dtype in which F computes, where it is coarser than that rounding; None where it is not.

    A dtype that occurs inside F may have no part in its value. So F is nudged, from less than that dtype could see on:
    the nearer, the more a smooth F moves in proportion, and the less a rounded one.
    """
    with _Watch() as watch:
        value = function(x)
    for dtype in sorted(watch.dtypes, key=lambda dtype: -torch.finfo(dtype).eps):
        eps = torch.finfo(dtype).eps
        if eps <= rounding:
            return None
        nudge = eps / 4 * torch.maximum(x.abs(), value.abs()) * irregular(x)
        near, wider, widest = ((function(x + k * nudge) - value) / k / sizes for k in (1, 4, 16))
        uneven = float((near - wider).abs().max())
        if uneven > max(float((wider - widest).abs().max()), _UNEVEN * rounding):
            return dtype
    return None


class _Watch(TorchDispatchMode):
    """Notes the real dtypes of what is computed while it is entered, by casts and autocast inside f too."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (x for x in pytree.tree_leaves(out) if isinstance(x, Tensor))
        self.dtypes |= {x.dtype.to_real() for x in tensors if x.is_floating_point() or x.is_complex()}
        return out


class _Equations(NamedTuple):
    """The linear equations of a step of Newton's method, of real vectors: M δ = F(x) − x with M = 1 − F'(x)."""

    residual: Tensor  # F(x) − x
    derivative: Linear  # F'(x)
    unknowns: Tensor  # the size of each unknown
    sizes: Tensor  # the size of each equation
    scale: Tensor  # what each equation is divided by

    @staticmethod
    def at(x: Tensor, value: Tensor, derivative: Linear, size: Tensor) -> "_Equations":
        own = torch.maximum(x.abs(), size)
        if isinstance(derivative, Tensor):
            sizes = positive(own + derivative.abs() @ own)
            return _Equations(value - x, derivative, own, sizes, sizes)
        sizes = positive(own + derivative(own * irregular(x)).abs())
        unknowns = positive(torch.maximum(own, value.abs()))
        # Like rows stay like rows, since GMRES lives on the structure of the matrix; among stiff ones each is divided.
        ratio = sizes / unknowns
        stiff = ratio.max() > _STIFF * ratio.kthvalue(1 + len(ratio) // 20).values
        scale = torch.where(stiff, torch.maximum(sizes, unknowns), unknowns)
        return _Equations(value - x, derivative, unknowns, sizes, scale)

    def left(self) -> list[float]:
        """The largest residual, as a part of the size of its equation, and the length of the scaled right-hand side."""
        return torch.stack([(self.residual.abs() / self.sizes).max(), (self.residual / self.scale).norm()]).tolist()

    def solve(self, tolerance: float, length: float) -> Tensor:
        """δ; by GMRES to a residual of that tolerance. `length` is that of the scaled right-hand side."""
        dtype, derivative = self.residual.dtype, self.derivative
        precise = dtype if self.residual.device.type == "mps" else torch.float64  # MPS has none
        scale, unknowns = self.scale.to(precise), self.unknowns.to(precise)
        rhs = self.residual.to(precise) / scale
        if isinstance(derivative, Tensor):
            rows = torch.eye(len(rhs), dtype=precise, device=rhs.device) - derivative.to(precise)
            return torch.linalg.solve_ex(rows / scale[:, None], rhs)[0].to(dtype)

        def apply(u: Tensor) -> Tensor:
            v = unknowns * u
            return (v - derivative(v.to(dtype)).to(precise)) / scale

        return (unknowns * gmres(apply, rhs, tolerance, length)[0]).to(dtype)


def irregular(like: Tensor) -> Tensor:
    """A vector with components of about 1 whose signs follow no pattern, so that few sums of them cancel."""
    i = torch.arange(1, len(like) + 1, device=like.device, dtype=torch.float32)
    sign, more = (i * 0.6180339887) % 1, (i * 0.4142135624) % 1
    return torch.where(sign < 0.5, -0.5 - more / 2, 0.5 + more / 2).to(like.dtype)


def positive(size: Tensor) -> Tensor:
    """The sizes, with the largest in place of zeros: of what has no size yet."""
    largest = size.max()
    return torch.where(size > 0, size, torch.where(largest > 0, largest, 1.0))


def by_differences(function: Function, size: Tensor, rounding: float) -> Callable[[Tensor], tuple[Tensor, Function]]:
    """F and its derivative by differences of F, whose steps are small beside each component: for any F."""

    def linearize(x: Tensor) -> tuple[Tensor, Function]:
        value = function(x)
        sizes = positive(torch.maximum(torch.maximum(x.abs(), value.abs()), size.abs()))

        def along(v: Tensor) -> Tensor:
            epsilon = math.sqrt(rounding) / positive((v.abs() / sizes).max())
            return (function(x + epsilon * v) - value) / epsilon

        return value, along

    return linearize


def solve_linear(operator: Function, rhs: Tensor, rounding: float | None = None) -> Tensor:
    """x with operator(x) = rhs, each component to rounding; NaN where rhs or the operator is not finite.

    `rounding` is the operator's relative rounding error, where it is less precise than rhs.

    Raises:
        NotConverged: If it cannot be found.
    """
    b, rounding = wide(rhs), rounding or rounding_of(rhs)

    def apply(x: Tensor) -> Tensor:
        if rounding <= torch.finfo(b.dtype).eps:
            return operator(x)
        top = positive(x.abs().max())  # half precision has no small numbers
        return operator((x / top).to(rhs.dtype)).to(b.dtype) * top

    flat, shaped = as_real_vector(b)
    derivative = _formed(lambda v: v - apply(v), b)

    def linearize(x: Tensor) -> tuple[Tensor, Linear]:
        if isinstance(derivative, Tensor):
            return b + shaped(derivative @ flat(x)), derivative
        return b + derivative(x), derivative

    try:
        found, _ = newton(linearize, b, torch.zeros_like(b), _LINEAR, rounding)
    except NotConverged as error:
        if error.undefined:
            return torch.full_like(rhs, math.nan)
        raise NotConverged(
            "The linear equations of the gradient of an implicit step could not be solved: take smaller steps "
            "(`controller=Fixed(steps=...)`), or solve in float64."
        ) from error
    return found.to(rhs.dtype)


def _formed(function: Function, like: Tensor) -> Linear:
    """A linear function, as a matrix where it has few unknowns."""
    flat, _ = as_real_vector(like)
    return torch.stack([flat(function(e)) for e in units(like)], 1) if 0 < len(flat(like)) <= FEW else function


def units(like: Tensor) -> list[Tensor]:
    """The unit vectors of the space of real vectors that `like` is one of, each of its shape."""
    flat, shaped = as_real_vector(like)
    return [shaped(e) for e in torch.eye(len(flat(like)), dtype=like.real.dtype, device=like.device)]


def gmres(operator: Function, rhs: Tensor, tolerance: float, size: float) -> tuple[Tensor, float]:
    """x with |operator(x) − rhs| ≤ tolerance |rhs|, the 2-norm, and what is left of it, as a part of |rhs|.

    Of real vectors; `size` is |rhs|. It ends earlier where no progress is made any more. One host read for each
    application of the linear operator.
    """
    x, residual, left = torch.zeros_like(rhs), rhs, size
    while left > tolerance * size:
        before = left
        found, left = _cycle(operator, residual, left, tolerance * size)
        x = x + found
        if left > tolerance * size:
            residual = rhs - operator(x)
            left = float(residual.norm())
            if not left < 0.5 * before:
                break
    return x, left / size if size else 0.0


def as_real_vector(like: Tensor) -> tuple[Function, Function]:
    """There and back. A complex tensor is one of real and imaginary parts: f need not be analytic."""
    if like.is_complex():
        shape = torch.view_as_real(like).shape
        return lambda x: torch.view_as_real(x).reshape(-1), lambda v: torch.view_as_complex(v.reshape(shape))
    return lambda x: x.reshape(-1), lambda v: v.reshape(like.shape)


def _of_vectors(function: Function, flat: Function, shaped: Function) -> Function:
    return lambda v: flat(function(shaped(v)))


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
        smallest = 10 * torch.finfo(residual.dtype).eps * max(map(abs, column))
        if not radius > smallest or not math.isfinite(radius):
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


_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}
HALVES = frozenset(_WIDE)


def wide(x: Tensor) -> Tensor:
    """x in a dtype to compute with: not in half precision."""
    return x.to(_WIDE[x.dtype]) if x.dtype in _WIDE else x


def rounding_of(y: Tensor) -> float:
    """The relative rounding error of f at y: that of the dtype, or of the coarser one in which autocast computes."""
    own, device = torch.finfo(y.dtype).eps, y.device.type
    if y.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return own
    return max(own, torch.finfo(torch.get_autocast_dtype(device)).eps)
