"""What the implicit layer refuses, and how it says what went wrong."""

import math
import pickle
import re

import pytest
import torch
from torch import nn

from implicit_equations import FIXED_POINT, METHOD, Equilibrium, cubic, inputs
from odenets.nn import ImplicitError, ImplicitLayer
from problems import assert_nothing_is_left


def test_it_says_how_far_it_got():
    with pytest.raises(ImplicitError, match=r"after 7 iterations of `method` 'newton', 1 of 2 samples still") as error:
        ImplicitLayer(lambda x, y: y**2 + x, max_iter=7)(torch.tensor([-1.0, 1.0]), torch.full((2,), 0.3))
    assert "sample 1" in str(error.value)
    assert "nearer `y0`" in str(error.value)
    assert (error.value.iterations, error.value.sample) == (7, 1)
    assert error.value.residual >= 1
    assert pickle.loads(pickle.dumps(error.value)).sample == 1


@pytest.mark.parametrize("method", FIXED_POINT)
def test_it_says_that_a_fixed_point_is_wanted(method):
    torch.manual_seed(0)
    g = Equilibrium(20, size=30.0)
    with pytest.raises(ImplicitError, match="still change by more than") as error:
        ImplicitLayer(g, method=method, max_iter=8)(inputs(3, 20))
    assert "method='newton'" in str(error.value)


@METHOD
def test_a_g_that_does_not_depend_on_y_is_singular(method):
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(ImplicitError, match=r"singular|g = h"):
        ImplicitLayer(lambda x, y: x.expand_as(y), method=method)(x)
    y = ImplicitLayer(lambda x, y: x * 0, method=method)(x)  # it holds for every y, so y = 0 is a solution
    with pytest.raises(ImplicitError, match=r"singular at the solution .*does not depend on all of y"):
        y.sum().backward()


@pytest.mark.parametrize("width", [2, 40])
def test_a_solution_without_derivative(width):
    """y³ = x has the solution 0 of 0, where its slope is not finite; and one component that g leaves free."""
    x = torch.zeros(2, width, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ImplicitError, match="singular at the solution"):
        ImplicitLayer(lambda x, y: y**3 - x)(x).sum().backward()
    with pytest.raises(
        ImplicitError, match=r"singular (at the start value|in iteration 2) for 2 of 2 samples, first for"
    ):
        ImplicitLayer(lambda x, y: torch.cat([y[:, :1] * 0, y[:, 1:]], 1) - x)(x + 1)


@METHOD
def test_it_says_where_g_is_not_finite(method):
    x = torch.tensor([[1.0], [math.nan]])
    with pytest.raises(ImplicitError, match="not finite for 1 of 2 samples, first for sample 1, at the start value"):
        ImplicitLayer(lambda x, y: 0.5 * y + x - y, method=method)(x)


@pytest.mark.parametrize("method", FIXED_POINT)
def test_it_says_that_the_iteration_runs_away(method):
    with pytest.raises(ImplicitError, match=r"not finite .* in iteration .: the iteration runs away"):
        ImplicitLayer(lambda x, y: y**9 + 1e9 - y, method=method)(torch.ones(2, 2))


def test_a_gradient_that_is_not_finite_stays_so():
    for width in (3, 40):
        x = inputs(2, width, requires_grad=True)
        (ImplicitLayer(Equilibrium(width))(x) * math.nan).sum().backward()
        assert x.grad.isnan().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # from forward mode, when it is first used
def test_no_second_derivative_no_transform():
    layer, x = ImplicitLayer(Equilibrium()), inputs(requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative \(create_graph=True\): unroll"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    for transform in (torch.func.grad(lambda x: layer(x).sum()), torch.func.vmap(layer)):
        with pytest.raises(NotImplementedError, match=r"does not work under `torch.func`"):
            transform(x.detach())
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="in forward mode"):
        layer(torch.autograd.forward_ad.make_dual(x.detach(), x.detach()))


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((3,), {}, TypeError, "`g` must be a module or a function, called as g(x, y), got 3"),
        ((cubic,), {"method": "euler"}, ValueError, "`method` must be one of newton, anderson, broyden; got 'euler'"),
        ((cubic,), {"tol": 0.0}, ValueError, "`tol` must be a number between 0 and 1, or None, got 0.0"),
        ((cubic,), {"max_iter": 0}, ValueError, "`max_iter` must be an integer ≥ 1, got 0"),
        ((cubic, 3), {}, TypeError, "`shape` must be a sequence of integers, got 3: write (3,)"),
        ((nn.Sequential(nn.Dropout(0.1)),), {}, ValueError, "put it before or after the ImplicitLayer"),
        ((nn.BatchNorm1d(3),), {}, ValueError, "use LayerNorm or GroupNorm"),
    ],
)
def test_what_cannot_be_a_layer(arguments, options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        ImplicitLayer(*arguments, **options)


@pytest.mark.parametrize(
    ("g", "x", "y0", "kind", "message"),
    [
        (cubic, [1.0], None, TypeError, "`x` must be a tensor, got [1.0]: write torch.as_tensor(x)"),
        (cubic, torch.ones(2), [1.0], TypeError, "`y0` must be a tensor of real floating-point numbers, got [1.0]"),
        (cubic, torch.ones(2), torch.tensor([math.nan]), ValueError, "`y0` must be finite"),
        (cubic, torch.ones(2, dtype=torch.int64), None, TypeError, "give `y0`, or the layer a `shape`"),
        (lambda x, y: None, torch.ones(2), None, TypeError, "`g` must return a tensor of y's shape, returned None"),
        (lambda x, y: y > 0, torch.ones(2), None, TypeError, "`g` must return real floating-point numbers"),
        (
            lambda x, y: y[:, None] - x,
            torch.ones(2),
            None,
            ValueError,
            "y's shape (2,), returned (2, 2) for x of shape",
        ),
    ],
)
def test_what_cannot_be_solved(g, x, y0, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        ImplicitLayer(g)(x, y0)
    with pytest.raises(ValueError, match=re.escape("`y0` must have the shape (batch, *(3,)), got (2, 2)")):
        ImplicitLayer(cubic, shape=(3,))(torch.ones(2, 3), torch.ones(2, 2))


# --- and what it leaves behind


@METHOD
@pytest.mark.parametrize("width", [4, 40])
def test_nothing_is_left_of_a_pass(method, width):
    g = Equilibrium(width)
    layer, x = ImplicitLayer(g, method=method), inputs(3, width, requires_grad=True)
    assert_nothing_is_left(lambda: torch.autograd.grad(layer(x).sum(), (x, *g.parameters())), 10)
    assert_nothing_is_left(lambda: layer(x), 10)
