"""Step size policy, in plain numbers."""

import copy
import functools
import itertools
import math
import pickle

import pytest
import torch

from odenets import PID, Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible, SolveError, Status, solve
from odenets.controller import Start

D = torch.float64
ADJOINTS = [Checkpointed(), Direct(), Interpolated(), Backsolve(), Reversible()]


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
        ({"dt_min": -1.0}, "`dt_min` must be a number ≥ 0, no larger than `dt_max` and `dt0`, got -1.0"),
        ({"dt_min": 0.2, "dt_max": 0.1}, "`dt_min`"),
        ({"dt_min": 0.2, "dt0": 0.1}, "`dt_min`"),
        ({"dt_min": math.inf}, "`dt_min`"),
        ({"atol": torch.tensor([1e-6, -1.0])}, "`atol` must be finite numbers ≥ 0, got .*, the least of which is -1"),
        ({"rtol": {"a": torch.tensor([1.0, math.nan])}}, "`rtol` must be finite numbers ≥ 0"),
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


# --- the shortest step ------------------------------------------------------------------------------------------------


def kink(t, y):
    return torch.where(t < 0.5, 1.0, -1e3) * torch.ones_like(y)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("per_sample", [False, True])
def test_an_error_that_asks_for_a_shorter_step_than_dt_min_ends_the_solve(per_sample, sign):
    f = lambda t, y: kink(sign * t, y)  # noqa: E731
    y0, t = torch.zeros(2, 1, dtype=D), (0.0, sign * 1.0)
    with pytest.raises(SolveError, match=r"DT_MIN at t = .*lower `dt_min`, or loosen `rtol`/`atol`") as caught:
        solve(f, y0, t, controller=PID(dt_min=1e-3), per_sample=per_sample)
    assert caught.value.status is Status.DT_MIN
    assert abs(caught.value.t - sign * 0.5) < 1e-3
    assert caught.value.dt == (0.0 if per_sample else pytest.approx(sign * 1e-3))
    there = solve(f, y0, t, controller=PID(dt_min=1e-13), per_sample=per_sample)
    assert torch.allclose(there.ys[-1], torch.tensor(sign * (0.5 - 500.0), dtype=D), rtol=1e-3)


def test_dt_min_lifts_the_first_step_and_a_cut_step_is_shorter():
    y0 = torch.ones(1, dtype=D)
    start = Start(lambda t, y: -y, y0, -y0, 0.0, 1.0, 5)
    free, bound = (PID(1e-9, 1e-9, dt_min=dt_min).first_step(start).dt for dt_min in (0.0, 0.04))
    assert free < bound == 0.04
    sol = solve(lambda t, y: -y, y0, (0.0, 0.05), controller=PID(1e-9, 1e-9, dt_min=0.04))
    assert sol.stats.accepted == 2  # 0.04, and what is left of it
    assert PID(dt_min=0.1).decide(ratio=1e9, dt=1.0, memory=(), order=5).dt == 0.2
    assert PID(dt_min=0.1).decide(ratio=1e9, dt=0.2, memory=(), order=5).dt == 0.1


@pytest.mark.parametrize(
    ("f", "status"),
    [
        (lambda t, y: torch.where(t > 0.5, math.nan, -1.0) * y, Status.NON_FINITE_FIELD),
        (lambda t, y: -y.sign() * 1e4, Status.DT_MIN),
        (lambda t, y: y**2, Status.DT_MIN),
    ],
)
def test_the_reason_beside_dt_min(f, status):
    with pytest.raises(SolveError) as caught:
        solve(f, torch.ones(1, dtype=D), (0.0, 2.0), controller=PID(dt_min=1e-3))
    assert caught.value.status is status


# --- a tolerance for each component -----------------------------------------------------------------------------------

UNITS = torch.tensor([1.0, 1e9, 1e-9], dtype=D)
AT_START = torch.tensor([[1.0], [0.5]], dtype=D)


def pendulums(t, y, rate):
    """Three of the same pendulum, each in its own unit."""
    angle, speed = (y / UNITS).unbind(-2)
    return torch.stack([speed, -rate * torch.sin(angle)], -2) * UNITS


def in_units(atol, adjoint):
    y0 = (AT_START * UNITS).requires_grad_()
    rate = torch.tensor(1.5, dtype=D, requires_grad=True)
    sol = solve(pendulums, y0, (0.0, 1.0, 2.0), (rate,), rtol=0.0, atol=atol, adjoint=adjoint)
    (sol.ys / UNITS).sum().backward()
    return sol, y0.grad * UNITS, rate.grad


@functools.cache
def exactly():
    return in_units(1e-9 * UNITS, Checkpointed())


# The derivative by a component has the unit 1 / its own.
FOR_UNITS = [*ADJOINTS[:2], Interpolated(controller=PID(0.0, 1e-6 / UNITS)), Backsolve(controller=PID(1e-7, 1e-16))]


@pytest.mark.parametrize("adjoint", [*FOR_UNITS, Reversible()], ids=lambda a: type(a).__name__)
def test_a_tolerance_for_each_component(adjoint):
    """In tolerances a component does not know its unit: the steps are those of three pendulums in the first unit."""
    sol, y0_bar, rate_bar = in_units(1e-6 * UNITS, adjoint)
    ys = sol.ys / UNITS
    assert torch.allclose(ys, ys[..., :1].expand_as(ys), rtol=0, atol=1e-12)
    y0 = AT_START.expand(2, 3)
    same = solve(lambda t, y: pendulums(t, y * UNITS, 1.5) / UNITS, y0, (0.0, 1.0, 2.0), rtol=0.0, adjoint=adjoint)
    assert torch.allclose(ys, same.ys, rtol=0, atol=1e-12)
    assert sol.stats.accepted == same.stats.accepted
    _, y0_exact, rate_exact = exactly()
    assert torch.allclose(y0_bar, y0_exact, rtol=1e-4)
    assert torch.allclose(rate_bar, rate_exact, rtol=1e-4)


def test_of_a_nest_and_with_a_step_size_for_each_sample():
    y0 = torch.tensor([[[1.0], [0.5]], [[2.0], [0.0]]], dtype=D) * UNITS  # (2, 2, 3)
    whole = solve(pendulums, y0, (0.0, 2.0), (1.5,), rtol=1e-5, atol=1e-6 * UNITS, per_sample=True)
    alone = solve(pendulums, y0[1], (0.0, 2.0), (1.5,), rtol=1e-5, atol=1e-6 * UNITS)
    assert torch.allclose(whole.ys[:, 1] / UNITS, alone.ys / UNITS, rtol=0, atol=1e-12)

    def nest(y):
        return {"a": y[..., :1], "b": [y[..., 1:2], y[..., 2:]]}

    def nested(t, y):
        return nest(pendulums(t, torch.cat([y["a"], *y["b"]], -1), 1.5))

    atol = {"b": (1e3, torch.tensor([[[1e-15]], [[1e-15]]], dtype=D)), "a": 1e-6}
    found = solve(nested, nest(y0), (0.0, 2.0), rtol=1e-5, atol=atol, per_sample=True)
    assert torch.allclose(found.ys["a"], whole.ys[..., :1], rtol=0, atol=1e-12)
    assert torch.equal(found.stats.steps, whole.stats.steps)
    controller = PID({"a": 1e-5, "b": 1e-5}, {"a": [1e-6], "b": [1e3, 1e-15]})
    assert solve(nested, nest(y0[1]), (0.0, 2.0), controller=controller).stats.steps == alone.stats.steps


@pytest.mark.parametrize(
    ("y0", "tolerances", "message"),
    [
        (torch.ones(3), {"atol": torch.ones(2)}, r"`atol` must be a number, or a tensor that .* `y0` of shape \(3,\)"),
        (torch.ones(1), {"atol": torch.ones(2)}, r"`atol` must be .*got Tensor of shape \(2,\)"),
        ({"a": torch.ones(2)}, {"rtol": {"b": 1.0}}, r"`rtol` must be .* as `y0` a dict of 1 with the keys 'a', got"),
        ({"a": torch.ones(2)}, {"rtol": {"a": torch.ones(3)}}, r"`rtol`\['a'\] must .*`y0`\['a'\] of shape \(2,\)"),
        ((torch.ones(2), torch.ones(3)), {"rtol": (1.0,)}, r"`rtol` must be a number, or as `y0` a tuple of 2, got"),
        ((torch.ones(2), torch.ones(3)), {"rtol": torch.ones(2)}, r"`rtol` must be .* as `y0` a tuple of 2, got"),
        (torch.ones(2), {"rtol": 0.0, "atol": [1.0, 0.0]}, "`rtol` must be above 0 wherever `atol` is 0"),
    ],
)
def test_tolerances_that_are_not_like_the_state(y0, tolerances, message):
    for options in (tolerances, {"adjoint": Backsolve(controller=PID(**tolerances))}):  # said before the forward solve
        with pytest.raises(ValueError, match=message):
            solve(lambda t, y: y, y0, (0.0, 1.0), **options)


def test_controllers_with_tensors_are_compared_copied_and_pickled():
    tensor = torch.tensor([1e-6, 1e-3])
    one, same, other = PID(atol=tensor), PID(atol=tensor.clone()), PID(atol=2 * tensor)
    tensor.zero_()  # the controller has its own
    assert one == same == copy.deepcopy(one) == pickle.loads(pickle.dumps(one))
    assert one != other
    assert one != PID()
    assert len({one, same, other, PID()}) == 3
    assert PID({"a": tensor, "b": 1.0}) == PID({"a": tensor, "b": 1.0}) != PID({"a": tensor, "b": 2.0})


# --- a norm of one's own ----------------------------------------------------------------------------------------------


def largest(error):
    return error.abs().max()


def test_by_the_largest_component_each_keeps_its_tolerance():
    """One component among 10,000 that are at rest: the mean does not see it, the largest does."""
    y0 = torch.zeros(10_000, dtype=D)
    y0[7] = 1.0

    def f(t, y):
        return 20 * torch.cos(20 * t) * y0

    loose, good = (solve(f, y0, (0.0, 1.0), controller=PID(1e-6, 1e-6, norm=norm)) for norm in (None, largest))
    exact = 1 + math.sin(20.0)
    assert abs(loose.ys[-1, 7] - exact) > 5e-6 > abs(good.ys[-1, 7] - exact)
    alone = solve(lambda t, y: f(t, y)[7:8], y0[7:8], (0.0, 1.0), rtol=1e-6, atol=1e-6)
    assert good.stats.steps == alone.stats.steps


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
def test_a_norm_of_a_nest_with_every_adjoint(adjoint):
    """By a norm that looks at one part alone, the steps are those of this part."""

    def f(t, y):
        return {"seen": -y["seen"], "unseen": [50 * torch.cos(50 * t) + y["seen"][0]]}

    seen = torch.ones(2, dtype=D, requires_grad=True)
    y0 = {"seen": seen, "unseen": [torch.zeros((), dtype=D)]}
    controller = PID(1e-7, 1e-7, norm=lambda e: float(e["seen"].abs().max()))
    sol = solve(f, y0, (0.0, 1.0), controller=controller, adjoint=adjoint)
    alone = solve(lambda t, y: -y, torch.ones(1, dtype=D), (0.0, 1.0), rtol=1e-7, atol=1e-7, adjoint=adjoint)
    assert sol.stats.steps == alone.stats.steps
    (bar,) = torch.autograd.grad(sol.ys["seen"][-1].sum(), seen)
    assert torch.allclose(bar, torch.full((2,), math.exp(-1.0), dtype=D), rtol=1e-5)


def test_a_norm_with_a_step_size_for_each_sample_gets_one_sample():
    y0 = torch.tensor([[1.0, 0.0], [0.0, 30.0], [2.0, 1.0]], dtype=D)
    rates = torch.tensor([1.0, 9.0], dtype=D)
    controller = PID(1e-6, 1e-6, norm=largest)
    sol = solve(lambda t, y: -rates * y**2, y0, (0.0, 1.0), controller=controller, per_sample=True)
    for i in range(3):
        alone = solve(lambda t, y: -rates * y**2, y0[i], (0.0, 1.0), controller=controller)
        assert int(sol.stats.steps[i]) == alone.stats.steps
        assert torch.allclose(sol.ys[-1, i], y0[i] / (1 + rates * y0[i]), rtol=1e-4)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        (
            lambda e: e.abs(),
            ValueError,
            r"`norm` must return one real number, the size of the state, returned Tensor of",
        ),
        ("max", TypeError, "`norm` must be None or a function of a state, got 'max'"),
    ],
)
def test_a_norm_that_is_none(norm, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), controller=PID(norm=norm))


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (
            PID(atol=[1e-6, 1e-6]),
            "`compile=True` does not go with `rtol` or `atol` for each component: pass numbers, or",
        ),
        (PID(norm=largest), "`compile=True` does not go with `norm=<function largest .*: leave one out"),
    ],
)
def test_what_compiles_no_such_controller(controller, message):
    with pytest.raises(TypeError, match=message):
        solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), controller=controller, compile=True)
