"""f as the solvers call it: results that share memory with something else, and an f that changes what it is given."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from odenets import METHODS, Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible, Stats, solve
from odenets.evaluation import CountedField

D = torch.float64
COS1 = 0.5403023058681398


def oscillator(t, y):
    return torch.stack([y[1], -y[0]])


class Buffers:
    """Ways of returning the derivative of an oscillator in memory that f keeps, or of spoiling y."""

    def __init__(self):
        self.buffer, self.cache, self.array = torch.zeros(2, dtype=D), torch.zeros(3, 2, dtype=D), np.zeros(2)

    def refilled(self, t, y):
        self.buffer[0], self.buffer[1] = y[1], -y[0]
        return self.buffer

    def written_out(self, t, y):
        torch.stack([y[1], -y[0]], out=self.buffer)
        return self.buffer

    def row(self, t, y):
        self.cache[1] = torch.stack([y[1], -y[0]])
        return self.cache[1]

    def detached(self, t, y):
        return self.refilled(t, y).detach()

    def data(self, t, y):
        return self.refilled(t, y).data

    def numpy(self, t, y):
        self.array[:] = y[1].item(), -y[0].item()
        return torch.from_numpy(self.array)

    def in_place(self, t, y):
        first = y[0].clone()
        y[0], y[1] = y[1], -first
        return y

    def in_place_numpy(self, t, y):
        values = y.numpy()
        values[:] = values[1], -values[0]
        return torch.from_numpy(values)

    def spoiled(self, t, y):
        out = torch.stack([y[1], -y[0]])
        y.zero_()
        return out


WAYS = [name for name in vars(Buffers) if not name.startswith("_")]
ADJOINTS = (Checkpointed(), Direct(), Backsolve(), Interpolated(), Reversible())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_f_may_return_memory_of_its_own_and_change_y(way, mode):
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    f = getattr(Buffers(), way)
    with mode():
        for name in METHODS if mode is torch.no_grad else ("euler", "dopri5", "bosh3", "trbdf2", "radauIIA3"):
            method = METHODS[name]
            controller = None if method.adaptive else Fixed(steps=4)
            ys = solve(f, y0, [0.0, 0.55, 1.0], method=name, controller=controller).ys
            expected = solve(oscillator, y0, [0.0, 0.55, 1.0], method=name, controller=controller).ys
            torch.testing.assert_close(ys, expected, rtol=0, atol=1e-12)
            assert y0.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
def test_with_every_adjoint_and_with_dense_output(way, adjoint):
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    dense = isinstance(adjoint, Checkpointed | Direct)
    sol = solve(getattr(Buffers(), way), y0, [0.0, 1.0], rtol=1e-6, atol=1e-8, adjoint=adjoint, dense=dense)
    assert sol.ys[-1, 0].item() == pytest.approx(COS1, abs=1e-6)
    if dense:
        y0.fill_(7.0)  # what the caller does afterwards is no business of the solution's
        assert sol(0.0).tolist() == [1.0, 0.0]
        assert sol(0.5)[0].item() == pytest.approx(np.cos(0.5), abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_with_a_step_size_for_each_sample(way):
    f = getattr(Buffers(), way)

    def each(t, y):
        return torch.stack([f(t, row.clone()).clone() for row in y]) if way != "spoiled" else spoil(y)

    def spoil(y):
        out = torch.stack([y[:, 1], -y[:, 0]], -1)
        y.zero_()
        return out

    y0 = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=D)
    ys = solve(each, y0, [0.0, 1.0], rtol=1e-6, atol=1e-8, per_sample=True).ys
    torch.testing.assert_close(ys[-1, :, 0], COS1 * y0[:, 0], rtol=1e-5, atol=0)


def test_the_gradient_of_a_field_that_changes_y():
    def spoiling(t, y):
        out = -(y.clone() ** 2)
        y.add_(1.0)
        return out

    for adjoint in ADJOINTS:
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        ys = solve(spoiling, y0, [0.0, 1.0], rtol=1e-8, atol=1e-10, adjoint=adjoint).ys[-1]
        (grad,) = torch.autograd.grad(ys.sum(), y0)
        torch.testing.assert_close(grad, 1 / (1 + y0.detach()) ** 2, rtol=1e-5, atol=0)


def test_y_changed_later_than_at_the_first_evaluation_is_refused():
    calls = []

    def f(t, y):
        calls.append(1)
        return y.mul_(-1.0).clone() if len(calls) > 3 else -y

    with pytest.raises(ValueError, match=r"`f` changes y in place, but not at its first evaluation: write"):
        solve(f, torch.ones(2), [0.0, 1.0])


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


NETWORK = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


FIELDS = [
    lambda t, y: NETWORK(y),
    lambda t, y: torch.tanh(NETWORK(y)),
    lambda t, y: NETWORK(y).view(5, 4),
    lambda t, y: NETWORK(torch.cat([y, y])).chunk(2)[1],
    lambda t, y: torch.stack([y[:, 1], y[:, 0], y[:, 3], y[:, 2]], -1),
]


def operations(call):
    with Operations() as mode:
        call()
    return mode.names


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("f", FIELDS)
def test_an_evaluation_costs_no_operation_where_f_returns_something_new(f, grad):
    counted, t, y = CountedField(f, Stats()), torch.zeros(()), torch.ones(5, 4)
    with torch.set_grad_enabled(grad):
        counted(t, y)  # which finds out whether f changes y
        assert operations(lambda: counted(t, y)) == operations(lambda: f(t, y))


def test_after_a_failure_to_compile():
    """PyTorch's tracer stays in the way of every call then, and holds references of its own."""

    @torch.compile(backend="eager", fullgraph=True)
    def branches(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        branches(torch.ones(3))
    for f in FIELDS:
        test_an_evaluation_costs_no_operation_where_f_returns_something_new(f, True)
        test_an_evaluation_costs_no_operation_where_f_returns_something_new(f, False)
    for way in WAYS:
        assert solve(getattr(Buffers(), way), torch.tensor([1.0, 0.0], dtype=D), [0.0, 1.0], rtol=1e-6).ys[
            -1, 0
        ].item() == pytest.approx(COS1, abs=1e-5)
