"""Solves on a GPU: `make test-cuda`. As on the CPU to rounding, without a wait that a step does not need."""

import copy
import os
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from odenets import (
    METHODS,
    PID,
    Backsolve,
    Checkpointed,
    Direct,
    Fixed,
    Interpolated,
    ReplayError,
    Reversible,
    SolveError,
    check_gradient,
    diagnose,
    solve,
    tune,
)
from odenets.methods import ANY_SYSTEM
from odenets.nn import CNF, ConcatSquashField, ImplicitLayer, MLPField, ODEBlock
from odenets.torchdiffeq import odeint, odeint_adjoint, odeint_event
from odenets.train import TrainConfig, fit
from problems import Net

pytestmark = pytest.mark.cuda
DEVICE = os.environ.get("ODENETS_TEST_DEVICE", "cuda")  # "cpu": the tests themselves are tried
METHOD = pytest.mark.parametrize("method", [METHODS[name] for name in ANY_SYSTEM], ids=ANY_SYSTEM)
ADJOINTS = [Direct(), Checkpointed(), Checkpointed(memory=3), Interpolated(), Backsolve(), Reversible()]
TIMES = [0.0, 0.3, 0.3, 1.0]


def options(method):
    if method.adaptive:
        return {"method": method, "rtol": 1e-6, "atol": 1e-8}
    return {"method": method, "controller": Fixed(steps=6)}


def gradients(device, adjoint, t_device=None, **solve_options):
    """The states, and the gradients to the state, the weights, an argument and the times, on the CPU."""
    net = Net().to(device)
    torch.manual_seed(1)
    y0 = torch.randn(4, 3, dtype=torch.float64).to(device).requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, device=device, requires_grad=True)
    t = torch.tensor(TIMES, dtype=torch.float64, device=t_device or device, requires_grad=True)
    solution = solve(lambda t, y, scale: net(t, y) * scale, y0, t, args=(scale,), adjoint=adjoint, **solve_options)
    if t_device is None:
        assert solution.ys.device.type == torch.device(device).type
    loss = (solution.ys.sin() * torch.arange(4.0, device=device).reshape(-1, 1, 1)).sum()
    found = torch.autograd.grad(loss, [y0, scale, t, *net.parameters()])
    return [solution.ys.detach().cpu(), *(g.cpu() for g in found)]


def close(one, other, tol=1e-9):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@METHOD
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_values_and_gradients_are_those_of_the_cpu(method, adjoint):
    # The size of an adaptive step is a matter of rounding too, where the error is as small.
    there, here = (gradients(device, adjoint, **options(method)) for device in (DEVICE, "cpu"))
    close(there, here, tol=1e-7 if method.adaptive else 1e-9)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(memory=3)], ids=repr)
def test_a_step_size_for_each_sample(adjoint):
    there, here = (gradients(device, adjoint, per_sample=True, rtol=1e-6, atol=1e-8) for device in (DEVICE, "cpu"))
    close(there, here)


@pytest.mark.parametrize("t_device", ["cpu", DEVICE])
def test_times_on_either_device(t_device):
    close(gradients(DEVICE, Checkpointed(), t_device), gradients("cpu", Checkpointed()))


FIELD = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def waits(function):
    """How often the host waits for the device in a call."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("called a synchronizing" in str(warning.message) for warning in told)


def waits_a_step(function):
    """The waits of a step: what 30 steps have more than 10, by 20."""
    function(10)
    return (waits(lambda: function(30)) - waits(lambda: function(10))) / 20


SOLVES = {
    "fixed": lambda n: {"method": "rk4", "controller": Fixed(steps=n)},
    "adaptive": lambda n: {"method": "dopri5", "controller": PID(dt0=1 / n, dt_max=1 / n)},
    "per sample": lambda n: {"controller": PID(dt0=1 / n, dt_max=1 / n), "per_sample": True},
}


@pytest.mark.skipif(DEVICE == "cpu", reason="counts waits for a GPU")
@pytest.mark.parametrize(
    ("kind", "adjoint", "most"),
    [
        *(("fixed", adjoint, 0) for adjoint in (None, *ADJOINTS[:3])),
        *(("adaptive", adjoint, 1) for adjoint in (None, *ADJOINTS[:3])),
        ("per sample", None, 1.1),  # one more for each chunk of steps
        ("per sample", Checkpointed(), 2.1),  # as many on the way back
    ],
    ids=str,
)
def test_the_host_waits_once_a_step_at_most(kind, adjoint, most):
    field = copy.deepcopy(FIELD).to(DEVICE)

    def step(n):
        y0 = torch.ones(5, 4, device=DEVICE, requires_grad=adjoint is not None)
        given = {"adjoint": adjoint} if adjoint is not None else {}
        with torch.set_grad_enabled(adjoint is not None):
            ys = solve(lambda t, y: field(y), y0, [0.0, 1.0], **SOLVES[kind](n), **given).ys
        if adjoint is not None:
            ys.sum().backward()

    assert waits_a_step(step) <= most


@pytest.mark.skipif(DEVICE == "cpu", reason="captures the work of a GPU")
def test_fixed_steps_in_a_captured_graph():
    """A sampler in a CUDA graph: nothing in it waits, and the replay computes with the new contents."""
    field = copy.deepcopy(FIELD).to(DEVICE)
    y0 = torch.ones(5, 4, device=DEVICE)

    def sample():
        return solve(lambda t, y: field(y), y0, [0.0, 1.0], method="euler", controller=Fixed(steps=10)).ys

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            sample()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = sample()
        y0.mul_(2)
        graph.replay()
        torch.testing.assert_close(captured, sample())


@pytest.mark.skipif(DEVICE == "cpu", reason="captures the work of a GPU")
@pytest.mark.filterwarnings("ignore:The AccumulateGrad")  # of torch's own calls before the capture, on another stream
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=repr)
def test_a_layer_in_a_captured_graph(adjoint):
    """Forward and backward pass, as `torch.cuda.make_graphed_callables` makes of a layer."""
    block = ODEBlock(MLPField(4, hidden=(8,)), method="rk4", controller=Fixed(steps=4), adjoint=adjoint).to(DEVICE)
    x = torch.randn(16, 4, device=DEVICE, requires_grad=True)
    plain: Any = copy.deepcopy(block)
    graphed: Any = torch.cuda.make_graphed_callables(block, (x,))  # changes `block` itself
    close(*(torch.autograd.grad(f(x).sin().sum(), [x, *f.parameters()]) for f in (graphed, plain)), tol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="captures the work of a GPU")
@pytest.mark.parametrize(("t", "message"), [([0.0, 1.0], "Fixed"), (torch.tensor([0.0, 1.0]), "numbers")], ids=str)
def test_what_no_graph_captures(t, message):
    y0, graph = torch.ones(3, device=DEVICE), torch.cuda.CUDAGraph()
    t = t.to(DEVICE) if isinstance(t, torch.Tensor) else t
    with torch.cuda.graph(graph):
        y0 = y0 * 2  # torch warns of an empty graph
        with pytest.raises(RuntimeError, match=message):
            solve(lambda t, y: -y, y0, t)


@pytest.mark.skipif(DEVICE == "cpu", reason="measures a GPU's memory")
@pytest.mark.parametrize(
    ("adjoint", "grows"), [(Direct(), True), (Checkpointed(memory=4), False), (Backsolve(), False)]
)
def test_memory_over_steps(adjoint, grows):
    field = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256)).to(DEVICE)

    def peak(steps):
        y0 = torch.ones(4096, 256, device=DEVICE, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ys = solve(
            lambda t, y: field(y), y0, [0.0, 1.0], method="rk4", controller=Fixed(steps=steps), adjoint=adjoint
        ).ys
        ys.sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak(8)
    few, many = peak(8), peak(64)
    assert (many > 4 * few) if grows else (many < 1.2 * few), (few, many)


@pytest.mark.skipif(DEVICE == "cpu", reason="measures a GPU's memory")
def test_sampling_keeps_no_state():
    def peak(steps):
        y0 = torch.ones(2**20, device=DEVICE)
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            solve(lambda t, y: -y, y0, [0.0, 1.0], method="euler", controller=Fixed(steps=steps))
        return torch.cuda.max_memory_allocated()

    assert peak(100) == peak(10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64], ids=str)
def test_dtypes(dtype):
    y0 = torch.ones(3, dtype=dtype, device=DEVICE)
    adaptive: Any = PID(rtol=2e-2, atol=1e-3) if dtype.itemsize == 2 else PID()
    fixed: Any = {"method": "rk4", "controller": Fixed(steps=4)}
    for given in ({"controller": adaptive}, {"controller": adaptive, "per_sample": True}, fixed):
        found = solve(lambda t, y: -y, y0, [0.0, 1.0], **given).ys[-1].abs().double().cpu()
        torch.testing.assert_close(found, torch.full((3,), 0.36787944117, dtype=torch.float64), rtol=3e-2, atol=1e-2)


def test_a_time_that_float16_cannot_hold():
    """It is infinite, on every device, for a field that does not ask for it."""
    y0 = torch.zeros(1, dtype=torch.float16, device=DEVICE)
    for given in ({"rtol": 1e-2, "atol": 1e-2}, {"method": "rk4", "controller": Fixed(steps=4)}):
        assert solve(lambda t, y: 1 - y, y0, [1e5, 1e5 + 1], **given).ys[-1].item() == pytest.approx(0.632, abs=2e-2)


def test_autocast():
    torch.manual_seed(0)
    block = ODEBlock(MLPField(4, hidden=(8,)), method="rk4", controller=Fixed(steps=4)).to(DEVICE)
    x = torch.randn(16, 4, device=DEVICE)
    exact = block(x)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = block(x)
    (found.float() ** 2).sum().backward()
    torch.testing.assert_close(found.float(), exact, rtol=5e-2, atol=5e-2)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_random_fields():
    """Dropout: `Direct` draws as it goes, from the device's generator; a replay that differs is refused."""
    field = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 4)).to(DEVICE)
    y0 = torch.ones(5, 4, device=DEVICE, requires_grad=True)

    def states(adjoint):
        torch.manual_seed(3)
        return solve(
            lambda t, y: field(y), y0, [0.0, 1.0], method="euler", controller=Fixed(steps=3), adjoint=adjoint
        ).ys[-1]

    torch.manual_seed(3)
    y = y0
    for _ in range(3):
        y = y + field(y) / 3
    torch.testing.assert_close(states(Direct()), y)
    with pytest.raises(ReplayError, match="random numbers"):
        states(Checkpointed()).sum().backward()


def test_failures_are_told():
    y0 = torch.ones(2, device=DEVICE)
    with pytest.raises(SolveError, match="DIVERGED"):
        solve(lambda t, y: y**2, y0, [0.0, 2.0])
    with pytest.raises(ValueError, match="device"):
        solve(lambda t, y: (-y).to("meta"), y0, [0.0, 1.0])


def test_compiled():
    """Compiled, or eagerly after one warning: the same."""
    net = Net().to(DEVICE)
    y0 = torch.randn(4, 3, dtype=torch.float64, device=DEVICE)
    found = []
    for compile in (False, True):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for p in net.parameters():
                p.grad = None
            ys = solve(net, y0, [0.0, 0.5, 1.0], rtol=1e-6, atol=1e-8, compile=compile).ys
            ys.sin().sum().backward()
        assert len([w for w in told if "eagerly" in str(w.message)]) <= 1
        found.append([ys.detach(), *(p.grad for p in net.parameters())])
    close(*found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # some versions of the compiler give it at their import
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_in_somebody_elses_graph():
    block = ODEBlock(MLPField(4, hidden=(8,)), method="rk4", controller=Fixed(steps=4)).to(DEVICE)
    x = torch.randn(16, 4, device=DEVICE)
    torch.testing.assert_close(torch.compile(block)(x), block(x))


def test_drop_in():
    y0 = torch.ones(3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    decay = nn.Linear(3, 3, bias=False, dtype=torch.float64).to(DEVICE)
    nn.init.eye_(decay.weight).data.neg_()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.decay = decay

        def forward(self, t, y):
            return self.decay(y)

    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, device=DEVICE)
    exact = torch.exp(-t)[:, None].expand(-1, 3)
    for method in ("dopri5", "rk4", "implicit_adams", "scipy_solver"):
        step_size = {"step_size": 0.05} if method in ("rk4", "implicit_adams") else {}
        options: Any = {"solver": "RK45"} if method == "scipy_solver" else step_size
        with torch.no_grad():
            found = odeint(Field(), y0, t, method=method, options=options)
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    odeint_adjoint(Field(), y0, t)[-1].sum().backward()
    torch.testing.assert_close(y0.grad, exact[-1], rtol=1e-5, atol=1e-5)
    event_t, states = odeint_event(Field(), y0, t[0], event_fn=lambda t, y: y[0] - 0.5)
    assert event_t.device.type == states.device.type == torch.device(DEVICE).type
    assert float(event_t.detach()) == pytest.approx(0.6931471806, abs=1e-5)


def test_layers():
    torch.manual_seed(0)
    flow = CNF(ConcatSquashField(2, hidden=(8,)), width=2).to(DEVICE)
    drawn = flow.sample(7)
    assert drawn.device.type == torch.device(DEVICE).type
    flow.log_prob(drawn).sum().backward()
    here = copy.deepcopy(flow).cpu()
    torch.testing.assert_close(flow.log_prob(drawn).cpu(), here.log_prob(drawn.cpu()), rtol=1e-4, atol=1e-4)
    for method in ("newton", "anderson", "broyden"):
        layer = ImplicitLayer(lambda x, y: y - torch.cos(y) / 2 - x, method=method)
        x = torch.linspace(-1, 1, 6, device=DEVICE)[:, None].requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y - torch.cos(y) / 2, x.detach(), rtol=1e-5, atol=1e-5)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(slope, 1 / (1 + torch.sin(y.detach()) / 2), rtol=1e-4, atol=1e-4)


def test_reports():
    torch.manual_seed(0)
    block = ODEBlock(MLPField(4, hidden=(8,))).to(DEVICE)
    batch = torch.randn(16, 4, device=DEVICE)
    assert diagnose(block, batch, verbose=False).nfe > 0
    assert tune(block, batch, compile=False, rounds=2, seconds=0.5, verbose=False)
    net = Net().to(DEVICE)
    y0 = torch.randn(2, 3, dtype=torch.float64, device=DEVICE)
    check_gradient(net, y0, [0.0, 1.0], repeats=2, verbose=False)


def test_training_goes_on_after_a_stop(tmp_path):
    """Twice three epochs and six in one are the same, on the device that `auto` finds."""
    x = torch.randn(64, 4)
    data = (x, (x.sum(1) > 0).long())

    def network():
        torch.manual_seed(0)
        return nn.Sequential(ODEBlock(MLPField(4, hidden=(8,))), nn.Linear(4, 2))

    def train(net, epochs, folder, resume):
        config = TrainConfig(epochs=epochs, batch_size=16, lr=0.05, device="auto" if DEVICE == "cuda" else DEVICE)
        given = {"folder": folder, "name": "net", "resume": resume, "progress": False}
        return fit(net, nn.CrossEntropyLoss(), train=data, test=data, config=config, **given)

    whole, cut = network(), network()
    train(whole, 6, tmp_path / "whole", False)
    train(cut, 6, tmp_path / "cut", False)
    assert next(whole.parameters()).device.type == torch.device(DEVICE).type
    close(whole.parameters(), cut.parameters(), tol=1e-5)
