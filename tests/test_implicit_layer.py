"""The implicit layer, against closed forms, finite differences and unrolled iterations."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from implicit_equations import DTYPE, FIXED_POINT, METHOD, Equilibrium, cubic, inputs
from odenets.nn import ImplicitLayer


def accuracy(dtype):
    return {"rtol": 50 * torch.finfo(dtype).eps, "atol": 0.0}


# --- closed forms


@DTYPE
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_y_plus_its_cube(scale, unit, dtype):
    """Solution and slope of y + y³ = x whatever the scale of x and the unit of the equation."""
    x = (scale * torch.tensor([[0.3, -1.0], [2.0, 0.0], [-1.0, 1e-3]], dtype=dtype)).requires_grad_()
    y = ImplicitLayer(lambda x, y: unit * cubic(x, y))(x)
    exact = x.detach().double()
    root = torch.sqrt(exact**2 / 4 + 1 / 27)
    # Cardano's formula, with the small of its two cube roots as 1/3 over the large one
    large = torch.copysign((root + exact.abs() / 2) ** (1 / 3), exact)
    cardano = large - torch.where(large == 0, 0.0, 1 / (3 * large))
    for _ in range(3):  # which cancels where x is small
        cardano = cardano - (cardano + cardano**3 - exact) / (1 + 3 * cardano**2)
    torch.testing.assert_close(y, cardano.to(dtype), **accuracy(dtype))
    y.sum().backward()
    torch.testing.assert_close(x.grad, (1 / (1 + 3 * cardano**2)).to(dtype), **accuracy(dtype))


@METHOD
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("width", [1, 4, 40])
def test_linear_systems(method, batch, width):
    """A y + B x = y has the solution (1 − A)⁻¹ B x, and every gradient that follows from it."""
    torch.manual_seed(1)
    a = (0.3 / width * torch.randn(width, width, dtype=torch.float64)).requires_grad_()
    b = torch.randn(width, width, dtype=torch.float64, requires_grad=True)
    x = inputs(batch, width, requires_grad=True)
    weights = inputs(batch + 1, width)[:batch]
    layer = ImplicitLayer(lambda x, y: y @ a.T + x @ b.T - y, method=method, tol=1e-13)
    y = layer(x)
    exact = x @ b.T @ torch.linalg.inv(torch.eye(width) - a).T
    torch.testing.assert_close(y, exact, rtol=1e-10, atol=1e-11)
    found, wanted = (torch.autograd.grad((weights * out).sum(), (a, b, x)) for out in (y, exact))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_a_linear_system_needs_one_step():
    layer = ImplicitLayer(lambda x, y: 3 * y - x)
    layer(inputs())
    assert layer.stats.iterations <= 2


@pytest.mark.parametrize("method", FIXED_POINT)
def test_the_square_root_is_a_fixed_point(method):
    x = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64).requires_grad_()
    layer = ImplicitLayer(lambda x, y: (y + x / y) / 2 - y, method=method, tol=1e-14)
    y = layer(x, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(y, x.sqrt())
    y.sum().backward()
    torch.testing.assert_close(x.grad, 0.5 / x.detach().sqrt())


def test_the_start_value_chooses_the_solution():
    x = torch.tensor([4.0, 9.0])
    layer = ImplicitLayer(lambda x, y: y**2 - x)
    torch.testing.assert_close(layer(x, torch.ones(2)), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(layer(x, torch.tensor([-1.0, 1.0])), torch.tensor([-2.0, 3.0]))


@METHOD
def test_a_solution_of_zero(method):
    layer = ImplicitLayer(lambda x, y: 0.5 * y + x - y, method=method)
    y = layer(torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64))
    assert y.abs().max() < 1e-14
    assert layer.stats.iterations < 10


def test_newton_takes_shorter_steps_where_a_whole_one_goes_too_far():
    y = ImplicitLayer(lambda x, y: torch.atan(y) - x)(torch.zeros(1, 1), torch.full((1, 1), 20.0))
    assert y.abs().max() < 1e-6
    root = ImplicitLayer(lambda x, y: y.log() - x)(
        torch.tensor([[-1.0]]), torch.full((1, 1), 5.0)
    )  # log of less than 0
    assert root.item() == pytest.approx(math.exp(-1))


# --- gradients


@METHOD
@pytest.mark.parametrize("width", [3, 33])
def test_gradients_are_those_of_the_unrolled_iteration(method, width):
    g = Equilibrium(width)
    x = inputs(5, width, requires_grad=True)
    y = ImplicitLayer(g, method=method, tol=1e-13)(x)
    z = torch.zeros_like(x)
    for _ in range(200):
        z = g(x, z) + z
    torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad(out.square().sum(), (x, *g.parameters())) for out in (y, z))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@METHOD
def test_gradients_are_those_of_finite_differences(method):
    layer = ImplicitLayer(Equilibrium(), method=method, tol=1e-13)
    assert torch.autograd.gradcheck(layer, inputs(requires_grad=True))


def test_what_g_closes_over_gets_its_gradient():
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    halved = weight / 2  # the result of an earlier computation
    y = ImplicitLayer(lambda x, y: halved * y + x - y)(torch.ones(2, 1, dtype=torch.float64))
    y.sum().backward()
    assert weight.grad.item() == pytest.approx(2 * 0.5 / (1 - 0.25) ** 2)


@METHOD
@pytest.mark.parametrize("width", [2, 20])
def test_samples_may_see_each_other(method, width):
    g = Equilibrium(width)

    def coupled(x, y):
        return g(x, y) + 0.2 * y.mean(0)

    x = inputs(4, width, requires_grad=True)
    y = ImplicitLayer(coupled, method=method, tol=1e-13)(x)
    z = torch.zeros_like(x)
    for _ in range(200):
        z = coupled(x, z) + z
    scales = 10.0 ** torch.arange(-4, 4, 2)[:, None]
    found, wanted = (torch.autograd.grad((scales * out).sum(), x)[0] for out in (y, z))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


def test_layers_in_a_row():
    first, second = (ImplicitLayer(Equilibrium(), method=m, tol=1e-13) for m in ("newton", "anderson"))
    assert torch.autograd.gradcheck(lambda x: second(first(x) * 2), inputs(requires_grad=True))


def test_several_losses_and_changes_in_place():
    g = Equilibrium()
    x = inputs(requires_grad=True)
    y = ImplicitLayer(g)(x)
    once = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    again = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(once, again)
    (changed,) = torch.autograd.grad(y.mul_(3).sum(), x)
    torch.testing.assert_close(changed, 3 * once)


def test_memory_does_not_grow_with_the_iterations():
    def kept(tol):
        sizes, x = [], inputs(requires_grad=True)
        layer = ImplicitLayer(Equilibrium(size=1.5), method="anderson", tol=tol)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            layer(x)
        return layer.stats.iterations, sum(sizes)

    few, many = kept(0.3), kept(1e-12)
    assert many[0] > 2 * few[0]
    assert many[1] == few[1]


# --- a batch


@METHOD
@pytest.mark.parametrize("width", [4, 40])
def test_a_sample_does_not_depend_on_the_others(method, width):
    layer = ImplicitLayer(Equilibrium(width), method=method)
    x = inputs(4, width)
    x[1] = x[3]
    x[2] *= 1e3
    y = layer(x)
    torch.testing.assert_close(y[1], y[3], rtol=1e-12, atol=0)
    for i in range(4):
        torch.testing.assert_close(layer(x[i : i + 1])[0], y[i], rtol=1e-9, atol=1e-10)


def test_states_of_any_shape():
    x = torch.linspace(-1, 1, 24, dtype=torch.float64)
    for shape in [(), (24,), (2, 12), (2, 3, 4), (24, 1)]:
        wide = x[0] if shape == () else x.reshape(shape)
        torch.testing.assert_close(
            ImplicitLayer(cubic)(wide), ImplicitLayer(cubic)(x[:, None]).reshape(-1)[: wide.numel()].reshape(shape)
        )


def test_the_shape_of_y_may_be_another_than_that_of_x():
    a = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = ImplicitLayer(lambda x, y: y.flatten(1) * 2 - x @ a.T, shape=(3,))
    x = inputs(4, 5)
    torch.testing.assert_close(layer(x), x @ a.T / 2)
    tokens = ImplicitLayer(lambda x, y: y - x[:, None], shape=(2,))(torch.tensor([3, 4]))
    assert torch.equal(tokens, torch.tensor([[3.0, 3], [4, 4]]))
    assert ImplicitLayer(lambda x, y: y - 1)(x, torch.zeros(2, 1)).tolist() == [[1.0], [1.0]]


# --- as a module


def test_as_a_module_like_any_other():
    layer = ImplicitLayer(Equilibrium())
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), layer)
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "1.g.inner.bias", "1.g.inner.weight"]
    x = inputs(2, 3)
    twin = copy.deepcopy(model)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x @ x.T @ inputs(2, 4)), layer(x @ x.T @ inputs(2, 4)))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))
    twin(x).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert "method='newton'" in repr(layer)


def test_g_may_have_a_buffer():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.tensor(0.5))

        def forward(self, x, y):
            return self.factor * y + x - y

    layer = ImplicitLayer(Half()).double()
    torch.testing.assert_close(layer(inputs()), 2 * inputs())
    assert list(layer.state_dict()) == ["g.factor"]


@METHOD
def test_without_gradients(method):
    g = Equilibrium(40).requires_grad_(False)
    layer = ImplicitLayer(g, method=method)
    x = inputs(3, 40)
    y = layer(x)
    assert not y.requires_grad
    wanted = ImplicitLayer(g, method=method)(x.clone().requires_grad_())
    assert wanted.requires_grad
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            out = layer(x.clone().requires_grad_())
            assert not out.requires_grad
            torch.testing.assert_close(out, y, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(ImplicitLayer(cubic)(x), ImplicitLayer(cubic)(x.clone()), rtol=1e-9, atol=1e-12)


def test_a_start_value_gets_no_gradient():
    start = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    x = inputs(requires_grad=True)
    y = ImplicitLayer(cubic)(x, start)
    assert torch.autograd.grad(y.sum(), start, allow_unused=True)[0] is None


def test_stats_are_those_of_the_newest_pass():
    layer = ImplicitLayer(Equilibrium())
    assert layer.stats is None
    y = layer(inputs(requires_grad=True))
    stats = layer.stats
    assert (stats.iterations, stats.products) == (4, None)
    assert stats.residual < 1e-12
    y.sum().backward()
    assert stats.products == 6  # four rows of the Jacobian, and two whether samples see each other
    calls = []
    layer = ImplicitLayer(lambda x, y: calls.append(1) or cubic(x, y))
    layer(inputs(requires_grad=True))
    assert layer.stats.evaluations == len(calls)


def test_under_autocast():
    g = Equilibrium(dtype=torch.float32)
    x = inputs(dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = ImplicitLayer(g, method="anderson")(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, ImplicitLayer(g)(x), rtol=0.1, atol=0.05)
    y.sum().backward()
    assert x.grad.isfinite().all()
