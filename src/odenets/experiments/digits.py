"""A small real task for experiments that train many ODE-Nets: scikit-learn's 1,797 digits of 8 × 8 pixels."""

import copy
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odenets import torchdiffeq
from odenets.adjoint import Direct
from odenets.controller import Fixed
from odenets.data.images import small_digits
from odenets.experiments.convergence import ADAMS
from odenets.experiments.driver import Row
from odenets.experiments.training import step
from odenets.nn.field import MLPField
from odenets.solve import solve

TIGHT: dict[str, Any] = {"method": "tsit5", "rtol": 1e-8, "atol": 1e-10, "max_steps": 100_000}
SOURCE = "Handwritten digits of 8 × 8 pixels that come with scikit-learn (UCI, Alpaydin and Kaynak 1998)."
WIDTH, HIDDEN = 16, 32
QUARTER = 449  # of the digits

Solver = Callable[[nn.Module, Tensor], Tensor]  # the field and z(0): z at the end


class Task(NamedTuple):
    """Images (n, 64) from −1 to 1 and their digits (n,): to train with and to test with."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@functools.cache
def digits(seed: int, held_out: int = 500) -> Task:
    """Of the 1,797 digits so many to test with, and the others to train with, divided by that seed."""
    pixels, classes = small_digits()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    x, y = pixels[order] / 8 - 1, classes[order]
    return Task(x[held_out:], y[held_out:], x[:held_out], y[:held_out])


class DigitNet(nn.Module):
    """Linear, dz/dt = f(t, z) solved by `solver`, linear: (n, 64) → (n, 10)."""

    def __init__(self, solver: Solver, activation: str = "tanh") -> None:
        super().__init__()
        self.solver = solver
        self.head = nn.Linear(64, WIDTH)
        self.field = MLPField(WIDTH, (HIDDEN,), activation)
        self.tail = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.solver(self.field, self.head(x)))


def tightly(network: DigitNet, end: float) -> DigitNet:
    """The same network in float64, solved to 1e-8 on [0, end]."""
    exact = copy.deepcopy(network).double()
    exact.solver = lambda field, z: solve(field, z, [0.0, end], **TIGHT).ys[-1]
    return exact


def train(network: DigitNet, task: Task, epochs: int, seed: int, lr: float = 5e-3, batch: int = 128) -> float:
    """Adam on the cross entropy; the seconds it took. Raises `SolveError` where a solve fails."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    started = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.randperm(len(task.x), generator=generator).split(batch):
            step(optimizer, nn.functional.cross_entropy(network(task.x[chosen]), task.y[chosen]))
    return time.perf_counter() - started


@torch.no_grad()
def tested(network: DigitNet, task: Task, end: float) -> dict[str, float]:
    """Cross entropy and accuracy on the test set, and what a tight solve of the same weights makes of them.

    `moved`: how far the outputs move, relative, root mean square; `changed`: the share of other answers.
    """
    own, exact = network(task.test_x).double(), tightly(network, end)(task.test_x.double())
    loss = nn.functional.cross_entropy
    return {
        "loss": float(loss(own, task.test_y)),
        "accuracy": float((own.argmax(1) == task.test_y).double().mean()),
        "tight_loss": float(loss(exact, task.test_y)),
        "tight_accuracy": float((exact.argmax(1) == task.test_y).double().mean()),
        "moved": float((own - exact).norm() / exact.norm()),
        "changed": float((own.argmax(1) != exact.argmax(1)).double().mean()),
    }


def gradient_error(network: DigitNet, task: Task, end: float, samples: int = 256) -> float:
    """How far the gradient of the training loss is from that of a tight solve, relative, over all parameters."""

    def gradient(net: DigitNet) -> Tensor:
        found = nn.functional.cross_entropy(net(task.x[:samples].double()), task.y[:samples])
        return torch.cat([g.flatten() for g in torch.autograd.grad(found, list(net.parameters()))])

    own, exact = gradient(copy.deepcopy(network).double()), gradient(tightly(network, end))
    return float((own - exact).norm() / exact.norm())


def guess(seed: int) -> Row:
    """What naming the most frequent digit would score."""
    task = digits(seed)
    return {
        "method": "always one digit",
        "seed": seed,
        "accuracy": float((task.test_y == task.y.mode()[0]).double().mean()),
    }


def solver_of(method: str, budget: int, end: float) -> tuple[Solver, int]:
    """A solve on [0, end] with so many evaluations of f, and its steps."""
    steps = {
        "euler": budget,
        "rk4": budget // 4,
        "dopri5": budget // 6,
        "explicit_adams": budget - 6,  # the first two steps are of the 3/8 rule: four evaluations each, then one
        "implicit_adams": budget // 2 - 2,  # then two: the predictor's and one corrector's
    }[method]
    if method in ADAMS:
        times, options = torch.tensor([0.0, end]), {"step_size": end / steps, "max_order": 5}
        given: dict[str, Any] = {"method": method, "options": options}
        given |= {"rtol": 1e6, "atol": 1e6}  # the corrector is content with one iteration
        return lambda f, z: torchdiffeq.odeint(f, z, times, **given)[-1], steps
    controller = Fixed(steps=steps)
    return lambda f, z: solve(f, z, [0.0, end], method=method, controller=controller, adjoint=Direct()).ys[-1], steps
