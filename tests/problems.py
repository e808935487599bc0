"""Initial value problems with known solutions, and fields in every form, shared by the tests."""

import functools
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Known:
    """dy/dt = f(t, y) with y(t0) = y0, and its exact solution."""

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor  # float64
    exact: Callable[[Tensor], Tensor]  # times (T,) -> states (T, *y0.shape)
    t1: float

    def __repr__(self) -> str:
        return self.name


DECAY = Known(
    "decay",
    lambda t, y: -y,
    torch.ones(2, dtype=torch.float64),
    lambda t: torch.exp(-t)[:, None].expand(-1, 2),
    2.0,
)
FORCED = Known(
    "forced",
    lambda t, y: -y * torch.cos(t),
    torch.ones(1, dtype=torch.float64),
    lambda t: torch.exp(-torch.sin(t))[:, None],
    3.0,
)
OSCILLATOR = Known(
    "oscillator",
    lambda t, y: torch.stack([y[..., 1], -y[..., 0]], -1),
    torch.tensor([1.0, 0.0], dtype=torch.float64),
    lambda t: torch.stack([torch.cos(t), -torch.sin(t)], -1),
    2 * math.pi,
)
KNOWN = (DECAY, FORCED, OSCILLATOR)


class Net(nn.Module):
    """A small smooth field that depends on time, in float64."""

    def __init__(self, width: int = 3, hidden: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(width, hidden, dtype=torch.float64)
        self.outer = nn.Linear(hidden, width, dtype=torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(y) + t)) * torch.cos(t)


# --- ways in which a field, -weight * y, can reach its weight ---


class Holder:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight

    def field(self, t, y):
        return -self.weight * y


class CallableField:
    def __init__(self, weight):
        self.parts = {"weight": [weight]}

    def __call__(self, t, y):
        return -self.parts["weight"][0] * y


class BufferField(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, t, y):
        return -self.weight * y


GLOBAL = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)


def through_global(t, y):
    return -GLOBAL * y


def _default(weight):
    def f(t, y, w=weight):
        return -w * y

    return f


ROUTES = {
    "closure": lambda w: lambda t, y: -w * y,
    "nested closure": lambda w: (lambda g: lambda t, y: g(y))(lambda y: -w * y),
    "bound method": lambda w: Holder(w).field,
    "callable object": CallableField,
    "buffer": BufferField,
    "partial": lambda w: functools.partial(lambda w, t, y: -w * y, w),
    "default argument": _default,
}


def living_tensors() -> int:
    """How many there are."""
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def assert_nothing_is_left(train: Callable[[], None], times: int = 30) -> None:
    """After so many more steps as many tensors live as before, without the garbage collector."""
    train()
    gc.collect()
    gc.disable()
    try:
        before = living_tensors()
        for _ in range(times):
            train()
        assert living_tensors() == before
    finally:
        gc.enable()
