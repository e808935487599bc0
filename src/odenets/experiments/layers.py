"""Deep networks on digits, what becomes of the gradient on its way through them, and whether they learn.

`Deep` is a plain network, a ResNet, or an ODE-Net by Euler's method, which is a ResNet with one layer for all steps
and a step size (section 4.1 of the introduction). Its adjoint is bounded by the logarithmic norm of the Jacobian:
Söderlind, "The logarithmic norm. History and modern theory", BIT 46, 2006.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.experiments.digits import QUARTER, digits
from odenets.experiments.driver import Row
from odenets.experiments.training import step
from odenets.nn.field import activation
from odenets.solve import solve

PLAIN, RESNET, SHORT, LONG = "plain", "ResNet", "ODE-Net, T = 1", "ODE-Net, T = depth/4"
NETWORKS = (PLAIN, RESNET, SHORT, LONG)
ACTIVATIONS = ("sigmoid", "tanh", "relu")
INITS = {"small": 0.2, "PyTorch's": 1.0, "large": 4.0}  # times nn.Linear's own weights
BATCH = 128
STEP = 0.25  # of time, where the end grows with the depth
SAMPLES = 16  # whose adjoints are followed


class Deep(nn.Module):
    """A linear layer to the width, `depth` layers, a linear layer to ten classes.

    A layer is z ← σ(W z + b), z ← z + σ(W z + b), or with one W for all z ← z + h σ(W z + b).
    """

    def __init__(self, network: str, sigma: str, init: str, depth: int, width: int) -> None:
        super().__init__()
        shared = network in (SHORT, LONG)
        self.network, self.depth, self.sigma = network, depth, activation(sigma)
        self.step = {PLAIN: 1.0, RESNET: 1.0, SHORT: 1 / depth, LONG: STEP}[network]
        self.head, self.tail = nn.Linear(64, width), nn.Linear(width, 10)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(1 if shared else depth))
        for layer in self.layers:
            layer.weight.data.mul_(INITS[init])  # type: ignore[union-attr]

    def states(self, images: Tensor) -> list[Tensor]:
        """What comes out of the first linear layer and of each layer after it, (batch, width)."""
        states = [self.head(images)]
        for k in range(self.depth):
            change = self.sigma(self.layers[k % len(self.layers)](states[-1]))
            states.append(change if self.network == PLAIN else states[-1] + self.step * change)
        return states

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.states(images)[-1])


def gradient_row(network: str, sigma: str, init: str, seed: int, depths: Sequence[int], width: int) -> Row:
    """Before training: the loss's gradient to the state before the first layer, beside that to the last state.

    In float64, so that what is zero there has really vanished. `profile`: by layer of the deepest, the last is 1.
    """
    images, labels, *_ = digits(seed, QUARTER)
    profile, ratios = [], []
    for depth in depths:
        torch.manual_seed(seed)
        net = Deep(network, sigma, init, depth, width).double()
        states = net.states(images[:BATCH].double())
        loss = nn.functional.cross_entropy(net.tail(states[-1]), labels[:BATCH])
        norms = torch.stack([grad.norm() for grad in torch.autograd.grad(loss, states)])
        profile = (norms / norms[-1]).tolist()
        ratios.append(profile[0])
    row = {"network": network, "activation": sigma, "init": init, "seed": seed, "ratio": ratios[-1]}
    return row | {"depths": list(depths), "ratios": ratios, "profile": profile}


def training_row(
    network: str, sigma: str, init: str, depth: int, seed: int, width: int, steps: int, optimizer: str
) -> Row:
    """The accuracy on test digits after so many steps; `diverged` where the loss was no number any more."""
    images, labels, test, truth = digits(seed, QUARTER)
    torch.manual_seed(seed)
    net = Deep(network, sigma, init, depth, width)
    sgd = optimizer == "sgd"
    how = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) if sgd else torch.optim.Adam(net.parameters(), 1e-3)
    done, loss = 0, torch.zeros(())
    while done < steps and loss.isfinite():
        for some in torch.randperm(len(labels)).split(BATCH)[: steps - done]:
            loss = nn.functional.cross_entropy(net(images[some]), labels[some])
            step(how, loss)
            done += 1
    with torch.no_grad():
        out = net(test)
    bad = not bool(out.isfinite().all())
    row: dict[str, Any] = {"network": network, "activation": sigma, "init": init, "depth": depth, "seed": seed}
    return row | {"accuracy": float((out.argmax(1) == truth).float().mean()), "diverged": float(bad)}


def adjoint_row(sigma: str, init: str, seed: int, ends: Sequence[float], width: int) -> Row:
    """How an adjoint grows on its way from T to 0, for each T, and between what it has to stay.

    The adjoint of dz/dt = σ(W z + b) grows by no more than exp ∫ μ(J) dt and falls to no less than exp −∫ μ(−J) dt,
    with the Jacobian J along z and μ(J) the largest eigenvalue of its symmetric part. The highest and lowest of the
    samples; `outside`: how many break their own bounds.
    """
    torch.manual_seed(seed)
    net = Deep(LONG, sigma, init, 1, width).double()
    start = net.head(digits(seed, QUARTER)[0][:SAMPLES].double()).detach()
    direction = nn.functional.normalize(torch.randn(width, dtype=torch.float64), dim=0)
    found: dict[str, list[float]] = {key: [] for key in ("highest", "lowest", "upper", "lower")}
    outside = 0
    for end in ends:
        z0 = start.clone().requires_grad_()
        times = torch.linspace(0, end, 1 + 16 * max(4, round(end)), dtype=torch.float64)
        states = solve(lambda t, z: net.sigma(net.layers[0](z)), z0, times, rtol=1e-6, atol=1e-8, max_steps=100_000).ys
        (adjoint,) = torch.autograd.grad((states[-1] @ direction).sum(), z0)
        growth = adjoint.norm(dim=1)
        most, least = log_norms(net, states.detach())
        upper, lower = torch.trapezoid(most, times, dim=0).exp(), torch.trapezoid(least, times, dim=0).exp()
        outside += int(((growth > 1.01 * upper) | (growth < 0.99 * lower)).sum())
        for key, value in zip(found, (growth.max(), growth.min(), upper.max(), lower.min())):
            found[key].append(float(value))
    row = {"activation": sigma, "init": init, "seed": seed, "tried": len(ends) * SAMPLES, "outside": outside}
    return row | {"growth": found["highest"][-1], "bound": found["upper"][-1], "ends": list(ends), **found}


def log_norms(net: Deep, states: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the smallest eigenvalue of the symmetric part of the Jacobian, of states (..., width)."""
    layer = net.layers[0]
    inner = layer(states).detach().requires_grad_()
    (slope,) = torch.autograd.grad(net.sigma(inner).sum(), inner)
    jacobian = slope[..., None] * layer.weight.detach()  # type: ignore[operator]
    values = torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)
    return values[..., -1], values[..., 0]
