"""Implicit Runge–Kutta methods: tableaus, order, stiff problems, gradients, and what they say when they fail."""

import math

import pytest
import torch

from odenets import (
    METHODS,
    Backsolve,
    Checkpointed,
    Direct,
    Fixed,
    ImplicitRungeKutta,
    Interpolated,
    Reversible,
    SolveError,
    Status,
    solve,
)
from odenets.methods.newton import NotConverged, gmres, newton, solve_linear
from odenets.nn import ODEBlock
from problems import FORCED, Net, assert_nothing_is_left
from test_adjoint import gradients

IMPLICIT = [m for m in METHODS.values() if isinstance(m, ImplicitRungeKutta)]
ALL = pytest.mark.parametrize("method", IMPLICIT, ids=lambda m: m.name)
# An explicit first stage, a triangle, all stages together; stiffly accurate or not.
KINDS = pytest.mark.parametrize("method", ["trapezoid", "trbdf2", "radauIIA5", "gl4"])
L_STABLE = ("implicit_euler", "sdirk2", "trbdf2", "radauIIA3", "radauIIA5")


@ALL
def test_simplifying_assumptions(method):
    """B(p): Σ b c^(k−1) = 1/k up to the order; Hairer and Wanner, IV.5."""
    c = torch.tensor(method.c, dtype=torch.float64)
    b = torch.tensor(method.b, dtype=torch.float64)
    for k in range(1, method.order + 1):
        assert float(b @ c ** (k - 1)) == pytest.approx(1 / k, abs=1e-13)
    a = torch.tensor(method.a, dtype=torch.float64)
    if method.name.startswith(("gl", "radau")):  # C(s): collocation
        for k in range(1, len(b) + 1):
            torch.testing.assert_close(a @ c ** (k - 1), c**k / k, rtol=0, atol=1e-13)


@ALL
def test_measured_order(method):
    errors = []
    for n in (6, 12, 24):
        sol = solve(FORCED.f, FORCED.y0, [0.0, 1.0], method=method, controller=Fixed(steps=n))
        errors.append(float((sol.ys[-1] - FORCED.exact(torch.tensor([1.0], dtype=torch.float64))[-1]).abs().max()))
    slope = math.log2(errors[0] / errors[-1]) / 2
    assert slope == pytest.approx(method.order, abs=0.3)


@ALL
def test_states_between_the_steps(method):
    """The extension meets both ends; inside, its error falls with dt^(least of order and number of nodes + 1)."""
    s = len(method.b)
    assert method.dense_weights(0.0) == [0.0] * (s + 1)
    assert method.dense_weights(1.0) == pytest.approx([*method.b, 0.0], abs=1e-12)
    t = torch.linspace(0, FORCED.t1, 8, dtype=torch.float64)
    errors = []
    for n in (20, 40, 80):
        sol = solve(FORCED.f, FORCED.y0, t, method=method, controller=Fixed(steps=n))
        errors.append(float((sol.ys - FORCED.exact(t)).abs().max()))
    expected = min(method.order, {"trbdf2": 3}.get(method.name, len(set(method.nodes)) + 1))
    assert math.log2(errors[0] / errors[-1]) / 2 > expected - 0.4


@pytest.mark.parametrize("name", [m.name for m in IMPLICIT])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_stiff_component_is_damped_or_bounded(name, dtype):
    """y' = −10⁴ (y − cos t): ten steps, of which an explicit method would need thousands."""
    y0 = torch.tensor([2.0], dtype=dtype)
    sol = solve(lambda t, y: -1e4 * (y - torch.cos(t)), y0, [0.0, 1.0], method=name, controller=Fixed(steps=10))
    error = abs(float(sol.ys[-1, 0]) - math.cos(1.0))
    assert error < (1e-3 if name in L_STABLE else 1.1)
    assert sol.stats.nfe < 1000


def test_stiff_van_der_pol_against_scipy():
    integrate = pytest.importorskip("scipy.integrate")

    def f(t, y):
        x, v = y.unbind(-1)
        return torch.stack([v, 1000 * (1 - x**2) * v - x], -1)

    reference = integrate.solve_ivp(
        lambda t, y: [y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]],
        (0.0, 500.0),
        [2.0, 0.0],
        method="Radau",
        rtol=1e-10,
        atol=1e-12,
    ).y[:, -1]
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    sol = solve(f, y0, [0.0, 500.0], method="radauIIA5", controller=Fixed(steps=50))
    assert sol.ys[-1].tolist() == pytest.approx(reference.tolist(), abs=1e-9)
    with pytest.raises(SolveError):  # ten times the steps, explicit
        solve(f, y0, [0.0, 500.0], method="rk4", controller=Fixed(steps=500))


def test_many_unknowns_are_solved_without_a_matrix():
    """The heat equation on 200 points: the stiffness is that of the grid, and the answer is known."""
    n = 200
    x = torch.linspace(0, math.pi, n + 2, dtype=torch.float64)[1:-1]
    width = math.pi / (n + 1)

    def f(t, y):
        padded = torch.nn.functional.pad(y, (1, 1))
        return (padded[..., 2:] - 2 * y + padded[..., :-2]) / width**2

    sol = solve(f, torch.sin(x), [0.0, 1.0], method="trbdf2", controller=Fixed(steps=20))
    rate = 4 / width**2 * math.sin(width / 2) ** 2
    torch.testing.assert_close(sol.ys[-1], torch.sin(x) * math.exp(-rate), rtol=2e-4, atol=0)


def test_a_complex_state_that_is_not_analytic():
    y0 = torch.tensor([1.0 + 0.5j, -0.3j], dtype=torch.complex128)
    f = lambda t, y: 1j * y - 0.3 * y.conj() * y.abs()  # noqa: E731
    sol = solve(f, y0, [0.0, 1.0], method="gl6", controller=Fixed(steps=8))
    reference = solve(f, y0, [0.0, 1.0], method="dopri8", rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(sol.ys[-1], reference.ys[-1], rtol=0, atol=1e-8)


# --- gradients -------------------------------------------------------------------------------------------------------

TIMES = [0.0, 0.3, 0.55, 1.2]


@ALL
@pytest.mark.parametrize("times", [[0.0, 1.2], TIMES, [1.2, 0.55, 0.0]], ids=str)
def test_checkpointed_equals_direct_to_rounding(method, times):
    options = {"method": method, "controller": Fixed(steps=5)}
    direct, sol_direct = gradients(Direct(), times, **options)
    for adjoint in (Checkpointed(), Checkpointed(memory=3)):
        checkpointed, sol = gradients(adjoint, times, **options)
        torch.testing.assert_close(sol.ys, sol_direct.ys, rtol=1e-12, atol=1e-13)
        for name in direct:
            torch.testing.assert_close(checkpointed[name], direct[name], rtol=1e-9, atol=1e-11, msg=name)


@ALL
@pytest.mark.parametrize("adjoint", [Backsolve(), Interpolated()], ids=repr)
def test_continuous_adjoints_agree_to_the_accuracy_of_the_steps(method, adjoint):
    options = {"method": method, "controller": Fixed(steps=20)}
    direct, _ = gradients(Direct(), **options)
    continuous, _ = gradients(adjoint, **options)
    for name in direct:
        error = float((continuous[name] - direct[name]).abs().max() / direct[name].abs().max())
        assert error < {1: 0.2, 2: 5e-3, 3: 5e-4}.get(method.order, 1e-4), name


@KINDS
def test_reversible_and_direct_against_finite_differences(method):
    net = Net()
    weights = dict(net.named_parameters())
    torch.manual_seed(1)
    y0 = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64, requires_grad=True)
    for adjoint in (Direct(), Reversible(0.9)):

        def states(y0, t, *parameters, adjoint=adjoint):
            f = lambda t, y: torch.func.functional_call(net, dict(zip(weights, parameters)), (t, y))  # noqa: E731
            return solve(f, y0, t, adjoint=adjoint, method=method, controller=Fixed(dt=0.13)).ys

        torch.autograd.gradcheck(states, (y0, t, *weights.values()), eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=True)


@KINDS
def test_gradients_of_a_stiff_problem(method):
    """y' = −k (y − cos t): forward over in one step, and so is what of y0 is left in the gradient."""
    rate = torch.tensor(1e4, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    found = []
    for adjoint in (Direct(), Checkpointed()):
        sol = solve(
            lambda t, y: -rate * (y - torch.cos(t)),
            y0,
            [0.0, 1.0],
            adjoint=adjoint,
            method=method,
            controller=Fixed(steps=7),
        )
        found.append(torch.autograd.grad(sol.ys[-1].sum(), [y0, rate]))
    for direct, checkpointed in zip(*found):
        torch.testing.assert_close(checkpointed, direct, rtol=1e-6, atol=1e-12)
    if method in L_STABLE:
        assert abs(float(found[0][0])) < 1e-6


def test_nothing_is_made_to_require_grad():
    sol = solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], method="gl4", controller=Fixed(steps=2), adjoint=Direct())
    assert not sol.ys.requires_grad


@KINDS
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Backsolve()], ids=repr)
def test_a_thousand_solves_leave_nothing_behind(method, adjoint):
    net = Net()
    y0 = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)

    def train():
        sol = solve(net, y0, [0.0, 0.1], adjoint=adjoint, method=method, controller=Fixed(steps=1))
        torch.autograd.grad(sol.ys.sum(), [y0, *net.parameters()])

    assert_nothing_is_left(train, times=40)


# --- limits and failures ---------------------------------------------------------------------------------------------


def test_equations_without_a_solution_fail_with_the_reason():
    """Implicit Euler for y' = y²: y1 = y + dt y1² has no real root for dt y > 1/4."""
    with pytest.raises(SolveError, match=r"NOT_CONVERGED at t = 0 .*take smaller steps.*has not converged in 50") as e:
        solve(lambda t, y: y**2, torch.ones(1), [0.0, 0.5], method="implicit_euler", controller=Fixed(steps=1))
    assert e.value.status is Status.NOT_CONVERGED


def test_a_partial_solution_is_returned():
    sol = solve(
        lambda t, y: y**2,
        torch.ones(1),
        torch.linspace(0, 2, 9),
        method="implicit_euler",
        controller=Fixed(steps=40),
        on_failure="status",
    )
    assert sol.status is Status.NOT_CONVERGED
    assert bool(torch.isfinite(sol.ys[:3]).all())
    assert bool(torch.isnan(sol.ys[-1]).all())


@pytest.mark.parametrize(
    ("y0", "f", "status"),
    [
        (math.nan, lambda t, y: -y, Status.NON_FINITE_START),
        (1.0, lambda t, y: y / 0, Status.NON_FINITE_FIELD),
    ],
)
def test_numbers_that_are_not_finite(y0, f, status):
    with pytest.raises(SolveError) as error:
        solve(f, torch.tensor([y0]), [0.0, 1.0], method="sdirk2", controller=Fixed(steps=3))
    assert error.value.status is status


def test_the_error_of_too_many_steps_names_them():
    with pytest.raises(SolveError, match=r"is stiff for an explicit method: take an implicit one.*radauIIA5.*Fixed"):
        solve(lambda t, y: -1e5 * y, torch.ones(1), [0.0, 1.0], max_steps=50)


def test_what_does_not_go_with_them_is_refused():
    y0, f = torch.ones(2), lambda t, y: -y
    with pytest.raises(TypeError, match="has no error estimate"):
        solve(f, y0, [0.0, 1.0], method="gl4")
    with pytest.raises(TypeError, match="`compile=True` goes with explicit methods, got 'gl4'"):
        solve(f, y0, [0.0, 1.0], method="gl4", controller=Fixed(steps=2), compile=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": ((0.5,), (0.5, 0.5))}, "row 0 of `a` must have 2 entries"),
        ({"b_error": (0.5, -0.5, 0.0)}, "takes fixed steps: leave `b_error` out"),
        ({"max_iterations": 0}, "`max_iterations` must be ≥ 1"),
        ({"b": (0.9, 0.1)}, "no continuous extension"),
    ],
)
def test_a_mistyped_tableau_is_refused(changes, message):
    good = {"name": "typo", "order": 2, "a": ((0.5, -0.5), (0.5, 0.5)), "b": (0.5, 0.5), "c": (0.0, 1.0)}
    with pytest.raises(ValueError, match=message):
        ImplicitRungeKutta(**{**good, **changes})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_layer_solves_between_two_graphs_of_a_compiled_model():
    block = ODEBlock(Net(), method="trbdf2", controller=Fixed(steps=2))
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, dtype=torch.float64), block)
    x, grads = torch.randn(4, 3, dtype=torch.float64), []
    for network in (model, torch.compile(model, backend="eager")):
        model.zero_grad()
        network(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for eager, compiled in zip(*grads):
        torch.testing.assert_close(compiled, eager)
    with pytest.raises(TypeError, match="'trbdf2' is implicit and iterates, which no graph can hold"):
        torch.export.export(model, (x,))


# --- the equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gmres_solves_and_starts_anew(dtype):
    torch.manual_seed(0)
    n = 150  # more than the directions that are kept
    matrix = torch.eye(n, dtype=dtype) + 0.5 * torch.randn(n, n, dtype=dtype) / n**0.5
    rhs = torch.randn(n, dtype=dtype)
    x, left = gmres(lambda v: matrix @ v, rhs, 1e-12)
    assert left <= 1e-12
    torch.testing.assert_close(matrix @ x, rhs, rtol=0, atol=1e-10)
    assert bool((gmres(lambda v: matrix @ v, torch.zeros(n, dtype=dtype), 1e-12)[0] == 0).all())


def test_linear_equations_that_cannot_be_solved_say_so():
    with pytest.raises(NotConverged, match=r"gradient of an implicit step could not be solved: 0\.7"):
        solve_linear(lambda v: v * torch.tensor([1.0, 0.0]), torch.ones(2))


def test_newton_converges_to_rounding():
    x = newton(torch.cos, torch.zeros(3, dtype=torch.float64), 1.0, 20)
    torch.testing.assert_close(x, torch.full_like(x, 0.7390851332151607), rtol=0, atol=1e-15)
