"""The ODE layer as a layer."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from odenets import Direct, Fixed, SolveError
from odenets.nn import MLPField, ODEBlock, ODENet


def test_in_a_sequential_like_any_other_layer():
    model = nn.Sequential(nn.Linear(3, 8), ODEBlock(MLPField(8, (16,))), nn.Linear(8, 2))
    model(torch.randn(5, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert sorted(model.state_dict()) == sorted(
        nn.Sequential(nn.Linear(3, 8), ODEBlock(MLPField(8, (16,))), nn.Linear(8, 2)).state_dict()
    )


def test_stats_are_those_of_the_newest_pass():
    block = ODEBlock(MLPField(4), method="dopri5")
    assert block.stats is None
    out = block(torch.randn(2, 4))
    nfe = block.stats.nfe
    assert nfe > 0
    assert block.stats.nfe_backward is None
    out.sum().backward()
    assert (block.stats.nfe_backward, block.stats.kept) == (0, block.stats.accepted)
    block(torch.randn(2, 4))
    assert block.stats.nfe_backward is None


def test_all_states_or_the_last():
    x = torch.randn(2, 4)
    field = MLPField(4)
    assert ODEBlock(field, t=(0.0, 0.5, 1.0))(x).shape == (3, 2, 4)
    assert ODEBlock(field, t=(0.0, 0.5, 1.0), last=True)(x).shape == (2, 4)
    assert ODEBlock(field, last=False)(x).shape == (2, 2, 4)


def test_augmented_dimensions_start_at_zero():
    seen = []
    block = ODEBlock(lambda t, z: seen.append(z) or -z, augment=3)
    assert block(torch.ones(2, 2)).shape == (2, 5)
    assert torch.equal(seen[0], torch.tensor([[1.0, 1, 0, 0, 0]] * 2))


def test_a_one_dimensional_flow_cannot_cross_itself_an_augmented_one_can():
    """Trained to exchange −1 and 1: without an extra dimension the order of the points is kept whatever the field."""
    x = torch.tensor([[-1.0], [1.0]])

    def trained(augment):
        torch.manual_seed(0)
        block = ODEBlock(MLPField(1 + augment, (16,), "tanh"), augment=augment, rtol=1e-3, atol=1e-4)
        optimizer = torch.optim.Adam(block.parameters(), lr=0.1)
        for _ in range(25):
            optimizer.zero_grad()
            loss = (block(x)[:, :1] + x).square().mean()
            loss.backward()
            optimizer.step()
        return block(x)[:, 0].detach()

    plain, augmented = trained(0), trained(1)
    assert plain[0] < plain[1]
    assert augmented[0] > 0.8
    assert augmented[1] < -0.8


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"tol": 1e-3}, TypeError, "ODEBlock has no option `tol`; it takes .*rtol"),
        ({"augment": -1}, ValueError, "`augment` must be an integer ≥ 0, got -1"),
        ({"field": nn.Sequential(nn.Dropout(0.1))}, ValueError, r"`field` contains Dropout\(p=0.1\)"),
        (
            {"field": nn.Sequential(nn.BatchNorm1d(3))},
            ValueError,
            "`field` contains BatchNorm1d.*GroupNorm",
        ),
    ],
)
def test_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        ODEBlock(**{"field": MLPField(3), **kwargs})


def test_options_reach_the_solver():
    block = ODEBlock(MLPField(3), method="rk4", controller=Fixed(steps=3), adjoint=Direct())
    block(torch.randn(2, 3))
    assert block.stats.nfe == 12
    with pytest.raises(SolveError, match="MAX_STEPS"):
        ODEBlock(MLPField(3), max_steps=1, rtol=1e-6)(torch.randn(2, 3))


def test_repr_says_how_it_solves():
    block = ODEBlock(MLPField(3), augment=1, method="dopri5", rtol=1e-3)
    assert "t=(0.0, 1.0), augment=1, method='dopri5', rtol=0.001" in repr(block)


class Conv(nn.Module):
    """A field of images with so many channels."""

    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t, z):
        return torch.tanh(self.layer(z))


@pytest.mark.parametrize(
    ("shape", "axis", "augmented"),
    [
        ((4, 3, 8, 6), 1, (4, 5, 8, 6)),
        ((4, 3, 8, 6), -3, (4, 5, 8, 6)),
        ((4, 3, 8, 6), -1, (4, 3, 8, 8)),
        ((4, 7, 3), None, (4, 7, 5)),
        ((4, 7, 3), 1, (4, 9, 3)),
        ((4, 3), None, (4, 5)),
        ((3,), None, (5,)),
        ((3,), 0, (5,)),
        ((4, 3, 2, 2, 2), 1, (4, 5, 2, 2, 2)),
        ((0, 3), 1, (0, 5)),
    ],
)
def test_the_augmented_axis(shape, axis, augmented):
    x = torch.rand(shape)
    out = ODEBlock(lambda t, z: 0 * z, augment=2, augment_dim=axis)(x)
    assert out.shape == augmented
    where = next(i for i in range(len(shape)) if shape[i] != augmented[i])
    assert torch.equal(out.narrow(where, 0, shape[where]), x)
    assert not out.narrow(where, shape[where], 2).any()


@pytest.mark.parametrize(
    ("shape", "axis", "message"),
    [
        ((4, 3, 8, 8), None, r"`augment` needs `augment_dim` for an input of 4 axes.*augment_dim=1 for the channels"),
        ((4, 3), 2, r"`augment_dim` must be an axis of the input, of shape \(4, 3\).*got 2"),
        ((4, 3), -3, "`augment_dim` must be an axis"),
        ((4, 3, 8, 8), 0, "not that of the samples; got 0"),
        ((4, 3, 8, 8), -4, "not that of the samples; got -4"),
    ],
)
def test_an_axis_that_cannot_be_augmented(shape, axis, message):
    with pytest.raises(ValueError, match=message):
        ODEBlock(lambda t, z: -z, augment=2, augment_dim=axis)(torch.rand(shape))


def test_images_are_augmented_by_channels():
    block = ODEBlock(Conv(3 + 2), augment=2, augment_dim=1)
    out = block(torch.rand(2, 3, 8, 8))
    assert out.shape == (2, 5, 8, 8)
    out.sum().backward()
    assert "augment=2, augment_dim=1" in repr(block)


@pytest.mark.parametrize(
    ("field", "x", "axis"), [(MLPField(3), torch.rand(4, 3), None), (Conv(3), torch.rand(2, 3, 8, 8), 1)]
)
def test_a_field_made_without_the_augmented_dimensions_is_named(field, x, axis):
    with pytest.raises(ValueError, match=r"`field` takes the input's shape .* 5 along axis 1: make .* width \+ augm"):
        ODEBlock(field, augment=2, augment_dim=axis)(x)


def test_a_tail_made_without_the_augmented_dimensions_is_named():
    with pytest.raises(ValueError, match=r"`tail` .* 2 augmented dimensions.*make it for width \+ augment"):
        ODENet(nn.Linear(4, 3), MLPField(5), nn.Linear(3, 1), augment=2)(torch.rand(6, 4))
    assert ODENet(nn.Linear(4, 3), MLPField(5), nn.Linear(5, 1), augment=2)(torch.rand(6, 4)).shape == (6, 1)


def test_an_error_that_has_nothing_to_do_with_augmenting_stays():
    layer = nn.Linear(9, 9)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        ODEBlock(lambda t, z: layer(z), augment=2)(torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"MLPField\(width=9\) takes"):
        ODEBlock(MLPField(9), augment=2)(torch.rand(4, 3))


def test_an_error_of_a_field_of_any_width_does_not_blame_the_width():
    def field(t, z):
        if t > 0:
            raise RuntimeError("out of memory")
        return -z

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        ODEBlock(field, augment=2)(torch.rand(4, 3))


def test_a_field_with_arguments_made_without_the_augmented_dimensions_is_named():
    def field(t, z, rate):
        return -rate * (z @ torch.eye(3))

    with pytest.raises(ValueError, match=r"5 along axis 1: make it for width \+ augment"):
        ODEBlock(field, augment=2, args=(2.0,))(torch.rand(4, 3))


@pytest.mark.parametrize("time", ["add", "concat", "none"])
@pytest.mark.parametrize("hidden", [(), (4,)])
@pytest.mark.parametrize("shape", [(), (4,), (2, 1), (3, 5), (0,)])
def test_a_field_of_another_width_than_the_state_says_so(shape, hidden, time):
    field = MLPField(3, hidden, time=time)
    with pytest.raises(ValueError, match=rf"MLPField\(width=3\) .* \(..., 3\), got {re.escape(str(shape))}: make `wi"):
        ODEBlock(field)(torch.zeros(shape))


def test_a_parameter_among_the_times_is_one_of_the_block():
    end = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    block = ODEBlock(lambda t, z: -z, t=(0.0, end), rtol=1e-9, atol=1e-9)
    assert [p is end for p in block.parameters()] == [True]
    assert list(block.state_dict()) == ["t.1"]
    x = torch.ones(1, dtype=torch.float64)
    block(x).sum().backward()
    assert float(end.grad) == pytest.approx(-math.exp(-1), rel=1e-6)
    twin = copy.deepcopy(block)
    twin.load_state_dict({"t.1": torch.tensor(2.0)})
    assert float(twin(x).detach()) == pytest.approx(math.exp(-2), rel=1e-6)
    assert float(end.detach()) == 1.0
    assert "t=(0.0, 1.0)" in repr(block)
    assert block.to(torch.float32).t[1].dtype == torch.float32
    with torch.no_grad():
        end.fill_(3.0)
    assert float(ODEBlock(lambda t, z: -z, t=[0, end, 4])(x)[1].detach()) == pytest.approx(math.exp(-3), rel=1e-2)


def test_all_times_as_a_parameter():
    times = nn.Parameter(torch.tensor([0.0, 0.5], dtype=torch.float64))
    block = ODEBlock(lambda t, z: -z, t=times)
    assert [p is times for p in block.parameters()] == [True]
    assert list(block.state_dict()) == ["t"]
    block(torch.ones(2)).sum().backward()
    assert times.grad.abs().min() > 0
