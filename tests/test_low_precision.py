"""States in half precision: f in their dtype, all else in float32."""

import math

import pytest
import torch
from torch import nn

from odenets import PID, Backsolve, Checkpointed, Direct, Event, Fixed, Interpolated, Reversible, SolveError, solve

HALVES = [torch.float16, torch.bfloat16]
HALF = pytest.mark.parametrize("dtype", HALVES, ids=str)
ADJOINTS = [Checkpointed(), Checkpointed(memory=4), Direct(), Interpolated(), Backsolve(), Reversible()]
D = torch.float64


def eps(dtype):
    return torch.finfo(dtype).eps


def turn(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], -1)


@HALF
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "dopri8"}, {"per_sample": True}, {"method": "euler", "controller": Fixed(steps=800)}],
    ids=["tsit5", "dopri8", "per sample", "euler"],
)
def test_what_the_dtype_can_hold_is_reached(dtype, sign, options):
    """Of 800 steps of Euler's each adds less than the rounding of bfloat16 to the state."""
    seen = set()

    def f(t, y):
        seen.add((t.dtype, y.dtype))
        return turn(t, y)

    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=dtype)
    sol = solve(f, y0, (0.0, sign * 1.0, sign * 2.0), **options)
    angles = torch.tensor([0.0, sign * 1.0, sign * 2.0], dtype=D)
    one = torch.stack([angles.cos(), -angles.sin()], -1)
    exact = torch.stack([one, 2 * torch.stack([angles.sin(), angles.cos()], -1)], 1)
    assert sol.ys.dtype == dtype
    assert seen == {(dtype, dtype)}
    assert float((sol.ys.double() - exact).abs().max()) < 4 * eps(dtype) + (5e-3 if "controller" in options else 0)
    assert torch.as_tensor(sol.stats.steps).max() <= 800


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: repr(a).partition(", ")[0])
def test_gradients_are_those_of_float64(dtype, adjoint):
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    start = torch.rand(5, 3, dtype=D)
    found = []
    for kind in (dtype, D):
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(kind)
        net.load_state_dict(reference.state_dict())
        y0 = start.to(kind).requires_grad_()
        t = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)
        ys = solve(lambda t, y, net=net: net(y) + t, y0, t, adjoint=adjoint if kind is dtype else Direct()).ys
        grads = torch.autograd.grad(ys[-1].double().pow(2).sum(), [y0, t, *net.parameters()])
        assert [g.dtype for g in grads] == [kind, D, *[kind] * 4]
        found.append([g.double() for g in grads])
    for half, exact in zip(*found):
        assert float((half - exact).norm() / exact.norm()) < 12 * eps(dtype)


MANY_STEPS = [
    {"method": "euler", "controller": Fixed(steps=1000)},
    {"method": "euler", "controller": Fixed(steps=1000), "adjoint": Checkpointed(activations="20 kB")},
    {"method": "bosh3", "controller": PID(1e-2, 1e-2, dt_max=1 / 300), "per_sample": True},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("options", MANY_STEPS, ids=["all kept", "some kept", "per sample"])
def test_the_gradient_of_many_steps_is_added_up_in_float32(dtype, options):
    """Steps each of which gives less than the rounding of their sum."""
    rate = torch.ones((), dtype=dtype, requires_grad=True)
    ys = solve(lambda t, y, rate: 0 * y + rate, torch.zeros(1, dtype=dtype), (0.0, 1.0), (rate,), **options).ys
    ys[-1].backward()
    assert abs(float(ys[-1].detach()) - 1) <= 4 * eps(dtype)
    assert abs(float(rate.grad) - 1) <= 4 * eps(dtype)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(activations="20 kB"), Direct()], ids=repr)
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.5, 1.0)], ids=["straight", "outputs"])
def test_so_is_that_of_a_weight_which_autocast_casts(adjoint, times):
    """y' = −w y has ∂y(1)/∂w = −e^(−w)."""
    weight = torch.full((1, 1), 0.5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        options = {"method": "euler", "controller": Fixed(steps=1000), "adjoint": adjoint}
        ys = solve(lambda t, y: -nn.functional.linear(y, weight), torch.ones(1, 1), times, **options).ys
    ys[-1].sum().backward()
    assert abs(float(weight.grad) + math.exp(-0.5)) <= eps(torch.bfloat16)


@HALF
def test_nests_shapes_dense_output_events_and_norms(dtype):
    def f(t, y):
        return {"a": -y["a"], "b": [y["a"].sum() + 0 * y["b"][0]]}

    y0 = {"a": torch.ones(2, 0, dtype=dtype), "b": [torch.ones((), dtype=dtype)]}
    assert solve(f, y0, (0.0, 1.0)).ys["a"].shape == (2, 2, 0)
    y0["a"] = torch.ones(2, 1, dtype=dtype)
    controller = PID(1e-2, {"a": 1e-3, "b": 1e-2}, norm=lambda e: e["a"].abs().max())
    sol = solve(f, y0, (0.0, 1.0), controller=controller, dense=True)
    assert sol(0.5)["a"].dtype == sol.ys["b"][0].dtype == dtype
    assert float((sol(0.5)["a"].double() - math.exp(-0.5)).abs().max()) < 4 * eps(dtype)
    half = Event(lambda t, y: y["a"][0, 0] - 0.5)
    ended = solve(f, y0, (0.0, 3.0), event=half, controller=controller)
    assert abs(float(ended.events[0].t[0]) - math.log(2.0)) < 4 * eps(dtype)
    assert ended.events[0].y["a"].dtype == dtype
    doubled = Event(lambda t, y: y[0] - 0.5, jump=lambda t, y: 2 * y)
    ys = solve(lambda t, y: -y, torch.ones(1, dtype=dtype), (0.0, 1.0), event=doubled).ys
    assert abs(float(ys[-1]) - 2 * math.exp(-1.0)) < 4 * eps(dtype)
    for shape in ((), (1,), (0,), (2, 1, 1)):
        ys = solve(lambda t, y: -y, torch.ones(shape, dtype=dtype), (0.0, 1.0), method="trbdf2").ys
        assert ys.dtype == dtype
        assert torch.allclose(ys[-1].double(), torch.tensor(math.exp(-1.0), dtype=D), atol=4 * eps(dtype))


def test_what_is_refused_of_half_precision():
    y0 = torch.ones(2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"times the accuracy that y's dtype torch.bfloat16 can .* `rtol=4e-03`"):
        solve(lambda t, y: -y, y0, (0.0, 1.0), rtol=1e-5)
    with pytest.raises(TypeError, match=r"`f` must return y's dtype torch.bfloat16, returned torch.float32"):
        solve(lambda t, y: -y.float(), y0, (0.0, 1.0))
    with pytest.raises(ValueError, match=r"depends on t, which it gets in y's dtype torch.bfloat16"):
        solve(lambda t, y: -y * t, y0, (1e4, 1e4 + 1.0))
    with pytest.raises(SolveError, match=r"NON_FINITE_FIELD"):
        solve(lambda t, y: 6e4 * y * y, 3 * y0.half(), (0.0, 1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert solve(lambda t, y: -(y.float()), y0, (0.0, 1.0)).ys.dtype == torch.bfloat16


@pytest.mark.slow
@HALF
def test_compiled_as_eager(dtype):
    torch.manual_seed(0)
    net = nn.Linear(2, 2).to(dtype)
    found = []
    for compiled in (False, True):
        y0 = torch.ones(3, 2, dtype=dtype, requires_grad=True)
        many = {"method": "euler", "controller": Fixed(steps=1000)}
        ys = solve(lambda t, y: torch.tanh(net(y)), y0, (0.0, 0.5, 1.0), compile=compiled, **many).ys
        found.append([ys.double(), *(g.double() for g in torch.autograd.grad(ys[-1].sum(), [y0, *net.parameters()]))])
    for one, other in zip(*found):
        assert torch.allclose(one, other, atol=12 * eps(dtype))


@pytest.mark.slow
@HALF
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_compiles(dtype, inside):
    """In f or around the solve: as far from the gradients of float32 as the eager solve is, and no further."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 64), nn.LayerNorm(64), nn.Softplus(), nn.Linear(64, 40))
    start = torch.randn(32, 40)

    def found(cast, **options):
        def f(t, y):
            with torch.autocast("cpu", dtype=dtype, enabled=cast and inside):
                return net(y).float() if inside else net(y)

        y0 = start.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=cast and not inside):
            ys = solve(f, y0, (0.0, 1.0), method="rk4", controller=Fixed(steps=3), **options).ys
        return [ys, *torch.autograd.grad(ys[-1].square().sum(), [y0, *net.parameters()])]

    for exact, eager, ours in zip(found(False), found(True), found(True, compile=True)):
        assert (eager - exact).abs().max() > 0
        assert (ours - exact).abs().max() < 1.5 * (eager - exact).abs().max() + eps(torch.float32) * exact.abs().max()
