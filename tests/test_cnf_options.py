"""Options of continuous normalising flows, and what they refuse."""

import math
import re

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from odenets import PID, Checkpointed, Fixed, ReplayError, SolveError
from odenets.nn import CNF, ConcatSquashField, MLPField

D = torch.float64
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def net(d, squash=False):
    torch.manual_seed(0)
    field = ConcatSquashField(d, (8, 8)) if squash else MLPField(d, (8,), "tanh")
    return field.to(D)


def test_the_density_can_be_left_out_of_the_error_control():
    def field(t, z):  # hardly any motion, and a trace that oscillates
        return 1e-3 * torch.cos(200 * z)

    x = torch.randn(20, 1, dtype=D)
    exact = CNF(field, width=1, rtol=1e-10, atol=1e-10).log_prob(x)
    options = {"width": 1, "rtol": 1e-3, "atol": 1e-3}
    both, points = CNF(field, **options), CNF(field, control_density=False, **options)
    errors = [(flow.log_prob(x) - exact).abs().max().item() for flow in (both, points)]
    assert points.stats.steps < both.stats.steps
    assert errors[0] < errors[1]
    assert points.sample(3).shape == (3, 1)
    given = CNF(field, width=1, control_density=False, controller=PID(rtol=1e-3, atol=1e-3))
    assert torch.equal(given.log_prob(x), points.log_prob(x))
    fixed = CNF(field, width=1, control_density=False, controller=Fixed(steps=3))
    assert fixed.sample(3).shape == (3, 1)
    assert fixed.stats.steps == 3
    with pytest.raises(TypeError, match="ignored beside `controller`"):
        CNF(field, width=1, control_density=False, controller=PID(), rtol=1e-3).log_prob(x)


def test_each_sample_can_have_its_own_steps():
    x = torch.randn(4, 2, dtype=D)
    for squash in (False, True):
        flow = CNF(net(2, squash=squash), per_sample=True, **TIGHT)
        density = flow.log_prob(x)
        assert flow.stats.accepted.shape == (4,)
        torch.testing.assert_close(density, CNF(flow.field, **TIGHT).log_prob(x), rtol=1e-6, atol=1e-6)
        rough = CNF(flow.field, per_sample=True, control_density=False)
        torch.testing.assert_close(rough.log_prob(x), density, rtol=1e-2, atol=1e-2)


def test_a_flow_is_saved_and_shown():
    flow = CNF(ConcatSquashField(2, (4,)), trace="hutchinson", method="bosh3")
    assert {name.partition(".")[0] for name in flow.state_dict()} == {"field"}
    assert "width=2, trace='hutchinson', probe='rademacher', method='bosh3'" in repr(flow)


BASE = Normal(torch.zeros(2), torch.ones(2))
WIDTH = "`width` must be the number of dimensions where neither `base` nor `field.width` says it"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"field": 3}, TypeError, "`field` must be a module or a function, called as field(t, z), got 3"),
        ({"field": torch.sin}, TypeError, WIDTH),
        ({"trace": "rough"}, ValueError, "`trace` must be one of exact, hutchinson; got 'rough'"),
        ({"probe": "cauchy"}, ValueError, "`probe` must be one of rademacher, normal; got 'cauchy'"),
        ({"t": (0.0, 0.5, 1.0)}, ValueError, "`t` must be two times, that of the base and that of the data"),
        ({"width": 3}, ValueError, "the dimensions differ: `width` has 3, the field's `width` has 2"),
        ({"base": BASE}, TypeError, "write torch.distributions.Independent(base, 1)"),
        ({"tol": 1}, TypeError, "CNF has no option `tol`; it takes "),
        ({"args": (1,)}, TypeError, "CNF has no option `args`"),
        ({"on_failure": "status"}, ValueError, '`on_failure` must be "raise" in a CNF'),
        ({"compile": True}, TypeError, "`compile=True` needs a field with a method `jvp(t, z, v)`"),
        ({"field": nn.Sequential(nn.Dropout(0.5))}, ValueError, "put it before or after the CNF"),
        ({"field": ConcatSquashField(3, (4,)), "width": 2}, ValueError, "the dimensions differ"),
    ],
)
def test_what_cannot_be_a_flow_is_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        CNF(**{"field": MLPField(2, (4,)), **options})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0, 0.0]], TypeError, "`x` must be points of shape (batch, 2), got [[0.0, 0.0]]: write torch.as_tensor(x)"),
        (torch.zeros(2), ValueError, "`x` must be points of shape (batch, 2), got (2,): write x[None] for one point"),
        (torch.zeros(4, 3), ValueError, "got (4, 3): give one row a point"),
        (torch.zeros(4, 2, dtype=torch.int64), TypeError, "got torch.int64: write x.float()"),
        (torch.tensor([[0.0, 0.0], [0.0, math.nan]]), ValueError, "without NaN or infinity, and row 1 has one"),
    ],
)
def test_what_cannot_be_a_point_is_refused(x, error, message):
    with pytest.raises(error, match=re.escape(message)):
        CNF(MLPField(2, (4,))).log_prob(x)


def test_a_generator_goes_with_the_normal_base():
    flow = CNF(MLPField(2, (4,)), base=Independent(BASE, 1))
    assert flow.sample(3).shape == (3, 2)
    with pytest.raises(TypeError, match="`generator` goes with the standard normal base"):
        flow.sample(3, torch.Generator())


def test_a_field_that_draws_random_numbers_is_refused_where_it_is_evaluated_again():
    def field(t, z):
        return nn.functional.dropout(z @ torch.eye(2) * scale, 0.5)

    flow = CNF(field, width=2, controller=Fixed(steps=2), adjoint=Checkpointed(activations=0))
    scale = torch.ones(2, requires_grad=True)
    with pytest.raises(ReplayError):
        flow.log_prob(torch.randn(6, 2)).sum().backward()


def test_a_solve_that_fails_says_so():
    with pytest.raises(SolveError):
        CNF(lambda t, z: z**3, width=1).sample(200)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConcatSquashField(2, ()), "`hidden` must name at least one hidden layer"),
        (lambda: ConcatSquashField(0), "`width` must be an integer ≥ 1, got 0"),
        (lambda: ConcatSquashField(2, (0,)), "`hidden[0]` must be an integer ≥ 1, got 0"),
        (lambda: ConcatSquashField(2)(torch.tensor(0.0), torch.zeros(3)), "takes a state of shape (..., 2), got (3,)"),
    ],
)
def test_the_squashing_field_says_what_it_takes(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_compiled_flow_is_the_same(trace):
    field = net(2, squash=True)
    x, results = torch.randn(5, 2, dtype=D), []
    for compile in (False, True):
        flow = CNF(field, trace=trace, control_density=trace == "exact", compile=compile, rtol=1e-4, atol=1e-4)
        for _ in range(2):
            field.zero_grad()
            density = flow.log_prob(x, torch.Generator().manual_seed(0))
            density.mean().backward()
        results.append(torch.cat([density.detach(), *(p.grad.flatten() for p in field.parameters())]))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)
