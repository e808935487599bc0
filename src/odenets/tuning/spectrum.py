"""How f stretches and damps at a state: its Jacobian's norm, logarithmic norm and fastest decay, sample by sample."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.returned import refuse_hidden

DENSE = 64  # numbers of a sample up to which its whole Jacobian is formed
_KRYLOV = 16  # vectors from which the numbers of a larger one are made
_SAMPLES = 32  # of which the whole Jacobian is taken apart


class Spectrum(NamedTuple):
    """The largest of each over the samples, for J = ∂f/∂y at one t and y. NaN where J is not finite.

    Attributes:
        lipschitz: ‖J‖₂, the largest singular value.
        log_norm: The largest eigenvalue of (J + Jᵀ) / 2: distances grow no faster than e^(log_norm · t).
        decay: −Re λ of the eigenvalue λ of J that is the furthest to the left; of a large state −λ of (J + Jᵀ) / 2,
            which it does not exceed.
    """

    lipschitz: float
    log_norm: float
    decay: float


class Jacobian:
    """∂f/∂y at one t and y, as products with vectors (samples, size of a sample).

    f is evaluated once; products are backward passes through it and through its backward pass. A complex state counts
    as the real one of twice the size. Where f mixes the samples, all of them count as one.
    """

    def __init__(self, f: Callable[[Any, Tensor], Tensor], t: Any, y: Tensor) -> None:
        def of(y_real: Tensor) -> Tensor:
            return _real(f(t, torch.view_as_complex(y_real) if y.is_complex() else y_real))

        with torch.enable_grad():
            self.y = _real(y.detach()).clone().requires_grad_()
            self.out = of(self.y)
            self.cotangent = torch.zeros_like(self.out, requires_grad=True)
            self.pulled = self._pull(self.cotangent, create_graph=True) if self.out.requires_grad else None
        refuse_hidden(of, self.y, self.out)
        self.samples = len(y) if y.dim() > 1 else 1
        if self.samples > 1 and self._mixes():
            self.samples = 1
        self.size = self.y.numel() // max(self.samples, 1)

    def _pull(self, u: Tensor, create_graph: bool = False) -> Tensor | None:
        return torch.autograd.grad(
            self.out, self.y, u, create_graph=create_graph, retain_graph=True, allow_unused=True
        )[0]

    def _mixes(self) -> bool:
        """Whether the derivative of the first sample's f reaches other samples."""
        u = torch.zeros_like(self.out)
        u[0] = 1.0
        pulled = self._pull(u) if self.out.requires_grad else None
        return pulled is not None and bool((pulled[1:] != 0).any())

    def transposed(self, u: Tensor) -> Tensor:
        """Jᵀu in float64."""
        pulled = self._pull(self._shaped(u)) if self.out.requires_grad else None
        return torch.zeros_like(u) if pulled is None else pulled.reshape(u.shape).double()

    def times(self, v: Tensor) -> Tensor:
        """J v in float64: the derivative of Jᵀu, which is linear in u, to u."""
        if self.pulled is None or not self.pulled.requires_grad:
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(self.pulled, self.cotangent, self._shaped(v), retain_graph=True)
        return product.reshape(v.shape).double()

    def dense(self) -> Tensor:
        """All of it, (samples, size, size), a product for each row."""
        rows = torch.eye(self.size, dtype=torch.float64, device=self.y.device)
        return torch.stack([self.transposed(row.expand(self.samples, -1)) for row in rows], dim=1)

    def _shaped(self, v: Tensor) -> Tensor:
        return v.reshape(self.y.shape).to(self.y.dtype)


def spectrum(jacobian: Jacobian) -> Spectrum:
    """The numbers of a Jacobian: exact to rounding for at most `DENSE` numbers a sample, else by Lanczos' method."""
    if not jacobian.y.numel():
        return Spectrum(math.nan, math.nan, math.nan)
    return _of_dense(jacobian.dense()) if jacobian.size <= DENSE else _of_products(jacobian)


def _of_dense(matrices: Tensor) -> Spectrum:
    spread = torch.linspace(0, len(matrices) - 1, min(len(matrices), _SAMPLES)).round().long()
    matrices = matrices.cpu()[spread]
    if not bool(matrices.isfinite().all()):
        return Spectrum(math.nan, math.nan, math.nan)
    symmetric = torch.linalg.eigvalsh((matrices + matrices.mT) / 2)
    return Spectrum(
        float(torch.linalg.matrix_norm(matrices, 2).max()),
        float(symmetric.max()),
        -float(torch.linalg.eigvals(matrices).real.min()) + 0.0,  # + 0.0: never −0
    )


def _of_products(jacobian: Jacobian) -> Spectrum:
    shape = (jacobian.samples, jacobian.size)
    if not all(bool(x.isfinite().all()) for x in (jacobian.out, jacobian.times(jacobian.y.new_ones(shape).double()))):
        return Spectrum(math.nan, math.nan, math.nan)
    _, square = _extremes(lambda v: jacobian.transposed(jacobian.times(v)), shape, jacobian.y.device)
    low, high = _extremes(lambda v: (jacobian.times(v) + jacobian.transposed(v)) / 2, shape, jacobian.y.device)
    return Spectrum(math.sqrt(max(square, 0.0)), high, -low + 0.0)


def _extremes(product: Callable[[Tensor], Tensor], shape: tuple[int, int], device: torch.device) -> tuple[float, float]:
    """The smallest and the largest eigenvalue of symmetric matrices, one a sample, by Lanczos' method.

    Not by power iteration, which needs a hundred products where two eigenvalues are close. Every vector is made
    orthogonal to all before; where none is left in the direction of the last, a random one goes on.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(device)

    basis, diagonal, beside = [_unit(drawn())], [], []
    for step in range(min(_KRYLOV, shape[1])):
        found = product(basis[-1])
        diagonal.append((found * basis[-1]).sum(dim=1))
        found = _orthogonal(found, basis)
        length = torch.linalg.vector_norm(found, dim=1)
        scale = torch.stack([x.abs() for x in (*diagonal, *beside)]).amax(dim=0)
        ended = length <= 1e-6 * scale  # the rounding of float32, in which products may be made
        beside.append(torch.where(ended, 0.0, length))
        if step + 1 < shape[1]:
            basis.append(_unit(torch.where(ended[:, None], _orthogonal(drawn(), basis), found)))
    matrices = torch.diag_embed(torch.stack(diagonal, dim=1))
    if len(beside) > 1:
        off = torch.stack(beside[:-1], dim=1)
        matrices = matrices + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values = torch.linalg.eigvalsh(matrices.cpu())
    return float(values.min()), float(values.max())


def _orthogonal(v: Tensor, basis: list[Tensor]) -> Tensor:
    """v without its parts along the basis, taken away twice for the sake of rounding."""
    for b in (*basis, *basis):
        v = v - (v * b).sum(dim=1, keepdim=True) * b
    return v


def _unit(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _real(y: Tensor) -> Tensor:
    return torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
