"""The experiment with depth: its networks, its gradients, its bounds, and what is made of the numbers."""

import math
import re

import pytest
import torch

from odenets import Direct, Fixed
from odenets.experiments import depth, layers
from odenets.experiments.depth import SMALL, Config, becomes, doubling
from odenets.experiments.depth_sections import typical
from odenets.experiments.layers import INITS, LONG, NETWORKS, PLAIN, RESNET, SHORT, Deep
from odenets.nn import ODEBlock

IMAGES = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


def network(kind, sigma="tanh", init="PyTorch's", layers=4):
    torch.manual_seed(0)
    return Deep(kind, sigma, init, layers, 6)


@pytest.mark.parametrize(("kind", "end"), [(SHORT, 1.0), (LONG, 2.0)])
def test_an_ode_net_is_that_of_the_library(kind, end):
    net = network(kind, layers=8)
    block = ODEBlock(
        lambda t, z: torch.tanh(net.layers[0](z)),
        t=(0.0, end),
        method="euler",
        controller=Fixed(steps=8),
        adjoint=Direct(),
    )
    torch.testing.assert_close(net(IMAGES), net.tail(block(net.head(IMAGES))))


def test_plain_and_residual_layers():
    plain, residual = network(PLAIN), network(RESNET)
    z = y = plain.head(IMAGES)
    for one, other in zip(plain.layers, residual.layers, strict=True):
        assert torch.equal(one.weight, other.weight)
        z, y = torch.tanh(one(z)), y + torch.tanh(other(y))
    torch.testing.assert_close(plain(IMAGES), plain.tail(z))
    torch.testing.assert_close(residual(IMAGES), residual.tail(y))


@pytest.mark.parametrize("init", INITS)
def test_only_the_weights_of_the_layers_are_scaled(init):
    usual, net = network(RESNET), network(RESNET, init=init)
    torch.testing.assert_close(net.layers[1].weight, INITS[init] * usual.layers[1].weight)
    assert torch.equal(net.layers[1].bias, usual.layers[1].bias)
    assert torch.equal(net.head.weight, usual.head.weight)


def test_the_gradient_is_that_of_finite_differences():
    row = layers.gradient_row(PLAIN, "tanh", "PyTorch's", 0, [2, 3], 6)
    assert (row["depths"], len(row["profile"]), row["profile"][-1]) == ([2, 3], 4, 1.0)
    assert row["ratio"] == row["ratios"][-1] == row["profile"][0]
    images, labels, *_ = layers.digits(0, layers.QUARTER)
    torch.manual_seed(0)
    net = Deep(PLAIN, "tanh", "PyTorch's", 3, 6).double()
    states = net.states(images[:128].double())

    def loss(z, k):
        for layer in list(net.layers)[k:]:
            z = torch.tanh(layer(z))
        return torch.nn.functional.cross_entropy(net.tail(z), labels[:128])

    grads = []
    for k in (0, 3):
        z, grad = states[k].detach(), torch.zeros(128, 6, dtype=torch.float64)
        for i in (0, 17):  # of two samples
            for j in range(6):
                step = torch.zeros_like(z)
                step[i, j] = 1e-5
                with torch.no_grad():
                    grad[i, j] = (loss(z + step, k) - loss(z - step, k)) / 2e-5
        grads.append(grad[[0, 17]])
        found = torch.autograd.grad(loss(z.requires_grad_(), k), z)[0]
        torch.testing.assert_close(grads[-1], found[[0, 17]], rtol=1e-4, atol=1e-9)


def test_plain_sigmoid_networks_vanish_and_residual_ones_do_not():
    plain, residual = (layers.gradient_row(n, "sigmoid", "PyTorch's", 0, [2, 32], 8) for n in (PLAIN, RESNET))
    assert plain["ratios"][0] > 1e4 * plain["ratio"]
    assert plain["ratio"] < 0.25**16  # each layer's slope is at most 1/4
    assert 0.1 < residual["ratio"] < 10


def test_residual_connections_do_not_keep_a_gradient_from_exploding():
    assert layers.gradient_row(RESNET, "relu", "large", 0, [32], 8)["ratio"] > 1e4


def test_the_adjoint_of_a_linear_equation():
    """Of dz/dt = W z + b the adjoint is exp(Wᵀ T) times the direction, and the norm of J is that of W."""
    row = layers.adjoint_row("identity", "large", 0, [1.0, 2.0], 5)
    torch.manual_seed(0)
    net = Deep(LONG, "identity", "large", 1, 5).double()
    w = net.layers[0].weight.detach()
    direction = torch.nn.functional.normalize(torch.randn(5, dtype=torch.float64), dim=0)
    values = torch.linalg.eigvalsh((w + w.T) / 2)
    for i, end in enumerate((1.0, 2.0)):
        exact = float((torch.linalg.matrix_exp(end * w.T) @ direction).norm())
        assert row["highest"][i] == pytest.approx(exact, rel=1e-4)
        assert row["lowest"][i] == pytest.approx(exact, rel=1e-4)
        assert row["upper"][i] == pytest.approx(math.exp(end * values[-1]), rel=1e-6)
        assert row["lower"][i] == pytest.approx(math.exp(end * values[0]), rel=1e-6)
    assert (row["outside"], row["tried"]) == (0, 32)


def test_training_is_so_many_steps(monkeypatch):
    row = layers.training_row(SHORT, "tanh", "PyTorch's", 2, 0, 16, 60, "adam")
    assert row["accuracy"] > 0.5  # a tenth is chance
    assert row["diverged"] == 0
    steps = []
    original = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(1) or original(self))
    layers.training_row(PLAIN, "tanh", "PyTorch's", 2, 0, 4, 13, "sgd")
    assert len(steps) == 13  # an epoch has 11


def test_a_training_that_ends_in_no_number_is_a_row():
    row = layers.training_row(RESNET, "relu", "large", 128, 0, 16, 5, "sgd")
    assert row["diverged"] == 1
    assert row["accuracy"] < 0.3


@pytest.mark.parametrize(("ratio", "what"), [(1e-3, "vanishes"), (0.0, "vanishes"), (1.0, "stays"), (1e3, "explodes")])
def test_words_are_those_of_the_ratio(ratio, what):
    assert becomes(ratio) == what


def test_a_typical_ratio_is_a_geometric_mean():
    assert typical([{"ratio": 1e-8}, {"ratio": 1e-2}]) == pytest.approx(1e-5)
    assert typical([{"ratio": 0.0}, {"ratio": 1.0}]) == 0


def test_verdicts_follow_the_numbers():
    ratio = {(n, "tanh", "large"): 1.0 for n in NETWORKS} | {(PLAIN, "relu", "small"): 1e-9}
    assert depth._verdict(ratio, RESNET) == "holds"
    assert depth._verdict(ratio, PLAIN) == "does not hold"
    assert depth._claim(ratio, PLAIN) == (
        "the gradient vanishes in 1 and stays in 1 of 2 settings (from 1e-09, relu with small weights, to 1e+00, tanh "
        "with large weights)"
    )


def test_depths_double():
    assert doubling(2, 128, 2) == [2, 4, 8, 16, 32, 64, 128]
    assert doubling(2, 128, 4) == [2, 8, 32, 128]
    assert doubling(0.5, 32, 2)[-1] == 32


def test_the_small_form_runs_and_goes_on(tmp_path, monkeypatch):
    config = Config(**SMALL)
    first = depth.run(config, tmp_path, progress=False)
    for name in ("gradient_row", "adjoint_row", "training_row"):
        monkeypatch.setattr(depth, name, lambda *_: pytest.fail("done again"))
    again = depth.run(config, tmp_path, resume=True, progress=False)
    assert again.summary == first.summary
    assert (
        "“Residual connections avoid the vanishing and the exploding gradient” (section 2.6) does not hold"
        in first.lead
    )
    assert [len(section.tables[0].rows) for section in first.sections] == [12, 9, 20]
    assert len(list(first.pictures())) == 3 + 1 + 1 + 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 3}, "`depth` must be at least 4, got 3"),
        ({"optimizer": "rmsprop"}, "`optimizer` must be one of sgd, adam; got 'rmsprop'"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
    ],
)
def test_a_config_refuses_what_cannot_be_run(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**wrong)
