"""Derivatives that the library takes of f itself: in every mode of the caller, and of an f that hides them."""

import re

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from odenets import Fixed, check_gradient, diagnose, solve, tune
from odenets.nn import CNF, ConcatSquashField, ImplicitError, ImplicitLayer, MLPField, ODEBlock

STEPS = {"method": "rk4", "controller": Fixed(steps=2)}


def inputs():
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def field():
    torch.manual_seed(0)
    return MLPField(2, (4,))


def flow(field, **options):
    return CNF(field, width=2, **STEPS, **options)


def density(field, trace="exact"):
    return lambda x: flow(field, trace=trace).log_prob(x, torch.Generator().manual_seed(1))


def jacobians_norm(field):
    def of(x):
        torch.manual_seed(1)
        block = ODEBlock(field, regularise="jacobian", **STEPS)
        block(x)
        return block.regularisation["jacobian"]

    return of


def lipschitz(field):
    return lambda x: torch.tensor(diagnose(ODEBlock(field, **STEPS), x, points=2, verbose=False).lipschitz)


@pytest.mark.parametrize("of", [density, lambda f: density(f, "hutchinson"), jacobians_norm, lipschitz])
def test_inference_mode_changes_no_number(of, field):
    wanted = of(field)(inputs()).detach()
    with torch.inference_mode():
        found = [of(field)(inputs()), of(field)(inputs().clone())]
    assert wanted.abs().min() > 0
    for value in found:
        assert torch.allclose(value, wanted, rtol=1e-5)


def test_what_measures_gradients_works_in_inference_mode(field):
    with torch.inference_mode():
        x = inputs()
        assert check_gradient(field, x, (0.0, 1.0), verbose=False, **STEPS).rows
        tuning = tune(ODEBlock(field), x, methods=("euler",), compile=False, verbose=False)
    assert tuning.options["method"] == "euler"


@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # from forward mode, when it is first used
@pytest.mark.parametrize("of", [density, jacobians_norm])
def test_transforms_of_functions(of, field):
    f, x = of(field), inputs().requires_grad_()
    (gradient,) = torch.autograd.grad(f(x).sum(), x)
    direction = torch.ones_like(x)
    _, along = torch.func.jvp(f, (x.detach(),), (direction,))
    assert torch.allclose(torch.func.grad(lambda x: f(x).sum())(x.detach()), gradient, atol=1e-6)
    assert torch.allclose(along, (gradient * direction).sum(1), atol=1e-6)


@pytest.mark.parametrize("squash", [False, True])
def test_densities_of_single_points_under_vmap(squash, field):
    f = density(ConcatSquashField(2, (4,)) if squash else field)
    assert torch.allclose(torch.vmap(lambda x: f(x[None])[0])(inputs()), f(inputs()), atol=1e-6)


def hidden(t, z):
    return -z.detach()


def of_numpy(t, z):
    return torch.as_tensor(-z.detach().numpy())


@pytest.mark.parametrize("f", [hidden, of_numpy])
@pytest.mark.parametrize("of", [density, jacobians_norm, lipschitz])
def test_a_derivative_that_autograd_does_not_see_is_not_zero(of, f):
    with pytest.raises(RuntimeError, match="autograd does not see that it depends on y"):
        of(f)(inputs())


@pytest.mark.parametrize("of", [density, jacobians_norm])
@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda t, z: z[:, :1], ValueError, "`f` must return a tensor of y's shape (3, 2), returned (3, 1)"),
        (lambda t, z: 1.0, TypeError, "write torch.full_like(y, 1.0)"),
        (nn.Linear(2, 2), TypeError, "Linear does not take that"),
        (lambda t, z, context: z, TypeError, "`lambda t, y: f(t, y, other)` around one that takes more"),
    ],
)
def test_a_field_that_cannot_be_called_is_told_as_by_solve(of, f, error, message):
    with pytest.raises(error, match=re.escape(message)):
        of(f)(inputs())


def test_a_class_is_no_field():
    for make in (lambda c: ODEBlock(c), lambda c: CNF(c, width=2), lambda c: ImplicitLayer(c)):
        with pytest.raises(TypeError, match=r"got the class MLPField: write MLPField\(\.\.\.\)"):
            make(MLPField)
    with pytest.raises(TypeError, match="got the class MLPField"):
        solve(MLPField, inputs(), (0.0, 1.0))


def test_rows_of_a_flow_do_not_see_each_other():
    with pytest.raises(ValueError, match="use LayerNorm in place of BatchNorm"):
        density(lambda t, z: z - z.mean(0))(inputs())
    with pytest.raises(ValueError, match="all rows of z: use LayerNorm or GroupNorm"):
        flow(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)))


def test_points_of_any_base_have_the_weights_dtype(field):
    normal = MultivariateNormal(torch.zeros(2), torch.eye(2))
    mixture = MixtureSameFamily(Categorical(torch.ones(3)), MultivariateNormal(torch.zeros(3, 2), torch.eye(2)))
    for base in (None, normal, mixture, Independent(Normal(torch.zeros(2), torch.ones(2)), 1)):
        for n in (0, 1, 3):
            points = flow(field.double(), base=base).sample(n)
            assert (points.dtype, points.shape) == (torch.float64, (n, 2))
    time = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert flow(field.float(), t=time).sample(2).dtype is torch.float32


def test_what_a_flow_does_not_take(field):
    with pytest.raises(ValueError, match=r"`base` must be one distribution of vectors, got \(5,\) of them"):
        flow(field, base=MultivariateNormal(torch.zeros(5, 2), torch.eye(2)))
    for call in (lambda f: f.sample(2, 3), lambda f: f.log_prob(inputs(), 3)):
        with pytest.raises(TypeError, match=r"`generator` must be a torch.Generator, got 3: write torch.Generator\(\)"):
            call(flow(field))


def test_a_flow_may_hold_its_context():
    class Conditional(nn.Module):
        def forward(self, t, z):
            return z * self.context

    f = Conditional()
    f.context = torch.tensor([[0.5], [1.0], [-2.0]], requires_grad=True)
    _, log_det = CNF(f, width=2, rtol=1e-6, atol=1e-6)(inputs())
    assert torch.allclose(log_det, 2 * f.context[:, 0], atol=1e-4)
    (gradient,) = torch.autograd.grad(log_det.sum(), f.context)
    assert torch.allclose(gradient, torch.full((3, 1), 2.0), atol=1e-4)


@pytest.mark.parametrize("names", [None, 5, [["kinetic"]], {"a": 1}, ""])
def test_what_is_no_name_of_a_regulariser(names):
    with pytest.raises(ValueError, match="`regularise` must be among kinetic, jacobian, each once; got"):
        ODEBlock(hidden, regularise=names)


def test_regularisers_of_no_sample_and_of_no_tensor(field):
    block = ODEBlock(field, regularise=("kinetic", "jacobian"), **STEPS)
    assert block(torch.zeros(0, 2)).shape == (0, 2)
    assert {name: value.shape for name, value in block.regularisation.items()} == {"kinetic": (0,), "jacobian": (0,)}
    with pytest.raises(TypeError, match="`regularise` needs a tensor for input, got"):
        block((inputs(), inputs()))


def test_diagnose_of_no_sample(field):
    assert diagnose(ODEBlock(field, **STEPS), torch.zeros(0, 2), verbose=False).nfe > 0


@pytest.mark.parametrize("method", ["newton", "anderson", "broyden"])
def test_equations_that_draw_random_numbers_have_no_solution(method):
    layer = ImplicitLayer(lambda x, y: 0.5 * y + x + 0.1 * torch.randn_like(y) - y, method=method, max_iter=5)
    with pytest.raises(ImplicitError, match="two values at one y"):
        layer(inputs())


def test_an_implicit_layer_stays_between_the_graphs_of_a_compiler():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    layer = ImplicitLayer(lambda x, y: torch.tanh(0.5 * y + x) - y)
    whole = torch.compile(lambda x: layer(2 * x).sum(), backend=count)
    assert torch.equal(whole(inputs()), layer(2 * inputs()).sum())
    assert len(graphs) == 2
