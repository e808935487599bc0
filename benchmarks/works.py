"""The works of the benchmark: what is solved, with which network, data and tolerance, whoever solves it."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torchdiffeq
from torch import Tensor, nn

from odenets.nn import MLPField, twins

METHOD = "dopri5"


class Network(nn.Module):
    """head, ODE, tail: the head makes the state of the input, the tail the output of the states at the times."""

    def __init__(self, field: nn.Module, head: nn.Module | None = None, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.field, self.tail = head or nn.Identity(), field, tail or nn.Identity()


@dataclass(frozen=True)
class Work:
    """A training step, or, without a loss, a forward pass alone.

    `last` says that the output is made of the state at the last time and not of the states at all times.
    `max_steps` bounds the steps, rejected ones included; the cost of diffrax depends on it, and of no other.
    """

    name: str
    what: str
    network: Network
    x: Tensor
    target: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] | None
    times: tuple[float, ...]
    rtol: float
    atol: float
    max_steps: int
    last: bool = True
    resnet: nn.Module | None = None
    exact: float = 1e-10  # the tolerances of the reference
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def y0(self) -> Tensor:
        return self.network.head(self.x).detach()


class ConcatConvField(nn.Module):
    """GroupNorm-ReLU-Conv-GroupNorm-ReLU-Conv-GroupNorm, the time as one more channel of each convolution.

    The field of torchdiffeq's ODE-Net example. t is one number, or one for each sample, of shape (batch, 1, 1, 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(32, channels) for _ in range(3))
        self.conv1, self.conv2 = (nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.expand(y.shape[0], 1, *y.shape[2:])
        y = self.conv1(torch.cat([time, torch.relu(self.norm1(y))], dim=1))
        y = self.conv2(torch.cat([time, torch.relu(self.norm2(y))], dim=1))
        return self.norm3(y)


class SpiralField(nn.Module):
    """A network of y³: the field of torchdiffeq's `ode_demo`, with its initial weights."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Linear(2, 50), nn.Linear(50, 2)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(first, nn.Tanh(), second)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y**3)


class VanDerPol(nn.Module):
    """x'' = μ(1 − x²)x' − x, each sample with its own μ."""

    mu: Tensor

    def __init__(self, mu: Tensor) -> None:
        super().__init__()
        self.register_buffer("mu", mu)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, self.mu * (1 - x**2) * v - x], dim=-1)


def ecg() -> Work:
    pair = twins(187, 5, verbose=False)
    return Work(
        name="ecg",
        what="heartbeat ODE-Net: batch 128, width 64, field Linear(relu(y) + t), cross-entropy",
        network=Network(MLPField(64, activation="relu", time="add"), pair.odenet.head, pair.odenet.tail),
        x=torch.rand(128, 187),
        target=torch.randint(0, 5, (128,)),
        loss=nn.functional.cross_entropy,
        times=(0.0, 1.0),
        rtol=1e-3,
        atol=1e-3,
        max_steps=16,
        resnet=pair.resnet,
        notes=("Initial weights, random data.",),
    )


def cubic() -> Work:
    x = torch.linspace(-2.5, 2.5, 10)[:, None]
    work = Work(
        name="cubic",
        what="x³ + 0.1x from 10 points: scalar state, field 2-20-1 tanh, mean squared error",
        network=Network(MLPField(1, hidden=(20,))),
        x=x,
        target=x**3 + 0.1 * x,
        loss=nn.functional.mse_loss,
        times=(0.0, 1.0),
        rtol=1e-6,
        atol=1e-6,
        max_steps=64,
        notes=("Weights after 200 steps of Adam: at the initial ones the field is nearly constant.",),
    )
    return train(work, 200)


def spiral() -> Work:
    """torchdiffeq's `ode_demo`: 20 pieces of 10 points of one spiral."""
    t = torch.linspace(0.0, 25.0, 1000)
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    states = solve_reference(lambda t, y: y**3 @ matrix, torch.tensor([2.0, 0.0]), t.tolist(), 1e-7)
    starts = torch.randperm(1000 - 10)[:20]
    work = Work(
        name="spiral",
        what="torchdiffeq's ode_demo: batch 20 × 2, field 2-50-2 tanh of y³, 10 output times, mean absolute error",
        network=Network(SpiralField()),
        x=states[starts],
        target=torch.stack([states[starts + i] for i in range(10)]),
        loss=nn.functional.l1_loss,
        times=tuple(t[:10].tolist()),
        rtol=1e-7,
        atol=1e-9,
        max_steps=64,
        last=False,
        notes=("Weights after 200 steps of Adam: at the initial ones the field is nearly zero.",),
    )
    return train(work, 200)


def convolution() -> Work:
    x = torch.randn(32, 64, 6, 6)
    return Work(
        name="convolution",
        what="convolutional ODE-Net: 32 × 64 × 6 × 6, GroupNorm-ReLU-Conv twice and GroupNorm, mean square",
        network=Network(ConcatConvField(64)),
        x=x,
        target=torch.zeros_like(x),
        loss=nn.functional.mse_loss,
        times=(0.0, 1.0),
        rtol=1e-3,
        atol=1e-3,
        max_steps=16,
        exact=1e-8,
        notes=(
            "Initial weights, random data.",
            "The reference is at 1e-8: the gradient through the many kinks of ReLU converges slowly (by 0.8 % "
            "from 1e-6 to 1e-7), and at 1e-10 the solve had not ended after some minutes.",
            "For diffrax the convolution is written as a matrix product, in NHWC: XLA's own one is 5 to 40 times "
            "slower in the body of a loop on a CPU.",
        ),
    )


def vanderpol() -> Work:
    mu = torch.logspace(0.0, math.log10(50.0), 256, dtype=torch.float64)
    return Work(
        name="vanderpol",
        what="forward alone: 256 van der Pol oscillators, μ from 1 to 50, 50 output times on [0, 30], float64",
        network=Network(VanDerPol(mu)),
        x=torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(256, 1),
        target=torch.empty(0),
        loss=None,
        times=tuple(torch.linspace(0.0, 30.0, 50, dtype=torch.float64).tolist()),
        rtol=1e-6,
        atol=1e-6,
        max_steps=4096,
        last=False,
        notes=("The evaluations of f are those of the whole batch: with its own steps, those of the slowest sample.",),
    )


WORKS: dict[str, Callable[[], Work]] = {f.__name__: f for f in (ecg, cubic, spiral, convolution, vanderpol)}


def make(name: str) -> Work:
    """The work of that name, with the same weights and data each time."""
    torch.manual_seed(0)
    return WORKS[name]()


def moved(work: Work, device: str) -> Work:
    """The work with its network and data on that device."""
    network = copy.deepcopy(work.network).to(device)
    resnet = None if work.resnet is None else copy.deepcopy(work.resnet).to(device)
    return replace(work, network=network, resnet=resnet, x=work.x.to(device), target=work.target.to(device))


def train(work: Work, steps: int) -> Work:
    """The work, its field after some steps of Adam."""
    field = work.network.field
    optimizer = torch.optim.Adam(field.parameters(), lr=0.01)
    for _ in range(steps):
        ys = solve_reference(field, work.x, work.times, 1e-4)
        optimizer.zero_grad()
        if work.loss is not None:
            work.loss(ys[-1] if work.last else ys, work.target).backward()
        optimizer.step()
    return work


def solve_reference(f: Callable[[Tensor, Tensor], Tensor], y0: Tensor, times: Sequence[float], tol: float) -> Tensor:
    """A solve by a peer, so that no contestant of ours is its own judge."""
    ys = torchdiffeq.odeint(
        f, y0, torch.tensor(times, dtype=y0.dtype, device=y0.device), method=METHOD, rtol=tol, atol=tol
    )
    if not isinstance(ys, Tensor):
        raise TypeError("the state must be one tensor")
    return ys
