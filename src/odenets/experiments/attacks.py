"""Perturbations of pictures in [0, 1] that a classifier should not mind: noise, and attacks with and without gradients.

Every function takes a network, pictures x (N, …) and classes y (N,), and returns pictures of x's shape in [0, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def noise(size: float, seed: int = 0) -> Attack:
    """Gaussian noise of that standard deviation."""

    def attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (x + size * torch.randn(x.shape, generator=generator)).clamp(0, 1)

    return attack


def fgsm(size: float) -> Attack:
    """One step of that size against the sign of the gradient (Goodfellow et al. 2015, section 4)."""

    def attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (x + size * _gradient(network, x, y).sign()).clamp(0, 1)

    return attack


def pgd(size: float, steps: int = 10, seed: int = 0) -> Attack:
    """Many smaller steps, projected onto the box of that size, from a random start in it (Madry et al. 2018, eq. 4)."""

    def attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        found = (x + size * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
        for _ in range(steps):
            found = found + 2.5 * size / steps * _gradient(network, found, y).sign()
            found = torch.minimum(torch.maximum(found, x - size), x + size).clamp(0, 1)
        return found

    return attack


def spsa(size: float, steps: int = 10, probes: int = 32, seed: int = 0) -> Attack:
    """PGD with a gradient estimated from losses alone (Uesato et al. 2018): it sees through gradients that mislead."""

    def attack(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        found, delta = x.clone(), 0.01
        for _ in range(steps):
            total = torch.zeros_like(x)
            for _ in range(probes):
                sign = 2.0 * torch.randint(0, 2, x.shape, generator=generator) - 1
                up, down = (_losses(network, found + way * delta * sign, y) for way in (1, -1))
                total += (up - down).reshape(-1, *[1] * (x.ndim - 1)) * sign
            found = found + 2.5 * size / steps * total.sign()
            found = torch.minimum(torch.maximum(found, x - size), x + size).clamp(0, 1)
        return found

    return attack


def _gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(network(x), y, reduction="sum"), x)[0]


def _losses(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(network(x), y, reduction="none")
