"""Fits of networks: Adam, then L-BFGS, by the gradients of `odenets.solve`.

A network has more parameters than residuals often, and no start that is near anything: J would have a column for each,
and J'J would be singular. Adam gets near to a minimum from anywhere, one gradient a step; L-BFGS then needs a tenth of
the evaluations to the bottom of it.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenets.fitting.shooting import Grid, flat_times, gaps, observed, solve_segments
from odenets.fitting.strategies import Found, StartError, Task

_LOOSE = 4  # a fit on the way gets one of so many iterations
_MATCHED = 4  # times the iterations that collocation takes, which solves nothing
_WAITED = 20  # failed or wasted steps of Adam, after which it stops


class _LeftError(Exception):
    """L-BFGS has come to where the solve fails."""


class Descent:
    """The `Stage` of many parameters.

    Args:
        rate: Adam's learning rate.
    """

    most = math.inf
    penalties = (1.0, 10.0, 100.0)  # larger ones hold the parameters where they are

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def fit(self, task: Task, name: str, theta: Tensor, nodes: Tensor, penalty: float, loose: bool) -> Found:
        """Fit parameters and nodes.

        Raises:
            StartError: If the solve fails at the start.
        """
        run = _Run(task, theta, nodes, penalty)
        if not math.isfinite(run.loss().item()):
            raise StartError(name)
        keep = _Best(run.leaves)
        steps = max(1, task.iterations // _LOOSE) if loose else task.iterations
        _adam(run.loss, run.leaves, self.rate, steps, keep, lambda i, loss: task.tell(name, i, loss))
        if not loose:
            _lbfgs(run.loss, run.leaves, steps, keep, lambda i, loss: task.tell(f"{name}, L-BFGS", i, loss))
        return run.found()

    def match(self, task: Task, theta: Tensor, times: Tensor, states: Tensor, slopes: Tensor) -> Tensor:
        """Fit f(t, y) to slopes, each component by its size."""
        field = task.model.at(theta)
        leaves = task.model.leaves(field)
        t, y, slopes = (x.to(task.model.dtype) for x in (times, states, slopes))
        weights = 1 / slopes.square().mean(0).sqrt().clamp(min=torch.finfo(slopes.dtype).tiny)

        def loss() -> Tensor:
            return ((field(t, y) - slopes) * weights).square().mean()

        keep = _Best(leaves)
        steps = _MATCHED * task.iterations
        _adam(loss, leaves, self.rate, steps, keep, lambda i, value: task.tell("collocation", i, value))
        return task.model.vector_of(field)


class _Run:
    """The loss of a task as a function of its leaves."""

    def __init__(self, task: Task, theta: Tensor, nodes: Tensor, penalty: float) -> None:
        self.task, self.penalty, dtype = task, penalty, task.model.dtype
        self.field = task.model.at(theta)
        self.grid = Grid.of(task.data.times, nodes.shape[1])
        self.free = torch.ones_like(nodes, dtype=torch.bool)
        self.free[:, 0] = task.free
        self.fixed = nodes.to(dtype)
        self.nodes = self.fixed.clone().requires_grad_(bool(self.free.any()))
        data = task.data
        self.values, self.weights, self.count = data.values.to(dtype), data.weights.to(dtype), data.seen.sum()
        self.gap_weight = task.gap_weight.to(dtype)
        self.leaves = task.model.leaves(self.field) + ([self.nodes] if self.nodes.requires_grad else [])

    def states(self) -> tuple[Tensor | None, Tensor]:
        nodes = torch.where(self.free, self.nodes, self.fixed)

        def field(t: Tensor, y: Tensor) -> Tensor:
            return self.field(flat_times(t, y), y.flatten(0, -2)).reshape(y.shape)

        return solve_segments(field, nodes, self.grid, self.task.options), nodes

    def loss(self) -> Tensor:
        """The mean square, and the penalty; infinite where the solve fails."""
        states, nodes = self.states()
        if states is None:
            return torch.full((), math.inf)
        seen = observed(states, self.grid, self.task.observe)
        loss = ((seen - self.values) * self.weights).square().sum() / self.count
        if self.grid.segments > 1:
            loss = loss + self.penalty * (gaps(states, nodes) * self.gap_weight).square().mean()
        return loss

    def found(self) -> Found:
        with torch.no_grad():
            states, nodes = self.states()
        gap = 0.0
        if states is None:
            gap = math.inf
        elif self.grid.segments > 1:
            gap = float((gaps(states, nodes) / self.task.scale).abs().amax())
        return Found(self.task.model.vector_of(self.field), nodes.detach().double(), gap)


class _Best:
    """The leaves where the loss was least."""

    def __init__(self, leaves: list[Tensor]) -> None:
        self.leaves, self.loss = leaves, math.inf
        self.kept = [leaf.detach().clone() for leaf in leaves]

    def see(self, loss: float) -> bool:
        """Keep the leaves as they are, where it is less."""
        if not loss < self.loss:
            return False
        self.loss = loss
        for kept, leaf in zip(self.kept, self.leaves):
            kept.copy_(leaf.detach())
        return True

    def restore(self) -> None:
        with torch.no_grad():
            for kept, leaf in zip(self.kept, self.leaves):
                leaf.copy_(kept)


def _adam(
    loss_of: Callable[[], Tensor],
    leaves: list[Tensor],
    rate: float,
    steps: int,
    best: _Best,
    tell: Callable[[int, float], Any],
) -> None:
    """Adam, with a rate that falls to nothing as a cosine; where a solve fails, back to the best and half as fast."""
    optimizer = torch.optim.Adam(leaves, lr=rate)
    scale, failed = 1.0, 0
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = scale * rate * (0.5 + 0.5 * math.cos(math.pi * i / steps))
        optimizer.zero_grad()
        loss = loss_of()
        if not math.isfinite(loss.item()):
            failed += 1
            if failed > _WAITED:
                break
            best.restore()
            scale /= 2
            continue
        tell(i, loss.item())
        best.see(loss.item())
        loss.backward()
        optimizer.step()
    best.see(_value(loss_of))
    best.restore()


def _lbfgs(
    loss_of: Callable[[], Tensor], leaves: list[Tensor], steps: int, best: _Best, tell: Callable[[int, float], Any]
) -> None:
    optimizer = torch.optim.LBFGS(leaves, max_iter=steps, history_size=20, line_search_fn="strong_wolfe")
    count = 0

    def closure() -> Tensor:
        nonlocal count
        optimizer.zero_grad()
        loss = loss_of()
        if not math.isfinite(loss.item()):
            raise _LeftError
        loss.backward()
        if best.see(loss.item()):
            tell(count, loss.item())
        count += 1
        return loss

    with contextlib.suppress(_LeftError):
        optimizer.step(closure)  # pyright: ignore[reportArgumentType] — a tensor, as its documentation has it
    best.restore()


def _value(loss_of: Callable[[], Tensor]) -> float:
    with torch.no_grad():
        return loss_of().item()
