"""The front door: normal form, structures, directions, every error text, every failure."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odenets import METHODS, PID, Backsolve, Checkpointed, Direct, Fixed, SolveError, Status, solve
from problems import KNOWN, OSCILLATOR, Net

Y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)


def decay(t, y):
    return -y


# --- states, times, arguments ------------------------------------------------------------------------------------


def test_shapes_and_stats():
    sol = solve(decay, torch.ones(4, 3, 2), torch.linspace(0, 1, 5))
    assert sol.ys.shape == (5, 4, 3, 2)
    assert sol.status is Status.SUCCESS
    assert sol.failure is None
    assert sol.stats.steps == sol.stats.accepted + sol.stats.rejected
    assert torch.equal(sol.ys[0], torch.ones(4, 3, 2))
    assert sol.ys.dtype == torch.float32


@pytest.mark.parametrize("problem", KNOWN, ids=repr)
def test_agrees_with_scipy(problem):
    t = torch.linspace(0, problem.t1, 9, dtype=torch.float64)
    sol = solve(problem.f, problem.y0, t, method="dopri5", rtol=1e-9, atol=1e-10)
    reference = scipy.integrate.solve_ivp(
        lambda t, y: problem.f(torch.tensor(t, dtype=torch.float64), torch.tensor(y)).numpy(),
        (0, problem.t1),
        problem.y0.numpy(),
        t_eval=t.numpy(),
        rtol=1e-10,
        atol=1e-12,
    )
    np.testing.assert_allclose(sol.ys.numpy(), reference.y.T, rtol=1e-7, atol=1e-8)


def test_backward_in_time_returns_to_the_start():
    there = solve(OSCILLATOR.f, OSCILLATOR.y0, [0.0, 2.0], rtol=1e-9, atol=1e-10)
    back = solve(OSCILLATOR.f, there.ys[-1], [2.0, 1.0, 0.0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(back.ys[-1], OSCILLATOR.y0, rtol=0, atol=1e-7)
    torch.testing.assert_close(
        back.ys[1], OSCILLATOR.exact(torch.tensor([1.0], dtype=torch.float64))[0], rtol=0, atol=1e-7
    )


def test_field_sees_the_callers_time_backward_too():
    seen = []
    solve(lambda t, y: seen.append(float(t)) or -y, torch.ones(1), [3.0, 1.0])
    assert min(seen) >= 1.0 - 1e-6
    assert max(seen) == 3.0


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Backsolve()])
def test_repeated_times(adjoint):
    y0 = Y0.clone().requires_grad_()
    sol = solve(decay, y0, [0.0, 0.0, 0.5, 0.5, 1.0, 1.0], adjoint=adjoint, rtol=1e-8, atol=1e-10)
    exact = torch.exp(-torch.tensor([0, 0, 0.5, 0.5, 1, 1], dtype=torch.float64))[:, None] * Y0
    torch.testing.assert_close(sol.ys, exact, rtol=1e-6, atol=0)
    sol.ys.sum().backward()
    torch.testing.assert_close(
        y0.grad, 2 * (1 + math.exp(-0.5) + math.exp(-1)) * torch.ones_like(Y0), rtol=1e-6, atol=0
    )


def test_one_time_is_the_start():
    sol = solve(decay, Y0, [0.3])
    assert torch.equal(sol.ys, Y0[None])
    assert sol.stats.nfe <= 1


def test_nested_state_comes_back_in_its_structure():
    y0 = {"a": torch.ones(2, 3), "b": (torch.zeros(4), torch.tensor(2.0))}

    def f(t, y):
        return {"a": -y["a"], "b": (torch.ones(4), y["b"][1])}

    sol = solve(f, y0, [0.0, 0.5, 1.0], rtol=1e-6)
    assert sol.ys["a"].shape == (3, 2, 3)
    assert sol.ys["b"][0].shape == (3, 4)
    assert sol.ys["b"][1].shape == (3,)
    assert float(sol.ys["b"][1][-1]) == pytest.approx(2 * math.e, rel=1e-5)


def test_extra_arguments():
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    sol = solve(
        lambda t, y, rate, options: -rate * y * options["scale"],
        Y0,
        [0.0, 1.0],
        args=(rate, {"scale": 2.0}),
        rtol=1e-8,
    )
    sol.ys[-1, 0].backward()
    assert float(rate.grad) == pytest.approx(-2 * math.exp(-1.4), rel=1e-6)


def test_complex_state():
    sol = solve(lambda t, y: 1j * y, torch.ones(1, dtype=torch.complex128), [0.0, math.pi], rtol=1e-9, atol=1e-10)
    assert complex(sol.ys[-1]) == pytest.approx(-1 + 0j, abs=1e-7)


def test_time_is_exact_in_a_float32_solve_far_from_zero():
    """Times are kept in float64: float32 could not even represent these steps."""
    sol = solve(decay, torch.ones(1), [1e8, 1e8 + 1.0], rtol=1e-5)
    assert float(sol.ys[-1]) == pytest.approx(math.exp(-1), rel=1e-4)


def test_mixed_precision_inside_f():
    net = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol = solve(lambda t, y: net(y), torch.ones(2, 3), [0.0, 1.0], rtol=1e-2)
        assert sol.ys.dtype == torch.float32
    sol.ys.sum().backward()
    assert torch.isfinite(net.weight.grad).all()


@settings(max_examples=40, deadline=None)
@given(
    times=st.lists(st.floats(-3, 3), min_size=2, max_size=6).map(sorted),
    reverse=st.booleans(),
    name=st.sampled_from(["bosh3", "dopri5", "tsit5"]),
)
def test_any_monotone_times(times, reverse, name):
    times = times[::-1] if reverse else times
    sol = solve(
        lambda t, y: torch.cos(t) + 0 * y,
        torch.zeros(1, dtype=torch.float64),
        times,
        method=name,
        rtol=1e-8,
        atol=1e-9,
    )
    exact = torch.sin(torch.tensor(times, dtype=torch.float64)) - math.sin(times[0])
    torch.testing.assert_close(sol.ys[:, 0], exact, rtol=0, atol=1e-6)


# --- bad input: the argument, the value, what is allowed, what to write instead -------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"method": "rk45"}, ValueError, "`method` must be one of euler, .*tsit5.*got 'rk45'"),
        ({"rtol": -1e-3}, ValueError, "`rtol` must be a number ≥ 0, got -0.001"),
        (
            {"rtol": 1e-3, "controller": Fixed(dt=0.1)},
            TypeError,
            "`rtol` would be ignored beside `controller`",
        ),
        ({"rtol": 1e-3, "atol": 1e-3, "controller": PID()}, TypeError, "`rtol` and `atol` would be ignored"),
        ({"method": "euler"}, TypeError, "'euler', which has no error estimate"),
        ({"controller": "fixed"}, TypeError, "`controller` must be an object such as PID"),
        ({"adjoint": "direct"}, TypeError, "`adjoint` must be an object such as Checkpointed"),
        ({"adjoint": Direct}, TypeError, "`adjoint` must be an object such as Checkpointed"),
        ({"adjoint": Backsolve(method="rk5")}, ValueError, "`method` of `Backsolve` must be one of euler.*got 'rk5'"),
        ({"adjoint": Backsolve(method="rk4")}, TypeError, "'rk4', which has no error estimate"),
        ({"controller": PID}, TypeError, r"`controller` must be an object such as PID\(\)"),
        ({"on_failure": "ignore"}, ValueError, '`on_failure` must be "raise" or "status", got \'ignore\''),
        ({"max_steps": 0}, ValueError, "`max_steps` must be an integer ≥ 1, got 0"),
        ({"args": 3.0}, TypeError, r"`args` must be a tuple, got 3.0: write `args=\(value,\)`"),
        ({"t": [0.0, 2.0, 1.0]}, ValueError, r"`t` must be monotone.*t\[1\] = 2.0 is followed by 1.0"),
        ({"t": [0.0, math.nan]}, ValueError, "`t` must be finite, got nan"),
        ({"t": torch.zeros(2, 2)}, ValueError, r"`t` must be 1-D.*got shape \(2, 2\)"),
        ({"t": []}, ValueError, "`t` must be 1-D with at least one time"),
        ({"t": torch.tensor([1j, 2j])}, TypeError, "`t` must be real numbers"),
        (
            {"y0": torch.tensor([1, 2])},
            TypeError,
            r"`y0` must be floating-point or complex, got torch.int64: write y0.float\(\)",
        ),
        ({"y0": [1.0, 2.0]}, TypeError, r"`y0` \(leaf 0\) must be a tensor, got 1.0"),
        ({"y0": ()}, ValueError, "`y0` must hold a tensor"),
        ({"y0": (torch.ones(2), torch.ones(2).double())}, TypeError, "`y0` must be of one dtype and device"),
        (
            {"f": lambda t, y: y[:1]},
            ValueError,
            r"`f` must return a tensor of y's shape \(2,\), returned \(1,\) at t = 0",
        ),
        ({"f": lambda t, y: y[:1], "t": [3.0, 1.0]}, ValueError, r"returned \(1,\) at t = 3"),
        (
            {"f": lambda t, y: y.float()},
            TypeError,
            "`f` must return y's dtype torch.float64, returned torch.float32",
        ),
        ({"f": lambda t, y: 0.0}, TypeError, "`f` must return a tensor for each tensor of y, returned float"),
        ({"f": lambda t, y: (y, y)}, TypeError, "returned tuple"),
        ({"f": lambda t, y: (y[0],), "y0": (Y0, Y0)}, ValueError, "`f` must return y's structure"),
    ],
)
def test_bad_input(kwargs, error, message):
    call = {"f": decay, "y0": Y0, "t": [0.0, 1.0], **kwargs}
    with pytest.raises(error, match=message):
        solve(call.pop("f"), call.pop("y0"), call.pop("t"), **call)


# --- failures of the solve ------------------------------------------------------------------------------------------


def failure_of(f, y0=Y0, t=(0.0, 2.0), **options):
    with pytest.raises(SolveError) as caught:
        solve(f, y0, t, **options)
    return caught.value


def test_nan_from_f_at_some_time_says_when_and_where():
    def f(t, y):
        return torch.where((t > 0.5) & (torch.arange(6).reshape(2, 3) == 4), torch.nan, -y)

    error = failure_of(f, torch.ones(2, 3, dtype=torch.float64))
    assert error.status is Status.NON_FINITE_FIELD
    assert error.t == pytest.approx(0.5, abs=1e-6)
    assert "sample 1, component (1,) is nan (1 of 6 values are not finite)" in str(error)
    assert "f returned NaN" in str(error)


def test_nan_from_f_at_the_start():
    error = failure_of(lambda t, y: y * torch.nan)
    assert error.status is Status.NON_FINITE_FIELD
    assert "f(t0, y0): sample 0 is nan" in str(error)


def test_nan_in_y0():
    error = failure_of(decay, torch.tensor([1.0, torch.nan]))
    assert error.status is Status.NON_FINITE_START
    assert "sample 1 is nan" in str(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5", "heun"])
def test_blow_up_in_finite_time(method, dtype):
    error = failure_of(lambda t, y: y**2, torch.tensor([0.5, 1.0], dtype=dtype), method=method)
    assert error.status is Status.DIVERGED
    assert error.t == pytest.approx(1.0, abs=5e-3)
    assert "blows up in finite time" in str(error)
    assert "sample 1" in str(error)


def test_blow_up_backward_in_time_reports_the_callers_time():
    error = failure_of(lambda t, y: -(y**2), torch.ones(1, dtype=torch.float64), t=(0.0, -2.0))
    assert error.status is Status.DIVERGED
    assert error.t == pytest.approx(-1.0, abs=1e-3)
    assert error.dt < 0


def test_max_steps():
    error = failure_of(lambda t, y: -1e4 * (y - torch.cos(t)), max_steps=50)
    assert error.status is Status.MAX_STEPS
    assert error.stats.steps == 50
    assert "raise `max_steps`" in str(error)
    assert "50 steps" in str(error)


def test_max_steps_counts_fixed_steps_too():
    assert failure_of(decay, method="rk4", controller=Fixed(dt=0.01), max_steps=100).status is Status.MAX_STEPS


def test_tolerance_below_the_rounding_error_is_refused_at_once():
    with pytest.raises(
        ValueError, match=r"`rtol` = 1e-12 and `atol` = 1e-14 ask for .* times the accuracy that y's dtype"
    ):
        solve(decay, torch.ones(64), [0.0, 1.0], rtol=1e-12, atol=1e-14)
    solve(decay, torch.ones(64), [0.0, 1.0], rtol=1e-7, atol=1e-9)
    solve(decay, torch.ones(64), [0.0, 1.0], rtol=1e-12, atol=1e-6)


def test_a_field_that_no_step_resolves_underflows():
    error = failure_of(lambda t, y: torch.where(t < 0.5, -y, 1e20 * torch.sin(1e20 * t)))
    assert error.status is Status.STEP_SIZE_UNDERFLOW
    assert error.t == pytest.approx(0.5, abs=1e-3)
    assert "f may be discontinuous here" in str(error)


def test_fixed_steps_that_are_too_large():
    error = failure_of(lambda t, y: -1e4 * y, torch.ones(2, 2), method="rk4", controller=Fixed(dt=0.01))
    assert error.status is Status.NON_FINITE_STATE
    assert "smaller ones" in str(error)
    assert 0 < error.t < 2


def test_fixed_steps_with_nan_from_f():
    error = failure_of(lambda t, y: torch.where(t > 1, torch.nan, -y), method="rk4", controller=Fixed(dt=0.1))
    assert error.status is Status.NON_FINITE_FIELD
    assert error.t == pytest.approx(1.0, abs=0.11)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Backsolve()])
def test_status_instead_of_an_exception(adjoint):
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    sol = solve(lambda t, y: y**2, y0, [0.0, 0.5, 2.0, 3.0], adjoint=adjoint, on_failure="status", rtol=1e-8)
    assert sol.status is Status.DIVERGED
    assert sol.failure.t == pytest.approx(1.0, abs=1e-3)
    assert torch.isnan(sol.ys[2:]).all()
    assert float(sol.ys[1].detach()) == pytest.approx(2.0, rel=1e-5)
    sol.ys[1].backward()
    assert float(y0.grad) == pytest.approx(4.0, rel=1e-4)


# --- the cost of a step, in counts ------------------------------------------------------------------------------------


class HostReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations that read a value back from the device, and all operations."""

    def __init__(self):
        super().__init__()
        self.reads = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def count(steps, **options):
    with torch.no_grad(), HostReads() as counter:
        sol = solve(decay, Y0, (0.0, 1.0), **options)
    assert sol.stats.accepted == steps
    return counter


def test_one_host_read_per_adaptive_step():
    few = count(4, method="dopri5", controller=PID(rtol=1, atol=1, dt0=0.25, dt_max=0.25))
    many = count(10, method="dopri5", controller=PID(rtol=1, atol=1, dt0=0.1, dt_max=0.1))
    assert many.reads - few.reads == 6


def test_no_host_read_per_fixed_step():
    assert (
        count(10, method="rk4", controller=Fixed(steps=10)).reads
        == count(50, method="rk4", controller=Fixed(steps=50)).reads
    )


@pytest.mark.parametrize(("method", "most"), [("dopri5", 60), ("tsit5", 60), ("bosh3", 40)])
def test_operations_per_step(method, most):
    """torchdiffeq spends 236 operations on a step of dopri5; of ours, some 6 are the field."""
    few = count(4, method=method, controller=PID(rtol=1, atol=1, dt0=0.25, dt_max=0.25))
    many = count(10, method=method, controller=PID(rtol=1, atol=1, dt0=0.1, dt_max=0.1))
    assert (many.operations - few.operations) / 6 <= most


def test_no_evaluation_is_wasted():
    """FSAL: s evaluations a step for dopri5 and tsit5 (6), 3 for bosh3, and those of a rejected step but its first."""
    for name, stages in (("dopri5", 6), ("tsit5", 6), ("bosh3", 3)):
        sol = solve(Net(), torch.ones(4, 3, dtype=torch.float64), [0.0, 3.0], method=name, rtol=1e-5)
        assert sol.stats.nfe == 2 + stages * sol.stats.steps
    for name, stages in (("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)):
        assert solve(decay, Y0, [0.0, 1.0], method=name, controller=Fixed(steps=7)).stats.nfe == 7 * stages


def test_methods_are_named_as_in_the_table():
    assert all(method.name == name for name, method in METHODS.items())


def test_every_evaluation_is_counted():
    calls = []

    def f(t, y):
        calls.append(1)
        return -y

    for y0 in (torch.ones(2, 1), torch.ones(2, 1).requires_grad_()):
        for options in ({}, {"per_sample": True}, {"controller": PID(dt0=0.1)}):
            calls.clear()
            assert solve(f, y0, [0.0, 1.0], **options).stats.nfe == len(calls)


@pytest.mark.parametrize("controller", [PID(), PID(dt0=0.1)])
def test_a_start_that_is_not_finite_is_named_at_once(controller):
    sol = solve(decay, torch.tensor([1.0, math.nan]), [0.0, 1.0], controller=controller, on_failure="status")
    assert sol.status is Status.NON_FINITE_START
    assert sol.stats.steps == 0
    sol = solve(lambda t, y: y / 0, torch.ones(2), [0.0, 1.0], controller=controller, on_failure="status")
    assert sol.status is Status.NON_FINITE_FIELD
    assert sol.stats.steps == 0
