"""Vector fields f(t, y) as modules, and activations by name."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.arguments import count, one_of, shown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}

TIME = ("add", "concat", "none")


def activation(name: str) -> nn.Module:
    """The activation of that name, a new module.

    In a vector field, a Lipschitz continuous activation gives existence and uniqueness (Picard–Lindelöf): every one
    here is. A smooth one (tanh, sigmoid, softplus, silu, gelu) also keeps the order of the solver. A kink (relu,
    leaky_relu) leaves no more than the second order, a kink of the slope (elu) the third, and an adaptive solver takes
    smaller steps there (`odenets run uniqueness`).

    Raises:
        ValueError: If there is no activation of that name.
    """
    return ACTIVATIONS[one_of("activation", name, ACTIVATIONS)]()


def layer_sizes(name: str, given: Any) -> tuple[int, ...]:
    """Sizes of hidden layers: a whole number is one layer, () none.

    Raises:
        TypeError, ValueError: If they are no whole numbers from 1.
    """
    if isinstance(given, str) or not (isinstance(given, Iterable) or hasattr(given, "__index__")):
        raise TypeError(f"`{name}` must be sizes of hidden layers, such as (50,) or (), got {shown(given)}")
    if not isinstance(given, Iterable):
        return (count(name, given),)
    return tuple(count(f"{name}[{i}]", size) for i, size in enumerate(given))


class MLPField(nn.Module):
    """A vector field f(t, y) made of linear layers, for a state y of shape (..., width).

    Without hidden layers it is the field of the introduction's section 5, `Linear(σ(y) + t)`: the activation comes
    first, as in a pre-activation residual block. With hidden layers it is `Linear(σ(… σ(Linear(y)) …))`.

    Args:
        width: Size of the state.
        hidden: Sizes of the hidden layers, or the one size; () for the single layer above.
        activation: A name in `ACTIVATIONS`.
        time: How t enters: "add" adds t to the input of the first linear layer, "concat" appends it as one more
            input feature (as many weights more as the layer has outputs), "none" leaves an autonomous field.
        bias: Whether the linear layers have one.

    Raises:
        TypeError, ValueError: Sizes that are none; an unknown `activation` or `time`; when called, a state of another
            last axis than `width`.
    """

    def __init__(
        self,
        width: int,
        hidden: int | Sequence[int] = (),
        activation: str = "tanh",
        time: str = "concat",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.time = count("width", width, least=0), one_of("time", time, TIME)
        hidden = layer_sizes("hidden", hidden)
        self.before = None if hidden else _activation(activation)
        self.layers = _layers((width, *hidden, width), activation, extra_inputs=int(time == "concat"), bias=bias)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if y.shape[-1:] != (self.width,):  # () too, which has no last axis
            raise ValueError(
                f"MLPField(width={self.width}) takes a state of shape (..., {self.width}), got {tuple(y.shape)}: make "
                "`width` the size of the state's last axis"
            )
        if self.before is not None:
            y = self.before(y)
        if self.time == "add":
            y = y + t
        elif self.time == "concat":
            y = torch.cat([y, t.to(y.dtype).expand(*y.shape[:-1], 1)], dim=-1)
        return self.layers(y)


def _layers(sizes: Sequence[int], activation: str, extra_inputs: int, bias: bool) -> nn.Sequential:
    """Linear layers with the activation between them, none after the last."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        if i > 0:
            layers.append(_activation(activation))
        layers.append(nn.Linear(n_in + (extra_inputs if i == 0 else 0), n_out, bias=bias))
    return nn.Sequential(*layers)


_activation = activation  # the functions above have an argument of that name
