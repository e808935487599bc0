"""What f may reach, and make, on its way: the same gradients as `Direct`, never lost, never counted twice."""

import pickle
import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call

from odenets import Backsolve, Checkpointed, Direct, Fixed, Interpolated, LostGradientError, Reversible, solve
from odenets.torchdiffeq import odeint, odeint_adjoint
from problems import Net

D = torch.float64
ADJOINTS = [Checkpointed(), Checkpointed(memory=2), Interpolated(), Backsolve(), Reversible(), "per_sample"]
EVERY = pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
FINE = {"method": "rk4", "controller": Fixed(dt=0.02)}
Y0 = torch.tensor([[0.3, -0.4, 0.8], [1.0, 0.2, -0.5]], dtype=D)


def leaf(*shape, seed=0):
    torch.manual_seed(seed)
    return (0.4 * torch.randn(*shape, dtype=D)).requires_grad_()


# --- fields: each returns f and the leaves that gradients are due to -------------------------------------------------


def energy():
    """−∂E/∂y with a leaf made inside: score and energy networks."""
    net = Net()

    def f(t, y):
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            return -torch.autograd.grad(net(t, x).square().sum(), x, create_graph=True)[0]

    return f, [*net.parameters()]


def a_leaf_of_its_own():
    w = leaf(3, 3)

    def f(t, y):
        shift = torch.zeros(1, dtype=D).requires_grad_()
        return torch.tanh(y @ w) + shift

    return f, [w]


def a_leaf_of_its_own_at_later_times():
    w = leaf(3, 3)

    def f(t, y):
        free = torch.zeros(1, dtype=D, requires_grad=bool((t > 0.3).any()))
        return torch.tanh(y @ w) + free

    return f, [w]


def divergence():
    """FFJORD: the trace by one vector of noise that lies beside the field; y is made to require grad in place."""
    net, noise = Net(2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=D)

    def f(t, state):
        with torch.enable_grad():
            y = state[:, :2].requires_grad_(True)
            dy = net(t.reshape(-1, 1) if t.dim() else t, y)
            (pulled,) = torch.autograd.grad(dy, y, noise, create_graph=True)
            return torch.cat([dy, -(pulled * noise).sum(1, keepdim=True)], 1)

    return f, [*net.parameters()]


def controlled():
    """torchcde: f is times the derivative of a path whose coefficients come from an encoder."""
    knots, net = leaf(4, 3, seed=3), Net()
    slopes = (knots.tanh() * 2).diff(dim=0).unbind()

    def f(t, y):
        return net(t, y) * slopes[0] + y.sin() * slopes[1]

    return f, [knots, *net.parameters()]


def hypernetwork():
    maker, z, net = nn.Linear(2, 9, dtype=D), leaf(2), nn.Linear(3, 3, dtype=D)
    weights = {"weight": maker(z).reshape(3, 3) * 0.3, "bias": net.bias}
    return lambda t, y: functional_call(net, weights, (y,)).tanh(), [z, net.bias, *maker.parameters()]


def a_result_and_its_leaf():
    w = leaf(3, 3)
    c = (w * 2).tanh()
    return lambda t, y: torch.tanh(y @ c) * w.sum() + y @ w, [w]


def a_result_of_a_result():
    w = leaf(3, 3)
    c = (w * 2).tanh()
    d = c.sin() + c
    return lambda t, y: torch.tanh(y @ c) - y @ d, [w]


def parts_of_one():
    w = leaf(3, 6)
    a, b = (w * 2).chunk(2, dim=1)
    return lambda t, y: torch.tanh(y @ a) - y @ b, [w]


def another_threads_graph():
    """Its nodes carry that thread's numbers, as those of a device's backward pass do."""
    w = leaf(3, 3)

    def f(t, y):
        out = []
        grad = torch.is_grad_enabled()

        def work():
            with torch.set_grad_enabled(grad):
                out.append(torch.tanh(y @ w) * 2)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return -out[0]

    return f, [w]


FIELDS = [
    energy,
    a_leaf_of_its_own,
    a_leaf_of_its_own_at_later_times,
    divergence,
    controlled,
    hypernetwork,
    a_result_and_its_leaf,
    a_result_of_a_result,
    parts_of_one,
    another_threads_graph,
]


def gradients(make, adjoint):
    torch.manual_seed(1)
    f, wrt = make()
    y0 = Y0.clone().requires_grad_()
    extra = {"adjoint": adjoint, **FINE}
    if adjoint == "per_sample":
        extra = {"per_sample": True, "rtol": 1e-7, "atol": 1e-8}
    ys = solve(f, y0, [0.0, 0.3, 0.6], **extra).ys
    weight = torch.linspace(-1, 2, ys.numel(), dtype=D).reshape(ys.shape).cos()
    return torch.autograd.grad((ys.sin() * weight).sum(), [y0, *wrt])


@EVERY
@pytest.mark.parametrize("make", FIELDS)
def test_gradients_are_those_of_direct(make, adjoint):
    exact = adjoint in (Checkpointed(), Checkpointed(memory=2))
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if exact else {"rtol": 2e-3, "atol": 2e-4}
    for ours, direct in zip(gradients(make, adjoint), gradients(make, Direct())):
        torch.testing.assert_close(ours, direct, **tolerance)


def test_a_result_and_its_leaf_named_in_adjoint_params():
    def grads(solver, **options):
        w = leaf(3, 3)
        c = w.tanh() * 2
        f = lambda t, y: torch.tanh(y @ (c if t > 0.3 else w))  # noqa: E731 — c is used only later
        given = {"adjoint_params": (c, w)} if options else {}
        ys = solver(f, Y0, torch.tensor([0.0, 0.6], dtype=D), method="rk4", options={"step_size": 0.02}, **given)
        return torch.autograd.grad(ys[-1].sin().sum(), w)[0]

    torch.testing.assert_close(grads(odeint_adjoint, named=True), grads(odeint), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("adjoint", ADJOINTS[:-1], ids=str)
def test_a_block_twice_under_autocast(adjoint):
    net = nn.Linear(3, 3)

    def gradient(adjoint):
        y = Y0.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2):
                y = solve(
                    lambda t, y: torch.tanh(net(y)),
                    y,
                    [0.0, 1.0],
                    method="rk4",
                    controller=Fixed(steps=2),
                    adjoint=adjoint,
                ).ys[-1]
            loss = (y + net(y)).square().sum()
        return torch.autograd.grad(loss, list(net.parameters()))

    for ours, direct in zip(gradient(adjoint), gradient(Direct())):
        torch.testing.assert_close(ours, direct, rtol=0.1, atol=0.3)


def test_a_cast_made_inside_a_solve_is_no_cast_of_what_comes_after():
    """Under autocast a weight that f uses only later is cast without a graph, which must not outlive the solve."""
    late = nn.Linear(3, 3)
    f = lambda t, y: torch.tanh(late(y)) if t > 0.5 else -y  # noqa: E731
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = solve(f, Y0.float(), [0.0, 1.0], method="rk4", controller=Fixed(steps=4)).ys[-1]
        (grad,) = torch.autograd.grad(late(y.detach()).sum(), late.weight)
    torch.testing.assert_close(grad, y.detach().sum(0).expand(3, 3), rtol=0.02, atol=0.02)


@EVERY
@pytest.mark.parametrize("frozen", [False, True])
def test_functional_call_keeps_the_weights_it_was_given(adjoint, frozen):
    """The backward pass runs when the module has its own weights again."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net().requires_grad_(not frozen)

        def forward(self, y0, adjoint):
            options = {"adjoint": adjoint, **FINE} if adjoint != "per_sample" else {"per_sample": True, "rtol": 1e-7}
            return solve(lambda t, y: self.net.outer(torch.tanh(self.net.inner(y))), y0, [0.0, 1.0], **options).ys[-1]

    block = Block()
    given = {f"net.{n}": p.detach().clone().requires_grad_() for n, p in Net(seed=1).named_parameters()}
    own = [id(p) for p in block.parameters()]

    def gradient(adjoint):
        return torch.autograd.grad(functional_call(block, given, (Y0, adjoint)).sin().sum(), list(given.values()))

    for ours, direct in zip(gradient(adjoint), gradient(Direct())):
        torch.testing.assert_close(ours, direct, rtol=1e-3, atol=1e-4)
    assert [id(p) for p in block.parameters()] == own


def test_a_lost_gradient_says_what_and_what_to_write_and_pickles():
    error = LostGradientError("`f` does this", "write that")
    again = pickle.loads(pickle.dumps(error))
    assert (again.what, again.remedy, str(again)) == ("`f` does this", "write that", "`f` does this: write that")
    assert "`args=`" in str(LostGradientError("`f` does this"))
