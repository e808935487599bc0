"""f as a function of the tensors that it reaches, and its pullback: what the loops in tensors are made around."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

# bind(tensors): f, computing with these; where activations are kept, it returns (f(t, y), *activations).
Bind = Callable[[Sequence[Tensor]], Callable[..., Any]]


class Activation(NamedTuple):
    """A tensor that an evaluation of f keeps for its pullback."""

    shape: tuple[Any, ...]  # numbers, or symbols while a loop is compiled
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Vjp(Protocol):
    """The pullback of f, to the tensors that it reaches and that are wanted."""

    def __call__(
        self, tensors: Sequence[Any], t: Tensor, y: Tensor, k: Tensor | None, activations: Sequence[Tensor] | None
    ) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
        """f(t, y), and its pullback to (t, y, *wanted); k and the activations are those kept of it, else None."""
        ...

    def through(
        self, tensors: Sequence[Any], step: Callable[..., Sequence[Tensor]], *at: Tensor, moved: Sequence[int]
    ) -> tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Sequence[Tensor]]]:
        """step(f, *at) and its pullback to (*at, *wanted); of `at` those `moved` alone need have theirs."""
        ...
