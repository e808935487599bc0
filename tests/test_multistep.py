"""Adams methods: their weights, their orders on any grid, what they take beside other codes, and their gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import ode, solve_ivp

from odenets import (
    METHODS,
    PID,
    Backsolve,
    Checkpointed,
    Direct,
    Fixed,
    Interpolated,
    Reversible,
    SolveError,
    Status,
    solve,
)
from odenets.engine.engines import Keep, _by_loops
from odenets.engine.tensors.by_python import ByPython
from odenets.methods import Adams, Past
from odenets.methods.divided import Polynomial
from odenets.pullback.function import prepare
from problems import OSCILLATOR, Net

D = torch.float64
BASHFORTH, MOULTON = ([f"{kind}{order}" for order in range(1, 6)] for kind in ("ab", "abm"))
ONE_ORDER = pytest.mark.parametrize("name", [*BASHFORTH, *MOULTON])
CORRECTION = {1: (1,), 2: (1 / 2, 1 / 2), 3: (5 / 12, 8 / 12, -1 / 12), 4: (9 / 24, 19 / 24, -5 / 24, 1 / 24)}


def swing(t, y):
    return torch.stack([y[1], -y[0]]) * (1 + 0.3 * torch.sin(t))


def swings(t):
    angle = t + 0.3 * (1 - math.cos(t))
    return torch.tensor([math.cos(angle), -math.sin(angle)], dtype=D)


ONE = torch.tensor([1.0, 0.0], dtype=D)


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "numerators", "divisor"),
    [
        ((0,), [1], 1),
        ((0, -1), [3, -1], 2),
        ((0, -1, -2, -3), [55, -59, 37, -9], 24),
        ((1, 0), [1, 1], 2),
        ((1, 0, -1, -2), [9, 19, -5, 1], 24),
    ],
)
def test_weights_on_an_even_grid_are_those_of_the_literature(nodes, numerators, divisor):
    """Hairer, Nørsett and Wanner, (III.1.5') and (III.1.9')."""
    found = Polynomial.through(list(map(float, nodes))).weights(len(nodes))
    assert found == pytest.approx([n / divisor for n in numerators], rel=1e-15)


def test_weights_on_an_uneven_grid_integrate_polynomials():
    polynomial = Polynomial.through([1.0, 0.0, -0.3, -1.7, -2.0])
    for power in range(5):
        integral = sum(w * x**power for w, x in zip(polynomial.weights(5), polynomial.nodes))
        assert integral == pytest.approx(1 / (power + 1), abs=1e-13)


# --- one order ---------------------------------------------------------------------------------------------------


@ONE_ORDER
@pytest.mark.parametrize("stops", [[], [0.333, 2.717]], ids=["even", "uneven"])
def test_the_order_is_that_of_the_name_at_the_end_and_inside_of_steps(name, stops):
    found = []
    for steps in (60, 120):
        times = [0.0, 2 / steps, 1.03, 4.0]  # the second is the middle of the first step
        ys = solve(swing, ONE, times, method=name, controller=Fixed(steps=steps), stops=stops).ys
        found.append([(y - swings(t)).norm().item() for y, t in zip(ys[1:], times[1:])])
    assert min(math.log2(a / b) for a, b in zip(*found)) > METHODS[name].order - 0.35


@ONE_ORDER
def test_an_evaluation_a_step_and_two_where_it_is_corrected(name):
    method = METHODS[name]
    sol = solve(lambda t, y: -y, ONE, (0.0, 1.0), method=name, controller=Fixed(steps=20))
    start = (4 if method.order <= 4 else 6) * (method.order - 1)
    assert sol.stats.nfe == start + (2 if name in MOULTON else 1) * (20 - method.order + 1)


@pytest.mark.parametrize("order", CORRECTION)
def test_a_step_is_the_formula_of_the_literature(order):
    """Hairer, Nørsett and Wanner, (III.1.5') and (III.1.9'): predicted, evaluated, corrected."""
    weights = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
    f = lambda t, y: torch.sin(y) + t  # noqa: E731
    y, slopes = torch.tensor([0.3], dtype=D), tuple(torch.tensor([x], dtype=D) for x in (0.7, -0.2, 0.4)[: order - 1])
    carry = Past(None, slopes, (0.1,) * (order - 1))
    f0 = f(torch.tensor(1.0, dtype=D), y)
    predicted = y + 0.1 * sum(w * k for w, k in zip(weights[order], (f0, *slopes)))
    f1 = f(torch.tensor(1.1, dtype=D), predicted)
    corrected = y + 0.1 * sum(w * k for w, k in zip(CORRECTION[order], (f1, f0, *slopes)))
    for name, expected in ((f"ab{order}", predicted), (f"abm{order}", corrected)):
        torch.testing.assert_close(METHODS[name].step(f, 1.0, y, 0.1, carry).y, expected, rtol=1e-13, atol=0)


def test_an_order_that_there_is_not():
    with pytest.raises(ValueError, match="`order` of an Adams method must be 1 to 5, got 6"):
        Adams("ab6", 6)


def test_on_an_uneven_grid_polynomials_are_integrated_exactly():
    nodes = (0.0, -0.3, -1.7, -2.0, -2.4)
    polynomial = Polynomial.through(nodes)
    for power in range(5):
        values = [x**power for x in nodes]
        inside = [sum(w * v for w, v in zip(row, values)) for row in polynomial.coefficients(5)]
        assert sum(w * v for w, v in zip(polynomial.weights(5), values)) == pytest.approx(1 / (power + 1), abs=1e-10)
        for theta in (0.3, 1.0):
            value = sum(c * theta ** (n + 1) for n, c in enumerate(inside))
            assert value == pytest.approx(theta ** (power + 1) / (power + 1), abs=1e-10)


# --- variable order ----------------------------------------------------------------------------------------------


def predators(t, u, stack):
    return stack([1.5 * u[0] - u[0] * u[1], -3 * u[1] + u[0] * u[1]])


def kepler(t, u, stack):
    x, y, vx, vy = u
    cubed = (x * x + y * y) ** 1.5
    return stack([vx, vy, -x / cubed, -y / cubed])


def decays(t, u, stack):
    return stack([-u[0], -0.5 * u[1]])


PROBLEMS = {
    "predators": (predators, [10.0, 5.0], 4.0),
    "kepler": (kepler, [0.4, 0.0, 0.0, 2.0], 6.0),
    "decays": (decays, [1.0, 1.0], 10.0),
}


def vode(f, y0, end, tolerance):
    calls = []
    solver = ode(lambda t, y: calls.append(1) or f(t, y, np.array))
    solver.set_integrator("vode", method="adams", rtol=tolerance, atol=tolerance, nsteps=100_000)
    solver.set_initial_value(y0, 0.0)
    return solver.integrate(end), len(calls)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tolerance", [1e-8, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e-4, 1e-12))])
def test_beside_vode_and_lsoda(problem, tolerance):
    """For no more evaluations than a tenth above the larger number of theirs, to the tolerance or about their error."""
    f, y0, end = PROBLEMS[problem]
    exact = solve_ivp(f, (0, end), y0, "DOP853", rtol=3e-14, atol=1e-15, args=(np.array,)).y[:, -1]
    lsoda = solve_ivp(f, (0, end), y0, "LSODA", rtol=tolerance, atol=tolerance, args=(np.array,))
    found, evaluations = vode(f, y0, end, tolerance)
    start = torch.tensor(y0, dtype=D)
    ours = solve(f, start, (0.0, end), args=(torch.stack,), method="adams", rtol=tolerance, atol=tolerance)

    def error(y):
        return math.sqrt(np.mean(np.square((y - exact) / (tolerance + tolerance * abs(exact)))))

    assert ours.stats.nfe <= 1.1 * max(evaluations, lsoda.nfev)
    assert error(ours.ys[-1].numpy()) <= max(1, 4 * max(error(found), error(lsoda.y[:, -1])))


@pytest.mark.parametrize(
    ("tolerance", "part"),
    [(1e-8, 0.4), *(pytest.param(*x, marks=pytest.mark.slow) for x in ((1e-10, 0.25), (1e-12, 0.15)))],
)
def test_tight_tolerances_take_far_fewer_evaluations_than_dopri5(tolerance, part):
    times = [0.0, 2.3, 10.0]
    options = {"rtol": tolerance, "atol": tolerance}
    ours, theirs = (solve(swing, ONE, times, method=name, **options) for name in ("adams", "dopri5"))
    assert ours.stats.nfe < part * theirs.stats.nfe
    for y, t in zip(ours.ys, times):
        assert (y - swings(t)).norm() < 20 * tolerance
    assert ours.stats.nfe == 2 * ours.stats.accepted + ours.stats.rejected + 1  # the first step is chosen by one


def test_stops_cost_few_evaluations_and_the_order_comes_back_behind_them():
    """Steps as short as a stop leaves them, and tries that were rejected three times, once held it at order 1."""
    f = lambda t, y: torch.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]])  # noqa: E731
    start, how = torch.tensor([2.0, 0.0], dtype=D), {"method": "adams", "rtol": 1e-7, "atol": 1e-7}
    freely = solve(f, start, (0.0, 6.0), **how)
    stopped = solve(f, start, (0.0, 6.0), stops=[1.3, 1.31, 3.0, 3.2001], **how)
    kinked = solve(lambda t, y: torch.sin(3 * t) * torch.where(t < 1.234, 1, -1) - y, start, (0.0, 6.0), **how)
    assert stopped.stats.nfe < freely.stats.nfe + 4 * 30
    assert (stopped.ys[-1] - freely.ys[-1]).abs().max() < 1e-5
    assert kinked.stats.nfe < 500


def test_a_smooth_problem_rejects_nothing_and_dense_output_costs_nothing():
    how = {"method": "adams", "rtol": 1e-9, "atol": 1e-9}
    sparse, dense = (solve(swing, ONE, (0.0, 8.0), **how, dense=dense) for dense in (False, True))
    assert sparse.stats == dense.stats
    assert sparse.stats.rejected == 0
    times = torch.linspace(0, 8, 57, dtype=D)
    off = dense(times) - torch.stack([swings(float(t)) for t in times])
    assert off.abs().max() < 2e-8


@pytest.mark.parametrize("name", ["adams", "ab4", "abm5"])
class TestEverySetting:
    def solved(self, name, f, y0, t, tolerance=1e-8, atol=None, steps=60, **rest):
        if name == "adams":
            how = {"rtol": tolerance, "atol": tolerance if atol is None else atol}
        else:
            how = {"controller": Fixed(steps=steps)}
        return solve(f, y0, t, method=name, **how, **rest)

    @pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (2, 3, 1)], ids=str)
    def test_shapes(self, name, shape):
        sol = self.solved(name, lambda t, y: -y, torch.ones(shape, dtype=D), [0.0, 0.3, 1.0], dense=True)
        assert sol(torch.tensor([0.2, 0.7])).shape == (2, *shape)
        torch.testing.assert_close(sol.ys[-1], torch.full(shape, math.exp(-1), dtype=D), rtol=1e-7, atol=0)

    @pytest.mark.parametrize("start", [0.0, 1e6, -1e9])
    def test_both_directions_and_times_far_from_zero(self, name, start):
        there = self.solved(name, lambda t, y: -y * torch.cos(t - start), ONE[:1], [start, start + 0.5, start + 1])
        assert there.ys[-1].item() == pytest.approx(math.exp(-math.sin(1)), rel=3e-7)
        back = self.solved(name, lambda t, y: -y * torch.cos(t - start), there.ys[-1], [start + 1, start])
        assert back.ys[-1].item() == pytest.approx(1, rel=3e-7)

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_scales(self, name, scale):
        large = self.solved(name, lambda t, y: -y, ONE[:1] * scale, (0.0, 1.0), atol=1e-8 * scale)
        long = self.solved(name, lambda t, y: -y / scale, ONE[:1], (0.0, scale))
        for found in (large.ys[-1] / scale, long.ys[-1]):
            assert found.item() == pytest.approx(math.exp(-1), rel=1e-7)
        assert large.stats.nfe == long.stats.nfe

    def test_dtypes(self, name):
        single = self.solved(name, lambda t, y: -y, torch.ones(1), (0.0, 1.0), tolerance=1e-6)
        half = self.solved(name, lambda t, y: -y, torch.ones(1, dtype=torch.float16), (0.0, 1.0), tolerance=1e-2)
        turned = self.solved(name, lambda t, y: 1j * y, torch.ones(1, dtype=torch.complex128), (0.0, 1.0))
        assert single.ys[-1].item() == pytest.approx(math.exp(-1), rel=1e-5)
        assert half.ys[-1].item() == pytest.approx(math.exp(-1), rel=5e-3)
        assert abs(turned.ys[-1].item() - complex(math.cos(1), math.sin(1))) < 1e-7
        assert (single.ys.dtype, half.ys.dtype) == (torch.float32, torch.float16)

    def test_it_begins_afresh_behind_a_jump(self, name):
        f = lambda t, y: torch.where(t < 0.5, -y, 3 - y)  # noqa: E731
        sol = self.solved(name, f, ONE[:1], [0.0, 0.7, 1.0], jumps=[0.5])
        for t, y in zip((0.7, 1.0), sol.ys[1:]):
            assert y.item() == pytest.approx(3 + (math.exp(-0.5) - 3) * math.exp(0.5 - t), rel=2e-7)

    def test_failures(self, name):
        cases = {
            Status.NON_FINITE_FIELD: lambda t, y: torch.where(t < 0.5, y, math.nan),
            Status.DIVERGED if name == "adams" else Status.NON_FINITE_STATE: lambda t, y: y * y,
        }
        for status, f in cases.items():
            with pytest.raises(SolveError) as caught:
                self.solved(name, f, ONE[:1], (0.0, 3.0), 1e-3)
            assert caught.value.status is status


@pytest.mark.parametrize("name", ["abm4", pytest.param("adams", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated", "ignore:There is a performance drop")
def test_it_is_transformed_and_differentiated_twice(name):
    f = lambda t, y: torch.sin(y) * torch.cos(t)  # noqa: E731
    end = lambda y: TestEverySetting().solved(name, f, y, (0.0, 0.5), 1e-5, steps=12).ys[-1]  # noqa: E731
    y = torch.tensor([0.3, 0.7], dtype=D)
    forward, reverse = torch.func.jacfwd(end)(y), torch.func.jacrev(end)(y)
    torch.testing.assert_close(forward, reverse, rtol=0, atol=1e-13)
    # tan(y(1/2) / 2) = tan(y / 2) exp(sin(1/2))
    exact = lambda y: 2 * torch.atan(torch.tan(y / 2) * math.exp(math.sin(0.5)))  # noqa: E731
    torch.testing.assert_close(forward, torch.func.jacrev(exact)(y), rtol=0, atol=1e-4)
    twice, once_more = (torch.func.jacfwd(torch.func.grad(lambda y, g=g: g(y).sum()))(y) for g in (end, exact))
    torch.testing.assert_close(twice, once_more, rtol=0, atol=1e-3)
    mapped = torch.func.vmap(end)(torch.stack([y, y + 0.1]))
    torch.testing.assert_close(mapped, torch.stack([end(y), end(y + 0.1)]), rtol=0, atol=2e-5)


# --- gradients ---------------------------------------------------------------------------------------------------

NET = Net()


def gradients(method, adjoint, times, dense=False, timed=True, **options):
    y0 = torch.linspace(-1, 1, 6, dtype=D).reshape(2, 3).requires_grad_()
    t = torch.tensor(times, dtype=D, requires_grad=timed)
    sol = solve(NET, y0, t, method=method, adjoint=adjoint, dense=dense, **options)
    loss = sol.ys.sin().sum() + (sol(times[0] * 0.6 + times[-1] * 0.4).square().sum() if dense else 0)
    return torch.autograd.grad(loss, (y0, *([t] if timed else []), *NET.parameters())), sol.stats


CASES = {
    "ab1": {"controller": Fixed(dt=0.07)},
    "ab3": {"controller": Fixed(steps=11), "stops": [0.3, 1.7]},
    "abm4": {"controller": Fixed(steps=8), "jumps": [0.41, 1.31]},
    "ab5": {"controller": Fixed(dt=0.12), "dense": True},
    "adams": {"controller": PID(rtol=1e-3, atol=1e-5), "stops": [0.3, 1.7], "dense": True},
}


@pytest.mark.parametrize(
    "times", [[0.0, 0.0, 0.37, 1.0], pytest.param([2.0, 1.5, 1.0], marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_steps_made_again_have_the_gradient_of_the_loop_itself(name, times):
    expected, _ = gradients(name, Direct(), times, **CASES[name])
    for adjoint in (Checkpointed(), Checkpointed(memory=7), Checkpointed(memory=1)):
        found, stats = gradients(name, adjoint, times, **CASES[name])
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
        if adjoint.memory is None:
            assert stats.nfe_backward == 2 * stats.accepted or name != "adams"


@pytest.mark.parametrize("name", ["ab3", "abm5"])
def test_gradients_are_those_of_differences_of_the_same_steps(name):
    def loss(y, t, weight):
        f = lambda t, y: torch.sin(weight * y) * torch.cos(t)  # noqa: E731
        return solve(f, y, t, method=name, controller=Fixed(steps=9), stops=[0.3]).ys.square().sum()

    given = (torch.tensor([0.3, 0.7], dtype=D), torch.tensor([0.0, 0.41, 1.0], dtype=D), torch.tensor(1.3, dtype=D))
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in given], atol=1e-7)


def test_the_tape_keeps_two_tensors_a_step(monkeypatch):
    """f where the steps before began is shared by as many states as it is part of."""
    counts = []
    saved = torch.autograd.graph.saved_tensors_hooks(lambda x: counts.append(x) or x, lambda x: x)
    with saved:
        y0 = torch.ones(3, dtype=D, requires_grad=True)
        sol = solve(lambda t, y: -y, y0, (0.0, 5.0), method="adams", rtol=1e-10, atol=1e-10)
    kept = {id(x) for x in counts if x.shape == y0.shape}
    assert sol.stats.accepted < len(kept) <= 2 * sol.stats.accepted + 2


@pytest.mark.parametrize(
    "adjoint", [Interpolated(), Backsolve(), Backsolve("tsit5", PID(rtol=1e-8, atol=1e-8))], ids=str
)
@pytest.mark.parametrize("name", ["adams", "abm4"])
def test_continuous_adjoints_come_near_the_exact_gradient(name, adjoint):
    how = {"controller": PID(rtol=1e-8, atol=1e-8) if name == "adams" else Fixed(steps=60)}
    found, _ = gradients(name, adjoint, [0.0, 0.4, 1.0], **how)
    expected, _ = gradients("dopri5", Checkpointed(), [0.0, 0.4, 1.0], rtol=1e-11, atol=1e-11)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-7)


# --- in loops of tensors, and in graphs ---------------------------------------------------------------------------


class InLoops:
    """`Checkpointed` by the loop in tensors, as it is compiled; here Python runs it."""

    interpolates = True

    def __init__(self, memory=None):
        self.memory = memory

    def integrate(self, problem, engine):
        prepared = prepare(problem)
        loops = ByPython(prepared.problem, prepared)
        return _by_loops(prepared.problem, loops, True, Keep(states=self.memory), prepared.then)


LOOPED = {
    "abm1": ([0.0, 0.0, 1.0], {"controller": Fixed(dt=0.13)}),
    "ab2": ([0.0, 0.0, 0.37, 1.0], {"controller": Fixed(steps=6), "jumps": [0.55]}),
    "abm3": ([2.0, 1.0], {"controller": Fixed(dt=0.12), "stops": [1.3, 1.71]}),
    "ab4": ([2.0, 1.5, 1.0], {"controller": Fixed(steps=13), "jumps": [1.31, 1.35, 1.7]}),
    "abm5": ([0.0, 0.37, 1.0], {"controller": Fixed(steps=9), "stops": [0.3]}),
}


@pytest.mark.parametrize("name", LOOPED)
def test_in_a_loop_of_tensors_they_are_the_same_steps(name, monkeypatch):
    """Over several chunks, each of which begins with what the one before has left."""
    monkeypatch.setattr("odenets.engine.tensors.chunks.FEWEST", 5)
    monkeypatch.setattr("odenets.engine.tensors.chunks.MOST", 5)
    times, options = LOOPED[name]
    expected, stats = gradients(name, Direct(), times, **options)
    for adjoint in (InLoops(), InLoops(memory=40)):
        found, looped = gradients(name, adjoint, times, **options)
        assert looped.accepted == stats.accepted
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.slow  # two programs each
@pytest.mark.parametrize("adjoint", [Checkpointed(), Direct(), Checkpointed(memory=40)], ids=str)
@pytest.mark.parametrize("name", ["ab2", "ab4", "abm5"])
def test_compiled(name, adjoint):
    times, options = LOOPED[name]
    for timed in (False, True):
        expected, eager = gradients(name, Direct(), times, timed=timed, **options)
        found, compiled = gradients(name, adjoint, times, timed=timed, compile=True, **options)
        assert compiled.accepted == eager.accepted
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_compiled_they_take_what_evaluations_they_promise():
    """Without outputs; with others f at the end of each of the first k − 1 steps is evaluated once more."""
    for name in ("ab3", "abm4"):
        how = {"method": name, "controller": Fixed(steps=40)}
        counts = [solve(NET, torch.ones(2, 3, dtype=D), (0.0, 1.0), **how, compile=c).stats.nfe for c in (False, True)]
        assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["abm3", pytest.param("ab5", marks=pytest.mark.slow)])
def test_inside_of_another_graph(name):
    """Laid out step by step, to values and gradients."""
    weight = torch.linspace(-1, 1, 9, dtype=D).reshape(3, 3).requires_grad_()

    def end(y):
        f = lambda t, y: torch.tanh(y @ weight) * torch.cos(t)  # noqa: E731
        return solve(
            f, y, [0.0, 0.33, 1.0], method=name, controller=Fixed(steps=METHODS[name].order + 1), jumps=[0.5]
        ).ys

    y = torch.tensor([[0.3, 0.7, -1.0]], dtype=D, requires_grad=True)
    results = [end, torch.compile(end, backend="eager", fullgraph=True)]
    (ys, grads), (same, same_grads) = (
        (out, torch.autograd.grad(out.sin().sum(), (y, weight))) for out in (call(y) for call in results)
    )
    for a, b in zip((same, *same_grads), (ys, *grads)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# --- what does not go --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adams", {"controller": Fixed(steps=3)}, "a method of one order such as 'abm4'"),
        ("ab4", {}, "has no error estimate"),
        ("adams", {"per_sample": True}, "leave `per_sample` out"),
        ("adams", {"compile": True}, "leave `compile` out"),
        ("adams", {"adjoint": Reversible()}, "pass `adjoint=Checkpointed"),
    ],
)
def test_what_does_not_go_with_them(name, options, message):
    with pytest.raises(TypeError, match=message):
        solve(OSCILLATOR.f, OSCILLATOR.y0[None], (0.0, 1.0), method=name, **options)
