"""Failures say what was seen."""

import math

import pytest
import torch

from odenets import METHODS, Checkpointed, Fixed, Reversible, SolveError, Status, solve

D = torch.float64
ONE = torch.ones(1)


def failure_of(*problem, **options):
    with pytest.raises(SolveError) as caught:
        solve(*problem, **options)
    return caught.value


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize(
    ("f", "end", "status"),
    [
        (lambda t, y: -torch.sqrt(y) - 0.1, 5.0, Status.NON_FINITE_FIELD),
        (lambda t, y: -1 + 0 * torch.log(y), 5.0, Status.NON_FINITE_FIELD),
        (lambda t, y: torch.where(t > 0.9, math.nan, 20.0) * y, 1.0, Status.NON_FINITE_FIELD),
        (lambda t, y: torch.where(t > 0, math.nan, 20.0) * y, 1.0, Status.NON_FINITE_FIELD),
        (lambda t, y: y * y, 2.0, Status.DIVERGED),
        (lambda t, y: torch.exp(y), 2.0, Status.DIVERGED),
        (lambda t, y: 500 * y, 10.0, Status.DIVERGED),
    ],
)
@pytest.mark.parametrize("start", [0.0, 1e6])
def test_the_reason(f, end, status, dtype, start):
    error = failure_of(
        lambda t, y: f(t - start, y), ONE.to(dtype).double() if start else ONE.to(dtype), [start, start + end]
    )
    assert error.status is status


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_blow_up_at_any_scale(scale):
    error = failure_of(lambda t, y: y * y / scale, ONE.double() * scale, [0.0, 2.0], atol=1e-9 * scale)
    assert error.status is Status.DIVERGED


ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]


def at_every_scale(method):
    """An implicit method takes seconds for each: at 1 every day."""
    slow = [pytest.mark.slow] if METHODS[method].iterates else []
    return [pytest.param(method, start, 2, {}, marks=[] if start == 1.0 else slow) for start in (1e-6, 1.0, 1e6)]


@pytest.mark.parametrize(
    ("method", "start", "power", "engine"),
    [
        *(case for method in ADAPTIVE for case in at_every_scale(method)),
        *(("heun", 1e6, power, {"per_sample": True}) for power in (2, 3)),
        *((method, 1e-6, 3, {}) for method in ("fehlberg2", "tsit5")),
    ],
)
def test_a_blow_up_in_finite_time_is_one_by_every_method(method, start, power, engine):
    """y' = y² and y³; low orders come to the end of `max_steps` before the steps shrink to nothing."""
    f = lambda t, y: y**power  # noqa: E731
    y0 = torch.tensor([[start / 4], [start]], dtype=D)
    options = {"method": method, "rtol": 1e-4, "atol": 1e-7 * start, "max_steps": 850, **engine}
    error = failure_of(f, y0, (0.0, 2 / start ** (power - 1)), **options)
    assert error.status is Status.DIVERGED
    assert error.t * start ** (power - 1) == pytest.approx(1 / (power - 1), rel=0.02)


@pytest.mark.parametrize("engine", [{}, {"per_sample": True}])
@pytest.mark.parametrize(
    ("f", "y0", "end"),
    [
        (lambda t, y: y, 1.0, 700.0),
        (lambda t, y: 10 * y * (1 - y / 1e6), 1.0, 1e4),
        (lambda t, y: 1e6 * y.flip(-1) * torch.tensor([1.0, -1.0]), 1.0, 1.0),
        (lambda t, y: -1e9 * (y - torch.cos(t)), 0.0, 1.0),
        (lambda t, y: 1e9 * torch.sin(1e9 * t) * torch.ones_like(y), 0.0, 1.0),
        (lambda t, y: y * y, 1.0, 0.999),
    ],
)
def test_too_few_steps_are_no_blow_up(f, y0, end, engine):
    error = failure_of(f, torch.full((1, 2), y0, dtype=D), (0.0, end), method="heun", max_steps=25, **engine)
    assert error.status is Status.MAX_STEPS


@pytest.mark.parametrize("engine", [{}, {"per_sample": True}])
def test_an_oscillation_from_almost_nothing_is_no_blow_up(engine):
    """1 − cos 50 t, left where it rises from 0 once more, at far more than its mean rate of growth until then."""
    f = lambda t, y: 50 * torch.sin(50 * t) * torch.ones_like(y)  # noqa: E731
    y0 = torch.full((1, 1), 1e-12, dtype=D)
    error = failure_of(f, y0, (0.0, 100.0), method="dopri5", rtol=1e-6, atol=1e-9, max_steps=300, **engine)
    assert error.status is Status.MAX_STEPS


@pytest.mark.parametrize(("y", "f"), [(10.0, lambda t, y: -100 * y**3), (1.0, lambda t, y: 1e30 * y * y)])
def test_fixed_steps_that_are_too_large(y, f):
    assert (
        failure_of(f, ONE * y, (0.0, 1.0), method="rk4", controller=Fixed(steps=10)).status is Status.NON_FINITE_STATE
    )


@pytest.mark.parametrize(
    ("f", "y0", "options"),
    [
        (lambda t, y: torch.full_like(y, 1e14), torch.zeros(1), {}),
        (lambda t, y: -y, torch.full((5000,), 3.0, dtype=torch.float16), {"rtol": 1e-2, "atol": 1e-2}),
        (lambda t, y: -y, torch.tensor([1.0, 0.0]), {"atol": 0.0}),
        (lambda t, y: -y, torch.tensor([[1.0, 0.0]]), {"atol": 0.0, "per_sample": True}),
        (lambda t, y: -y, torch.tensor([1e200], dtype=D), {}),
        (lambda t, y: torch.full_like(y, 1e14), torch.zeros(2, 1), {"per_sample": True}),
    ],
)
def test_a_norm_that_overflows_is_no_failure(f, y0, options):
    assert solve(f, y0, [0.0, 1.0], **options).status is Status.SUCCESS


@pytest.mark.parametrize("rate", [20.0, 50.0])
@pytest.mark.parametrize("options", [{"rtol": 1e-3}, {"rtol": 1e-6}, {"method": "rk4", "controller": Fixed(steps=40)}])
def test_a_reversible_pair_that_drifts_apart_fails(rate, options):
    def f(t, y):
        return -rate * (y - torch.cos(t))

    assert failure_of(f, ONE.double(), (0.0, 1.0), adjoint=Reversible(), **options).status is Status.UNSTABLE_PAIR
    assert solve(f, ONE.double(), (0.0, 1.0), adjoint=Checkpointed(), **options).status is Status.SUCCESS


def test_tolerances_below_rounding_with_a_step_size_for_each_sample():
    with pytest.raises(ValueError, match="times the accuracy"):
        solve(lambda t, y: -y, torch.ones(2, 2, dtype=torch.bfloat16), (0.0, 1.0), rtol=1e-5, per_sample=True)


def test_the_reason_in_a_fixed_step_of_a_reversible_pair():
    def f(t, y):
        return torch.where(t > 0.5, math.nan, -1.0) * y

    error = failure_of(f, ONE, [0.0, 1.0], method="rk4", controller=Fixed(steps=4), adjoint=Reversible())
    assert error.status is Status.NON_FINITE_FIELD


@pytest.mark.parametrize("f", [lambda t, y: y / 0, lambda t, y: y * 1e300], ids=["not finite", "too large"])
def test_the_reason_under_vmap(f):
    with pytest.raises(SolveError, match=r"f\(t0, y0\)"):
        torch.vmap(lambda y: solve(f, y, [0.0, 1.0], rtol=0.0).ys)(torch.ones(3, 2))
