"""f as a function of the tensors that it reaches, and its pullback: what the loops in tensors are made around."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# bind(tensors): f, computing with these; where activations are kept, it returns (f(t, y), *activations).
Bind = Callable[[Sequence[Tensor]], Callable[..., Any]]
# vjp(tensors, t, y, k, activations): f(t, y), and its pullback to (t, y, *wanted tensors); k and the activations are
# those of this evaluation, where they are kept, else None.
Vjp = Callable[..., tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]]


class Activation(NamedTuple):
    """A tensor that an evaluation of f keeps for its pullback."""

    shape: tuple[Any, ...]  # numbers, or symbols while a loop is compiled
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize
