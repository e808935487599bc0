"""Methods for systems in two halves that move each other."""

import math

import pytest
import torch
from torch import nn

from odenets import (
    METHODS,
    Backsolve,
    Checkpointed,
    Direct,
    Fixed,
    Interpolated,
    Reversible,
    SolveError,
    Splitting,
    Status,
    solve,
)

D = torch.float64
SPLITTINGS = {name: method for name, method in METHODS.items() if isinstance(method, Splitting)}
NAME = pytest.mark.parametrize("name", SPLITTINGS)
Y0 = torch.tensor([1.0, 0.3], dtype=D)


def driven(t, y):
    """A pendulum whose mass and whose gravity change with time: both halves depend on t, neither is linear."""
    q, p = y.chunk(2, -1)
    return torch.cat([p.tanh() + 0.2 * torch.cos(t) * p, -torch.sin(q) * (1 + 0.3 * torch.sin(2 * t))], -1)


def pendulum(t, y):
    q, p = y
    return p, -q.sin()


def pendulum_energy(y):
    return y[1].square() / 2 - y[0].cos()


RAISED = (torch.tensor(1.5, dtype=D), torch.tensor(0.0, dtype=D))


def kepler(t, y):
    q, p = y
    return p, -q / q.norm(dim=-1, keepdim=True) ** 3


PLANET = (torch.tensor([0.4, 0.0], dtype=D), torch.tensor([0.0, 2.0], dtype=D))  # eccentricity 0.6


class Springs(nn.Module):
    """A system that learns: both halves are networks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.of_p, self.of_q = nn.Linear(3, 3, dtype=D), nn.Linear(3, 3, dtype=D)

    def forward(self, t, y):
        q, p = y.chunk(2, -1)
        return torch.cat([self.of_p(p).tanh() * torch.cos(t), -self.of_q(q).tanh() - q * t], -1)


@NAME
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 3.0), (3.0, 0.0), (1e6, 1e6 + 3)])
def test_order(name, t0, t1):
    exact = solve(driven, Y0, [t0, t1], method="dopri8", controller=Fixed(steps=60)).ys[-1]
    errors = []
    for n in (12, 24):
        y = solve(driven, Y0, [t0, t1], method=name, controller=Fixed(steps=n)).ys[-1]
        errors.append(float((y - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(SPLITTINGS[name].order, abs=0.2)


@NAME
def test_states_inside_of_steps(name):
    """By their order too: the error over the halved step, and dense output with the states that are wanted in t."""
    t = torch.linspace(0, 3, 23, dtype=D)
    exact = solve(driven, Y0, t, method="dopri8", controller=Fixed(steps=60)).ys
    errors = []
    for n in (10, 20):
        sol = solve(driven, Y0, t, method=name, controller=Fixed(steps=n), dense=True)
        seen = solve(driven, Y0, t, method=name, controller=Fixed(steps=n))
        torch.testing.assert_close(sol(t), sol.ys, rtol=0, atol=1e-14)
        torch.testing.assert_close(seen.ys, sol.ys, rtol=0, atol=1e-14)
        errors.append(float((sol.ys - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) > SPLITTINGS[name].order - 0.6


@NAME
def test_a_step_is_the_formula(name):
    method, q, p, t, dt = SPLITTINGS[name], *Y0.tolist(), 0.7, 0.3
    tq, tp = t, t
    for kick, drift in zip(method.kicks, (*method.drifts, 0.0)):
        p, tp = p - kick * dt * math.sin(q) * (1 + 0.3 * math.sin(2 * tq)), tp + kick * dt
        q, tq = q + drift * dt * (math.tanh(p) + 0.2 * math.cos(tp) * p), tq + drift * dt
    y = method.step(driven, t, Y0, dt, ()).y
    assert y.tolist() == pytest.approx([q, p], abs=1e-15)


@torch.no_grad()
@pytest.mark.parametrize(("name", "rounding"), [("leapfrog", 1e-11), ("blanes_moan4", 1e-11), ("rk4", None)])
def test_solved_back_it_comes_to_the_start(name, rounding):
    """Of which the last is none of these."""
    how = {"method": name, "controller": Fixed(steps=120)}
    end = solve(kepler, PLANET, [0.0, 4.0], **how).ys
    back = solve(kepler, [x[-1] for x in end], [4.0, 0.0], **how).ys
    off = max(float((x[-1] - y).abs().max()) for x, y in zip(back, PLANET))
    assert off > 1e-7 if rounding is None else off < rounding


@torch.no_grad()
@pytest.mark.parametrize(("name", "most"), [("leapfrog", 1.1), ("blanes_moan4", 1.1), ("rk4", None)])
def test_the_energy_swings_and_does_not_drift(name, most):
    """Of which the last is none of these."""
    t = torch.linspace(0, 200, 201, dtype=D)
    sol = solve(pendulum, RAISED, t, method=name, controller=Fixed(steps=400))
    error = (pendulum_energy(sol.ys) - pendulum_energy(RAISED)).abs()
    first, last = float(error[:20].max()), float(error[-20:].max())
    assert last > 8 * first if most is None else last < most * first


@pytest.mark.slow
@NAME
def test_the_energy_over_1e5_steps(name):
    method = SPLITTINGS[name]
    t = torch.linspace(0, 1e5 * 0.1, 2001, dtype=D)
    with torch.no_grad():
        sol = solve(pendulum, RAISED, t, method=name, controller=Fixed(dt=0.1), max_steps=10**6)
    assert sol.stats.steps == 100_000
    error = (pendulum_energy(sol.ys) - pendulum_energy(RAISED)).abs()
    assert error.max() < {2: 2e-3, 4: 1e-6}[method.order]
    assert error[-200:].max() < 1.05 * error[:200].max()


@NAME
def test_evaluations(name):
    """Two for each drift; the last one of a step is the first of the next."""
    each = 2 * len(SPLITTINGS[name].drifts)
    calls = []

    def f(t, y):
        calls.append(1)
        return driven(t, y)

    for grad in (False, True):
        for t, extra in (([0.0, 1.0], 0), ([0.0, 0.5, 1.0], 0), ([0.0, 0.55, 1.0], 2)):  # within the sixth of ten
            calls.clear()
            with torch.set_grad_enabled(grad):
                stats = solve(f, Y0.clone().requires_grad_(grad), t, method=name, controller=Fixed(steps=10)).stats
            assert len(calls) == stats.nfe == 1 + 10 * each + extra
    dense = solve(driven, Y0, [0.0, 1.0], method=name, controller=Fixed(steps=10), dense=True)
    assert dense.stats.nfe == 1 + 10 * (each + 1)


def gradients(net, y0, t, adjoint, dense=False, **how):
    y0, t = y0.clone().requires_grad_(), torch.tensor(t, dtype=D, requires_grad=True)
    sol = solve(net, y0, t, adjoint=adjoint, dense=dense, controller=Fixed(steps=5), **how)
    loss = sol.ys.sin().sum() + (sol(t.detach()[0] * 0.4 + t.detach()[-1] * 0.6).square().sum() if dense else 0)
    return torch.autograd.grad(loss, (y0, t, *net.parameters())), sol


@NAME
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.0, 0.45, 1.0], [1.0, 0.3, 0.0]], ids=str)
def test_gradients_are_those_of_direct(name, t, dense):
    net, y0 = Springs(), torch.linspace(-1, 1, 12, dtype=D).reshape(2, 6)
    exact, _ = gradients(net, y0, t, Direct(), dense, method=name)
    for adjoint in (Checkpointed(), Checkpointed(memory=2)):
        for a, b in zip(gradients(net, y0, t, adjoint, dense, method=name)[0], exact):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["leapfrog", pytest.param("blanes_moan4", marks=pytest.mark.slow)])
def test_gradients_against_differences(name):
    net, y0 = Springs(), torch.linspace(-1, 1, 6, dtype=D, requires_grad=True)
    weight = net.of_q.weight.detach().requires_grad_()

    def end(y0, weight, t):
        f = lambda t, y: torch.func.functional_call(net, {"of_q.weight": weight}, (t, y))  # noqa: E731
        return solve(f, y0, t, method=name, controller=Fixed(steps=3)).ys[1:]

    t = torch.tensor([0.0, 0.4, 1.0], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(end, (y0, weight, t), atol=1e-7)


@NAME
@pytest.mark.parametrize("adjoint", [Interpolated, Backsolve])
def test_continuous_adjoints_solve_backward_by_another_method(name, adjoint):
    net, y0 = Springs(), torch.linspace(-1, 1, 6, dtype=D)
    how = {"method": name, "t": [0.0, 0.5, 1.0]}
    exact, _ = gradients(net, y0, adjoint=Direct(), **{**how, "method": "dopri8"})
    found, _ = gradients(net, y0, adjoint=adjoint(method="rk4"), **how)
    for a, b in zip(found, exact):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2 if name == "leapfrog" else 1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "pass `controller=Fixed"),
        ({"per_sample": True}, "leave `per_sample` out, or pass a method such as 'tsit5'"),
        ({"per_sample": True, "controller": Fixed(steps=3)}, "leave `per_sample` out, or pass a method such as"),
        ({"controller": Fixed(steps=3), "adjoint": Reversible()}, r"no Runge–Kutta method, .*Checkpointed\(memory="),
        ({"controller": Fixed(steps=3), "adjoint": Backsolve()}, "backward solve by .*: pass `method='tsit5'` to"),
        ({"controller": Fixed(steps=3), "adjoint": Interpolated()}, "backward solve by .*: pass `method='tsit5'` to"),
        ({"method": "tsit5", "adjoint": Interpolated(method="leapfrog")}, "backward solve by `method` 'leapfrog'"),
    ],
)
def test_what_it_does_not_go_with(given, message):
    with pytest.raises(TypeError, match=message):
        solve(lambda t, y: y, torch.ones(2, 2), [0.0, 1.0], **{"method": "leapfrog", **given})


@pytest.mark.parametrize(
    "y0",
    [
        torch.tensor(1.0),
        torch.ones(4, 3),
        (torch.ones(2), torch.ones(3)),
        {"q": torch.ones(4)},
        [torch.ones(2)] * 3,
        (torch.ones(2, 3), torch.ones(3, 2)),
    ],
    ids=["no axis", "odd", "unequal", "alone", "three", "shapes"],
)
def test_states_without_halves_are_refused(y0):
    with pytest.raises(ValueError, match=r"`y0` must be positions .* 'leapfrog', got shape.*: pass a pair .q, p"):
        solve(lambda t, y: pytest.fail("evaluated"), y0, [0.0, 1.0], method="leapfrog", controller=Fixed(steps=2))


@NAME
def test_states_of_every_form(name):
    """Pairs, larger nests, one tensor, batches, nothing at all, complex numbers: the same numbers."""
    how = {"method": name, "controller": Fixed(steps=7)}
    q, p = torch.randn(3, 2, dtype=D, generator=torch.manual_seed(0)), torch.linspace(-1, 1, 6, dtype=D).reshape(3, 2)
    pair = solve(pendulum, (q, p), [0.0, 1.0], **how).ys
    one = solve(lambda t, y: torch.cat([y[..., 2:], -y[..., :2].sin()], -1), torch.cat([q, p], -1), [0.0, 1.0], **how)
    torch.testing.assert_close(torch.cat(pair, -1), one.ys, rtol=0, atol=1e-15)

    def nested(t, y):
        return {"q": y["p"], "p": [-x.sin() for x in y["q"]]}

    nest = solve(nested, {"q": [q, q[0]], "p": [p, p[0]]}, [0.0, 1.0], **how).ys
    torch.testing.assert_close(nest["q"][0], pair[0], rtol=0, atol=0)
    torch.testing.assert_close(nest["p"][1], pair[1][:, 0], rtol=0, atol=0)
    turned = solve(pendulum, (1j * q, 1j * p), [0.0, 1.0], **how).ys  # i sinh
    real = solve(lambda t, y: (y[1], -y[0].sinh()), (q, p), [0.0, 1.0], **how).ys
    torch.testing.assert_close(turned[0], 1j * real[0], rtol=1e-14, atol=1e-14)
    for shape in ((0,), (3, 0), (0, 4)):
        assert solve(lambda t, y: y, torch.ones(shape), [0.0, 1.0], **how).ys.shape == (2, *shape)
    low = solve(pendulum, (q.half(), p.half()), [0.0, 1.0], **how).ys
    torch.testing.assert_close(low[0].to(D), pair[0], rtol=0, atol=5e-3)
    scaled = solve(lambda t, y: (y[1], -y[0]), (q * 1e-12, p * 1e-12), [0.0, 1.0], **how).ys
    plain = solve(lambda t, y: (y[1], -y[0]), (q, p), [0.0, 1.0], **how).ys
    torch.testing.assert_close(scaled[0] * 1e12, plain[0], rtol=1e-12, atol=1e-13)


@NAME
@pytest.mark.parametrize("grad", [False, True])
def test_a_jump_begins_afresh(name, grad):
    def kicked(t, y):
        q, p = y
        return p, torch.where(t < 0.5, 0.0, 1.0).to(D) + 0 * q

    y0 = (torch.zeros(1, dtype=D, requires_grad=grad), torch.zeros(1, dtype=D))
    sol = solve(kicked, y0, [0.0, 1.0], method=name, controller=Fixed(dt=0.3), jumps=[0.5])
    assert sol.ys[1][-1].item() == pytest.approx(0.5, abs=1e-15)
    assert sol.ys[0][-1].item() == pytest.approx(0.125, abs=1e-15)


def test_weights_that_contradict_each_other_are_refused():
    for given, message in (
        ({"kicks": (0.5,), "drifts": (1.0,)}, "one more than"),
        ({"kicks": (0.5, 0.5), "drifts": (0.9,)}, "`drifts` must sum to 1"),
        ({"kicks": (0.4, 0.6), "drifts": (1.0,)}, "`kicks` must sum to 1 and be symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            Splitting("own", order=2, **given)


@pytest.mark.parametrize("name", ["leapfrog"])
def test_a_field_that_is_not_finite_is_named(name):
    def f(t, y):
        return torch.cat([y[..., 1:], torch.where(t < 0.55, -y[..., :1], math.nan)], -1)

    with pytest.raises(SolveError) as caught:
        solve(f, torch.ones(2), [0.0, 1.0], method=name, controller=Fixed(steps=10))
    assert caught.value.status is Status.NON_FINITE_FIELD
    assert caught.value.failure.t == pytest.approx(0.5)


@NAME
@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # from forward mode, when it is first used
def test_under_transforms(name):
    net = Springs()
    how = {"method": name, "controller": Fixed(steps=3)}
    y0 = torch.linspace(-1, 1, 12, dtype=D).reshape(2, 6)
    mapped = torch.func.vmap(lambda y: solve(net, y, [0.0, 0.4, 1.0], **how).ys)(y0)
    torch.testing.assert_close(mapped.movedim(0, 1), solve(net, y0, [0.0, 0.4, 1.0], **how).ys)
    forward = torch.func.jacfwd(lambda y: solve(net, y, [0.0, 1.0], **how).ys[-1])(y0[0])
    reverse = torch.func.jacrev(lambda y: solve(net, y, [0.0, 1.0], **how).ys[-1])(y0[0])
    torch.testing.assert_close(forward, reverse)


def assert_same_compiled(t, timed, dense=False, **how):
    net, y0 = Springs(), torch.linspace(-1, 1, 12, dtype=D).reshape(2, 6)
    found = []
    for compile in (False, True):
        y, times = y0.clone().requires_grad_(), torch.tensor(t, dtype=D, requires_grad=timed)
        sol = solve(net, y, times, controller=Fixed(steps=5), compile=compile, **how)
        wrt = (y, *((times,) if timed else ()), *net.parameters())
        found.append([sol.ys, *torch.autograd.grad(sol.ys.sin().sum(), wrt)])
        nfe = sol.stats.nfe
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    return nfe


@pytest.mark.slow
def test_compiled():
    assert assert_same_compiled([0.0, 1.0], timed=False, method="leapfrog") == 11


@pytest.mark.slow
@NAME
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Checkpointed(memory=16)], ids=repr)
@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.0, 0.45, 1.0], [1.0, 0.3, 0.0]], ids=str)
def test_compiled_with_outputs_and_times(name, t, adjoint):
    assert_same_compiled(t, timed=True, method=name, adjoint=adjoint)


@pytest.mark.slow
@NAME
def test_in_the_graph_of_a_model(name):
    net, y0 = Springs(), torch.linspace(-1, 1, 12, dtype=D).reshape(2, 6)

    def model(y):
        return solve(net, 2 * y, [0.0, 0.45, 1.0], method=name, controller=Fixed(steps=4)).ys.sin()

    graph = torch.compile(model, fullgraph=True)
    outs = []
    for f in (model, graph):
        y = y0.clone().requires_grad_()
        out = f(y)
        outs.append([out, *torch.autograd.grad(out.sum(), (y, *net.parameters()))])
    for a, b in zip(*outs):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
