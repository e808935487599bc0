"""The derivative of a step as a whole, for which a family need do nothing, beside that of Runge–Kutta methods."""

from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

from odenets import METHODS, PID, Checkpointed, Direct, ExplicitRungeKutta, Fixed, ImplicitRungeKutta, Reversible, solve
from odenets.methods import Method

D = torch.float64


@dataclass(frozen=True)
class Explicit(ExplicitRungeKutta):
    remake = Method.remake


@dataclass(frozen=True)
class Implicit(ImplicitRungeKutta):
    remake = Method.remake


def whole(name):
    method = METHODS[name]
    given = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    return (Implicit if method.iterates else Explicit)(**given)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.unused = nn.Linear(3, 3, dtype=D), nn.Parameter(torch.ones(1, dtype=D))

    def forward(self, t, y):
        return torch.tanh(self.inner(y)) * torch.cos(t)


def gradients(method, t, dense=False, **options):
    net, y0 = Net(), torch.linspace(-1, 1, 6, dtype=D).reshape(2, 3).requires_grad_()
    times = torch.tensor(t, dtype=D, requires_grad=True)
    sol = solve(net, y0, times, method=method, dense=dense, **options)
    loss = sol.ys.sin().sum() + (sol(0.3).square().sum() if dense else 0)
    return torch.autograd.grad(loss, (y0, times, *net.inner.parameters())), sol.stats


CASES = {
    "adaptive": ("tsit5", {}),
    "few states": ("bosh3", {"adjoint": Checkpointed(memory=2)}),
    "fixed": ("rk4", {"controller": Fixed(steps=5)}),
    "stops": ("heun", {"stops": [0.2], "jumps": [0.6], "controller": PID()}),
    "dense": ("dopri5", {"dense": True}),
    "implicit": ("trbdf2", {}),
    "taken back": ("bosh3", {"adjoint": Reversible(), "controller": Fixed(dt=0.13)}),
}


@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.0, 0.4, 1.0], [2.0, 1.5, 1.0]], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_both_ways_agree(case, t):
    name, options = CASES[case]
    if "dense" in options and t[0] == 2.0:
        t = [1.0, 0.5, 0.0]
    own, stats = gradients(name, t, **options)
    by_step, stats_of_step = gradients(whole(name), t, **options)
    for a, b in zip(own, by_step):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert (stats.accepted, stats.nfe) == (stats_of_step.accepted, stats_of_step.nfe)
    if "implicit" not in case and "taken" not in case:
        exact, _ = gradients(name, t, **{**options, "adjoint": Direct()})
        for a, b in zip(by_step, exact):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.4, 1.0]], ids=str)
def test_with_a_step_size_for_each_sample(t):
    own, _ = gradients("tsit5", t, per_sample=True)
    by_step, _ = gradients(whole("tsit5"), t, per_sample=True)
    for a, b in zip(own, by_step):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.4, 1.0]], ids=str)
def test_compiled(t):
    own, _ = gradients("bosh3", t)
    by_step, _ = gradients(whole("bosh3"), t, compile=True, adjoint=Checkpointed())
    for a, b in zip(own, by_step):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
