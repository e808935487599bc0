"""The twins and their relatives: the document's claims about networks, shown."""

import pytest
import torch
from torch import nn

from odenets import Fixed
from odenets.nn import ACTIVATIONS, MLP, MLPField, ODEBlock, ODENet, ResNet, activation, count_parameters, twins
from odenets.nn.models import FieldSteps, ResidualBlock


def test_back_propagation_as_section_2_3_works_it_out():
    """The document's formulas, written out, against autograd."""
    torch.manual_seed(0)
    w1, w2 = (torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    b1, b2 = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    x, y = torch.randn(2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    z = w1 @ x + b1
    h = torch.sigmoid(z)
    y_hat = w2 @ h + b2
    loss = 0.5 * (y_hat - y).square().sum()
    by_autograd = torch.autograd.grad(loss, [w1, b1, w2, b2])

    d_y_hat = 1 * (y_hat - y)
    d_w2 = torch.outer(d_y_hat, h)
    d_b2 = d_y_hat
    d_h = w2.T @ d_y_hat
    d_z = d_h * (h * (1 - h))  # σ' = σ (1 − σ)
    d_w1 = torch.outer(d_z, x)
    d_b1 = d_z
    for ours, theirs in zip((d_w1, d_b1, d_w2, d_b2), by_autograd):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("time", ["add", "concat", "none"])
@pytest.mark.parametrize("hidden", [(), (7,)])
def test_euler_with_step_one_is_the_residual_network(hidden, time):
    """Sections 2.6, 4.1 and 4.2: equal output and equal gradients, to rounding."""
    torch.manual_seed(0)
    field = MLPField(4, hidden, "tanh", time).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    resnet = FieldSteps(field, depth=6)
    odenet = ODEBlock(field, t=(0.0, 6.0), method="euler", controller=Fixed(dt=1.0))
    results = []
    for network in (resnet, odenet):
        inputs = x.clone().requires_grad_()
        out = network(inputs)
        grads = torch.autograd.grad(out.sin().sum(), [inputs, *field.parameters()])
        results.append((out, *grads))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    assert odenet.stats.nfe == 6


def test_one_residual_block_is_one_euler_step():
    block = ResidualBlock(4, "relu")
    x = torch.randn(3, 4)
    euler = ODEBlock(lambda t, y: block.linear(torch.relu(y)), method="euler", controller=Fixed(steps=1))
    torch.testing.assert_close(euler(x), block(x))


def test_twins_are_those_of_section_5(capsys):
    pair = twins(187, 5, method="dopri5", rtol=1e-3, atol=1e-3)
    assert count_parameters(pair.resnet) == 45_253
    assert count_parameters(pair.odenet) == 24_837
    assert capsys.readouterr().out == "ResNet 45,253 parameters, ODE-Net 24,837 parameters\n"
    assert pair.odenet.block.solve_options == {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}


def test_twin_layers_are_written_as_in_section_5():
    pair = twins(187, 5, verbose=False)
    x = torch.randn(2, 187)
    h = x
    for layer in (pair.resnet.head[0], pair.resnet.head[2], pair.resnet.head[4]):
        h = layer(h) if layer is pair.resnet.head[4] else torch.relu(layer(h))
    for block in pair.resnet.blocks:
        assert block.linear.bias is None
        h = h + torch.relu(h) @ block.linear.weight.T
    torch.testing.assert_close(pair.resnet(x), pair.resnet.tail[1](torch.relu(h)))
    z, t = torch.randn(2, 64), torch.tensor(0.3)
    linear = pair.odenet.block.field.layers[0]
    torch.testing.assert_close(pair.odenet.block.field(t, z), linear(torch.relu(z) + t))


@pytest.mark.parametrize("time", ["add", "concat", "none"])
def test_matched_twins_differ_by_less_than_one_hidden_unit(time):
    pair = twins(187, 5, matched=True, time=time, verbose=False)
    difference = abs(count_parameters(pair.resnet) - count_parameters(pair.odenet))
    assert difference <= 2 * 64 + 2


def test_augmented_twin():
    pair = twins(10, 3, width=8, augment=4, verbose=False)
    assert pair.odenet(torch.randn(2, 10)).shape == (2, 3)


def test_models_are_head_middle_tail():
    head, tail = MLP((3, 8), last=True), nn.Linear(8, 2)
    resnet = ResNet(head, [ResidualBlock(8)], tail)
    odenet = ODENet(head, MLPField(8), tail)
    assert [name for name, _ in resnet.named_children()] == ["head", "blocks", "tail"]
    assert [name for name, _ in odenet.named_children()] == ["head", "block", "tail"]
    assert resnet(torch.randn(4, 3)).shape == odenet(torch.randn(4, 3)).shape == (4, 2)


def test_mlp_ends_without_activation_unless_asked():
    assert isinstance(MLP((3, 5, 2))[-1], nn.Linear)
    assert isinstance(MLP((3, 5, 2), "relu", last=True)[-1], nn.ReLU)
    with pytest.raises(ValueError, match=r"`sizes` must name at least an input and an output size, got \(3,\)"):
        MLP((3,))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_by_name_trains_in_a_field(name):
    torch.manual_seed(0)
    block = ODEBlock(MLPField(3, (4,), name))
    block(torch.randn(2, 3)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())
    assert block.field.layers[0].weight.grad.abs().sum() > 0


def test_formulas_of_the_documents_activations():
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(activation("sigmoid")(z), 1 / (1 + torch.exp(-z)))
    torch.testing.assert_close(activation("tanh")(z), (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z)))
    torch.testing.assert_close(activation("relu")(z), z.clamp(min=0))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"`activation` must be one of sigmoid, tanh, relu.*got 'rlu'"):
        activation("rlu")
    with pytest.raises(ValueError, match="`time` must be one of add, concat, none, got 'multiply'"):
        MLPField(3, time="multiply")


def test_time_enters_as_named():
    y, early, late = torch.randn(2, 3), torch.tensor(0.0), torch.tensor(1.0)
    torch.manual_seed(0)
    for time, depends in (("add", True), ("concat", True), ("none", False)):
        field = MLPField(3, (4,), time=time)
        assert torch.equal(field(early, y), field(late, y)) is not depends


@pytest.mark.parametrize("given", [{"inputs": 0}, {"outputs": 2.5}, {"width": 0}, {"head_layers": 0}, {"depth": -1}])
def test_sizes_of_twins_are_whole_numbers(given):
    (name,) = given
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be an integer"):
        twins(**({"inputs": 2, "outputs": 3} | given), verbose=False)
