"""`per_sample=True`: each sample is solved as if it were alone."""

import itertools
import math

import pytest
import torch
from torch import nn

from odenets import Backsolve, Checkpointed, Direct, Event, Fixed, SolveError, Status, solve
from odenets.pullback.reached import LostGradientError

MU = torch.tensor([0.3, 1.0, 5.0, 20.0], dtype=torch.float64)[:, None]
TIMES = torch.tensor([0.0, 0.3, 0.7, 0.71, 2.0], dtype=torch.float64)
OPTIONS = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8}


class Rates(nn.Module):
    """A field that depends on time and on each sample's own rate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, t, y, mu):
        return mu * torch.tanh(self.layer(y) * torch.cos(t)) - y


def run(field, y0, mu, weights, **options):
    """The solution, and the gradients to y0, the times and the weights of the field."""
    y0, times = y0.clone().requires_grad_(), TIMES.clone().requires_grad_()
    sol = solve(field, y0, times, (mu,), **OPTIONS, **options)
    return sol, torch.autograd.grad((sol.ys * weights).sum(), (y0, times, *field.parameters()))


def test_each_sample_is_solved_as_if_it_were_alone():
    field, y0 = Rates(), torch.randn(4, 3, dtype=torch.float64)
    weights = torch.linspace(1, 2, 5 * 4 * 3, dtype=torch.float64).reshape(5, 4, 3)
    together, grads = run(field, y0, MU, weights, per_sample=True)
    sums = [torch.zeros_like(g) for g in grads[1:]]
    for i in range(4):
        alone, own = run(field, y0[i : i + 1], MU[i : i + 1], weights[:, i : i + 1])
        assert together.stats.accepted[i] == alone.stats.accepted
        assert together.stats.rejected[i] == alone.stats.rejected
        torch.testing.assert_close(together.ys[:, i], alone.ys[:, 0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(grads[0][i], own[0][0], rtol=1e-10, atol=1e-11)
        sums = [total + g for total, g in zip(sums, own[1:])]
    for ours, total in zip(grads[1:], sums):
        torch.testing.assert_close(ours, total, rtol=1e-10, atol=1e-10)


def test_a_bounded_memory_gives_the_same_gradient():
    field, y0 = Rates(), torch.randn(4, 3, dtype=torch.float64)
    weights = torch.ones(5, 4, 3, dtype=torch.float64)
    whole, grads = run(field, y0, MU, weights, per_sample=True)
    for memory in (1, 40):
        bounded, same = run(field, y0, MU, weights, per_sample=True, adjoint=Checkpointed(memory=memory))
        assert torch.equal(bounded.ys, whole.ys)
        assert bounded.stats.nfe_backward > whole.stats.nfe_backward
        for ours, theirs in zip(same, grads):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_a_stiff_neighbour_changes_nothing_for_an_easy_sample():
    def f(t, y, mu):
        x, v = y[:, :1], y[:, 1:]
        return torch.cat([v, mu * (1 - x**2) * v - x], dim=1)

    y0, mu = torch.tensor([[2.0, 0.0]] * 2, dtype=torch.float64), torch.tensor([[1.0], [50.0]], dtype=torch.float64)
    alone = solve(f, y0[:1], [0.0, 5.0], (mu[:1],), rtol=1e-4)
    both = solve(f, y0, [0.0, 5.0], (mu,), rtol=1e-4, per_sample=True)
    shared = solve(f, y0, [0.0, 5.0], (mu,), rtol=1e-4)
    torch.testing.assert_close(both.ys[:, 0], alone.ys[:, 0], rtol=1e-12, atol=1e-12)
    assert both.stats.steps[0] == alone.stats.steps
    assert not torch.equal(shared.ys[1, 0], alone.ys[1, 0])
    assert shared.stats.steps > 2 * alone.stats.steps


def test_t_is_broadcastable_and_in_the_callers_direction():
    shapes, seen = set(), []

    def f(t, y):
        shapes.add(tuple(t.shape))
        seen.append(t.flatten().tolist())
        return -y * t

    solve(f, torch.ones(2, 3, 4), [2.0, 1.0], per_sample=True)
    assert shapes == {(2, 1, 1)}
    assert all(1.0 - 1e-6 <= value <= 2.0 + 1e-6 for values in seen for value in values)


def test_nested_states():
    def f(t, state):
        position, speed = state
        return (speed, -position * torch.arange(1.0, 4.0)[:, None])

    y0 = (torch.ones(3, 2), torch.zeros(3, 2))
    together = solve(f, y0, [0.0, 1.0], rtol=1e-5, per_sample=True)
    rates = torch.arange(1.0, 4.0).sqrt()
    torch.testing.assert_close(together.ys[0][-1], torch.cos(rates)[:, None].expand(3, 2), rtol=1e-3, atol=1e-4)
    assert together.stats.accepted.shape == (3,)


def test_one_sample_that_fails_leaves_the_others():
    rate = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    y0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return rate * y**2  # the first sample blows up at t = 1

    with pytest.raises(SolveError, match="sample 0") as error:
        solve(f, y0, [0.0, 0.5, 2.0], per_sample=True)
    assert error.value.status is Status.DIVERGED
    options = {"method": "dopri8", "rtol": 1e-8, "atol": 1e-10}
    sol = solve(f, y0, [0.0, 0.5, 2.0], per_sample=True, on_failure="status", **options)
    assert sol.statuses == (Status.DIVERGED, Status.SUCCESS)
    assert torch.isfinite(sol.ys[:2]).all()
    assert torch.isnan(sol.ys[2, 0]).all()
    torch.testing.assert_close(sol.ys[2, 1].item(), 1 / 3, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(sol.ys[1].sum() + sol.ys[2, 1].sum(), y0)
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(grad[0].item(), 4.0, rtol=1e-5, atol=0)  # ∂/∂y0 of y0 / (1 − t y0) at t = 1/2


def test_each_sample_has_its_own_step_limit():
    rate = torch.tensor([[1.0], [300.0]])
    sol = solve(
        lambda t, y: -rate * y, torch.ones(2, 1), [0.0, 1.0], per_sample=True, max_steps=20, on_failure="status"
    )
    assert sol.statuses == (Status.SUCCESS, Status.MAX_STEPS)
    assert sol.stats.steps[1] == 20


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"controller": Fixed(steps=3)}, TypeError, "fixed steps are the same for all samples"),
        ({"method": "rk4", "controller": Fixed(steps=3)}, TypeError, r"leave `per_sample` out, or pass a method such"),
        ({"adjoint": Direct()}, TypeError, r"pass `adjoint=Checkpointed\(\)`"),
        ({"adjoint": Backsolve()}, TypeError, r"pass `adjoint=Checkpointed\(\)`"),
        (
            {"dense": True, "event": Event(lambda t, y: y.sum(1))},
            TypeError,
            "`event` with `per_sample=True` does not go with `dense=True`",
        ),
    ],
)
def test_options_that_do_not_go_together(options, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, torch.ones(3, 2), [0.0, 1.0], per_sample=True, **options)


def test_states_without_samples_are_refused():
    with pytest.raises(ValueError, match="samples along the first axis"):
        solve(lambda t, y: -y, torch.tensor(1.0), [0.0, 1.0], per_sample=True)
    with pytest.raises(ValueError, match="as many axes"):
        solve(lambda t, y: y, (torch.ones(3, 2), torch.ones(3)), [0.0, 1.0], per_sample=True)


def test_a_tensor_that_the_first_evaluation_does_not_show_is_not_lost_silently():
    supply = itertools.repeat(torch.full((), 2.0, requires_grad=True))  # into which no walk over objects looks

    def f(t, y):
        return -next(supply) * y if float(t.detach().max()) > 0.2 else -y

    sol = solve(f, torch.ones(2, 1, requires_grad=True), [0.0, 1.0], per_sample=True)
    with pytest.raises(LostGradientError):
        sol.ys.sum().backward()


def test_samples_of_one_number_have_their_own_steps_too():
    y0 = torch.tensor([1.0, 100.0, math.nan], dtype=torch.float64)
    f = lambda t, y: -y * y  # noqa: E731 — the state is (batch,)
    together = solve(f, y0, (0.0, 1.0), per_sample=True, on_failure="status")
    assert together.statuses == (Status.SUCCESS, Status.SUCCESS, Status.NON_FINITE_START)
    for i in range(2):
        alone = solve(f, y0[i : i + 1], (0.0, 1.0))
        assert together.stats.accepted[i] == alone.stats.accepted
        torch.testing.assert_close(together.ys[:, i], alone.ys[:, 0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("end", [0.6, 1.1, 1 / 3])  # which float32 rounds up, down, up
def test_a_last_time_that_only_float64_holds(end):
    sol = solve(lambda t, y: -y, torch.ones(2, 1, dtype=torch.float64), [0.0, end], per_sample=True)
    assert sol.statuses == (Status.SUCCESS,) * 2
