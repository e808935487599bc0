"""What an eager `Checkpointed` keeps beside its states: the graph of the first steps, as far as room goes."""

import math

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from odenets import PID, Backsolve, Checkpointed, Direct, Event, Fixed, solve
from problems import Net

D = torch.float64
FORWARD, BACKWARD = [0.0, 0.0, 0.3, 0.55, 0.55, 2.0], [2.0, 0.4, 0.0, 0.0]


def gradients(adjoint, times=FORWARD, dtype=D, y0_too=True, again=False, **options):
    torch.manual_seed(0)
    net = Net().to(dtype)
    y0 = torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3).requires_grad_(y0_too)
    scale = torch.tensor(0.8, dtype=dtype, requires_grad=True)
    sol = solve(lambda t, y, s: net(t, y) * s.cos(), y0, times, (scale * 1.0,), adjoint=adjoint, **options)
    weight = torch.linspace(-1, 2, sol.ys.numel(), dtype=dtype).reshape(sol.ys.shape).cos()
    loss = (sol.ys.sin() * weight).sum()
    wrt = [*([y0] if y0_too else []), scale, *net.parameters()]
    for _ in range(2 if again else 1):
        grads = torch.autograd.grad(loss, wrt, retain_graph=again)
    return grads, sol.stats


METHODS = {
    "tsit5": {"controller": PID(dt_max=0.25)},
    "dopri8": {"controller": PID(dt_max=0.25)},
    "heun": {"controller": Fixed(dt=0.21)},
    "abm4": {"controller": Fixed(dt=0.11)},
    "adams": {"rtol": 1e-4, "atol": 1e-6},
}
ROOMS = {"none": 0, "little": "2 kB", "some": 6_000, "all": None}


@pytest.mark.parametrize("times", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_direct(method, room, times):
    expected, _ = gradients(Direct(), times, method=method, **METHODS[method])
    found, stats = gradients(Checkpointed(activations=ROOMS[room]), times, method=method, **METHODS[method])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert stats.kept == {"none": 0, "all": stats.accepted}.get(room, stats.kept)
    if room == ("little" if method in ("heun", "abm4") else "some"):
        assert 0 < stats.kept < stats.accepted
    assert (stats.nfe_backward == 0) == (stats.kept == stats.accepted)


@pytest.mark.parametrize("y0_too", [True, False])
@pytest.mark.parametrize("memory", [None, 3])
def test_with_jumps_and_few_states(memory, y0_too):
    options = {"jumps": [0.3, 1.1], "stops": [0.7], "controller": PID(dt_max=0.25), "y0_too": y0_too}
    expected, _ = gradients(Direct(), **options)
    found, stats = gradients(Checkpointed(memory, activations=12_000), **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert 0 < stats.kept < stats.accepted


def test_without_room_for_activations_by_a_bound_on_memory():
    assert gradients(Checkpointed(3))[1].kept == 0


@pytest.mark.parametrize("room", [0, 6_000, None])
def test_a_second_backward_pass_makes_the_steps_again(room):
    once, _ = gradients(Checkpointed(activations=room))
    twice, stats = gradients(Checkpointed(activations=room), again=True)
    torch.testing.assert_close(twice, once, rtol=1e-12, atol=1e-14)
    assert stats.nfe_backward >= 6 * stats.accepted


def test_the_room_is_kept_to():
    """Of what autograd keeps between the passes, beside the states."""
    y0, net = torch.ones(50, 3, dtype=D, requires_grad=True), Net()

    def kept(room):
        found = {}

        def weigh(x):
            if not (x.is_leaf and x.requires_grad):
                found[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            return x.detach()

        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda x: x):
            sol = solve(net, y0, [0.0, 1.0], method="rk4", controller=Fixed(steps=40), adjoint=Checkpointed(None, room))
        return sum(found.values()), sol.stats.kept

    bare, none = kept(0)
    some, few = kept("200 kB")
    assert none == 0 < few < 40
    assert 0 < some - bare <= 200e3


def test_a_failed_solve_has_the_gradients_of_what_it_reached():
    w = torch.tensor(1.0, dtype=D, requires_grad=True)
    grads = []
    for adjoint in (Checkpointed(), Checkpointed(activations=0), Direct()):
        y0 = torch.ones(1, dtype=D, requires_grad=True)
        sol = solve(lambda t, y: w * y**2, y0, [0.0, 0.5, 2.0], on_failure="status", adjoint=adjoint)
        grads.append(torch.autograd.grad(sol.ys[1].sum(), (y0, w)))
    for found in grads[:2]:
        torch.testing.assert_close(found, grads[2], rtol=1e-12, atol=0)
    assert grads[0][0].item() == pytest.approx(4.0, rel=1e-2)  # y(½) = y0 / (1 − y0 w / 2), and so 1 / (1 − ½)²


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 1, 2, 1, 2)])
def test_states_of_any_shape(shape):
    y0 = torch.full(shape, 2.0, dtype=D, requires_grad=True)
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    for _ in range(3):
        sol = solve(lambda t, y: -rate * y, y0, [0.0, 1.0], rtol=1e-9, atol=1e-12)
        y0_bar, rate_bar = torch.autograd.grad(sol.ys[-1].sum(), (y0, rate))
        torch.testing.assert_close(y0_bar, torch.full(shape, math.exp(-0.5), dtype=D), rtol=1e-8, atol=0)
        assert rate_bar.item() == pytest.approx(-2 * math.exp(-0.5) * y0.numel(), rel=1e-8)


def test_a_field_that_takes_a_gradient_inside():
    energy = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).to(D)

    def field(t, y):
        with torch.enable_grad():
            y = y.requires_grad_()
            (down,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
        return -down

    found = []
    for adjoint in (Checkpointed(), Checkpointed(activations=3000), Direct()):
        y0 = torch.ones(3, 2, dtype=D, requires_grad=True)
        ys = solve(field, y0, [0.0, 1.0], method="rk4", controller=Fixed(steps=5), adjoint=adjoint).ys
        found.append(torch.autograd.grad(ys[-1].sum(), (y0, *energy.parameters()), allow_unused=True))
    for grads in found[:2]:
        torch.testing.assert_close(grads, found[2], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "many"])
def test_wrong_room(wrong):
    with pytest.raises(ValueError, match="`activations` must be bytes"):
        Checkpointed(activations=wrong)


@pytest.mark.parametrize("what", [{"dense": True}, {"event": Event(lambda t, y, s: y[0, 0] - 50.0)}])
def test_what_needs_the_steps_again_keeps_no_graph(what):
    expected, _ = gradients(Direct(), **what)
    found, stats = gradients(Checkpointed(), **what)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert stats.kept == 0


def test_others_keep_none():
    assert gradients(Direct())[1].kept == gradients(Backsolve())[1].kept == 0


@pytest.mark.parametrize("inside", [torch.func.grad, torch.func.jacrev, torch.func.vjp])
def test_a_field_that_calls_a_transform(inside):
    weight = torch.tensor([0.3, -0.5], dtype=D, requires_grad=True)

    def field(t, y):
        energy = lambda y: torch.tanh(y * weight).sum()  # noqa: E731
        return -(inside(energy, y)[1](torch.ones((), dtype=D))[0] if inside is torch.func.vjp else inside(energy)(y))

    found = []
    for adjoint in (Checkpointed(), Checkpointed(activations=0), Direct()):
        y0 = torch.ones(3, 2, dtype=D, requires_grad=True)
        ys = solve(field, y0, [0.0, 1.0], method="rk4", controller=Fixed(steps=3), adjoint=adjoint).ys
        found.append(torch.autograd.grad(ys[-1].sum(), (y0, weight)))
    for grads in found[:2]:
        torch.testing.assert_close(grads, found[2], rtol=1e-11, atol=1e-13)


def test_a_field_that_is_checkpointed_by_torch_is_not_evaluated_to_be_weighed():
    calls = []

    def inner(y):
        calls.append(1)
        return torch.tanh(y).sin()

    y0 = torch.ones(3, dtype=D, requires_grad=True)
    f = lambda t, y: torch.utils.checkpoint.checkpoint(inner, y, use_reentrant=False)  # noqa: E731
    sol = solve(f, y0, [0.0, 1.0], method="euler", controller=Fixed(steps=4))
    assert len(calls) == 4
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), y0)
    direct = solve(
        lambda t, y: torch.tanh(y).sin(), y0, [0.0, 1.0], method="euler", controller=Fixed(steps=4), adjoint=Direct()
    )
    torch.testing.assert_close(found, *torch.autograd.grad(direct.ys[-1].sum(), y0))


def test_a_weight_that_is_frozen_between_the_passes_moves_no_other_gradient():
    """The gradients of the others are never those of another tensor."""
    net, y0 = Net(), torch.ones(2, 3, dtype=D)
    sol = solve(net, y0, [0.0, 1.0])
    first, *_ = net.parameters()
    first.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        sol.ys.sum().backward()
