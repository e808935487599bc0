"""Measuring a network: exact means over a data set, without gradients."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from odenets.arguments import shown
from odenets.series import Series
from odenets.train.checks import check_data, check_outputs, check_targets

__all__ = ["Loss", "accuracy", "evaluate", "mean_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""`loss(outputs, y)` -> the mean over the samples, shape ()."""


def evaluate(
    network: nn.Module, loss: Loss, x: Tensor | Series, y: Tensor, batch_size: int = 1024
) -> tuple[float, Tensor]:
    """The mean loss over all samples, exactly, and all outputs, (N, ...), on the network's device.

    `x` is (N, ...), or a `Series`, and `y` (N, ...). The network is run in eval mode without gradients, in batches of
    `batch_size`, and afterwards has the modes it had. The mean does not depend on `batch_size`: each
    batch counts by its size.
    """
    check_data("x", "y", x, y)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {shown(batch_size)}; it must be a whole number from 1.")
    device = next((parameter.device for parameter in network.parameters()), x.device)
    losses, outputs = [], []
    with _eval_mode(network), torch.no_grad():
        for begin in range(0, len(x), batch_size):
            inputs, targets = x[begin : begin + batch_size].to(device), y[begin : begin + batch_size].to(device)
            outputs.append(network(inputs))
            if begin == 0:
                check_targets("y", loss, outputs[0], y)
                check_outputs("y", loss, outputs[0], targets)
            losses.append(mean_loss(loss, outputs[-1], targets) * len(inputs))
    total = torch.stack(losses).cpu().double().sum()
    return float(total) / len(x), torch.cat(outputs)


def accuracy(outputs: Tensor, y: Tensor) -> float | None:
    """The share of samples whose largest output, (N, classes, ...), is their class, (N, ...).

    None where `y` holds no classes: where it is not of whole numbers, or has as many dimensions as `outputs`.
    """
    if y.is_floating_point() or y.is_complex() or outputs.ndim != y.ndim + 1:
        return None
    return float((outputs.argmax(1) == y.to(outputs.device)).double().mean())


@contextlib.contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode in the block; afterwards each layer has its own earlier mode, also one that was frozen."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def mean_loss(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """`loss(outputs, y)`, shape (); raises `ValueError` for a loss of another shape."""
    value = loss(outputs, y)  # ()
    if value.ndim:
        raise ValueError(
            f"`loss` returned shape {tuple(value.shape)}; it must return the mean over the samples, shape (). "
            "Use `reduction='mean'`, or end it with `.mean()`."
        )
    return value
