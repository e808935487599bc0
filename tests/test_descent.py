"""The descent experiment: its functions against closed forms and SciPy, its bounds on cases worked out by hand."""

import math

import pytest
import torch
from scipy import optimize

from odenets.experiments import convex, descent
from odenets.experiments.descent import Config, run

D = torch.float64


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("descent")
    return folder, run(Config(**descent.SMALL), folder, progress=False)


def test_the_statements_that_hold_and_those_that_do_not(small):
    _, result = small
    table = {(row["reading"], row["bound"]): row for row in result.summary["table"]}
    mended = table["∇f is L-Lipschitz", "‖x₀ − x*‖²/(2ηk)"]
    assert mended["broken"] == 0
    assert mended["ratio"] <= 0.5 + 1e-9  # Drori and Teboulle (2014): half the bound is attained, and no more
    assert "example" in mended
    assert mended["example"] is None
    assert all(row["broken"] > 0 for row in table.values() if row is not mended)
    assert "“∇f is L-Lipschitz: f(x_k) − f(x*) ≤ ‖x₀ − x*‖²/(2ηk)”" in result.lead


def test_an_example_is_what_it_says(small):
    e = small[1].summary["table"][1]["example"]
    assert e["function"] == "Huber's function"  # slope 1 far out: x_1 = x₀ − η
    assert e["k"] == 1
    assert e["gap"] == pytest.approx(e["x0"] - e["eta"] - 0.5)
    assert e["bound"] == pytest.approx(e["x0"] / (2 * e["eta"]))
    assert e["gap"] > e["bound"]


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    monkeypatch.setattr(convex, "descend", None)  # nothing is computed again
    again = run(Config(**descent.SMALL), folder, resume=True, progress=False)
    assert str(again.summary) == str(first.summary)
    assert again.lead == first.lead


def test_descent_on_a_quadratic_is_its_closed_form():
    gaps = convex.descend(lambda x: x, lambda x: x**2 / 2, torch.tensor(3.0, dtype=D), 0.25, 20)
    assert torch.allclose(gaps, 4.5 * 0.75 ** (2 * torch.arange(21, dtype=D)))
    assert convex.rises(gaps, 4.5) == 0
    assert convex.rises(gaps.flip(0), 4.5) == 20


def test_a_diverging_descent_grows_by_the_square_of_its_factor():
    row = convex.descent_row("diabetes, least squares", 2.05, 300)
    assert row["growth"] == pytest.approx(1.05**2, rel=1e-3)
    assert row["last_gap"] > 1e6 * row["start_gap"]
    assert row["steps"] < 300


def test_the_largest_step_of_a_quadratic_is_two_over_its_curvature():
    row = convex.edge_row("diabetes, least squares", 1500)
    assert row["edge"] == pytest.approx(2, rel=2e-3)
    assert row["local"] == pytest.approx(2)


@pytest.mark.parametrize("name", convex.PROBLEMS)
def test_problems_have_the_gradient_minimum_and_constant_that_they_say(name):
    p = convex.problem(name)
    x = (p.best + torch.linspace(-1, 1, len(p.best), dtype=D)).requires_grad_()
    (by_autograd,) = torch.autograd.grad(p.gap(x), x)
    assert torch.allclose(by_autograd, p.gradient(x.detach()), rtol=1e-8, atol=1e-10)
    assert p.gradient(p.best).norm() < 1e-12 * max(1.0, float(p.best.norm()))
    assert p.gap(x.detach()) > 0
    hessian = torch.autograd.functional.jacobian(p.gradient, x.detach())
    assert torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1] <= p.constant * (1 + 1e-10)


def test_all_columns_separate_the_classes_and_ten_do_not():
    a, y = convex.table_of("breast_cancer")
    rows = (a * (2 * y - 1)[:, None]).numpy()
    for columns, separable in ((slice(None), True), ([*range(10), 30], False)):
        found = optimize.linprog(
            [0.0] * rows[:, columns].shape[1], -rows[:, columns], [-1.0] * len(rows), bounds=(None, None)
        )
        assert (found.status == 0) == separable


@pytest.mark.parametrize("name", convex.SCALARS)
def test_scalar_functions_have_their_slopes_and_constants(name):
    f = convex.SCALARS[name]
    x = torch.linspace(-5, 5, 2001, dtype=D).requires_grad_()
    (slope,) = torch.autograd.grad(f.value(x).sum(), x)
    assert torch.allclose(slope, f.slope(x), atol=1e-9)
    assert f.value(torch.zeros((), dtype=D)) == 0
    curvature = ((f.slope(x)[1:] - f.slope(x)[:-1]) / (x[1:] - x[:-1])).max()
    assert 0.7 * f.of_gradient <= curvature <= f.of_gradient * (1 + 1e-9)
    assert f.slope(x).abs().max() <= f.of_function
    assert f.of_function == math.inf or f.slope(x).abs().max() > 0.99 * f.of_function


def test_valleys_lie_where_the_gradient_is_zero():
    row = convex.valleys(0.02, 5)
    assert row["left"] + row["right"] == pytest.approx(1)
    assert row["up"] == 0
    x = torch.tensor([[-1.0, 0.5]], dtype=D).requires_grad_()
    (slope,) = torch.autograd.grad(convex.hills(x).sum(), x)
    assert torch.allclose(slope, convex.hills_slope(x))
    lower, other = (
        optimize.minimize(lambda z: convex.hills(torch.tensor(z)).item(), at).fun for at in ([-1, -1], [1, 1])
    )
    assert row["low_left"] == pytest.approx(lower, abs=1e-5)
    assert row["low_right"] == pytest.approx(other, abs=1e-5)
    assert lower < other


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": 9}, "`steps` must be at least 10, got 9"), ({"grid": 1}, "`grid`")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
