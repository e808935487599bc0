"""The derivative of equations g(y) = 0 of many samples, y (samples, n), and the linear equations made of it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odenets.methods.newton import gmres, irregular, rounding_of

Equations = Callable[[Tensor], Tensor]  # y (samples, n) to g (samples, n)


def norms(x: Tensor) -> Tensor:
    """The norm of each sample."""
    return torch.linalg.vector_norm(x, dim=1)


def with_graph(g: Equations, y: Tensor) -> tuple[Tensor, Tensor]:
    """g(y) and y, so that one can be pulled back to the other, but in inference mode."""
    with torch.enable_grad():
        at = y.detach().clone()
        return g(at if at.is_inference() else at.requires_grad_()), at


def pushed(value: Tensor, at: Tensor) -> Equations:
    """v ↦ ∂g/∂y v: the pullback is linear, and this is its own."""
    with torch.enable_grad():
        bar = torch.zeros_like(value).requires_grad_()
        back = torch.autograd.grad(value, at, bar, create_graph=True, allow_unused=True, materialize_grads=True)[0]
    return lambda v: pulled(back, bar, v)


def pulled(value: Tensor, at: Tensor, bar: Tensor) -> Tensor:
    """barᵀ ∂g/∂y, zero where g does not depend on y."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    return torch.autograd.grad(value, at, bar, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def sees_others(pull: Equations, like: Tensor) -> bool:
    """Whether a sample's g depends on another's y: then Jacobians of samples say nothing."""
    if len(like) == 1:
        return False
    bar, signs = irregular(like[0]).expand_as(like), irregular(like[:, 0])[:, None]
    alone, mixed = pull(bar) * signs, pull(bar * signs)
    size = torch.maximum(alone.abs().amax(1), mixed.abs().amax(1))
    return bool(((alone - mixed).abs().amax(1) > rounding_of(like) ** 0.5 * size).any())


def jacobian(pull: Equations, like: Tensor) -> Tensor:
    """∂g/∂y of each sample, (samples, n, n), of samples that do not see each other."""
    units = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    return torch.stack([pull(unit.expand_as(like)) for unit in units], 1).to(precise(like))


def precise(x: Tensor) -> torch.dtype:
    """The dtype of linear algebra."""
    return torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no other


def inverted(matrices: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """The inverses, and which have none to that rounding, whatever the units of equations and unknowns."""
    rows = positive_rows(matrices.abs().amax(2))
    columns = positive_rows((matrices.abs() / rows[..., None]).amax(1))
    inverse, info = torch.linalg.inv_ex(matrices / rows[..., None] / columns[:, None])
    size = (matrices.abs() / rows[..., None] / columns[:, None]).sum(1).amax(1)
    condition = size * inverse.abs().sum(1).amax(1)
    return inverse / columns[..., None] / rows[:, None], (info > 0) | ~(condition * rounding < 0.25)


def positive_rows(sizes: Tensor) -> Tensor:
    """The sizes, with 1 in place of zeros."""
    return torch.where(sizes > 0, sizes, 1.0)


def solve_scaled(operator: Equations, rhs: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """x with operator(x) = rhs by GMRES for all samples at once, and what is left of it; each in its own units.

    NaN where rhs is not finite.
    """
    wide = precise(rhs)
    sizes = positive_rows(norms(rhs).to(wide))[:, None]
    gains = positive_rows(norms(operator((rhs / sizes).to(rhs.dtype))).to(wide))[:, None]

    def scaled(u: Tensor) -> Tensor:
        x = u.reshape(rhs.shape) * (sizes / gains)
        return (operator(x.to(rhs.dtype)).to(wide) / sizes).flatten()

    b = (rhs.to(wide) / sizes).flatten()
    size = float(b.norm())
    if not math.isfinite(size):
        return torch.full_like(rhs, math.nan), 0.0
    found, left = gmres(scaled, b, tolerance, size)
    return (found.reshape(rhs.shape) / gains * sizes).to(rhs.dtype), left
