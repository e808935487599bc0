"""Gradients of every adjoint, for y0, parameters, arguments, closures and every time."""

import gc
import math
import weakref

import pytest
import torch

from odenets import (
    METHODS,
    PID,
    Backsolve,
    Checkpointed,
    Direct,
    ExplicitRungeKutta,
    Fixed,
    Interpolated,
    LostGradientError,
    Reversible,
    SolveError,
    solve,
)
from odenets.engine.tape import Tape, reversal
from problems import FORCED, GLOBAL, OSCILLATOR, ROUTES, Net, assert_nothing_is_left, through_global

EXPLICIT = [m for m in METHODS.values() if isinstance(m, ExplicitRungeKutta)]  # the others: test_implicit.py
METHOD = pytest.mark.parametrize("method", EXPLICIT, ids=lambda m: m.name)
TIMES = [0.0, 0.3, 0.55, 1.2]
KINDS = ("euler", "rk4", "bosh3")  # of one stage, with fixed steps, with adaptive ones
OTHERS = [Checkpointed(), Checkpointed(memory=2), Interpolated(), Backsolve(), Reversible()]
EVERY = pytest.mark.parametrize("adjoint", [Direct(), *OTHERS], ids=repr)


def every_method_at(times, *others, methods=EXPLICIT, kinds=KINDS):
    """Every method at `times`, and one of each kind at the others: a method makes steps, and knows of no times."""
    rest = [(m, t) for t in others for m in methods if m.name in kinds]
    return pytest.mark.parametrize(("method", "times"), [*((m, times) for m in methods), *rest], ids=named)


def named(value):
    return getattr(value, "name", str(value))


def options(method, rtol=1e-6):
    if method.adaptive:
        return {"method": method, "controller": PID(rtol=rtol, atol=rtol * 1e-2)}
    return {"method": method, "controller": Fixed(steps=40)}


def gradients(adjoint, times=TIMES, weigh=None, **solve_options):
    """All gradients of one scalar of the solution: y0, both layers, an argument, a closure, each time."""
    net = Net()
    torch.manual_seed(1)
    y0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    sol = solve(lambda t, y, scale: net(t, y) * scale + shift, y0, t, args=(scale,), adjoint=adjoint, **solve_options)
    weight = torch.linspace(-1, 2, sol.ys.numel(), dtype=torch.float64).reshape(sol.ys.shape).cos()
    loss = (sol.ys.sin() * weight).sum()
    wrt = {"y0": y0, "scale": scale, "shift": shift, "t": t, **dict(net.named_parameters())}
    grads = torch.autograd.grad(loss, list(wrt.values()))
    return dict(zip(wrt, grads)), sol


@every_method_at(TIMES, [0.0, 1.2], [1.2, 0.55, 0.0], [0.0, 0.55, 0.55, 1.2, 1.2])
def test_checkpointed_equals_direct_to_rounding(method, times):
    direct, sol_direct = gradients(Direct(), times, **options(method, rtol=1e-4))
    for adjoint in (Checkpointed(), Checkpointed(memory=3)):
        checkpointed, sol = gradients(adjoint, times, **options(method, rtol=1e-4))
        torch.testing.assert_close(sol.ys, sol_direct.ys, rtol=1e-13, atol=1e-14)
        for name in direct:
            torch.testing.assert_close(checkpointed[name], direct[name], rtol=1e-9, atol=1e-11, msg=name)


@METHOD
@pytest.mark.parametrize("adjoint", [Backsolve(), Interpolated()], ids=repr)
def test_continuous_adjoints_agree_to_their_tolerance(method, adjoint):
    rtol = 1e-4 if method.order == 2 else 1e-6  # or else thousands of steps
    direct, _ = gradients(Direct(), **options(method, rtol))
    continuous, _ = gradients(adjoint, **options(method, rtol))
    tolerance = {1: 0.1, 2: 2e-3}.get(method.order, 1e-4) if not method.adaptive else 1e-3
    for name in direct:
        error = float((continuous[name] - direct[name]).abs().max() / direct[name].abs().max())
        assert error < tolerance, name


@every_method_at(TIMES, [0.0, 1.2], [1.2, 0.55, 0.0], [0.0, 0.0, 0.55, 0.55, 1.2, 1.2])
def test_reversible_is_exact_for_what_it_computes(method, times):
    """Against finite differences of its own fixed steps."""
    net = Net()
    weights = dict(net.named_parameters())
    torch.manual_seed(1)
    y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)

    def states(y0, t, *parameters):
        f = lambda t, y: torch.func.functional_call(net, dict(zip(weights, parameters)), (t, y))  # noqa: E731
        return solve(f, y0, t, adjoint=Reversible(0.9), method=method, controller=Fixed(dt=0.34)).ys

    torch.autograd.gradcheck(
        states, (y0, t.detach(), *weights.values()), eps=1e-5, atol=1e-7, rtol=1e-6, fast_mode=True
    )
    if len(set(times)) == len(times):  # moving a repeated time would change the order of the times
        weight = torch.linspace(-1, 2, len(times) * 6, dtype=torch.float64).reshape(-1, 2, 3).cos()
        loss = lambda t: (states(y0.detach(), t) * weight).sum()  # noqa: E731
        torch.autograd.gradcheck(loss, t, eps=1e-5, atol=1e-7, rtol=1e-6)


@METHOD
def test_reversible_converges_at_the_order_of_its_base(method):
    errors = []
    for steps in (12, 24):
        options = {"method": method, "controller": Fixed(steps=steps), "adjoint": Reversible()}
        sol = solve(OSCILLATOR.f, OSCILLATOR.y0, [0.0, OSCILLATOR.t1], **options)
        errors.append(float((sol.ys[-1] - OSCILLATOR.y0).abs().max()))  # one whole period
    assert math.log2(errors[0] / errors[1]) > method.order - 0.1


def test_reversible_does_the_same_without_gradients():
    y0 = torch.ones(2, 3, dtype=torch.float64)
    sol = solve(Net(), y0, TIMES, adjoint=Reversible())
    with torch.no_grad():
        assert torch.equal(solve(Net(), y0, TIMES, adjoint=Reversible()).ys, sol.ys)


@EVERY
def test_time_gradients_are_those_of_the_exact_solution(adjoint):
    """y(t) = exp(sin t0 − sin t): every ∂y_j/∂t_j = −y_j cos t_j, and ∂y_j/∂t_0 = y_j cos t_0 (section 4.3)."""
    t = torch.tensor([0.2, 0.7, 0.7, 1.5, 2.0], dtype=torch.float64, requires_grad=True)
    sol = solve(FORCED.f, FORCED.y0, t, adjoint=adjoint, rtol=1e-9, atol=1e-11, method="dopri5")
    for j in range(1, 5):
        (grad,) = torch.autograd.grad(sol.ys[j, 0], t, retain_graph=True)
        expected = torch.zeros(5, dtype=torch.float64)
        y = float(sol.ys[j].detach())
        expected[j] += -y * math.cos(float(t[j].detach()))
        expected[0] += y * math.cos(0.2)
        torch.testing.assert_close(grad, expected, rtol=0, atol=2e-6)


@EVERY
def test_gradient_against_finite_differences(adjoint):
    net = Net()
    y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64, requires_grad=True)
    tight = {"controller": PID(rtol=1e-11, atol=1e-12), "method": "dopri5"}

    def states(y0, t, *parameters):
        return solve(
            lambda t, y: torch.func.functional_call(net, dict(zip(names, parameters)), (t, y)),
            y0,
            t,
            adjoint=adjoint,
            **tight,
        ).ys

    names = [name for name, _ in net.named_parameters()]
    torch.autograd.gradcheck(states, (y0, t, *net.parameters()), eps=1e-5, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("method", ["euler", "bosh3", "dopri5", "trapezoid", "trbdf2", "radauIIA5", "gl4"])
def test_direct_has_second_derivatives(method):
    """For y0, an argument, a closure and every time; the step size is a number of its own, which no time changes."""
    shift = torch.tensor([0.2, -0.4], dtype=torch.float64, requires_grad=True)

    def states(y0, rate, shift, t):
        f = lambda t, y, rate: -rate * torch.sin(y + shift) * torch.cos(t)  # noqa: E731
        return solve(f, y0, t, (rate,), adjoint=Direct(), method=method, controller=Fixed(dt=0.3)).ys

    y0 = torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.1, 0.25, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(states, (y0, rate, shift, t))
    assert torch.autograd.gradgradcheck(states, (y0, rate, shift, t))


@pytest.mark.parametrize("adjoint", OTHERS, ids=repr)
def test_the_others_say_that_they_have_none(adjoint):
    y0 = torch.ones(2, requires_grad=True)
    sol = solve(lambda t, y: -y, y0, [0.0, 1.0], adjoint=adjoint)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*use `adjoint=Direct\(\)`"):
        torch.autograd.grad(sol.ys.sum(), y0, create_graph=True)


# --- section 4.3: each component of the augmented adjoint ------------------------------------------------------------


def test_components_of_the_augmented_adjoint():
    """Equations (6) and (7) and the integral for ∂L/∂t0, integrated as the document writes them, against autograd."""
    net = Net()
    parameters = list(net.parameters())
    t0, t1 = 0.2, 1.3
    y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([t0, t1], dtype=torch.float64, requires_grad=True)
    tight = {"controller": PID(rtol=1e-11, atol=1e-12), "method": "dopri5"}
    sol = solve(net, y0, t, adjoint=Direct(), **tight)
    loss = sol.ys[-1].sin().sum()
    exact = torch.autograd.grad(loss, [y0, t, *parameters])

    def augmented(s, state):
        """d/dt of (z, a, a_θ, a_t) = (f, −a ∂f/∂z, −a ∂f/∂θ, −a ∂f/∂t)."""
        z, a = state[0].detach().requires_grad_(), state[1]
        time = s.detach().requires_grad_()
        with torch.enable_grad():
            out = net(time, z)
        grads = torch.autograd.grad(out, [z, time, *parameters], a)
        return (out.detach(), -grads[0], tuple(-g for g in grads[2:]), -grads[1])

    z1 = sol.ys[-1].detach()
    a1 = z1.cos()  # ∂L/∂z(t_N)
    with torch.no_grad():
        dl_dt1 = (a1 * net(torch.tensor(t1, dtype=torch.float64), z1)).sum()
        start = (z1, a1, tuple(torch.zeros_like(p) for p in parameters), -dl_dt1)
        back = solve(augmented, start, [t1, t0], **tight).ys
    z, a, a_theta, a_t = back
    torch.testing.assert_close(z[-1], y0.detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(a[-1], exact[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(a_t[-1], exact[1][0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(dl_dt1, exact[1][1], rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(a_theta, exact[2:]):
        torch.testing.assert_close(ours[-1], theirs, rtol=1e-7, atol=1e-9)


# --- counts ----------------------------------------------------------------------------------------------------------


def test_checkpointed_replays_each_accepted_step_once():
    _, sol = gradients(Checkpointed(), [0.0, 1.2], method="dopri5", controller=PID(rtol=1e-7, atol=1e-9))
    assert sol.stats.accepted > 3
    assert sol.stats.nfe_backward == 6 * sol.stats.accepted


def test_nfe_backward_is_unknown_before_the_backward_pass():
    y0 = torch.ones(2, requires_grad=True)
    for adjoint in (Checkpointed(activations=0), Backsolve()):
        sol = solve(lambda t, y: -y, y0, [0.0, 1.0], adjoint=adjoint)
        assert sol.stats.nfe_backward is None
        sol.ys.sum().backward()
        assert sol.stats.nfe_backward > 0


@pytest.mark.parametrize("adjoint", [Backsolve, Interpolated])
def test_a_method_of_the_backward_solve_by_its_name(adjoint):
    names = ("dopri5", METHODS["dopri5"])
    by_name, by_object = (gradients(adjoint(method=method), **options(METHODS["bosh3"]))[0] for method in names)
    assert all(torch.equal(by_name[name], by_object[name]) for name in by_name)


@pytest.mark.parametrize("adjoint", [Backsolve(), Interpolated()])
def test_continuous_adjoints_do_not_restart_at_output_times(adjoint):
    """A restart would choose a first step (one evaluation more) at each output time."""
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    sol = solve(lambda t, y: -y, y0, torch.linspace(0, 1, 101), adjoint=adjoint, method="dopri5", rtol=1e-5)
    sol.ys.sum().backward()
    assert sol.stats.nfe_backward <= 100 * 7 + 2  # and f at the start, once more


def test_the_number_of_outputs_costs_checkpointed_nothing():
    counts = []
    for outputs in (2, 20, 200):
        y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        sol = solve(Net(2), y0, torch.linspace(0, 1, outputs), method="dopri5", rtol=1e-5)
        sol.ys.sum().backward()
        counts.append(sol.stats.nfe_backward)
    assert max(counts) <= counts[0] + sol.stats.accepted  # f1 of each step, where outputs lie inside


def test_no_gradient_wanted_means_nothing_kept():
    sol = solve(Net(), torch.ones(1, 3, dtype=torch.float64).detach(), [0.0, 1.0])
    assert sol.ys.requires_grad
    with torch.no_grad():
        assert not solve(Net(), torch.ones(1, 3, dtype=torch.float64), [0.0, 1.0]).ys.requires_grad
    assert not solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0]).ys.requires_grad


def saved_numbers(adjoint, method, steps):
    """How many numbers autograd keeps between the passes."""
    kept = []
    net, y0 = Net(), torch.ones(50, 3, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        solve(net, y0, [0.0, 1.0], method=method, controller=Fixed(steps=steps), adjoint=adjoint)
    return sum(kept)


def test_memory_between_the_passes():
    """`Direct` keeps every evaluation of f, `Checkpointed` one state a step, the others as their names say."""
    state, states = 50 * 3, Checkpointed(activations=0)
    few, many = (saved_numbers(states, "dopri5", steps) for steps in (5, 25))
    assert many - few == 20 * state
    assert saved_numbers(states, "euler", 25) == many
    assert saved_numbers(Checkpointed(memory=4), "dopri5", 25) <= few
    bytes_of_four = 4 * state * 8
    assert saved_numbers(Checkpointed(memory=f"{bytes_of_four} B"), "dopri5", 25) <= few
    for adjoint in (Backsolve(), Reversible()):
        assert saved_numbers(adjoint, "dopri5", 5) == saved_numbers(adjoint, "dopri5", 25) < few
    interpolated = [saved_numbers(Interpolated(), "dopri5", steps) for steps in (5, 25)]
    assert interpolated[1] - interpolated[0] == 20 * 8 * state
    assert saved_numbers(Direct(), "dopri5", 25) > 6 * many


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1024])
@pytest.mark.parametrize("memory", [1, 2, 3, 8, 33, 2000])
def test_a_reversal_undoes_every_step_within_its_memory(steps, memory):
    tape = Tape(memory // 2)
    for k in range(steps):
        tape.add(None, k)  # any state will do
    kept = list(tape.states)
    held, undone, repeated, most = set(kept), [], 0, len(kept)
    for start, end, keep in reversal(steps, kept, memory - (len(kept) - 1)):
        if start == end:
            undone.append(start)
            held -= {start} - set(kept)
            continue
        repeated += end - start
        held |= {end} if keep else set()
        most = max(most, len(held))
    assert undone == list(reversed(range(steps)))
    assert most - 1 <= memory  # the start of the solve is there anyway
    fewest = next(r for r in range(steps + 1) if math.comb(memory // 2 + 1 + r, r) >= steps)
    assert repeated <= fewest * steps


def test_a_replay_costs_what_the_schedule_says():
    net, y0 = Net(), torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    sol = solve(net, y0, [0.0, 1.0], method="rk4", controller=Fixed(steps=64), adjoint=Checkpointed(memory=6))
    sol.ys[-1].sum().backward()
    assert 2 * 64 * 4 < sol.stats.nfe_backward < 5 * 64 * 4  # log2(64) = 6 states


@pytest.mark.parametrize(
    ("memory", "message"),
    [(0, "≥ 1"), (True, "≥ 1"), (2.5, "≥ 1"), ("much", "bytes such as '64 MiB'"), ("-3 MB", "bytes such as")],
)
def test_memory_that_is_none_is_refused(memory, message):
    with pytest.raises(ValueError, match=message):
        Checkpointed(memory=memory)


def test_memory_that_holds_no_state_is_refused():
    y0 = torch.ones(100, requires_grad=True)
    with pytest.raises(ValueError, match="does not hold one state of 400 bytes"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], adjoint=Checkpointed(memory="0.3 kB"))


@pytest.mark.parametrize("coupling", [0, -1.0, 1.5])
def test_a_coupling_that_cannot_be_inverted_is_refused(coupling):
    with pytest.raises(ValueError, match=r"`coupling` must be in \(0, 1\]"):
        Reversible(coupling)


@EVERY
def test_many_solves_leave_nothing_behind(adjoint):
    """No reference cycle, no list that grows: the number of living tensors stays the same, without the collector."""
    net = Net()
    y0 = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)

    def train():
        sol = solve(net, y0, [0.0, 0.5, 1.0], adjoint=adjoint, method="heun", controller=Fixed(steps=2))
        torch.autograd.grad(sol.ys.sum(), [y0, *net.parameters()])

    assert_nothing_is_left(train)


def test_memory_of_a_solve_is_given_back():
    """No reference cycle holds the states of a solve after its result is gone."""
    gc.collect()
    gc.disable()
    try:
        net = Net()
        sol = solve(net, torch.ones(4, 3, dtype=torch.float64, requires_grad=True), [0.0, 1.0])
        sol.ys.sum().backward()
        ys = weakref.ref(sol.ys)
        del sol
        assert ys() is None
    finally:
        gc.enable()


# --- every tensor that f reaches gets its gradient, or the call raises ------------------------------------------


@EVERY
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "result"])
@pytest.mark.parametrize("route", ROUTES)
def test_gradient_reaches_the_tensor(route, leaf, adjoint):
    base = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    weight = base if leaf else base * 1.0
    sol = solve(
        ROUTES[route](weight),
        torch.ones(1, dtype=torch.float64),
        [0.0, 1.0],
        adjoint=adjoint,
        rtol=1e-8,
        atol=1e-9,
    )
    (grad,) = torch.autograd.grad(sol.ys[-1, 0], base)
    assert float(grad) == pytest.approx(-math.exp(-0.5), rel=1e-6)


@EVERY
def test_gradient_reaches_a_global(adjoint):
    sol = solve(through_global, torch.ones(1, dtype=torch.float64), [0.0, 1.0], adjoint=adjoint, rtol=1e-8, atol=1e-9)
    (grad,) = torch.autograd.grad(sol.ys[-1, 0], GLOBAL)
    assert float(grad) == pytest.approx(-math.exp(-0.5), rel=1e-6)


def test_retained_gradient_of_a_result_is_filled():
    base = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    weight = base * 2
    weight.retain_grad()
    solve(lambda t, y: -weight * y, torch.ones(1, dtype=torch.float64), [0.0, 1.0], rtol=1e-8).ys[-1].sum().backward()
    assert float(weight.grad) == pytest.approx(-math.exp(-1), rel=1e-5)


@EVERY
def test_a_hook_fires_once_and_changes_the_gradient_once(adjoint):
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    fired = []
    weight.register_hook(lambda grad: fired.append(1) or grad * 10)
    sol = solve(
        lambda t, y: -weight * y,
        torch.ones(1, dtype=torch.float64),
        [0.0, 0.5, 1.0],
        adjoint=adjoint,
        rtol=1e-8,
        atol=1e-9,
    )
    sol.ys[-1].sum().backward()
    assert float(weight.grad) == pytest.approx(-10 * math.exp(-0.5), rel=1e-6)
    assert len(fired) == 1


def test_a_tensor_used_only_at_a_later_time_gets_its_gradient():
    early, late = (torch.tensor(0.5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    f = lambda t, y: -(early if t < 0.5 else late) * y  # noqa: E731
    sol = solve(f, torch.ones(1, dtype=torch.float64), [0.0, 1.0], controller=PID(dt_max=0.01))
    grads = torch.autograd.grad(sol.ys[-1, 0], [early, late])
    for grad in grads:
        assert float(grad) == pytest.approx(-0.5 * math.exp(-0.5), rel=0.1)


def hidden(tensor):
    """A function through which no walk over Python objects finds the tensor."""
    generator = _forever(tensor)
    return lambda: next(generator)


def _forever(tensor):
    while True:
        yield tensor


def test_a_hidden_leaf_is_found_in_the_graph():
    base = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    find = hidden(base)
    sol = solve(lambda t, y: -find() * y, torch.ones(1, dtype=torch.float64), [0.0, 1.0], rtol=1e-8)
    assert float(torch.autograd.grad(sol.ys[-1, 0], base)[0]) == pytest.approx(-math.exp(-0.5), rel=1e-6)


def test_a_hidden_result_raises():
    find = hidden(torch.tensor(0.5, requires_grad=True) * 2)
    with pytest.raises(
        LostGradientError, match=r"`f` uses the result of an earlier computation.*pass it through `args=`"
    ):
        solve(lambda t, y: -find() * y, torch.ones(1), [0.0, 1.0])


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(activations=0)])
def test_a_hidden_tensor_of_a_later_time_raises(adjoint):
    find = hidden(torch.tensor(0.5, requires_grad=True))
    y0 = torch.ones(1, requires_grad=True)
    with pytest.raises(LostGradientError, match="at another time than the first"):
        solve(lambda t, y: -y if t < 0.5 else -find() * y, y0, [0.0, 1.0], adjoint=adjoint).ys.sum().backward()


@EVERY
def test_the_same_through_args_counts_every_path_once(adjoint):
    base = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    sol = solve(
        lambda t, y, r: -base * r * y,
        torch.ones(1, dtype=torch.float64),
        [0.0, 1.0],
        args=(base * 2,),
        adjoint=adjoint,
        rtol=1e-8,
        atol=1e-9,
    )
    assert float(torch.autograd.grad(sol.ys[-1, 0], base)[0]) == pytest.approx(-2 * math.exp(-0.5), rel=1e-6)


def test_encoder_parameters_are_not_counted_twice():
    """A bound method of a model that also holds the encoder which made y0 and an argument."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Linear(3, 3, dtype=torch.float64)
            self.net = Net()

        def field(self, t, y, context):
            return self.net(t, y) + context

        def forward(self, x, adjoint):
            z = self.encoder(x)
            return solve(self.field, z, [0.0, 1.0], args=(z.tanh(),), adjoint=adjoint, rtol=1e-7, atol=1e-9).ys[-1]

    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 3, dtype=torch.float64)
    grads = [torch.autograd.grad(model(x, a).sin().sum(), list(model.parameters())) for a in (Direct(), Checkpointed())]
    for direct, checkpointed in zip(*grads):
        torch.testing.assert_close(checkpointed, direct, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("adjoint", [Backsolve(), Interpolated(), Reversible()])
def test_dense_output_is_refused_where_it_has_no_gradient(adjoint):
    with pytest.raises(TypeError, match="`dense=True` does not go with"):
        solve(Net(), torch.ones(1, 3, dtype=torch.float64), [0.0, 1.0], adjoint=adjoint, dense=True)


def test_a_backward_solve_that_fails_says_that_it_is_one():
    """y' = −y³ is tame forward and blows up backward."""
    y0 = torch.full((1,), 100.0, dtype=torch.float64, requires_grad=True)
    sol = solve(
        lambda t, y: -(y**3),
        y0,
        [0.0, 5.0],
        adjoint=Backsolve(controller=PID(rtol=1e-3, atol=1e-3)),
        rtol=1e-2,
        atol=1e-2,
    )
    with pytest.raises(SolveError, match="backward solve of `Backsolve`"):
        sol.ys[-1].sum().backward()


@pytest.mark.parametrize("adjoint", [Backsolve, Interpolated])
@pytest.mark.parametrize(("t", "steps"), [([0.0, 1.0], 12), ([0.0, 0.25, 0.5, 1.0], 12), ([2.0, 1.875, 0.0], 16)])
def test_fixed_steps_of_the_backward_solve_are_those_of_the_whole_interval(adjoint, t, steps):
    """Where the outputs lie on the grid, exactly so many, however the intervals between them differ."""
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    given = solve(lambda t, y: -y, y0, t, adjoint=adjoint(method="rk4", controller=Fixed(steps=steps)))
    given.ys.sum().backward()
    assert given.stats.nfe_backward == 4 * steps + 1  # and f at the start, once more
    kept = solve(lambda t, y: -y, y0, t, method="rk4", controller=Fixed(steps=steps), adjoint=adjoint())
    kept.ys.sum().backward()
    assert kept.stats.nfe_backward == 4 * steps + 1
