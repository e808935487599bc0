"""The order experiment: fitted slopes on cases that are known, costs, counts of evaluations, and a whole small run."""

import math
from typing import Any

import pytest
import torch

from odenets.experiments import convergence, order
from odenets.experiments.convergence import D, cost_of, errors_over_steps, fitted_order, swings, taylor_row
from odenets.experiments.digits import digits, solver_of
from odenets.experiments.order import Config, run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    return folder, run(Config(**order.SMALL), folder, progress=False)


def test_the_small_form_runs_and_says_what_it_found(small):
    _, result = small
    measured = {row["method"]: row["measured"] for row in result.summary["table"]}
    assert set(measured) == set(convergence.NOMINAL)
    assert all(abs(measured[m] - convergence.NOMINAL[m]) < 0.3 for m in ("euler", "heun", "bosh3", "rk4", "gl4"))
    assert f"{measured['dopri8']:.2f} for 8" in result.lead
    assert {picture.name for picture in result.pictures()} >= {"order-low", "order-implicit-2", "taylor", "moved"}


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    for name in ("order_row", "net_row"):
        monkeypatch.setattr(order, name, lambda *_: pytest.fail("made again"))
    again = run(Config(**order.SMALL), folder, resume=True, progress=False)
    assert str(again.summary) == str(first.summary)


def test_the_slope_is_that_of_a_power_and_leaves_rounding_out():
    steps = [8, 16, 32, 64, 128, 256]
    errors = [max(n**-4.0, 1e-7) for n in steps]  # rounding from 64 on
    fit = fitted_order(steps, errors, floor=1e-7)
    assert fit.order == pytest.approx(4)
    assert (fit.low, fit.high) == (8, 32)
    assert math.isnan(fitted_order([4, 8], [1e-14, 1e-15]).order)


def test_the_problem_has_the_solution_that_it_says():
    p = swings(1.5)
    t = torch.tensor(0.4, dtype=D)
    phases = 2 * math.pi * torch.arange(12, dtype=D) / 12
    u, v = (2 + torch.sin(t + phases)).sqrt(), (3 + torch.cos(2 * t + phases)).sqrt()
    slopes = torch.stack([torch.cos(t + phases) / (2 * u), -torch.sin(2 * t + phases) / v], -1)
    assert torch.allclose(p.f(t, torch.stack([u, v], -1)), slopes)


@pytest.mark.parametrize(("method", "nominal"), [("explicit_adams", 4), ("implicit_adams", 5)])
def test_adams_methods_have_their_order(method, nominal):
    row = convergence.order_row(method, 128)
    assert row["measured"] == pytest.approx(nominal, abs=0.25)


def test_errors_end_at_rounding():
    steps, errors, nfes = errors_over_steps(swings(), "dopri8", 512)
    assert steps[-1] < 64
    assert nfes == [13 * n for n in steps]
    assert errors[-1] < 1e-13


@pytest.mark.parametrize("formula", [1, 2, 3])
def test_the_remainder_of_taylors_formula_is_of_one_order_more(formula):
    assert taylor_row(formula)["measured"] == pytest.approx(formula + 1, abs=0.02)


def test_a_cost_lies_between_those_of_two_tolerances():
    row = {"errors": [1e-2, 1e-4], "nfes": [10, 1000]}
    assert cost_of(row, 1e-3) == pytest.approx(100)
    assert cost_of(row, 1e-5) is None
    assert cost_of(row, 0.1) is None


@pytest.mark.parametrize("method", order.TRAINED)
@pytest.mark.parametrize("budget", order.BUDGETS)
def test_each_method_takes_the_same_evaluations(method, budget):
    solver: Any
    solver, _ = solver_of(method, budget, 2.0)
    f = convergence.Counted(lambda t, z: -z)
    assert torch.allclose(solver(f, torch.ones(3)), torch.full((3,), math.exp(-2)), atol=0.05)
    assert f.nfe == budget


def test_digits_are_divided_without_overlap():
    task = digits(3)
    assert len(task.x) == 1297
    assert len(task.test_x) == 500
    assert task.x.min() == -1
    assert task.x.max() == 1
    assert not torch.equal(digits(4).test_y, task.test_y)


@pytest.mark.parametrize(
    ("options", "message"), [({"seeds": 0}, "`seeds` must be at least 1"), ({"end": -1.0}, "`end` must be a positive")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
