"""Stiff problems by an implicit method that adapts its steps."""

import math

import pytest
import torch

from odenets import (
    METHODS,
    PID,
    Backsolve,
    Checkpointed,
    Direct,
    Fixed,
    ImplicitRungeKutta,
    Reversible,
    SolveError,
    solve,
)
from odenets.methods import NotConverged

D = torch.float64


def robertson(t, y):
    a, b, c = y
    slow, fast, middle = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([middle - slow, slow - middle - fast, fast])


# Hairer and Wanner, *Solving Ordinary Differential Equations II*, IV.10, and the test set of Bari at 1e11.
ROBERTSON = {
    40.0: (0.7158270688, 9.185534765e-6, 0.2841637457),
    1e11: (0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
}


@pytest.mark.parametrize(("end", "steps", "off"), [(40.0, 50, 3e-3), (1e11, 180, 5e-2)])
def test_robertsons_reactions(end, steps, off):
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D)
    sol = solve(robertson, y0, [0.0, end], method="trbdf2", atol=1e-9)
    assert sol.stats.steps < steps
    torch.testing.assert_close(sol.ys[-1], torch.tensor(ROBERTSON[end], dtype=D), rtol=off, atol=0)


def test_its_error_falls_with_the_tolerance_and_its_steps_grow_as_of_order_2():
    def f(t, y):
        return -1e4 * (y - torch.cos(t)) - torch.sin(t)

    runs = {}
    for rtol in (1e-3, 1e-5, 1e-7):
        sol = solve(f, torch.ones(1, dtype=D), [0.0, 3.0], method="trbdf2", controller=PID(rtol=rtol, atol=rtol))
        runs[rtol] = abs(sol.ys[-1].item() - math.cos(3.0)), sol.stats.steps
    assert all(error < 5 * rtol for rtol, (error, _) in runs.items())
    assert runs[1e-7][1] < 15 * runs[1e-5][1]


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(memory=3), Backsolve()])
@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.3, 0.3, 1.0], [1.0, 0.4, 0.0]])
def test_its_gradient_is_that_of_what_was_computed(adjoint, t):
    def gradients(adjoint, **options):
        torch.manual_seed(0)
        y0 = torch.randn(2, 3, dtype=D, requires_grad=True)
        w = torch.randn(3, 3, dtype=D, requires_grad=True)
        times = torch.tensor(t, dtype=D, requires_grad=True)
        sol = solve(
            lambda t, y, w: torch.tanh(y @ w) * torch.cos(t),
            y0,
            times,
            (w,),
            method="trbdf2",
            adjoint=adjoint,
            **options,
        )
        return torch.autograd.grad(sol.ys.sin().sum(), (y0, w, times))

    continuous = isinstance(adjoint, Backsolve)
    tight = {"rtol": 1e-5, "atol": 1e-5} if continuous else {}
    bound = {"rtol": 1e-3, "atol": 1e-3} if continuous else {"rtol": 1e-8, "atol": 1e-10}
    for got, exact in zip(gradients(adjoint, **tight), gradients(Direct(), **tight)):
        torch.testing.assert_close(got, exact, **bound)


def test_a_step_that_cannot_be_made_is_tried_again_shorter():
    """y' = y² with y(0) = 1 is 10 at 0.9; the equations of one step to there have no real solution."""
    y0 = torch.ones(1, dtype=D)
    one = METHODS["trbdf2"].step(lambda t, y: y * y, 0.0, y0, 0.9, ())
    assert isinstance(one.trouble, NotConverged)
    with pytest.raises(SolveError, match="NOT_CONVERGED"):
        solve(lambda t, y: y * y, y0, [0.0, 0.9], method="trbdf2", controller=Fixed(steps=1))
    sol = solve(lambda t, y: y * y, y0, [0.0, 0.9], method="trbdf2", controller=PID(rtol=1e-6, dt0=0.9))
    assert sol.stats.rejected > 0
    torch.testing.assert_close(sol.ys[-1], torch.full((1,), 10.0, dtype=D), rtol=1e-3, atol=0)


def test_a_tableau_of_ones_own_adapts_too():
    """Backward Euler beside the trapezoidal rule, whose difference is the error."""
    theta = ImplicitRungeKutta(
        "theta", 1, a=((0.0, 0.0), (0.0, 1.0)), b=(0.0, 1.0), c=(0.0, 1.0), b_error=(-0.5, 0.5, 0.0)
    )
    sol = solve(lambda t, y: -1e3 * (y - t), torch.ones(1, dtype=D), [0.0, 1.0], method=theta, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(sol.ys[-1], torch.tensor([0.999], dtype=D), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_sample": True}, "`per_sample=True` does not go with `method` 'trbdf2', which is implicit"),
        ({"compile": True}, "`compile=True` does not go with `method` 'trbdf2', which is implicit"),
    ],
)
def test_what_does_not_go_with_it(options, message):
    with pytest.raises(TypeError, match=message):
        solve(lambda t, y: -y, torch.ones(2, 3), [0.0, 1.0], method="trbdf2", **options)


def test_the_reversible_pair_may_be_made_of_it():
    sol = solve(lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 1.0], method="trbdf2", adjoint=Reversible())
    torch.testing.assert_close(sol.ys[-1], torch.exp(-torch.ones(1, dtype=D)), rtol=1e-2, atol=0)
    fixed = solve(lambda t, y: -y, torch.ones(1, dtype=D), [0.0, 1.0], method="trbdf2", controller=Fixed(steps=9))
    torch.testing.assert_close(fixed.ys[-1], torch.exp(-torch.ones(1, dtype=D)), rtol=1e-3, atol=0)
