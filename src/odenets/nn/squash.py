"""A vector field for densities: layers whose gain and shift follow time, with a derivative written out."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from odenets.arguments import count
from odenets.nn.field import layer_sizes


class _Layer(nn.Module):
    """(W x + b) · sigmoid(g t + c) + s t."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gain = nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the gain, which the derivative along x needs."""
        gain = torch.sigmoid(self.gain(t))
        return self.linear(x) * gain + self.shift(t), gain

    def push(self, v: Tensor, gain: Tensor) -> Tensor:
        """The derivative along v."""
        return linear(v, self.linear.weight) * gain


class ConcatSquashField(nn.Module):
    """A vector field f(t, x) of layers (W x + b) · sigmoid(g t + c) + s t with tanh between them; x is (..., width).

    When to use: in a `CNF`. It has the derivative along given directions written out (`jvp`), which makes densities
    without autograd inside of f and lets a `CNF` be compiled. When not: where the field needs other layers;
    any module will do, and `MLPField` has fewer parameters.

    Args:
        width: Size of the state.
        hidden: Sizes of the hidden layers, at least one.

    Raises:
        ValueError: A `width` or a size below 1, no hidden layer; when called, a state of another last axis.

    Source: the layer of Grathwohl et al., "FFJORD", ICLR 2019, appendix B.1, in its published code "concatsquash".
    """

    def __init__(self, width: int, hidden: int | Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.width = count("width", width)
        sizes = [self.width, *layer_sizes("hidden", hidden), self.width]
        if len(sizes) < 3:
            raise ValueError("`hidden` must name at least one hidden layer, got (): write hidden=(64, 64)")
        self.layers = nn.ModuleList(_Layer(*pair) for pair in itertools.pairwise(sizes))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """f(t, x), of x's shape."""
        t = self._time(t, x)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x, _ = layer(t, x)
            x = x if i == last else torch.tanh(x)
        return x

    def jvp(self, t: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """f(t, x), and its derivative along each direction: v is (..., *x.shape), and so is the derivative."""
        t = self._time(t, x)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x, gain = layer(t, x)
            v = layer.push(v, gain)  # type: ignore[operator]
            if i < last:
                x = torch.tanh(x)
                v = v * (1 - x * x)
        return x, v

    def _time(self, t: Tensor, x: Tensor) -> Tensor:
        """t with a last axis of one feature: (1,), or with a time for each sample (batch, 1)."""
        if x.shape[-1:] != (self.width,):
            raise ValueError(
                f"ConcatSquashField(width={self.width}) takes a state of shape (..., {self.width}), got "
                f"{tuple(x.shape)}: make `width` the size of the state's last axis"
            )
        return t.to(x.dtype).reshape(1) if t.dim() == 0 else t.to(x.dtype)
