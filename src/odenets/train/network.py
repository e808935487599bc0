"""What a training needs of a network: its ODE layers, a wrapper for accelerate, its weights."""

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor, nn


class _Counts(Protocol):
    nfe: int
    nfe_backward: int | None  # None where the backward pass evaluates no f


class _OdeLayer(Protocol):
    stats: _Counts | None


def ode_layers(network: nn.Module) -> list[_OdeLayer]:
    """The layers that count evaluations of f, known by their `stats` (None before the first forward pass)."""
    layers = [module for module in network.modules() if hasattr(module, "stats")]
    return [cast(_OdeLayer, x) for x in layers if x.stats is None or hasattr(x.stats, "nfe_backward")]


class Wrapped(nn.Module):
    """The network inside a module of our own: accelerate marks and patches what it prepares.

    Prepared itself, the user's network would keep autocast after `fit`, and a second `fit` would find its
    mark and leave DDP and autocast out without a word (accelerate 1.15).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def can_fuse(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether the optimizer can be one kernel for all parameters: the same formula, faster also on the CPU."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)


def cpu_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and buffers on the CPU: safetensors takes neither views nor shared memory."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
