"""The derivative of equations g(y) = 0 of many samples, y (samples, n), and the linear equations made of it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.methods.newton import gmres, irregular, rounding_of
from odenets.returned import as_tensor, explain, refuse_hidden, refuse_shape

Equations = Callable[[Tensor], Tensor]  # y (samples, n) to g (samples, n)


def called(field: Callable[..., Tensor], t: Tensor, z: Tensor, args: tuple = ()) -> Tensor:
    """field(t, z, *args), of z's shape; what is wrong with it is said as `odenets.solve` says it."""
    try:
        out = as_tensor(field(t, z, *args))
    except Exception as error:  # a field may raise anything
        explain(error, field, t, z, args)
        raise
    if out.shape != z.shape:
        refuse_shape(out, t, z)
    return out


def with_pullback(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """f(z), and e ↦ eᵀ ∂f/∂z, to be called as often as wanted; both differentiable where gradients are on.

    Under a transform of `torch.func` a graph of autograd's own would not be seen, and in inference mode there is none.

    Raises:
        RuntimeError: If f depends on z where autograd does not look on.
    """
    if transforms.active() or torch.is_inference_mode_enabled():
        made: Any = torch.func.vjp(f, z)
        value, back = made
        return value, lambda e: back(e)[0]
    wanted = torch.is_grad_enabled()  # then the pullback is to be differentiated, too
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        value = f(z)
    refuse_hidden(f, z, value)

    def pull(e: Tensor) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(z)
        return torch.autograd.grad(
            value, z, e, create_graph=wanted, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]

    return (value if wanted else value.detach()), pull


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
