"""What f returns that it should not, and what the error tells to write."""

import contextlib
import copy
import importlib
import inspect
import pickle
import pkgutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import odenets
from odenets import Backsolve, Checkpointed, Direct, SolveError, Status, solve

Y0 = torch.ones(3, dtype=torch.float64)
ENGINES = [{}, {"adjoint": Direct()}, {"per_sample": True}]


@pytest.mark.parametrize("options", ENGINES, ids=str)
@pytest.mark.parametrize(
    ("f", "y0", "error", "message"),
    [
        (lambda t, y: None, Y0, TypeError, "returned NoneType: end `f` with `return`"),
        (lambda t, y: 0.5, Y0, TypeError, r"returned float 0.5: write torch.full_like\(y, 0.5\)"),
        (lambda t, y: np.ones(3), Y0, TypeError, r"returned ndarray .*: write torch.as_tensor"),
        (lambda t, y: (y, y), Y0, TypeError, r"returned tuple .*: write torch.stack"),
        (lambda t, y: {"y": y}, Y0, TypeError, r"returned dict .*: return dy/dt"),
        (lambda t, y: y.float(), Y0, TypeError, "`f` must return y's dtype torch.float64, returned torch.float32"),
        (lambda t, y: y.to(torch.complex128), Y0, TypeError, "returned torch.complex128"),
        (lambda t, y: y.to("meta"), Y0, ValueError, "on y's device cpu, returned one on meta"),
        (lambda t, y: y - y[:, None], Y0, ValueError, r"returned \(3, 3\).*\(N,\) against \(N, 1\)"),
        (lambda t, y: y - y[:, 0], Y0[:, None], ValueError, r"returned \(3, 3\).*\(N,\) against \(N, 1\)"),
        (lambda t, y: y[:, None], Y0, ValueError, r"returned \(3, 1\).*write `.reshape\(y.shape\)`"),
        (lambda t, y: y[:2], Y0, ValueError, r"y's shape \(3,\), returned \(2,\) at t"),
        (lambda t, y: (y[0],), (Y0, Y0), ValueError, r"y is a tuple of 2, and what it returned is a tuple of 1"),
        (lambda t, y: y[0], (Y0, Y0), ValueError, "y is a tuple of 2, and what it returned is a Tensor"),
        (lambda t, y: (y[0], None), (Y0, Y0), TypeError, r"\(leaf 1\), returned NoneType"),
        (lambda t, y: (y[0], y[1].T), (torch.ones(3, 2),) * 2, ValueError, r"\(3, 2\) for leaf 1, returned \(2, 3\)"),
        (lambda t, y: {"a": y["a"]}, {"a": Y0, "b": Y0}, ValueError, "lacks key 'b'; y's keys are 'a', 'b'"),
        (lambda t, y: {**y, "c": y["a"]}, {"a": Y0}, ValueError, "has the unknown key 'c'"),
        (lambda t, y: ({"A": y[0]["a"]},), ({"a": Y0},), ValueError, r"at \[0\] lacks key 'a'"),
    ],
)
def test_results_of_the_wrong_kind(f, y0, error, message, options):
    with pytest.raises(error, match=message):
        solve(f, y0, (0.0, 1.0), **options)


class Swapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, y, t):
        return self.layer(y) * t


@pytest.mark.parametrize("options", ENGINES, ids=str)
@pytest.mark.parametrize(
    ("f", "args", "message"),
    [
        (lambda y, t: -y, (), "time comes first"),  # returns t's shape
        (lambda y, t: -y[..., 0:3], (), "time comes first"),  # raises, or returns t's shape
        (Swapped(), (), "time comes first"),
        (lambda y: -y, (), r"`f` is called as f\(t, y\).*write `lambda t, y: f\(y\)`"),
        (nn.Linear(2, 2), (), r"`f` is called as f\(t, y\), and Linear does not take that"),
        (lambda t, y: -y, (2.0,), r"`f` is called as f\(t, y, \*args\)"),
        (lambda t, y, rate: -y, (), r"`lambda t, y: f\(t, y, other\)` around one that takes more"),
    ],
)
def test_arguments_in_another_order_or_number(f, args, message, options):
    with pytest.raises((TypeError, ValueError), match=message):
        solve(f, torch.ones(4, 3), (0.0, 1.0), args, **options)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Direct(), Backsolve()])
@pytest.mark.parametrize(
    ("given", "enabled", "context", "message"),
    [
        (False, False, contextlib.nullcontext, r"with torch.enable_grad\(\): y = y.requires_grad_\(\)"),
        (True, False, torch.no_grad, r"with torch.enable_grad\(\): y = y.requires_grad_\(\)"),
        (False, True, torch.inference_mode, r"solve under `torch.no_grad\(\)`: `inference_mode` has no derivatives"),
    ],
)
def test_a_derivative_inside_without_autograd(given, enabled, context, message, adjoint):
    """A Hamiltonian network as it is written at first."""

    def f(t, y):
        with torch.enable_grad() if enabled else contextlib.nullcontext():
            return -torch.autograd.grad(y.square().sum(), y.requires_grad_() if enabled else y)[0]

    y0 = torch.ones(2, 3, requires_grad=given)
    with context(), pytest.raises(RuntimeError, match=message):
        solve(f, y0, (0.0, 1.0), adjoint=adjoint)


def test_an_index_into_the_time():
    with pytest.raises(TypeError, match=r"`f` gets t as a 0-dimensional tensor.*write t for t\[0\]"):
        solve(lambda t, y: -y * t[0], Y0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("y0", "message"),
    [
        (1, r"`y0` \(leaf 0\) must be a tensor, got 1: write torch.tensor\(1.0\)"),
        (np.ones(3), r"must be a tensor, got ndarray of shape \(3,\), float64: write torch.as_tensor\(y0\)"),
        (None, r"must be a tensor, got None: write torch.tensor\(...\)"),
        (torch.ones(3, dtype=torch.int64), r"write y0.float\(\)"),
    ],
)
def test_states_that_are_no_tensors(y0, message):
    with pytest.raises(TypeError, match=message):
        solve(lambda t, y: -y, y0, (0.0, 1.0))


def test_an_error_of_fs_own_is_left_as_it_is():
    def f(t, y):
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match=r"^my own$"):
        solve(f, Y0, (0.0, 1.0))


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("options", ENGINES, ids=str)
def test_the_order_of_keys_does_not_matter(kind, options):
    """And a list may stand for a tuple: each derivative goes to the state of its own name."""
    rates = {"a": 1.0, "b": 2.0, "c": 3.0}
    y0 = kind(a=torch.ones(2, 1), b=(torch.ones(2, 3), kind(c=torch.ones(2, 3))))

    def ordered(t, y):
        return kind(a=-y["a"], b=(-2 * y["b"][0], kind(c=-3 * y["b"][1]["c"])))

    def other(t, y):
        return kind(b=[-2 * y["b"][0], kind(c=-3 * y["b"][1]["c"])], a=-y["a"])

    same, ys = (solve(f, y0, (0.0, 1.0), **options).ys for f in (ordered, other))
    assert list(ys) == list(y0)
    for got, right, rate in zip(
        (ys["a"], ys["b"][0], ys["b"][1]["c"]), (same["a"], same["b"][0], same["b"][1]["c"]), rates.values()
    ):
        assert torch.equal(got, right)
        torch.testing.assert_close(got[-1], torch.full_like(got[-1], -rate).exp(), rtol=1e-2, atol=1e-2)


# --- exceptions travel between processes ------------------------------------------------------------------------------


def exceptions():
    """Every exception class of the package."""
    found = set()
    for module in pkgutil.walk_packages(odenets.__path__, "odenets."):
        if not module.name.endswith("__main__"):
            members = vars(importlib.import_module(module.name)).values()
            found |= {x for x in members if inspect.isclass(x) and issubclass(x, BaseException)}
    return sorted((x for x in found if x.__module__.startswith("odenets.")), key=lambda x: x.__qualname__)


def failed(**options):
    with pytest.raises(SolveError) as caught:
        solve(lambda t, y: y**2, torch.ones(2, 1, requires_grad=True), (0.0, 2.0), **options)
    return caught.value


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_comes_out_of_a_worker_process(kind):
    own = {"SolveError": lambda: [failed(), failed(per_sample=True)], "Interrupted": lambda: [kind("stopped", None)]}
    made = own.get(kind.__name__, lambda: [kind("what happened")])()
    for error in made:
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(again) is kind
            assert str(again) == str(error)
            assert vars(again).keys() == vars(error).keys()


def test_a_failed_solve_keeps_its_attributes_and_no_graph():
    error = pickle.loads(pickle.dumps(failed(per_sample=True)))
    assert error.status is Status.DIVERGED
    assert error.t == pytest.approx(1.0, abs=1e-2)
    assert error.stats.accepted.shape == (2,)
    held = [x for x in vars(error.stats).values() if isinstance(x, torch.Tensor)]
    assert held
    assert not any(x.requires_grad for x in held)
