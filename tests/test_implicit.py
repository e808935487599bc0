"""Implicit Runge–Kutta methods: tableaus, order, stiff problems, gradients, and what they say when they fail."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from test_adjoint import TIMES, every_method_at, gradients

IMPLICIT = [m for m in METHODS.values() if isinstance(m, ImplicitRungeKutta)]
ALL = pytest.mark.parametrize("method", IMPLICIT, ids=lambda m: m.name)
# An explicit first stage, a triangle, all stages together; stiffly accurate or not.
KINDS = ("trapezoid", "trbdf2", "radauIIA5", "gl4")
KIND = pytest.mark.parametrize("method", KINDS)
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


@every_method_at(TIMES, [0.0, 1.2], [1.2, 0.55, 0.0], methods=IMPLICIT, kinds=("trbdf2", "gl4"))
def test_checkpointed_equals_direct_to_rounding(method, times):
    options = {"method": method, "controller": Fixed(steps=5)}
    direct, sol_direct = gradients(Direct(), times, **options)
    for adjoint in (Checkpointed(), Checkpointed(memory=3)):
        checkpointed, sol = gradients(adjoint, times, **options)
        torch.testing.assert_close(sol.ys, sol_direct.ys, rtol=1e-12, atol=1e-13)
        for name in direct:
            torch.testing.assert_close(checkpointed[name], direct[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("method", [METHODS[name] for name in ("implicit_euler", *KINDS)], ids=lambda m: m.name)
@pytest.mark.parametrize("adjoint", [Backsolve(), Interpolated()], ids=repr)
def test_continuous_adjoints_agree_to_the_accuracy_of_the_steps(method, adjoint):
    times, options = [0.0, 0.25, 0.4], {"method": method, "controller": Fixed(steps=7)}
    direct, _ = gradients(Direct(), times, **options)
    continuous, _ = gradients(adjoint, times, **options)
    for name in direct:
        error = float((continuous[name] - direct[name]).abs().max() / direct[name].abs().max())
        assert error < {1: 0.2, 2: 5e-3, 3: 5e-4}.get(method.order, 1e-4), name


@KIND
def test_reversible_and_direct_against_finite_differences(method):
    net = Net()
    weights = dict(net.named_parameters())
    torch.manual_seed(1)
    y0 = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.2, 0.25], dtype=torch.float64, requires_grad=True)
    for adjoint in (Direct(), Reversible(0.9)):

        def states(y0, t, *parameters, adjoint=adjoint):
            f = lambda t, y: torch.func.functional_call(net, dict(zip(weights, parameters)), (t, y))  # noqa: E731
            return solve(f, y0, t, adjoint=adjoint, method=method, controller=Fixed(dt=0.13)).ys

        torch.autograd.gradcheck(states, (y0, t, *weights.values()), eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=True)


@KIND
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


@pytest.mark.parametrize("method", ["trbdf2", "gl4"])
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Backsolve()], ids=repr)
def test_many_solves_leave_nothing_behind(method, adjoint):
    net = Net()
    y0 = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)

    def train():
        sol = solve(net, y0, [0.0, 0.1], adjoint=adjoint, method=method, controller=Fixed(steps=1))
        torch.autograd.grad(sol.ys.sum(), [y0, *net.parameters()])

    assert_nothing_is_left(train, times=10)


# --- limits and failures ---------------------------------------------------------------------------------------------


def test_equations_without_a_solution_fail_with_the_reason():
    """Implicit Euler for y' = y²: y1 = y + dt y1² has no real root for dt y > 1/4."""
    with pytest.raises(SolveError, match=r"NOT_CONVERGED at t = 0.*take smaller steps.*has not converged in 50") as e:
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
    with pytest.raises(SolveError, match=r"is stiff for an explicit method: take an implicit one, `method='trbdf2'"):
        solve(lambda t, y: -1e5 * y, torch.ones(1), [0.0, 1.0], max_steps=50)


def test_what_does_not_go_with_them_is_refused():
    y0, f = torch.ones(2), lambda t, y: -y
    with pytest.raises(TypeError, match="has no error estimate"):
        solve(f, y0, [0.0, 1.0], method="gl4")
    with pytest.raises(TypeError, match="`compile=True` does not go with `method` 'gl4', which is implicit"):
        solve(f, y0, [0.0, 1.0], method="gl4", controller=Fixed(steps=2), compile=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": ((0.5,), (0.5, 0.5))}, "row 0 of `a` must have 2 entries"),
        ({"b_error": (0.5, 0.5, 0.0)}, "`b_error` must sum to 0"),
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
    with pytest.raises(TypeError, match="'trbdf2', which is implicit and iterates, does not go with the graph"):
        torch.export.export(model, (x,))


# --- the equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 150])  # a matrix; GMRES with more than the directions that it keeps
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
def test_linear_equations_are_solved_in_every_component(n, dtype):
    """Of rows and columns of 24 orders of magnitude, up to what their condition allows."""
    torch.manual_seed(0)
    size = 10 ** torch.linspace(-12, 12, n, dtype=torch.float64)
    matrix = torch.eye(n, dtype=dtype) + 0.5 * torch.randn(n, n, dtype=dtype) / n**0.5
    scaled = size.to(dtype)[:, None] * matrix / size.to(dtype)
    x = torch.randn(n, dtype=dtype)
    rhs = size.to(dtype) * (matrix @ x)
    found = solve_linear(lambda v: scaled @ v, rhs)
    torch.testing.assert_close(found / size, x.to(found.dtype) + 0 * size, rtol=0, atol=1e3 * torch.finfo(dtype).eps)
    assert bool((solve_linear(lambda v: scaled @ v, torch.zeros(n, dtype=dtype)) == 0).all())
    assert bool(solve_linear(lambda v: scaled @ v, rhs * math.nan).isnan().all())


def test_gmres_starts_anew():
    torch.manual_seed(0)
    n = 150  # more than the directions that are kept
    matrix = torch.eye(n, dtype=torch.float64) + 0.5 * torch.randn(n, n, dtype=torch.float64) / n**0.5
    rhs = torch.randn(n, dtype=torch.float64)
    x, left = gmres(lambda v: matrix @ v, rhs, 1e-12, float(rhs.norm()))
    assert left <= 1e-12
    torch.testing.assert_close(matrix @ x, rhs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [2, 50])
def test_linear_equations_that_cannot_be_solved_say_so(n):
    singular = torch.ones(n)
    singular[1] = 0
    with pytest.raises(NotConverged, match=r"gradient of an implicit step could not be solved.*Fixed\(steps"):
        solve_linear(lambda v: v * singular, torch.ones(n))


def test_newton_converges_to_rounding():
    start = torch.zeros(3, dtype=torch.float64)
    x, _ = newton(lambda x: (torch.cos(x), torch.diag(-torch.sin(x))), start, torch.ones_like(start), 20, 2e-16)
    torch.testing.assert_close(x, torch.full_like(x, 0.7390851332151607), rtol=0, atol=1e-15)


def lower(net, dtype, y):
    return torch.nn.functional.linear(y.to(dtype), net.weight.to(dtype)).tanh().to(y.dtype) - 5 * y


def autocast_inside(net, dtype, y):
    with torch.autocast("cpu", dtype=dtype):
        return net(y).tanh().to(y.dtype) - 5 * y


@pytest.mark.parametrize("method", ["implicit_euler", "trbdf2", "radauIIA5"])
@pytest.mark.parametrize("samples", [2, 20])
@pytest.mark.parametrize(
    ("inside", "coarse", "dtype"),
    [
        (lower, torch.bfloat16, torch.float32),
        (autocast_inside, torch.bfloat16, torch.float32),
        (lower, torch.float32, torch.float64),
    ],
)
def test_a_field_that_computes_in_a_coarser_dtype_is_solved_to_its_rounding(inside, coarse, dtype, samples, method):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 3, bias=False).to(dtype)
    start = torch.randn(samples, 3, dtype=dtype)

    def solved(f, adjoint):
        y0 = start.clone().requires_grad_()
        end = solve(f, y0, [0.0, 1.0], method=method, controller=Fixed(steps=3), adjoint=adjoint).ys[-1]
        return end.detach(), *torch.autograd.grad(end.sum(), [y0, net.weight])

    expected = solved(lambda t, y: net(y).tanh() - 5 * y, Direct())
    for adjoint in (Checkpointed(), Direct()):
        for found, wanted in zip(solved(lambda t, y: inside(net, coarse, y), adjoint), expected, strict=True):
            assert float((found - wanted).abs().max()) < 2 * torch.finfo(coarse).eps * float(wanted.abs().max())


def test_newton_that_fails_says_in_which_dtype_f_computes():
    f = lambda t, y: -100 * torch.sign(y) - (10 * y.bfloat16()).float()  # noqa: E731
    with pytest.raises(SolveError, match=r"f computes in torch.bfloat16, and y is torch.float32"):
        solve(f, torch.tensor([0.1]), [0.0, 1.0], method="implicit_euler", controller=Fixed(steps=2))


@pytest.mark.parametrize("cast", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bend", [0.0, 0.1])
def test_a_coarser_dtype_without_a_part_in_the_value_is_none(cast, bend):
    """Else what is left where Newton's method makes slow progress, here without F', would pass for rounding."""

    def linearize(x):
        x.to(cast).sum()
        return 1 - 0.8 * x + bend * torch.sin(x), torch.zeros(len(x), len(x), dtype=x.dtype)

    start = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    with pytest.raises(NotConverged, match=r"terms\.$"):
        newton(linearize, start, torch.ones_like(start), 40, 2e-16)
    found, rounding = newton(linearize, start, torch.ones_like(start), 200, 2e-16)
    assert rounding == 2e-16
    torch.testing.assert_close(1 - 0.8 * found + bend * torch.sin(found), found, rtol=1e-13, atol=0)


@pytest.mark.parametrize("steps", [1, 10])
def test_a_coarser_dtype_with_a_small_part_in_the_value_is_seen(steps):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4).double().requires_grad_(False)
    f = lambda t, y: -20 * y + lower(net, torch.float32, y)  # noqa: E731
    exact = lambda t, y: -25 * y + (y @ net.weight.T).tanh()  # noqa: E731
    y0 = torch.randn(2, 4, dtype=torch.float64)
    ends = [solve(g, y0, [0.0, 1.0], method="implicit_euler", controller=Fixed(steps=steps)).ys[-1] for g in (f, exact)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-7)


# --- components of every size ----------------------------------------------------------------------------------------


def positive_root(a, b, c):
    """Of a x² + b x = c."""
    return 2 * c / (b + math.sqrt(b * b + 4 * a * c))


# One step for y2' = 0.04 y1 − rate y2² from y2 = 0, in closed form: the stages one after the other are quadratics.
CLOSED = {
    "implicit_euler": lambda rate: positive_root(rate, 1, 0.04),
    "implicit_midpoint": lambda rate: 2 * positive_root(rate / 2, 1, 0.02),
    "trapezoid": lambda rate: positive_root(rate / 2, 1, 0.04),
}


@pytest.mark.parametrize("root", [1e-3, 3.65e-5, 1e-8, 1e-10])
@ALL
def test_a_component_far_below_the_largest(method, root):
    """To SciPy's Radau, or the closed form of the step: y1 = 1, and y2 goes to the root of its equation.

    In float32 y2 is found to the rounding of what it is the sum of: y2 + dt b k, where dt b k is up to 0.02.
    """
    rate = 0.04 / root**2
    for dtype in (torch.float64, torch.float32):
        f = lambda t, y: torch.stack([0 * y[0], 0.04 * y[0] - rate * y[1] ** 2])  # noqa: E731
        y0 = torch.tensor([1.0, 0.0], dtype=dtype)
        sol = solve(f, y0, [0.0, 1.0], method=method, controller=Fixed(steps=1))
        found = float(sol.ys[-1, 1])
        rounding = torch.finfo(dtype).eps
        if method.name in CLOSED:
            expected = CLOSED[method.name](rate)
            assert found == pytest.approx(expected, rel=10 * rounding, abs=0.1 * rounding), (dtype, found)
        elif method.name in L_STABLE:  # at the root, which is where SciPy's Radau is, but for what is left of the start
            assert found == pytest.approx(root, rel=0.1 if root == 1e-3 else 5e-3), (dtype, found)
        assert found >= 0
        assert sol.stats.nfe < 110 * len(method.b)


SCALES = st.lists(st.floats(-12, 12), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(SCALES, st.sampled_from(IMPLICIT), st.integers(0, 2**20), st.sampled_from(["float32", "float64", "complex128"]))
def test_components_of_every_size_in_one_state(exponents, method, seed, dtype):
    """A step is the same in other units of each component: y = S x, with f(y) = S g(x)."""
    dtype = getattr(torch, dtype)
    torch.manual_seed(seed)
    n = len(exponents)
    units = (10 ** torch.tensor(exponents, dtype=torch.float64)).to(dtype)
    matrix = -torch.diag(10 ** (3 * torch.rand(n, dtype=torch.float64))) + torch.randn(n, n, dtype=torch.float64)
    matrix = matrix.to(dtype)
    x0 = (torch.rand(n, dtype=torch.float64) + 0.5).to(dtype)
    g = lambda t, x: matrix @ x - 0.1 * x**3  # noqa: E731
    f = lambda t, y: units * g(t, y / units)  # noqa: E731
    options = {"method": method, "controller": Fixed(steps=2)}
    expected = solve(g, x0, [0.0, 0.5], **options).ys[-1]
    for copies in (1, 9):  # so many samples are too many for a matrix
        y0 = (units * x0).expand(copies, n) if copies > 1 else units * x0
        field = f if copies == 1 else (lambda t, y: units * ((y / units) @ matrix.T - 0.1 * (y / units) ** 3))
        found = solve(field, y0.contiguous(), [0.0, 0.5], **options).ys[-1] / units
        error = ((found - expected).abs() / x0.abs()).max()
        assert float(error) < 3e3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@ALL
def test_every_precision_rounds_once_a_step(method, dtype):
    f = lambda t, y: torch.stack([y[..., 1], -y[..., 0]], -1)  # noqa: E731
    options = {"method": method, "controller": Fixed(steps=10)}
    reference = solve(f, torch.tensor([1.0, 0.0], dtype=torch.float64), [0.0, 2.0], **options).ys[-1]
    found = solve(f, torch.tensor([1.0, 0.0], dtype=dtype), [0.0, 2.0], **options).ys[-1]
    assert found.dtype == dtype
    assert float((found.double() - reference).abs().max()) < 2 * torch.finfo(dtype).eps


@KIND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [2, 40])
def test_gradients_in_half_precision(method, dtype, size):
    found = []
    for kind in (dtype, torch.float64):
        for adjoint in (Direct(), Checkpointed()):
            y0 = torch.linspace(0.5, 1.0, size, dtype=kind, requires_grad=True)
            rate = torch.tensor(2.0, dtype=kind, requires_grad=True)
            sol = solve(
                lambda t, y, rate=rate: -rate * y * y.flip(-1) - 20 * (y - 0.25),
                y0,
                [0.0, 0.5],
                method=method,
                controller=Fixed(steps=4),
                adjoint=adjoint,
            )
            found.append(torch.cat([g.flatten().double() for g in torch.autograd.grad(sol.ys[-1].sum(), [y0, rate])]))
    for half in found[:2]:
        assert float((half - found[3]).norm() / found[3].norm()) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 1, 3), (1, 2, 1, 2), (2, 1, 2, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@KIND
def test_states_of_every_shape(shape, dtype, method):
    """With dense output, and the gradient."""
    y0 = torch.ones(shape, dtype=dtype, requires_grad=True)
    sol = solve(lambda t, y: -3 * y, y0, [0.0, 1.0], method=method, controller=Fixed(steps=3), dense=True)
    assert sol.ys.shape == (2, *shape)
    torch.testing.assert_close(sol(1.0), sol.ys[-1], rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(sol.ys[-1].real.sum(), y0)
    torch.testing.assert_close(grad, sol.ys[-1].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unknown", ["detached", "numpy", "once differentiable"])
@KIND
@pytest.mark.parametrize("size", [2, 40])
def test_a_field_that_autograd_does_not_know(method, unknown, size):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return -50 * y

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return -50 * g

    fields = {
        "detached": lambda t, y: -50 * y.detach(),
        "numpy": lambda t, y: torch.from_numpy(-50 * y.detach().numpy()),
        "once differentiable": lambda t, y: Once.apply(y),
    }
    y0 = torch.linspace(1e-9, 1, size, dtype=torch.float64)
    options = {"method": method, "controller": Fixed(steps=5)}
    found = solve(fields[unknown], y0, [0.0, 1.0], **options)
    expected = solve(lambda t, y: -50 * y, y0, [0.0, 1.0], **options)
    torch.testing.assert_close(found.ys, expected.ys, rtol=1e-7, atol=1e-15)


def test_robertson_in_float32_is_that_in_float64():
    def f(t, y):
        a, b, c = y.unbind(-1)
        slow, back, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
        return torch.stack([back - slow, slow - back - fast, fast], -1)

    for method, most in (("implicit_euler", 200), ("trbdf2", 360), ("radauIIA5", 600)):
        found = {}
        for dtype in (torch.float32, torch.float64):
            y0 = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
            sol = solve(f, y0, [0.0, 40.0], method=method, controller=Fixed(steps=40))
            found[dtype] = sol.ys[-1].double()
            assert sol.stats.nfe < most
        torch.testing.assert_close(found[torch.float32], found[torch.float64], rtol=1e-5, atol=0)
    y = torch.tensor([0.71582706, 9.1855346e-06, 0.28416375], dtype=torch.float64)  # SciPy's Radau at 1e-12
    torch.testing.assert_close(found[torch.float64], y, rtol=1e-4, atol=0)
