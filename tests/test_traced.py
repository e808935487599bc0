"""A solve inside somebody else's graph: torch.compile of a model, torch.export, ONNX."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from odenets import Fixed, Reversible, solve
from odenets.engine.compile import known
from odenets.nn import MLPField, ODEBlock

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def model(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), ODEBlock(MLPField(8, (9,)), **options), nn.Linear(8, 2))


def gradients(network, x):
    network.zero_grad()
    network(x).square().sum().backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "heun", "rtol": 1e-2},
        {"method": "rk4", "controller": Fixed(steps=3), "t": (0.0, 0.4, 1.0), "last": True},
    ],
)
def test_a_model_with_an_ode_layer_compiles_to_one_graph(options):
    network, x = model(**options), torch.randn(5, 3)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))
    for ours, eager in zip(gradients(compiled, x), gradients(network, x)):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "gl4"}, "an implicit method iterates"),
        ({"method": "rk4", "adjoint": Reversible()}, "adjoints have their own backward pass"),
    ],
)
def test_what_no_graph_holds_is_refused_there_with_its_reason(options, why):
    traced = torch.compile(model(controller=Fixed(steps=2), **options), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=why):
        traced(torch.ones(5, 3))


class Named:
    """A backend that says it is PyTorch's own compiler, and compiles nothing."""

    __name__ = "inductor"

    def __call__(self, module, _):
        return module


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's tracer looks at it wherever a graph has ended
@pytest.mark.parametrize(("backend", "compiles"), [(Named(), True), ("eager", False)])
def test_adaptive_steps_are_left_to_the_own_loops_where_the_graph_may_end(monkeypatch, backend, compiles):
    asked = []
    monkeypatch.setattr(known, "compiler", lambda: asked.append(True))  # and has none: the solve runs eagerly
    network, x = model(rtol=1e-2), torch.randn(5, 3)
    compiled = torch.compile(network, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), network(x))
    for ours, eager in zip(gradients(compiled, x), gradients(network, x)):
        torch.testing.assert_close(ours, eager)
    assert network[1].stats.nfe > 0
    assert bool(asked) is compiles


def test_fixed_steps_stay_in_the_graph_though_it_may_end():
    network, x = model(method="rk4", controller=Fixed(steps=2)), torch.randn(5, 3)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(network, backend="aot_eager")
    for ours, eager in zip(gradients(compiled, x), gradients(network, x)):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_model_with_adaptive_steps_compiled_by_parts():
    network, x = model(), torch.randn(5, 3)
    compiled = torch.compile(network)
    for ours, eager in zip(gradients(compiled, x), gradients(network, x)):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    gradients(compiled, x)
    assert (network[1].stats.kept, network[1].stats.nfe_backward) == (network[1].stats.accepted, 0)


@pytest.mark.slow
def test_adaptive_steps_inside_a_graph_of_inductor():
    """Without gradients and layers around it: most of the time is inductor's, for each operation."""

    def last(y):
        return solve(lambda t, y: -t * y, y, [0.0, 1.0], method="heun").ys[-1]

    y0 = torch.ones(2)
    torch.testing.assert_close(torch.compile(last, fullgraph=True)(y0), last(y0))


def test_states_between_are_those_of_steps_that_end_there():
    def f(t, y):
        return -y * t

    traced = torch.compile(
        lambda y: solve(f, y, [0.0, 0.0, 0.5, 1.0], method="bosh3", rtol=1e-6).ys, fullgraph=True, backend="eager"
    )
    y0 = torch.ones(2, dtype=torch.float64)
    exact = torch.exp(-(torch.tensor([0, 0, 0.5, 1.0], dtype=torch.float64) ** 2) / 2)[:, None] * y0
    torch.testing.assert_close(traced(y0), exact, rtol=1e-5, atol=0)


def test_a_failure_inside_a_graph_is_nan():
    traced = torch.compile(
        lambda y: solve(lambda t, y: y**2, y, [0.0, 2.0], method="heun").ys, fullgraph=True, backend="eager"
    )
    assert torch.isnan(traced(torch.ones(2))[-1]).all()


def test_each_sample_its_own_steps_inside_a_graph():
    rates = torch.tensor([[1.0], [30.0]], dtype=torch.float64)

    def last(y):
        return solve(lambda t, y: -rates * y, y, [0.0, 1.0], method="heun", rtol=1e-3, per_sample=True).ys[-1]

    y0, other = torch.ones(2, 1, dtype=torch.float64).requires_grad_(), torch.ones(2, 1, dtype=torch.float64)
    (traced,) = torch.autograd.grad(torch.compile(last, fullgraph=True, backend="eager")(y0).sum(), y0)
    (eager,) = torch.autograd.grad(last(other.requires_grad_()).sum(), other)
    torch.testing.assert_close(traced, eager, rtol=1e-9, atol=1e-12)


def test_dense_output_is_refused_inside_a_graph():
    network = model(method="rk4", controller=Fixed(steps=2)).eval()
    solver = network[1]
    solver.forward = lambda x: solve(solver.field, x, [0.0, 1.0], controller=Fixed(steps=2), dense=True).ys[-1]
    with pytest.raises(TypeError, match="`dense=True` does not go with the graph"):
        torch.export.export(network, (torch.ones(2, 3),))


def test_export_of_fixed_steps_for_any_batch():
    network, x = model(method="rk4", controller=Fixed(steps=3)).eval(), torch.randn(5, 3)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    other = torch.randn(11, 3)
    torch.testing.assert_close(exported.module()(other), network(other))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="adaptive", marks=pytest.mark.slow),
        pytest.param({"method": "rk4", "controller": Fixed(steps=3)}, id="fixed"),
    ],
)
def test_onnx_gives_the_same_numbers(tmp_path, options):
    network, x = model(**options).eval(), torch.randn(5, 3)
    path, batch = tmp_path / "model.onnx", torch.export.Dim("batch", min=2)
    torch.onnx.export(network, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = torch.randn(9, 3)
    (output,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    np.testing.assert_allclose(output, network(other).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_too_many_fixed_steps_are_refused():
    network = model(method="rk4", controller=Fixed(dt=1e-5)).eval()
    with pytest.raises(ValueError, match="too many to be laid out"):
        torch.export.export(network, (torch.ones(2, 3),))
