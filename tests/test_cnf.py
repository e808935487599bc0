"""Continuous normalising flows against closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from odenets import Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible
from odenets.nn import CNF, ConcatSquashField, MLPField

D = torch.float64
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def linear_flow(d=3, seed=0, **options):
    """dz/dt = A z: its density is normal, with covariance exp(A) exp(A)ᵀ."""
    generator = torch.Generator().manual_seed(seed)
    A = 0.7 * torch.randn(d, d, generator=generator, dtype=D)
    flow = CNF(lambda t, z: z @ A.T, width=d, **{**TIGHT, **options})
    E = torch.linalg.matrix_exp(A)
    return flow, A, MultivariateNormal(torch.zeros(d, dtype=D), E @ E.T, validate_args=False)


def net(d, seed=0, squash=False):
    torch.manual_seed(seed)
    field = ConcatSquashField(d, (8, 8)) if squash else MLPField(d, (8,), "tanh")
    return field.to(D)


# -- densities that are known


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_a_linear_field_gives_its_normal_distribution(d, batch):
    flow, A, exact = linear_flow(d)
    x = torch.randn(batch, d, dtype=D)
    density = flow.log_prob(x)
    assert density.shape == (batch,)
    torch.testing.assert_close(density, exact.log_prob(x), rtol=1e-6, atol=1e-6)
    _, log_det = flow(x)
    torch.testing.assert_close(log_det, A.trace().expand(batch), rtol=1e-6, atol=1e-7)
    assert flow.stats is not None


def test_an_affine_flow_moves_and_stretches_the_normal_distribution():
    rate, drift = torch.tensor([0.5, -1.0], dtype=D), torch.tensor([1.0, 2.0], dtype=D)
    flow = CNF(lambda t, z: rate * z + drift * torch.exp(rate * t), (0.0, 2.0), width=2, **TIGHT)
    # z(2) = exp(2 rate) (z(0) + 2 drift)
    stretch = torch.exp(2 * rate)
    exact = Independent(Normal(2 * stretch * drift, stretch), 1)
    x = exact.sample((50,))
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x), rtol=1e-6, atol=1e-6)


def test_another_base_and_another_direction_of_time():
    base = Independent(Normal(torch.full((2,), 1.0, dtype=D), torch.full((2,), 0.5, dtype=D)), 1)
    flow = CNF(lambda t, z: -z, (1.0, 0.0), base=base, **TIGHT)  # z grows e-fold from t = 1 back to 0
    exact = Independent(Normal(math.e * base.base_dist.loc, math.e * base.base_dist.scale), 1)
    x = exact.sample((20,))
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x), rtol=1e-6, atol=1e-6)
    torch.manual_seed(0)
    assert flow.sample(4000).mean(0).tolist() == pytest.approx([math.e, math.e], abs=0.1)


@pytest.mark.parametrize("squash", [False, True])
def test_the_density_integrates_to_one(squash):
    field = net(2, squash=squash)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(2)
    flow = CNF(field, rtol=1e-5, atol=1e-5)
    axis = torch.linspace(-8, 8, 121, dtype=D)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.sum().item() * (axis[1] - axis[0]).item() ** 2 == pytest.approx(1, abs=2e-3)
    assert (density / flow._base(axis).log_prob(torch.cartesian_prod(axis, axis)).exp()).max() > 2  # far from the base


def test_samples_come_with_the_density_that_they_have():
    flow = CNF(net(2), **TIGHT)
    x, density = flow.sample_with_log_prob(30, torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.log_prob(x), density, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.sample(30, torch.Generator().manual_seed(1)), x, rtol=1e-6, atol=1e-6)
    assert not torch.equal(flow.sample(30), flow.sample(30))
    z, log_det = flow.inverse(x)
    back, other = flow(z)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other, -log_det, rtol=1e-6, atol=1e-6)
    assert flow.sample(0).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_dtypes_are_kept(dtype):
    flow = CNF(MLPField(2, (8,)).to(dtype))
    x, density = flow.sample_with_log_prob(3)
    assert {x.dtype, density.dtype, flow.log_prob(x).dtype, flow.sample(2).dtype} == {dtype}


# -- the trace


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_exact_trace_is_that_of_autograds_jacobian(d, squash):
    field = net(d, squash=squash)
    flow, t = CNF(field), torch.tensor(0.3, dtype=D)
    x = torch.randn(4, d, dtype=D)
    out = flow._with_trace(t, torch.cat([x, x[:, :1]], 1), flow._directions(x, None))
    jacobians = [torch.autograd.functional.jacobian(lambda z: field(t, z[None])[0], row) for row in x]
    torch.testing.assert_close(out[:, :-1], field(t, x))
    torch.testing.assert_close(out[:, -1], torch.stack([j.trace() for j in jacobians]))


@pytest.mark.parametrize("t", [torch.tensor(0.3, dtype=D), torch.tensor([[0.1], [0.2], [0.9]], dtype=D)])
def test_the_derivative_of_the_field_along_directions(t):
    field = net(2, squash=True)
    x, v = torch.randn(3, 2, dtype=D), torch.randn(4, 3, 2, dtype=D)
    f, pushed = field.jvp(t, x, v)
    torch.testing.assert_close(f, field(t, x))
    for direction, derivative in zip(v, pushed):
        _, expected = torch.autograd.functional.jvp(lambda z: field(t, z), x, direction)
        torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_hutchinsons_estimate_is_right_in_the_mean(probe, squash):
    field = net(3, squash=squash)
    x = torch.randn(1, 3, dtype=D)
    many = CNF(field, trace="hutchinson", probe=probe).log_prob(x.expand(4000, -1), torch.Generator().manual_seed(0))
    error = (many.mean() - CNF(field).log_prob(x)).abs().item()
    assert 0 < many.std() < 5
    assert error < 4 * many.std().item() / math.sqrt(4000)


def test_hutchinsons_estimate_is_exact_for_a_diagonal_jacobian_and_signs():
    x = torch.randn(5, 3, dtype=D)
    flows = [
        CNF(lambda t, z: torch.sin(z), trace="hutchinson", probe=p, width=3, **TIGHT) for p in ("rademacher", "normal")
    ]
    exact = CNF(lambda t, z: torch.sin(z), width=3, **TIGHT).log_prob(x)
    torch.testing.assert_close(flows[0].log_prob(x), exact, rtol=1e-6, atol=1e-6)
    assert (flows[1].log_prob(x) - exact).abs().max() > 0.01


def test_a_probe_is_drawn_once_a_solve_by_the_generator():
    flow, x = CNF(net(3), trace="hutchinson"), torch.randn(4, 3, dtype=D)
    one, same, other = (flow.log_prob(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(3)
    own = flow.log_prob(x)
    torch.manual_seed(3)
    assert torch.equal(own, flow.log_prob(x))
    assert set(flow._directions(x, None).flatten().tolist()) == {-1.0, 1.0}


def test_a_constant_field_has_no_trace():
    flow = CNF(lambda t, z: torch.ones_like(z), width=2)
    x = torch.randn(3, 2, dtype=D, requires_grad=True)
    torch.testing.assert_close(flow.log_prob(x), flow._base(x).log_prob(x - 1))


# -- gradients


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("squash", [False, True])
def test_gradients_are_those_of_finite_differences(trace, squash):
    flow = CNF(net(2, squash=squash), trace=trace, controller=Fixed(steps=4))
    x = torch.randn(3, 2, dtype=D, requires_grad=True)

    def loss():
        return flow.log_prob(x, torch.Generator().manual_seed(0)).sum()

    loss().backward()
    assert all(p.grad is not None for p in flow.parameters())
    for tensor in (x, *flow.parameters()):
        entry, step = (0,) * tensor.dim(), 1e-5
        with torch.no_grad():
            differences = []
            for sign in (1, -1):
                tensor[entry] += sign * step
                differences.append(sign * loss().item())
                tensor[entry] -= sign * step
        assert tensor.grad[entry].item() == pytest.approx(sum(differences) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize(
    ("adjoint", "tolerance"),
    [
        (Checkpointed(), 1e-12),
        (Checkpointed(memory=2), 1e-12),
        (Interpolated(), 1e-5),
        (Backsolve(), 1e-5),
        (Reversible(), 1e-3),
    ],
    ids=str,
)
def test_every_adjoint_gives_the_same_gradient(adjoint, tolerance, trace, squash):
    x = torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(0))

    def gradients(adjoint):
        flow = CNF(net(2, squash=squash), trace=trace, adjoint=adjoint, controller=Fixed(steps=10))
        flow.log_prob(x, torch.Generator().manual_seed(0)).mean().backward()
        return torch.cat([p.grad.flatten() for p in flow.parameters()])

    torch.testing.assert_close(gradients(adjoint), gradients(Direct()), rtol=tolerance, atol=tolerance)


def test_the_score_can_be_learnt_from():
    """The gradient of the log-density by x, differentiated once more: `Direct` alone has that."""
    flow, _, exact = linear_flow(2, adjoint=Direct())
    x = torch.randn(4, 2, dtype=D, requires_grad=True)
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
    torch.testing.assert_close(score, -x @ torch.linalg.inv(exact.covariance_matrix), rtol=1e-5, atol=1e-6)
    (second,) = torch.autograd.grad(score[:, 0].sum(), x)
    torch.testing.assert_close(second[0], -torch.linalg.inv(exact.covariance_matrix)[0], rtol=1e-5, atol=1e-6)


def test_times_are_learnt():
    flow = CNF(lambda t, z: z, (0.0, nn.Parameter(torch.tensor(1.0, dtype=D))), width=1, **TIGHT)
    assert len(list(flow.parameters())) == 1
    x = torch.tensor([[2.0]], dtype=D)
    flow.log_prob(x).sum().backward()
    # log p = −x² exp(−2T) / 2 − T + …
    assert flow.t[1].grad.item() == pytest.approx(4 * math.exp(-2) - 1, rel=1e-6)


def test_samples_are_differentiable():
    flow = CNF(net(2))
    flow.sample(5).square().sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
