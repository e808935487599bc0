"""What the experiments with a training loop of their own share: steps of an optimizer, and the accuracy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step on the gradient of the loss alone."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def descend(
    model: nn.Module, loss: Callable[[float], Tensor], iterations: int, lr: float, *, falling: bool = True
) -> list[float]:
    """Steps of Adam; the mean loss in each twentieth of them.

    Args:
        loss: Gets the share of the steps that are done, from 0.
        falling: Whether the rate rises to `lr` and falls again; else it is `lr` in all steps.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedulers = torch.optim.lr_scheduler
    cycle = {"total_steps": iterations + 1, "pct_start": 0.1}
    rate = schedulers.OneCycleLR(optimizer, lr, **cycle) if falling else schedulers.ConstantLR(optimizer, factor=1.0)
    losses = []
    for i in range(iterations):
        value = loss(i / iterations)
        step(optimizer, value)
        rate.step()
        losses.append(float(value.detach()))
    return [float(part.mean()) for part in torch.tensor(losses).tensor_split(min(20, len(losses)))]


@torch.no_grad()
def accuracy(model: nn.Module, x: Any, y: Tensor) -> float:
    """The share of inputs (a tensor, or series) whose largest output is that of their class."""
    return float((model(x).argmax(1) == y).float().mean())
