"""Regularisers: closed forms, gradients by finite differences, and a solve that they do not change."""

import copy
import pickle

import pytest
import torch
from torch import nn

from odenets import PID, Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible
from odenets.nn import MLPField, ODEBlock, ODENet

BOTH = ("kinetic", "jacobian")
ADJOINTS = (Direct(), Checkpointed(), Checkpointed(memory=2), Interpolated(), Backsolve(), Reversible())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def linear(a):
    return lambda t, z: z @ a.T


@pytest.mark.parametrize("t", [(0.0, 2.5), (2.5, 0.0), (1.0, 2.0, 3.5)])
def test_a_constant_field_costs_its_square_times_the_time(t):
    c = torch.tensor([1.0, -2.0, 0.5])
    block = ODEBlock(lambda t, z: c.expand_as(z), t, regularise=BOTH)
    block(torch.randn(4, 3))
    torch.testing.assert_close(block.regularisation["kinetic"], torch.full((4,), 5.25 * 2.5))
    assert torch.equal(block.regularisation["jacobian"], torch.zeros(4))


def test_kinetic_energy_of_decay():
    """z = z0 e^(−t): ∫ |z|² dt = |z0|² (1 − e^(−2T)) / 2."""
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    block = ODEBlock(lambda t, z: -z, (0.0, 1.5), rtol=1e-8, atol=1e-8, regularise="kinetic")
    block(x)
    expected = x.square().sum(dim=(1, 2)) * (1 - torch.tensor(-3.0, dtype=torch.float64).exp()) / 2
    torch.testing.assert_close(block.regularisation["kinetic"], expected, rtol=1e-5, atol=0.0)


def test_the_jacobian_of_a_diagonal_field_is_exact_and_of_any_field_so_in_the_mean():
    a = torch.diag(torch.tensor([1.0, -3.0]))
    block = ODEBlock(linear(a), (0.0, 2.0), regularise="jacobian")
    block(torch.randn(5, 2))
    torch.testing.assert_close(block.regularisation["jacobian"], torch.full((5,), 20.0))
    a = torch.randn(3, 3)
    block = ODEBlock(linear(a), (0.0, 2.0), regularise="jacobian")
    block(torch.randn(20_000, 3))
    assert float(block.regularisation["jacobian"].mean()) == pytest.approx(2 * float(a.square().sum()), rel=0.03)
    assert float(block.regularisation["jacobian"].std()) > 0


def test_the_probe_is_one_within_a_solve_and_another_in_the_next():
    """With the field linear and autonomous |εᵀA|² T does not depend on the steps, unless ε changed within them."""
    a = torch.randn(3, 3)
    found = []
    for steps in (1, 7):
        block = ODEBlock(linear(a), method="euler", controller=Fixed(steps=steps), regularise="jacobian")
        torch.manual_seed(3)
        found.append((block(torch.zeros(4, 3)), block.regularisation["jacobian"])[1])
        block(torch.zeros(4, 3))
        assert not torch.equal(block.regularisation["jacobian"], found[-1])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"controller": PID(rtol=1e-5)}, {"method": "bosh3"}])
def test_the_solve_is_the_one_without(options):
    field, x = MLPField(3, (8,)), 3 * torch.randn(5, 3)
    plain, block = ODEBlock(field, **options), ODEBlock(field, regularise=BOTH, **options)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-6, atol=1e-6)
    assert str(block.stats) == str(plain.stats)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_gradients_are_those_of_finite_differences(adjoint):
    field = MLPField(3, (5,)).double()
    block = ODEBlock(field, rtol=1e-8, atol=1e-8, adjoint=adjoint, regularise=BOTH)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = field.layers[0].weight

    def loss():
        torch.manual_seed(5)
        out = block(x)
        return out.square().mean() + sum(integral.mean() for integral in block.regularisation.values())

    for place in (weight, x):
        direction = torch.randn_like(place)
        (gradient,) = torch.autograd.grad(loss(), place)
        values = []
        for step in (1e-5, -2e-5):
            place.data.add_(direction, alpha=step)
            values.append(float(loss().detach()))
        place.data.add_(direction, alpha=1e-5)
        assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_images_augmented_and_one_step_size_each():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, t, z):
            assert t.dim() == 4  # as many axes as z
            return torch.tanh(self.layer(z) + t)

    block = ODEBlock(Convolution(), augment=2, augment_dim=1, per_sample=True, regularise=BOTH)
    out = block(torch.rand(3, 2, 5, 5))
    assert out.shape == (3, 4, 5, 5)
    sum(integral.sum() for integral in block.regularisation.values()).backward()
    assert block.field.layer.weight.grad.abs().sum() > 0


def test_extra_arguments_reach_the_field():
    rate = torch.tensor(2.0, requires_grad=True)
    block = ODEBlock(lambda t, z, k: -k * z, args=(rate,), regularise=BOTH)
    block(torch.ones(2, 3))
    block.regularisation["jacobian"].sum().backward()  # 2 samples of 3 k²
    assert float(rate.grad) == pytest.approx(24.0, rel=1e-5)


def test_only_in_training_mode():
    model = ODENet(nn.Linear(2, 3), MLPField(3), nn.Linear(3, 1), regularise=BOTH)
    assert model.block.regularisation == {}
    model(torch.randn(4, 2))
    assert {name: value.shape for name, value in model.block.regularisation.items()} == dict.fromkeys(BOTH, (4,))
    before = torch.get_rng_state()
    model.eval()(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert model.block.regularisation == {}
    assert torch.equal(torch.get_rng_state(), before)


def test_without_gradients_there_are_numbers():
    block = ODEBlock(MLPField(3), regularise=BOTH)
    with torch.no_grad():
        out = block(torch.randn(4, 3))
    assert not any(x.requires_grad for x in (out, *block.regularisation.values()))
    assert all((value > 0).all() for value in block.regularisation.values())


def test_a_block_that_has_run_can_be_copied_and_pickled():
    block = ODEBlock(MLPField(3), regularise="kinetic")
    block(torch.randn(4, 3))
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other.regularisation == {}
        other(torch.randn(4, 3))
        assert list(other.regularisation) == ["kinetic"]


def test_another_field_or_shape_is_taken_up():
    block = ODEBlock(lambda t, z: torch.ones_like(z), regularise="kinetic")
    for shape, energy in (((2, 6), 6.0), ((2, 2, 3), 6.0), ((3, 4), 4.0)):
        block(torch.zeros(shape))
        assert block.regularisation["kinetic"].tolist() == pytest.approx([energy] * shape[0])
    block.field = lambda t, z: 2 * torch.ones_like(z)
    block(torch.zeros(3, 4))
    assert block.regularisation["kinetic"].tolist() == pytest.approx([16.0] * 3)


def test_it_takes_fewer_evaluations_after_training():
    """A field that may be anything between two ends: with the penalty the way becomes straight."""
    nfe, x = [], torch.randn(32, 2)
    for weight in (0.0, 0.1):
        torch.manual_seed(1)
        field = MLPField(2, (16,))
        for parameter in field.parameters():
            parameter.data.mul_(4)
        block = ODEBlock(field, method="rk4", controller=Fixed(steps=6), adjoint=Direct(), regularise="kinetic")
        optimizer = torch.optim.Adam(block.parameters(), lr=0.02)
        for _ in range(60):
            loss = (block(x) - x.flip(1)).square().mean() + weight * block.regularisation["kinetic"].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        solved = ODEBlock(field, rtol=1e-5, atol=1e-5)
        solved(x)
        nfe.append(solved.stats.nfe)
    assert nfe[1] < nfe[0]


class _Own(PID):
    pass


@pytest.mark.parametrize(
    ("options", "x", "error", "message"),
    [
        ({"regularise": "kinetik"}, None, ValueError, "`regularise` must be among kinetic, jacobian, each once; got"),
        ({"regularise": ("kinetic", "kinetic")}, None, ValueError, "each once; got"),
        ({"regularise": "kinetic"}, torch.ones(3), ValueError, r"needs a real input with samples .* write x\[None\]"),
        ({"regularise": "kinetic"}, torch.ones(2, 3).cfloat(), ValueError, "got torch.complex64"),
        (
            {"regularise": "kinetic", "controller": _Own()},
            torch.ones(2, 3),
            TypeError,
            "goes with `PID` and with fixed",
        ),
    ],
)
def test_refuses(options, x, error, message):
    with pytest.raises(error, match=message):
        ODEBlock(lambda t, z: -z, **options)(x)


def test_says_so_in_its_representation():
    assert "regularise=('kinetic',)" in repr(ODEBlock(MLPField(2), regularise="kinetic"))
