"""The twins: a ResNet and an ODE-Net that differ in their middle only."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odenets.arguments import count, shown
from odenets.nn.block import ODEBlock
from odenets.nn.field import MLPField, activation
from odenets.solution import SolveError


class MLP(nn.Sequential):
    """A feed-forward network: linear layers with an activation between them (section 2.1 of the introduction).

    Args:
        sizes: Number of features of the input, of each hidden layer, and of the output.
        activation: A name in `ACTIVATIONS`.
        last: Whether the activation also follows the last layer.

    Input (..., sizes[0]), output (..., sizes[-1]).
    """

    def __init__(self, sizes: Sequence[int], activation: str = "tanh", last: bool = False) -> None:
        if isinstance(sizes, str | int) or len(sizes) < 2:
            raise ValueError(f"`sizes` must name at least an input and an output size, got {shown(sizes)}")
        sizes = [count(f"sizes[{i}]", size, least=0) for i, size in enumerate(sizes)]
        modules: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            modules += [nn.Linear(n_in, n_out), _activation(activation)]
        super().__init__(*(modules if last else modules[:-1]))


class ResidualBlock(nn.Module):
    """x + W σ(x) (section 2.6): one step of Euler's method of length 1 for dz/dt = W σ(z).

    With `field`, x + field(t, x): the same step for any vector field, at time t.
    """

    def __init__(self, width: int, activation: str = "relu", bias: bool = False) -> None:
        super().__init__()
        self.activation = _activation(activation)
        self.linear = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.activation(x))


class FieldSteps(nn.Module):
    """Residual blocks that share one field: x ← x + field(t, x) for t = 0, 1, …, depth − 1 (section 4.1).

    It is Euler's method with step 1 on [0, depth], written as a residual network.
    """

    def __init__(self, field: nn.Module, depth: int) -> None:
        super().__init__()
        self.field = field
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        for k in range(self.depth):
            x = x + self.field(torch.tensor(float(k), dtype=x.dtype, device=x.device), x)
        return x


class ResNet(nn.Sequential):
    """head, residual blocks, tail (section 2.6).

    Args:
        head: What maps the input to the width of the blocks.
        blocks: The residual blocks, in order.
        tail: What maps the width to the output.
    """

    def __init__(self, head: nn.Module, blocks: Sequence[nn.Module], tail: nn.Module) -> None:
        super().__init__()
        self.head, self.blocks, self.tail = head, nn.Sequential(*blocks), tail


class ODENet(nn.Sequential):
    """head, ODE layer, tail (section 4).

    Args:
        head: What maps the input to the state of the ODE.
        field: The vector field, called as `field(t, z)`; an `ODEBlock` is made of it.
        tail: What maps the state at the last time to the output.
        block_options: Options of `ODEBlock`: `t`, `augment`, `augment_dim`, `method`, `rtol`, …

    With `augment`, field and tail are those of width + augment.
    """

    def __init__(self, head: nn.Module, field: nn.Module, tail: nn.Module, **block_options: Any) -> None:
        super().__init__()
        self.head, self.block, self.tail = head, ODEBlock(field, **block_options), tail

    def forward(self, input: Tensor) -> Tensor:
        if not self.block.augment:
            return super().forward(input)
        try:
            return super().forward(input)
        except RuntimeError as error:
            if not isinstance(error, SolveError) and self._tail_works_without_augment(input):
                raise ValueError(
                    f"`tail` takes the state without its {self.block.augment} augmented dimensions, and gets it with "
                    "them: make it for width + augment"
                ) from error
            raise

    def _tail_works_without_augment(self, input: Tensor) -> bool:
        try:
            with torch.no_grad():
                self.tail(self.head(input))
        except Exception:  # the tail may raise anything
            return False
        return True


class Twins(NamedTuple):
    """A ResNet and an ODE-Net with the same head and tail (equal in shape, separate in weights)."""

    resnet: ResNet
    odenet: ODENet

    def __str__(self) -> str:
        return (
            f"ResNet {count_parameters(self.resnet):,} parameters, ODE-Net {count_parameters(self.odenet):,} parameters"
        )


def twins(
    inputs: int,
    outputs: int,
    width: int = 64,
    head_layers: int = 3,
    depth: int = 6,
    activation: str = "relu",
    *,
    time: str = "add",
    matched: bool = False,
    verbose: bool = True,
    **block_options: Any,
) -> Twins:
    """A ResNet and an ODE-Net as similar as possible; prints both parameter counts.

    The head is `head_layers` linear layers of `width` features with the activation between them; then `depth`
    residual blocks x + W σ(x) without bias, or one ODE layer dz/dt = Linear(σ(z) + t); then σ and one linear layer.
    The defaults are the networks of the introduction's section 5.

    Args:
        matched: Give the ODE layer's field a hidden layer, of the size at which both networks have the same number
            of parameters as nearly as possible. Otherwise the ODE layer has the parameters of about one block.
        time: How t enters the field: "add", "concat" or "none".
        block_options: Options of `ODEBlock`.
    """

    for name, size in {"inputs": inputs, "outputs": outputs, "width": width, "head_layers": head_layers}.items():
        count(name, size)
    count("depth", depth, least=0)

    def head() -> MLP:
        return MLP((inputs, *[width] * head_layers), activation)

    def tail(width: int) -> nn.Sequential:
        return nn.Sequential(_activation(activation), nn.Linear(width, outputs))

    resnet = ResNet(head(), [ResidualBlock(width, activation) for _ in range(depth)], tail(width))
    state = width + block_options.get("augment", 0)
    hidden = (_matching_hidden_size(resnet.blocks, state, time),) if matched else ()
    field = MLPField(state, hidden, activation, time)
    pair = Twins(resnet, ODENet(head(), field, tail(state), **block_options))
    if verbose:
        print(pair)
    return pair


def _matching_hidden_size(blocks: nn.Module, width: int, time: str) -> int:
    """The hidden size at which a field of one hidden layer has as many parameters as the residual blocks."""
    target = count_parameters(blocks)
    one, two = (count_parameters(MLPField(width, (h,), time=time)) for h in (1, 2))
    return max(1, round((target - (2 * one - two)) / (two - one)))


def count_parameters(module: nn.Module) -> int:
    """The number of trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


_activation = activation  # the classes above have an argument of that name
