"""Networks that may or may not be flows, all as large as one another, and how they are trained on points.

A ball with a shell around it is what no flow of the plane can take apart.
"""

import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from odenets.experiments.option import solver_options
from odenets.experiments.training import step
from odenets.nn import MLPField, ODEBlock, count_parameters
from odenets.solve import solve

PLAIN, AUGMENTED, RESNET = NETWORKS = ("ODE-Net", "augmented ODE-Net", "ResNet")
RADII = {0: (0.0, 0.5), 1: (1.0, 1.5)}  # of the ball and of the shell around it
BLOCKS = 3  # of the ResNet


class Residual(nn.Module):
    """Residual blocks x + f(x) with weights of their own."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        fields = [MLPField(width, (hidden, hidden), activation, time="none") for _ in range(BLOCKS)]
        self.fields = nn.ModuleList(fields)

    def forward(self, x: Tensor) -> Tensor:
        for field in self.fields:
            x = x + field(x.new_zeros(()), x)
        return x


def body(name: str, width: int, config: Any) -> nn.Module:
    """The network of that name for points of `width` numbers, as large as the plain ODE-Net, or as nearly as can be."""
    size = count_parameters(_made(PLAIN, width, config.hidden, config))
    hidden = min(
        range(1, 2 * config.hidden + 1), key=lambda h: abs(count_parameters(_made(name, width, h, config)) - size)
    )
    return _made(name, width, hidden, config)


def _made(name: str, width: int, hidden: int, config: Any) -> nn.Module:
    if name == RESNET:
        return Residual(width, hidden, config.activation)
    augment = config.augment if name == AUGMENTED else 0
    field = MLPField(width + augment, (hidden, hidden), config.activation)
    return ODEBlock(field, augment=augment, **solver_options(config))


def ball_and_shell(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of the plane, (count, 2), a third of them in the ball, and their class: 0 in the ball, 1 in the shell."""
    labels = (torch.arange(count) >= count // 3).long()
    low, high = (torch.tensor([RADII[0][i], RADII[1][i]])[labels] for i in (0, 1))
    radius = (low**2 + (high**2 - low**2) * torch.rand(count, generator=generator)).sqrt()  # as dense everywhere
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), labels


def train(
    model: nn.Module, loss: Any, x: Tensor, y: Tensor, batches: Sequence[Tensor], lr: float, every: int
) -> dict[str, Any]:
    """Adam; of every few steps the mean loss and the mean number of evaluations of f forward."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    blocks = [module for module in model.modules() if isinstance(module, ODEBlock)]
    started, losses, nfes = time.process_time(), [], []
    for batch in batches:
        value = loss(model(x[batch]), y[batch])
        step(optimizer, value)
        losses.append(value.item())
        nfes.append(sum(evaluations(block) or 0 for block in blocks))
    places = range(0, len(batches), every)
    curves = {"seconds": time.process_time() - started, "losses": [fmean(losses[i : i + every]) for i in places]}
    return curves | ({"nfes": [fmean(nfes[i : i + every]) for i in places]} if blocks else {})


def evaluations(block: Any) -> int | None:
    """The evaluations of f of the newest solve; a ResNet has none."""
    stats = getattr(block, "stats", None)
    return None if stats is None else stats.nfe


@torch.no_grad()
def paths(block: nn.Module, x: Tensor) -> Tensor:
    """The states over time, (T, n, width); of a ResNet after each block."""
    if isinstance(block, ODEBlock):
        start = nn.functional.pad(x, (0, block.augment))
        return solve(block.field, start, torch.linspace(0, 1, 41), rtol=1e-6, atol=1e-6).ys
    states = [x]
    for field in block.fields:  # pyright: ignore[reportGeneralTypeIssues]
        states.append(states[-1] + field(x.new_zeros(()), states[-1]))
    return torch.stack(states)
