"""A solve taken step by step."""

import copy
import math
import pickle

import pytest
import torch

from odenets import PID, Direct, Fixed, SolveError, Status, Stepper, path, solve

D = torch.float64
Y0 = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=D)


def pendulum(t, y, rate):
    return torch.stack([y[..., 1], -rate * torch.sin(y[..., 0]) + 0.1 * torch.cos(t)], -1)


def states(stepper, until):
    found = [(stepper.t, stepper.y)]
    while stepper.t != until:
        stepper.step(until)
        found.append((stepper.t, stepper.y))
    return found


@pytest.mark.parametrize(
    ("method", "controller"),
    [
        ("tsit5", PID(1e-6, 1e-8)),
        ("dopri8", PID(1e-8, [1e-8, 1e-6], p=0.4, i=0.3)),
        ("rk4", Fixed(dt=0.3)),
        ("euler", Fixed(steps=7)),
        ("trbdf2", PID(1e-2, 1e-2)),
        ("adams", PID(1e-5)),
    ],
)
@pytest.mark.parametrize(("t0", "t_end"), [(0.0, 2.0), (1e6, 1e6 - 2.0)])
def test_the_steps_are_those_of_solve(method, controller, t0, t_end):
    stepper = Stepper(pendulum, Y0, t0, (1.5,), method=method, controller=controller, t_end=t_end)
    found = states(stepper, t_end)
    times, y = [time for time, _ in found], found[-1][1]
    sol = solve(pendulum, Y0, (t0, t_end), (1.5,), method=method, controller=controller, dense=True)
    assert torch.equal(y, sol.ys[-1])
    assert stepper.stats.accepted == sol.stats.accepted == len(times) - 1
    assert (stepper.stats.rejected, stepper.t_before) == (sol.stats.rejected, times[-2])
    middle = torch.tensor([times[-2], (times[-2] + times[-1]) / 2, times[-1]], dtype=D)
    assert torch.allclose(stepper.interpolate(middle), sol(middle), rtol=1e-9)
    assert stepper.interpolate(times[-1]).shape == Y0.shape


def test_interpolation_changes_no_step_and_costs_what_the_next_step_gets_back():
    found = []
    for looks in (False, True):
        stepper = Stepper(pendulum, Y0, 0.0, (1.5,), method="rk4", controller=Fixed(dt=0.25))
        for _ in range(4):
            stepper.step()
            if looks:
                stepper.interpolate(stepper.t - 0.1)
        found.append((stepper.y, stepper.stats.nfe))
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][1] == found[0][1] + 1


def test_nests_and_half_precision():
    def f(t, y):
        return {"a": -y["a"], "b": [y["a"].sum() * torch.ones_like(y["b"][0])]}

    for dtype in (D, torch.bfloat16):
        y0 = {"a": torch.ones(2, dtype=dtype), "b": [torch.zeros((), dtype=dtype)]}
        stepper = Stepper(f, y0, rtol=1e-3, t_end=1.0)
        y = states(stepper, 1.0)[-1][1]
        assert y["b"][0].dtype == dtype
        assert abs(float(y["b"][0]) - 2 * (1 - math.exp(-1.0))) < max(2e-3, 4 * torch.finfo(dtype).eps)
        assert stepper.interpolate(stepper.t_before)["a"].shape == (2,)
        stepper.restart({"a": y["a"], "b": [y["b"][0] + 1]})
        assert float(stepper.y["b"][0]) > 2


def test_gradients_are_those_of_direct():
    found = []
    for stepped in (True, False):
        y0, rate = Y0.clone().requires_grad_(), torch.tensor(1.5, dtype=D, requires_grad=True)
        if stepped:
            stepper = Stepper(pendulum, y0, 0.0, (rate,), rtol=1e-6)
            y = states(stepper, 2.0)[-1][1]
            y = y + stepper.interpolate(2.0 - 1e-3)
        else:
            sol = solve(pendulum, y0, (0.0, 2.0), (rate,), rtol=1e-6, adjoint=Direct(), dense=True)
            y = sol.ys[-1] + sol(2.0 - 1e-3)
        found.append(torch.autograd.grad(y.sum(), [y0, rate]))
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(*found))
    stepper.restart(stepper.y.detach())
    assert not stepper.y.requires_grad
    with torch.no_grad():
        stepper = Stepper(pendulum, y0, 0.0, (rate,))
        stepper.step()
        assert not stepper.y.requires_grad


@pytest.mark.parametrize("method", ["tsit5", "adams"])
def test_a_control_that_acts_at_its_own_times(method):
    """dy/dt = u - y, with u another number each second; where nobody says so, the error control finds it out."""
    found = []
    for told in (True, False):
        control = {"u": 0.0}
        stepper = Stepper(
            lambda t, y, c=control: c["u"] - y, torch.zeros(1, dtype=D), method=method, rtol=1e-9, atol=1e-9
        )
        exact = 0.0
        for second in range(3):
            control["u"] = (-1.0) ** second * 5
            if told:
                stepper.restart()
            while stepper.t < second + 1:
                stepper.step(second + 1.0)
            exact = control["u"] + (exact - control["u"]) * math.exp(-1.0)
        assert abs(float(stepper.y) - exact) < 1e-7
        found.append(stepper.stats.steps)
    assert found[0] < found[1]


def test_until_keeps_the_planned_step_and_time_is_exact():
    stepper = Stepper(pendulum, Y0, 0.0, (1.5,), controller=PID(dt0=0.25))
    assert stepper.dt is None
    assert stepper.step(0.1) == 0.1
    assert stepper.dt >= 0.25
    assert stepper.step(0.1 + 0.2) == 0.1 + 0.2
    ahead = Stepper(lambda t, y: 0 * y, Y0, 1e9)
    for _ in range(8):
        ahead.step()
    assert ahead.t > 1e9
    torch.testing.assert_close(ahead.y, Y0)


def test_a_state_that_is_changed_outside_changes_nothing():
    y0 = Y0.clone()
    stepper = Stepper(pendulum, y0, 0.0, (1.5,))
    y0.zero_()
    stepper.y.zero_()
    torch.testing.assert_close(stepper.y, Y0)


def decay(t, y, rate):
    return -rate * y


def test_copies_go_on_by_themselves():
    stepper = Stepper(decay, Y0, 0.0, (torch.tensor(2.0, dtype=D),), rtol=1e-6)
    stepper.step()
    twins = [copy.copy(stepper), copy.deepcopy(stepper), pickle.loads(pickle.dumps(stepper))]
    place, stats = (stepper.t, stepper.dt), copy.copy(stepper.stats)
    steps = [twin.step() for twin in twins]
    assert (stepper.t, stepper.dt, stepper.stats) == (*place, stats)
    assert {stepper.step()} == set(steps)
    for twin in twins:
        assert torch.equal(twin.y, stepper.y)
        assert twin.stats == stepper.stats
        assert torch.equal(twin.interpolate(twin.t_before), stepper.interpolate(stepper.t_before))


def test_the_jumps_of_a_path_are_kept_to():
    u = path.Constant([0.0, 0.5, 0.7], torch.tensor([0.0, 3.0, 0.0], dtype=D), outside="hold")
    stepper = Stepper(lambda t, y, u: u(t) + 0 * y, torch.zeros((), dtype=D), 0.0, (u,), t_end=1.0)
    assert {0.5, 0.7} <= {t for t, _ in states(stepper, 1.0)}
    assert float(stepper.y) == pytest.approx(0.6)


def test_a_failure_is_raised_and_the_stepper_stays_where_it_is():
    stepper = Stepper(lambda t, y: -(y**2), torch.ones(1, dtype=D), 3.0, rtol=1e-6, t_end=0.0)  # 1 / (t - 2)
    with pytest.raises(SolveError) as caught:
        states(stepper, 0.0)
    assert caught.value.status is Status.DIVERGED
    assert caught.value.t == stepper.t == pytest.approx(2.0)
    stepper.restart(torch.zeros(1, dtype=D))
    assert states(stepper, 0.0)[-1][0] == 0.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.step(0.0), ValueError, "`until` = 0.0 is not ahead of the time that is reached, 0.0"),
        (lambda s: s.step("1"), TypeError, "`until` must be a number, got '1'"),
        (lambda s: s.interpolate(0.0), ValueError, "no step has been taken yet"),
        (lambda s: (s.step(), s.interpolate(9.0)), ValueError, r"`t` must lie in the solved interval \[0.0, "),
        (lambda s: s.restart(torch.ones(3)), ValueError, "`y` must be like y0, "),
        (lambda s: [s.step() for _ in range(99)], ValueError, "`t_end` = 1.0 is not ahead of the time .*, 1.0"),
        (lambda s: Stepper(decay, Y0, 1.0, t_end=1.0), ValueError, "`t_end` must be a number other than `t0`, got 1.0"),
        (lambda s: Stepper(decay, Y0, math.inf), ValueError, "`t0` must be a finite number, got inf"),
        (lambda s: Stepper(decay, Y0, controller=Fixed(steps=9)), ValueError, r"give `t_end`, or write `Fixed\(dt="),
        (lambda s: Stepper(decay, Y0, method="rk4"), TypeError, "'rk4', which has no error estimate"),
        (lambda s: Stepper(Y0, decay), TypeError, r"the order is Stepper\(f, y0, t0\)"),
        (lambda s: Stepper(decay, Y0, args=1.0), TypeError, r"write `args=\(value,\)`"),
        (lambda s: Stepper(decay, Y0, rtol=1e-3, controller=PID()), TypeError, "`rtol` would be ignored beside"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(Stepper(decay, Y0, 0.0, (1.0,), t_end=1.0))
