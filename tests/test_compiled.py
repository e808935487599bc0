"""`compile=True`: the same numbers as the eager engine, compiled once, and an honest way out where it cannot be."""

import math
import random
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from odenets import METHODS, PID, Backsolve, Checkpointed, Direct, Fixed, SolveError, solve, transforms
from odenets.engine.compile import known, lower, programs, told, trace
from odenets.engine.compile.failing import NotCompiled
from odenets.engine.tensors.plan import Buffers, Plan
from odenets.nn import MLPField, ODEBlock
from problems import ROUTES, assert_nothing_is_left

EULER = {"method": "euler", "controller": Fixed(steps=2)}  # the smallest loop
TIMES = torch.tensor([0.0, 0.4, 0.45, 1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _forget_failures():
    """What one test has been told must not keep the next from compiling, or from being told."""
    told.forget()


class Net(nn.Module):
    """A smooth field of time, with an argument and a tensor that it merely closes over."""

    def __init__(self, width=3, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(width, 5, dtype=dtype)
        self.outer = nn.Linear(5, width, dtype=dtype)
        self.scale = [torch.full((), 1.5, dtype=dtype, requires_grad=True)]  # no parameter: an attribute in a list

    def forward(self, t, y, shift):
        return self.outer(torch.tanh(self.inner(y) + t)) * torch.cos(t) * self.scale[0] + shift


def run(net, y0, times, compile, timed=False, **options):
    """The solution, and the gradients to y0, the argument, the parameters, the hidden tensor and (timed) the times."""
    y0 = y0.clone().requires_grad_()
    times = times.clone().requires_grad_(timed)
    shift = torch.linspace(-1, 1, y0.shape[-1], dtype=y0.dtype).requires_grad_()
    sol = solve(net, y0, times, (shift,), compile=compile, **options)
    weights = torch.linspace(0.5, 2, sol.ys.numel(), dtype=y0.dtype).reshape(sol.ys.shape)
    wanted = (y0, shift, *net.parameters(), net.scale[0], *([times] if timed else []))
    grads = torch.autograd.grad((sol.ys * weights).sum(), wanted)
    return sol, grads


def assert_same(net, y0, times, rounding, **options):
    eager, eager_grads = run(net, y0, times, compile=False, **options)
    fast, fast_grads = run(net, y0, times, compile=True, **options)
    assert torch.equal(torch.as_tensor(fast.stats.accepted), torch.as_tensor(eager.stats.accepted))
    assert torch.equal(torch.as_tensor(fast.stats.rejected), torch.as_tensor(eager.stats.rejected))
    torch.testing.assert_close(fast.ys, eager.ys, rtol=rounding, atol=rounding)
    for ours, theirs in zip(fast_grads, eager_grads):
        torch.testing.assert_close(ours, theirs, rtol=50 * rounding, atol=50 * rounding * float(theirs.abs().max()))
    return fast


def test_compiles_once_for_a_shape():
    """Another batch, tolerance, time, number of steps, weight, or module of the same class compiles nothing anew."""
    trace._regions.clear()  # what other tests have compiled
    torch._dynamo.utils.counters.clear()
    made: list[int] = []
    original = programs.lowered

    def counting(graph, *rest):
        made.append(1)
        return original(graph, *rest)

    def layer(**options):
        shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        return ODEBlock(Net(), args=(shift,), method="heun", compile=True, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "lowered", counting)
        block, other = layer(rtol=1e-3), layer(t=(0.5, 3.0), rtol=1e-5, atol=1e-7, max_steps=900)
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        for batch in (8, 8, 4, 6):
            optimizer.zero_grad()
            block(torch.randn(batch, 3, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        other(torch.randn(7, 3, dtype=torch.float64)).sum().backward()
    assert len(made) == 2  # a forward and a backward loop
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert block.stats.steps != other.stats.steps
    assert not torch._dynamo.utils.counters["graph_break"]
    x = torch.randn(8, 3, dtype=torch.float64)
    assert_nothing_is_left(lambda: block(x).sum().backward())


METHODS_TRIED = [
    ("dopri5", torch.float64, 1e-12, {"rtol": 1e-6, "atol": 1e-8}),
    ("tsit5", torch.float32, 2e-6, {"controller": PID(rtol=1e-3, atol=1e-3, dt0=0.3)}),
    ("heun", torch.float64, 1e-12, {"rtol": 1e-4, "atol": 1e-5}),
    ("rk4", torch.float64, 1e-12, {"controller": Fixed(steps=7)}),
    ("bosh3", torch.float64, 1e-12, {"controller": PID(rtol=1e-5, p=0.4, i=0.3, d=0.1, dt0=0.1)}),
]


def slow_but(*kept):
    """The methods, those that are not among `kept` as slow tests: each compiles two programs."""
    return [case if case[0] in kept else pytest.param(*case, marks=pytest.mark.slow) for case in METHODS_TRIED]


@pytest.mark.parametrize(("method", "dtype", "rounding", "options"), slow_but("heun"))
def test_same_steps_states_and_gradients_as_eager(method, dtype, rounding, options):
    """The end alone is wanted, as in an ODE layer."""
    assert_same(Net(dtype=dtype), torch.randn(4, 3, dtype=dtype), TIMES[[0, 3]], rounding, method=method, **options)


@pytest.mark.parametrize(
    ("method", "dtype", "rounding", "options"),
    slow_but(),
)
def test_same_at_all_times_and_for_the_times(method, dtype, rounding, options):
    y0 = torch.randn(4, 3, dtype=dtype)
    assert_same(Net(dtype=dtype), y0, TIMES, rounding, timed=True, method=method, **options)


@pytest.mark.slow
def test_same_as_the_other_adjoints():
    net, y0 = Net(), torch.randn(4, 3, dtype=torch.float64)
    fast = run(net, y0, TIMES[[0, 3]], compile=True, method="dopri5", rtol=1e-9, atol=1e-11)[1]
    for adjoint, rtol in ((Direct(), 1e-10), (Backsolve(), 1e-5)):
        other = run(net, y0, TIMES[[0, 3]], compile=False, method="dopri5", rtol=1e-9, atol=1e-11, adjoint=adjoint)[1]
        for a, b in zip(fast, other):
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-8)


@pytest.mark.slow
def test_euler_with_step_one_is_a_residual_network():
    net = MLPField(4, activation="relu", time="add")
    y0 = torch.randn(3, 4)
    sol = solve(net, y0, [0.0, 3.0], method="euler", controller=Fixed(dt=1.0), compile=True)
    y = y0
    for t in range(3):
        y = y + net(torch.tensor(float(t)), y)
    torch.testing.assert_close(sol.ys[-1], y)
    assert sol.stats.nfe == 3


@pytest.mark.slow
def test_a_gradient_that_is_one_number_everywhere():
    """That of a sum is expanded, not stored; and more outputs than are taken up at a time."""
    net, times = Net(), torch.linspace(0, 1, 40, dtype=torch.float64)
    grads = []
    for compile in (False, True):
        y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
        solve(net, y0, times, (0.0,), method="dopri5", rtol=1e-6, compile=compile).ys.sum().backward()
        grads.append(y0.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-10)


def test_tanh_to_rounding():
    """The compiled engine computes tanh of float32 in its own way."""
    x = torch.tensor([0.0, -0.0, 1e-30, 1e-7, -1e-3, 0.3, -2.0, 9.5, 40.0, -1e30, math.inf, math.nan])
    torch.testing.assert_close(lower._tanh(x), torch.tanh(x), rtol=4e-7, atol=0, equal_nan=True)


@pytest.mark.slow
def test_more_steps_than_a_chunk_holds(monkeypatch):
    monkeypatch.setattr("odenets.engine.tensors.chunks.FEWEST", 3)
    monkeypatch.setattr("odenets.engine.tensors.chunks.MOST", 3)
    options = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-11, "timed": True}
    fast = assert_same(Net(), torch.randn(4, 3, dtype=torch.float64), TIMES, 1e-12, **options)
    assert fast.stats.accepted > 10


@pytest.mark.slow  # 40 s each; every day test_graph.py holds what is kept
@pytest.mark.parametrize(
    ("method", "times"),
    [
        pytest.param("dopri5", TIMES, id="dopri5-outputs"),
        pytest.param("rk4", TIMES[[0, 3]], id="rk4-end"),
        pytest.param("dopri5", TIMES[[0, 3]], id="dopri5-end"),
        pytest.param("rk4", TIMES, id="rk4-outputs"),
    ],
)
def test_a_hidden_layer_is_kept(method, times, monkeypatch):
    """The backward pass evaluates nothing, over several chunks and at another size of the batch."""
    monkeypatch.setattr("odenets.engine.tensors.chunks.FEWEST", 3)
    monkeypatch.setattr("odenets.engine.tensors.chunks.MOST", 3)
    options = {"controller": Fixed(steps=8)} if method == "rk4" else {"rtol": 1e-9, "atol": 1e-11}
    net = Net(width=6)
    for batch in (4, 7):
        y0 = torch.randn(batch, 6, dtype=torch.float64)
        fast = assert_same(net, y0, times, 1e-12, method=method, timed=True, **options)
        assert fast.stats.accepted > 7
        assert fast.stats.nfe_backward == 0


@pytest.mark.slow
def test_what_direct_keeps_has_the_batch_of_whatever_f_reaches():
    """Two sizes that are found to be one, of y and of a tensor among the arguments, are one symbol of two names."""
    field = MLPField(3, (6,), time="none").double()

    def on_gap(t, y, gap):
        return gap * field(t, y)

    for batch in (16, 11):
        y0, gap = torch.randn(batch, 3, dtype=torch.float64), torch.rand(batch, 1, dtype=torch.float64)
        found = []
        for compiled in (False, True):
            field.zero_grad()
            sol = solve(on_gap, y0, (0.0, 1.0), (gap,), adjoint=Direct(), compile=compiled, **EULER)
            sol.ys[-1].square().sum().backward()
            found.append([sol.ys, *(p.grad.clone() for p in field.parameters())])
        for ours, theirs in zip(*found):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_large_activations_are_made_again_but_with_direct(monkeypatch):
    monkeypatch.setattr("odenets.adjoint.checkpointed._SMALL", 7 * 4 * (6 + 5) * 8 - 1)  # bytes
    net, y0 = Net(width=6), torch.randn(4, 6, dtype=torch.float64)
    options = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8}
    fast = assert_same(net, y0, TIMES[[0, 3]], 1e-12, **options)
    assert fast.stats.nfe_backward == 6 * fast.stats.accepted
    fast = assert_same(net, y0, TIMES[[0, 3]], 1e-12, adjoint=Direct(), **options)
    assert fast.stats.nfe_backward == 0  # whatever the size


@pytest.mark.slow
@pytest.mark.parametrize("times", [TIMES[[0, 3]], TIMES], ids=["end", "outputs"])
def test_a_bounded_memory_gives_the_same_gradient(times):
    """Pieces of the solve are made again in the backward pass."""
    options = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-12, "timed": True}
    y0 = torch.randn(4, 3, dtype=torch.float64)
    fast = assert_same(Net(), y0, times, 1e-12, adjoint=Checkpointed(memory=20), **options)
    assert fast.stats.accepted > 20
    assert fast.stats.nfe_backward > 1.9 * fast.stats.nfe
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        run(Net(), y0, times, compile=True, adjoint=Checkpointed(memory=20), **options)
    assert sum(saved) < 20 * y0.numel() + 200  # the weights and the times among them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "times", "rtol"),
    [("heun", TIMES[[0, 3]], 1e-4), ("dopri5", TIMES, 1e-7)],
)
def test_each_sample_its_own_steps(method, times, rtol):
    net = Net()
    y0 = torch.randn(4, 3, dtype=torch.float64) * torch.tensor([0.1, 1, 5, 20], dtype=torch.float64)[:, None]
    fast = assert_same(net, y0, times, 1e-11, method=method, rtol=rtol, atol=rtol / 100, per_sample=True)
    assert len(set(fast.stats.accepted.tolist())) > 1


@pytest.mark.slow
def test_nests_and_backward_in_time():
    def f(t, state):
        return {"a": -state["b"] * t, "b": (state["a"][:, 0], state["c"])[0][:, None] * 2, "c": -state["c"]}

    y0 = {"a": torch.randn(2, 1), "b": torch.randn(2, 1), "c": torch.randn(3)}
    eager = solve(f, y0, [1.0, 0.3, 0.0], rtol=1e-5)
    fast = solve(f, y0, [1.0, 0.3, 0.0], rtol=1e-5, compile=True)
    for key in y0:
        torch.testing.assert_close(fast.ys[key], eager.ys[key])
    assert fast.stats.steps == eager.stats.steps


@pytest.mark.slow
def test_controllers_that_differ_in_more_than_their_tolerances_are_told_apart():
    net, y0 = Net(), torch.randn(4, 3, dtype=torch.float64)
    for controller in (PID(rtol=1e-5, dt0=0.1), PID(rtol=1e-5, dt0=0.1, p=0.4, i=0.3), PID(rtol=1e-5, dt0=0.05)):
        options = {"method": "bosh3", "controller": controller}
        with torch.no_grad():
            eager, fast = (solve(net, y0, [0.0, 1.0], (0.0,), compile=c, **options) for c in (False, True))
        assert fast.stats.steps == eager.stats.steps
        torch.testing.assert_close(fast.ys, eager.ys, rtol=1e-12, atol=1e-12)


def test_changed_python_values_are_noticed():
    class Scaled(nn.Module):
        scale = 1.0

        def forward(self, t, y):
            return -self.scale * y

    f, y0 = Scaled(), torch.ones(2, dtype=torch.float64)
    times = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)[::2]  # not one after the other in memory
    first, second = [], []
    for scale, ys in ((1.0, first), (4.0, second)):
        f.scale = scale
        ys += solve(f, y0, times, compile=True, **EULER).ys
    torch.testing.assert_close(first, [y0, y0 * 0.5, y0 * 0.5**2], rtol=1e-14, atol=0)
    torch.testing.assert_close(second, [y0, -y0, y0], rtol=1e-14, atol=0)  # 1 − 4/2 = −1


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "result"])
@pytest.mark.parametrize("route", ROUTES)
def test_the_tracer_finds_the_tensor(route, leaf, monkeypatch):
    """However f reaches it; what is found becomes an input of the loops, and gets its gradient."""
    base = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    weight = base if leaf else base * 1.0
    found = []
    capture = trace.traced_loops

    def only_capture(problem):
        engine = capture(problem)
        found.extend(engine.tensors[i] for i in engine.wanted)
        raise NotCompiled("this is enough")

    monkeypatch.setattr(trace, "traced_loops", only_capture)
    with pytest.warns(UserWarning, match="this is enough"):
        solve(ROUTES[route](weight), torch.ones(2, 1, dtype=torch.float64), [0.0, 1.0], compile=True)
    assert len(found) == 1
    assert found[0] is weight


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_numbers_written_into_the_field():
    """Constants, which PyTorch's compiler does not take inside a loop."""

    def f(t, y):
        turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=y.dtype)
        mask = torch.where(torch.tensor([True, False]), y, -0.5 * y)
        return y @ turn + mask[:, [1, 0]] * torch.as_tensor(0.3, dtype=y.dtype)

    grads = []
    for compile in (False, True):
        y0 = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64, requires_grad=True)
        sol = solve(f, y0, [0.0, 1.0], method="heun", rtol=1e-4, atol=1e-6, compile=compile)
        grads.append(torch.autograd.grad(sol.ys[-1].square().sum(), y0)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-11, atol=1e-11)


def test_a_field_that_cannot_be_traced_runs_eagerly_with_one_warning():
    def f(t, y):
        return -y if y.sum().item() > -1e9 else y

    y0 = torch.ones(2, requires_grad=True)
    with pytest.warns(UserWarning, match=r"could not be compiled.*eagerly.*reason") as caught:
        sol = solve(f, y0, [0.0, 1.0], compile=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = solve(f, y0, [0.0, 1.0], compile=True)
    assert torch.equal(sol.ys, again.ys)
    assert torch.equal(sol.ys, solve(f, y0, [0.0, 1.0]).ys)
    sol.ys.sum().backward()
    assert y0.grad is not None


@torch.library.custom_op("odenets_tests::negative", mutates_args=())
def negative(x: torch.Tensor) -> torch.Tensor:
    return -x


negative.register_fake(torch.empty_like)
negative.register_autograd(lambda ctx, bar: -bar)
UNCOMPILED = {
    "checkpoint": (lambda t, y: torch.utils.checkpoint.checkpoint(torch.sin, -y, use_reentrant=False), torch.float32),
    "operator": (lambda t, y: negative(y), torch.float32),
    "complex": (lambda t, y: 1j * y, torch.complex64),
}


WEIGHT = torch.tensor([0.3, -0.5, 0.7])


def energy(y):
    return torch.tanh(y * WEIGHT).sum()


def by_autograd(t, y):
    with torch.enable_grad():
        x = y if y.requires_grad else y.detach().requires_grad_()
        return -torch.autograd.grad(energy(x), x, create_graph=True)[0]


INSIDE = {
    "torch.func.grad": lambda t, y: -torch.func.grad(energy)(y),
    "vjp": lambda t, y: -torch.func.vjp(energy, y)[1](torch.ones(()))[0],
    "jvp": lambda t, y: torch.func.jvp(torch.tanh, (y,), (y,))[1],
    "vmap": lambda t, y: torch.func.vmap(torch.func.grad(energy))(y),
    "autograd.grad": by_autograd,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, in forward mode
@pytest.mark.parametrize("name", INSIDE)
def test_a_field_that_takes_derivatives_runs_eagerly_with_one_warning(name):
    def gradient(compile):
        y0 = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
        solve(INSIDE[name], y0, [0.0, 1.0], method="heun", compile=compile).ys.sum().backward()
        assert not transforms.active()
        return y0.grad

    with pytest.warns(UserWarning, match="could not be compiled.*torch.(func|autograd.grad)"):
        first = gradient(compile=True)
    again, eager = gradient(compile=True), gradient(compile=False)
    assert torch.equal(first, eager)
    assert torch.equal(again, eager)


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@pytest.mark.parametrize("name", UNCOMPILED)
def test_fields_that_run_eagerly_as_the_page_says(name):
    f, dtype = UNCOMPILED[name]
    y0 = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    with pytest.warns(UserWarning, match="could not be compiled"):
        sol = solve(f, y0, [0.0, 1.0], compile=True, **EULER)
    assert torch.equal(sol.ys, solve(f, y0, [0.0, 1.0], **EULER).ys)


def test_a_compiler_that_fails_later_runs_eagerly_with_one_warning():
    assert known.compiler() is not None  # it has been there
    rate = 3 + random.random()  # one that no cache has seen
    with torch._inductor.config.patch("cpp.cxx", ("/no/such/compiler",)), pytest.warns(UserWarning, match="compiler"):
        sol = solve(lambda t, y: -rate * y, torch.ones(2), [0.0, 1.0], compile=True, **EULER)
    torch.testing.assert_close(sol.ys[-1], torch.full((2,), (1 - rate / 2) ** 2))


def test_a_failing_solve_is_diagnosed_as_in_eager_mode():
    def blow_up(t, y):
        return y**2

    y0, times = torch.ones(3, dtype=torch.float64), [0.0, 0.5, 2.0]
    with pytest.raises(SolveError) as eager:
        solve(blow_up, y0, times, method="heun")
    with pytest.raises(SolveError) as fast:
        solve(blow_up, y0, times, method="heun", compile=True)
    assert str(fast.value) == str(eager.value)
    partial = solve(blow_up, y0, times, method="heun", compile=True, on_failure="status")
    assert torch.isfinite(partial.ys[1]).all()
    assert torch.isnan(partial.ys[2]).all()


def test_too_few_steps_are_said_as_in_eager_mode():
    y0, options = torch.ones(4, 3, dtype=torch.float64), {"method": "heun", "rtol": 1e-6, "max_steps": 5}
    said = []
    for compile in (False, True):
        with pytest.raises(SolveError) as error:
            run(Net(), y0, TIMES[[0, 3]], compile, **options)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_wrong_output_is_refused():
    with pytest.warns(UserWarning, match="could not be compiled"), pytest.raises(ValueError, match="must return"):
        solve(lambda t, y: y[:1], torch.ones(3), [0.0, 1.0], compile=True)


@pytest.mark.parametrize("options", [{"dense": True}, {"adjoint": Backsolve()}])
def test_options_that_do_not_go_together(options):
    with pytest.raises(TypeError, match="compile=True"):
        solve(lambda t, y: -y, torch.ones(3), [0.0, 1.0], compile=True, **options)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Direct()])
def test_second_derivative_is_refused(adjoint):
    y0 = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    sol = solve(Net(), y0, [0.0, 1.0], (shift,), compile=True, adjoint=adjoint, method="heun")
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(sol.ys.sum(), y0, create_graph=True)


def test_a_step_keeps_no_more_than_its_reverse_reads():
    """f at the end of a step is for what lies inside of it: outputs, and dense output."""
    plan = Plan(METHODS["rk4"], Fixed(steps=1), per_sample=False, keep=True, outputs=False, parts=True, timed=False)
    y = torch.zeros(2, 3)
    for given, states in ((plan, 5), (replace(plan, outputs=True), 6), (replace(plan, dense=True), 6)):
        kept = Buffers.empty(given, y, 7).tensors[1:]  # the times aside
        assert sum(x.numel() for x in kept) == 7 * states * y.numel()
        assert given.row_bytes(y) == states * y.nbytes
