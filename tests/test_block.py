"""The ODE layer as a layer."""

import pytest
import torch
from torch import nn

from odenets import Direct, Fixed, SolveError
from odenets.nn import MLPField, ODEBlock


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
    assert block.stats.nfe_backward > 0
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
