"""`compile=True` of a field that is no function of (t, y): it runs eagerly, and one warning says why."""

import random
import warnings

import pytest
import torch
from torch import nn

from odenets import Fixed, solve
from odenets.engine.compile import programs, told, trace
from odenets.engine.compile.failing import NotCompiled
from odenets.engine.compile.known import compiler

OPTIONS = {"method": "euler", "controller": Fixed(steps=4)}


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, t, y):
        self.n += 1
        return -y / self.n


class CountingQuietly(Counting):
    """The counter changes nothing, but the tracer assumes its value."""

    def forward(self, t, y):
        self.n += 1
        return -y


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, t, y):
        self.mean.mul_(0.9).add_(y.detach().mean(0))
        return -self.mean * y


class Remembering(nn.Module):
    last = torch.zeros(2, 3)

    def forward(self, t, y):
        before, self.last = self.last, y.detach()
        return -y + before


def in_place(t, y):
    y *= -1
    return y


STATEFUL = {
    "counter": (Counting, "differ"),
    "quiet counter": (CountingQuietly, "changes what the next depends on"),
    "buffer": (Buffered, "writes into"),
    "batch norm": (lambda: nn.Sequential(Second(), nn.BatchNorm1d(3)), "writes into"),
    "memory": (Remembering, "keeps a tensor"),
    "dropout": (lambda: nn.Sequential(Second(), nn.Dropout(0.5)), "random"),
    "random": (lambda: lambda t, y: y * torch.rand(()), "random"),
    "random in Python": (lambda: lambda t, y: y * random.random(), ""),
    "in place": (lambda: in_place, "writes into y"),
}


class Second(nn.Module):
    def forward(self, y):
        return -y


def field(make):
    f = make()
    return (lambda t, y: f(y)) if isinstance(f, nn.Sequential) else f


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.parametrize("name", STATEFUL)
def test_runs_eagerly_with_one_warning(name):
    told.forget()
    make, why = STATEFUL[name]
    f = field(make)
    generator = torch.get_rng_state()
    with pytest.warns(UserWarning, match=rf"could not be compiled.*{why}") as caught:
        fast = solve(f, torch.ones(2, 3), [0.0, 1.0], compile=True, **OPTIONS)
    (warning,) = (warning for warning in caught if "could not be compiled" in str(warning.message))
    assert warning.filename == __file__
    if "random" in why:
        torch.set_rng_state(generator)  # which the comparison has left as it was
        assert torch.equal(fast.ys, solve(f, torch.ones(2, 3), [0.0, 1.0], **OPTIONS).ys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(f, torch.ones(2, 3), [0.0, 1.0], compile=True, **OPTIONS)


def test_one_instance_does_not_keep_another_from_compiling(monkeypatch):
    class Field(nn.Module):
        def __init__(self, branches):
            super().__init__()
            self.branches = branches

        def forward(self, t, y):
            return -y if self.branches and y.sum().item() > 0 else -2 * y

    def found(*_):
        raise NotCompiled("it was traced")

    with pytest.warns(UserWarning, match="could not be compiled"):
        solve(Field(True), torch.ones(2), [0.0, 1.0], compile=True, **OPTIONS)
    monkeypatch.setattr(programs, "lowered", found)
    with pytest.warns(UserWarning, match="it was traced"):
        solve(Field(False), torch.ones(2), [0.0, 1.0], compile=True, **OPTIONS)


def test_a_dtype_does_not_keep_another_from_compiling(monkeypatch):
    def f(t, y):
        return y if y.dtype == torch.float64 or y.sum().item() > 0 else -y

    def found(*_):
        raise NotCompiled("it was traced")

    with pytest.warns(UserWarning, match="could not be compiled"):
        solve(f, torch.ones(2), [0.0, 1.0], compile=True, **OPTIONS)
    monkeypatch.setattr(programs, "lowered", found)
    problems = []
    monkeypatch.setattr(trace, "traced_loops", lambda problem: problems.append(problem) or found())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(f, torch.ones(2), [0.0, 1.0], compile=True, **OPTIONS)
        assert not problems
        solve(f, torch.ones(2, dtype=torch.float64), [0.0, 1.0], compile=True, **OPTIONS)
    assert len(problems) == 1


@pytest.mark.parametrize("name", [pytest.param("y itself", marks=pytest.mark.slow), "a buffer"])
def test_what_f_returns_may_be_anybodys(name):
    buffer = torch.full((2, 3), 2.0, requires_grad=True)
    f = {"y itself": lambda t, y: y, "a buffer": lambda t, y: buffer}[name]
    grads = []
    for compile in (False, True):
        y0 = torch.ones(2, 3).T.contiguous().T.requires_grad_()
        sol = solve(f, y0, [0.0, 1.0], compile=compile, **OPTIONS)
        grads.append(torch.autograd.grad(sol.ys[-1].square().sum(), y0)[0])
        assert torch.equal(sol.ys[0], y0)
        assert torch.equal(buffer, torch.full_like(buffer, 2.0))
    torch.testing.assert_close(grads[1], grads[0])


def test_a_torch_whose_compiler_is_not_known_runs_eagerly_with_one_warning(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    compiler.cache_clear()
    with pytest.warns(UserWarning, match=r"`compile=True` is known to work with torch 2.13.*this is 2.9.1") as caught:
        fast = solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], compile=True)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], compile=True)
    compiler.cache_clear()
    assert torch.equal(fast.ys, solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0]).ys)
