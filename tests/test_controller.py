"""Step size policy, in plain numbers."""

import itertools
import math

import pytest
import torch

from odenets import PID, Fixed, solve
from odenets.controller import Start


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rtol": -1e-3}, "`rtol` must be a number ≥ 0, got -0.001"),
        ({"atol": -1.0}, "`atol` must be a number ≥ 0"),
        ({"rtol": math.nan}, "`rtol` must be a number ≥ 0, got nan"),
        ({"rtol": 0.0, "atol": 0.0}, "`rtol` must be above 0 where `atol` is 0"),
        ({"safety": 1.5}, r"`safety` must be in \(0, 1\]"),
        ({"factor_min": 1.0}, "`factor_min`"),
        ({"factor_max": 1.0}, "`factor_max`"),
        ({"dt0": 0.0}, "`dt0` must be None or a number above 0"),
        ({"dt_max": -1.0}, "`dt_max`"),
    ],
)
def test_pid_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PID(**kwargs)


def test_fixed_takes_one_of_two():
    with pytest.raises(TypeError, match="either `dt` or `steps`"):
        Fixed()
    with pytest.raises(TypeError, match="either `dt` or `steps`"):
        Fixed(dt=0.1, steps=3)
    with pytest.raises(ValueError, match="`dt` must be a number above 0"):
        Fixed(dt=-0.1)
    with pytest.raises(ValueError, match="`steps` must be an integer ≥ 1"):
        Fixed(steps=0)


def test_method_without_error_estimate_needs_fixed_steps():
    with pytest.raises(TypeError, match=r"`method` 'rk4', which has no error estimate.*Fixed\(dt=...\)"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="rk4", controller=PID())


def test_integral_control_is_the_textbook_formula():
    decision = PID(safety=0.9).decide(ratio=0.5, dt=0.1, memory=(), order=5)
    assert decision.accept
    assert decision.dt == pytest.approx(0.1 * 0.9 * 0.5 ** (-1 / 5))


def test_pid_uses_the_two_steps_before():
    controller = PID(p=0.4, i=0.3, d=0.1)
    decision = controller.decide(ratio=0.5, dt=1.0, memory=(0.2, 0.1), order=5)
    expected = 0.9 * 0.5 ** (-0.8 / 5) * 0.2 ** (0.6 / 5) * 0.1 ** (-0.1 / 5)
    assert decision.dt == pytest.approx(expected)
    assert decision.memory == (0.5, 0.2)


def test_rejection_shrinks_and_keeps_the_memory():
    decision = PID().decide(ratio=32.0, dt=1.0, memory=(0.3,), order=5)
    assert not decision.accept
    assert decision.dt == pytest.approx(0.9 / 2)
    assert decision.memory == (0.3,)


def test_change_is_bounded_and_a_rejected_step_never_grows():
    controller = PID()
    assert controller.decide(1e-9, 1.0, (), 5).dt == 10.0
    assert controller.decide(1e9, 1.0, (), 5).dt == 0.2
    assert controller.decide(math.nan, 1.0, (), 5) == (False, 0.2, ())
    assert PID(p=5.0).decide(1.0001, 1.0, (1e-9,), 1).dt <= 1.0


def test_dt_max_and_dt0_bound_the_steps():
    seen = []
    solve(
        lambda t, y: seen.append(float(t)) or -y,
        torch.ones(1),
        [0.0, 1.0],
        controller=PID(dt0=0.01, dt_max=0.1),
    )
    starts = sorted(set(seen))
    assert max(b - a for a, b in itertools.pairwise(starts)) <= 0.1
    assert starts[1] < 0.01 + 1e-6


def test_first_step_is_cautious_where_the_trial_leaves_the_domain():
    """f is infinite a little to the right of the start's Euler step: the choice must stay finite."""
    y0 = torch.tensor([1.0], dtype=torch.float64)
    f = lambda t, y: torch.where(y > 1.005, torch.inf, 1e-2 / y)  # noqa: E731
    dt = PID().first_step(Start(f, y0, torch.tensor([1.0], dtype=torch.float64), 0.0, 1.0, 5)).dt
    assert 0 < dt < 1e-4


def test_first_step_costs_one_evaluation():
    sol = solve(lambda t, y: -y, torch.ones(3), [0.0, 1.0], method="dopri5")
    given = solve(lambda t, y: -y, torch.ones(3), [0.0, 1.0], method="dopri5", controller=PID(dt0=0.1))
    assert sol.stats.nfe == 2 + 6 * sol.stats.steps
    assert given.stats.nfe == 1 + 6 * given.stats.steps
