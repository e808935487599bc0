"""Eager mode in counts: tensor operations and host reads of a step, beside torchdiffeq's."""

from collections import Counter

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from odenets import PID, Fixed, solve

READ = "aten._local_scalar_dense.default"
NETWORK = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
FIELD = 5  # operations of one evaluation: two transposes, two products, tanh
Y0 = torch.ones(5, 4)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def a_step(solver):
    """Operations of one step: what 30 steps cost more than 10, by 20."""
    counts = []
    for steps in (10, 30):
        with Operations() as mode:
            solver(steps)
        counts.append(mode.counts)
    return {name: (counts[1][name] - counts[0][name]) / 20 for name in counts[1]}


def field(t, y):
    return NETWORK(y)


def ours(steps):
    controller = PID(dt0=1 / steps, dt_max=1 / steps)
    assert solve(field, Y0, [0.0, 1.0], method="dopri5", controller=controller).stats.steps == steps


def theirs(steps):
    options = {"first_step": 1 / steps, "ifactor": 1.0}
    torchdiffeq.odeint(field, Y0, torch.tensor([0.0, 1.0]), method="dopri5", rtol=1e-3, atol=1e-6, options=options)


@torch.no_grad()
def test_an_adaptive_step():
    step, peer = a_step(ours), a_step(theirs)
    assert step[READ] == 1
    assert sum(step.values()) - 6 * FIELD <= 37
    assert peer[READ] >= 15
    assert sum(peer.values()) - 6 * FIELD >= 5 * (sum(step.values()) - 6 * FIELD)


@torch.no_grad()
def test_a_fixed_step_reads_nothing():
    step = a_step(lambda n: solve(field, Y0, [0.0, 1.0], method="rk4", controller=Fixed(steps=n)))
    assert step.get(READ, 0) == 0
    assert sum(step.values()) - 4 * FIELD <= 10  # three of them fill in times: sooner than one tensor of a list


@pytest.mark.parametrize(("method", "systems"), [("implicit_euler", 1), ("trbdf2", 2), ("radauIIA5", 1)])
@torch.no_grad()
def test_an_implicit_step_reads_once_an_iteration_of_newtons_method(method, systems, monkeypatch):
    """Two of them for each system of equations of a linear f: one that solves it, one that sees it. On the CPU a list
    is read without an operation.
    """
    lists, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: lists.append(x) or tolist(x))
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])

    def solved(steps):
        lists.clear()
        solve(lambda t, y: y @ turn, torch.ones(2), [0.0, 1.0], method=method, controller=Fixed(steps=steps))
        return len(lists)

    assert a_step(solved).get(READ, 0) == 0
    assert solved(30) - solved(10) == 20 * 2 * systems


def test_a_step_there_and_back():
    def train(steps):
        y0 = Y0.clone().requires_grad_()
        solve(
            field, y0, [0.0, 1.0], method="dopri5", controller=PID(dt0=1 / steps, dt_max=1 / steps)
        ).ys.sum().backward()

    step = a_step(train)
    assert step[READ] == 1
    assert sum(step.values()) <= 297  # 7 of them compare the replay with what it repeats
