"""Tableaus by their order conditions, steps by the points they visit, methods by the order they show."""

import functools
import math

import pytest
import torch

from odenets import METHODS, ExplicitRungeKutta, Fixed, solve
from odenets.methods import combine
from problems import FORCED, KNOWN

EXPLICIT = [m for m in METHODS.values() if isinstance(m, ExplicitRungeKutta)]
ADAPTIVE = pytest.mark.parametrize("method", [m for m in EXPLICIT if m.adaptive], ids=lambda m: m.name)
ALL = pytest.mark.parametrize("method", EXPLICIT, ids=lambda m: m.name)


@functools.cache
def trees(order):
    """All rooted trees of that order, each the sorted tuple of the trees that hang on its root."""
    found = set()

    def extend(left, branches):
        if left == 0:
            found.add(tuple(sorted(branches)))
        for size in range(1, left + 1):
            for branch in trees(size):
                extend(left - size, (*branches, branch))

    extend(order - 1, ())
    return sorted(found)


def size(tree):
    return 1 + sum(size(branch) for branch in tree)


def density(tree):
    return size(tree) * math.prod(density(branch) for branch in tree)


def elementary_weights(method, most):
    """All rooted trees τ of order ≤ most as (order, γ(τ), Φ(τ)), Φ a vector over the stages and f1."""
    s = len(method.b) + 1
    a = torch.zeros(s, s, dtype=torch.float64)
    for i, row in enumerate((*method.a, method.b)):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)

    @functools.cache
    def phi(tree):
        weights = torch.ones(s, dtype=torch.float64)
        for branch in tree:
            weights = weights * (a @ phi(branch))
        return weights

    return [(order, density(tree), phi(tree)) for order in range(1, most + 1) for tree in trees(order)]


def test_there_are_as_many_trees_as_in_the_literature():
    """Hairer, Nørsett and Wanner, table II.2.1."""
    assert [len(trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@ALL
def test_solution_weights_satisfy_the_order_conditions(method):
    b = torch.tensor((*method.b, 0.0), dtype=torch.float64)
    for _, gamma, phi in elementary_weights(method, method.order):
        assert float(b @ phi) == pytest.approx(1 / gamma, abs=1e-13)


@ALL
def test_order_is_not_higher_than_claimed(method):
    b = torch.tensor((*method.b, 0.0), dtype=torch.float64)
    conditions = elementary_weights(method, method.order + 1)
    beyond = [abs(float(b @ phi) - 1 / gamma) for order, gamma, phi in conditions if order == method.order + 1]
    assert max(beyond) > 1e-6


@ADAPTIVE
def test_embedded_weights_have_the_order_below(method):
    b_hat = torch.tensor((*method.b, 0.0), dtype=torch.float64) - torch.tensor(method.b_error, dtype=torch.float64)
    trees_up_to_p = elementary_weights(method, method.order)
    conditions = [(order, float(b_hat @ phi) - 1 / gamma) for order, gamma, phi in trees_up_to_p]
    assert all(abs(defect) < 1e-13 for order, defect in conditions if order <= method.order - 1)
    assert max(abs(defect) for order, defect in conditions if order == method.order) > 1e-4


@ALL
@pytest.mark.parametrize("theta", [0.2, 0.5, 0.83])
def test_continuous_extension_satisfies_the_order_conditions_inside_the_step(method, theta):
    weights = torch.tensor(method.dense_weights(theta), dtype=torch.float64)
    # Hermite interpolation of a method of order p satisfies the conditions up to min(p, 3), the corrections those of 4
    # and of 5.
    most = 3 + sum(x is not None for x in (method.dense_correction, method.dense_correction_slope))
    for order, gamma, phi in elementary_weights(method, min(method.order, most)):
        assert float(weights @ phi) == pytest.approx(theta**order / gamma, abs=2e-12 if order < 4 else 1e-11)


@ALL
def test_continuous_extension_meets_the_step_at_both_ends(method):
    assert method.dense_weights(0.0) == [0.0] * (len(method.b) + 1)
    assert method.dense_weights(1.0) == pytest.approx([*method.b, 0.0], abs=1e-12)


@ALL
@pytest.mark.parametrize("outputs", [2, 8], ids=["at steps", "between steps"])
def test_measured_order(method, outputs):
    """The slope of the error against the step size; where outputs lie between the steps at most 5, or 6."""
    t = torch.linspace(0, 1.0 if outputs == 2 else FORCED.t1, outputs, dtype=torch.float64)
    counts = [20, 40, 80] if method.order > 2 else [80, 160, 320]
    if method.order > 5 and outputs == 2:
        counts = [2, 4, 8]  # with more steps it is at rounding
    errors = []
    for n in counts:
        sol = solve(FORCED.f, FORCED.y0, t, method=method, controller=Fixed(steps=n))
        errors.append(float((sol.ys - FORCED.exact(t)).abs().max()))
    slope = (
        math.log2(errors[0] / errors[-1]) / 2
    )  # two halvings: where outputs fall inside the steps changes between them
    assert slope == pytest.approx(
        method.order if outputs == 2 else min(method.order, 6 if method.dense_correction_slope else 5), abs=0.5
    )


@ADAPTIVE
@pytest.mark.parametrize("problem", KNOWN, ids=repr)
def test_adaptive_error_in_tolerance_units(method, problem):
    t = torch.linspace(0, problem.t1, 5, dtype=torch.float64)
    sol = solve(problem.f, problem.y0, t, method=method, rtol=1e-5, atol=1e-7)
    exact = problem.exact(t)
    units = ((sol.ys - exact).abs() / (1e-7 + 1e-5 * exact.abs().clamp(min=0.1))).amax(-1)
    if method.order > 5:  # its steps are longer than its extension, of order 6, is accurate for
        assert float(units.max()) < 100
        units = units[-1]
    assert float(units.max()) < 60
    assert sol.stats.nfe < (5000 if method.order == 2 else 700)


@ALL
def test_step_visits_the_points_of_the_textbook_formula(method):
    visited = []

    def f(t, y):
        visited.append((float(t), y.clone()))
        return t + 0 * y

    y = torch.tensor([2.0], dtype=torch.float64)
    method.step(f, 1.0, y, 0.5, None)
    assert [t for t, _ in visited] == pytest.approx([1 + 0.5 * c for c in method.c])
    for (_, y_i), row in zip(visited, method.a):
        expected = 2 + 0.5 * sum(a_ij * visited[j][0] for j, a_ij in enumerate(row))
        assert float(y_i) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": (0.5, 0.4)}, "`b` must sum to 1"),
        ({"a": ((), (0.9,))}, "row 1 of `a` sums to 0.9"),
        ({"a": ((0.1,), (1.0,))}, "row 0 of `a` must have 0 entries"),
        ({"b_error": (0.5, 0.5, 0.1)}, "`b_error` must sum to 0"),
        ({"b_error": (0.5, -0.5)}, "`b_error` must have 3 entries"),
        ({"c": (0.0,)}, "one entry a stage"),
        ({"dense_correction": (1.0, 0.0, 0.0)}, "`dense_correction` must sum to 0"),
    ],
)
def test_a_mistyped_tableau_is_refused(changes, message):
    good = {"name": "typo", "order": 2, "a": ((), (1.0,)), "b": (0.5, 0.5), "c": (0.0, 1.0)}
    with pytest.raises(ValueError, match=message):
        ExplicitRungeKutta(**{**good, **changes})


def test_nothing_combined_is_zero():
    for dt in (0.1, torch.tensor(0.1)):
        assert combine(None, dt, (0.0,), [torch.ones(1)]).tolist() == [0.0]
        assert combine(torch.ones(1), dt, (0.0,), [torch.ones(1)]).tolist() == [1.0]


@ADAPTIVE
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_a_decay_chain_is_followed_within_its_tolerance(method, tolerance):
    """DETEST C2, nine times as fast as what it ends in: no estimate may let the steps grow unstable."""
    rates = torch.arange(1.0, 10.0, dtype=torch.float64)
    chain = torch.diag(rates, -1) - torch.diag(torch.cat([rates, rates.new_zeros(1)]))
    y0 = torch.eye(10, dtype=torch.float64)[0]
    sol = solve(lambda t, y: chain @ y, y0, [0.0, 20.0], method=method, rtol=tolerance, atol=tolerance)
    error = (sol.ys[-1] - torch.linalg.matrix_exp(20 * chain) @ y0).abs().max()
    assert float(error) < 20 * tolerance
