"""A field with a state of its own, or with random numbers: its gradient is exact, or refused by name."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from odenets import (
    PID,
    Backsolve,
    Checkpointed,
    Direct,
    Fixed,
    Interpolated,
    LostGradientError,
    ReplayError,
    Reversible,
    check_gradient,
    solve,
)
from odenets.pullback.replay import SameAgain

D = torch.float64


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.n = nn.Parameter(torch.ones((), dtype=D)), 0

    def forward(self, t, y):
        self.n += 1
        return -self.w * y / self.n


class Mean(Counter):
    """Divides by a running mean that each evaluation moves a little."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones((), dtype=D))

    def forward(self, t, y):
        self.mean = 0.99 * self.mean + 0.01 * y.detach().abs().mean()
        return -self.w * y / self.mean


class Latch(Counter):
    """Switches over once, and stays."""

    def __init__(self):
        super().__init__()
        self.on = False

    def forward(self, t, y):
        self.on = self.on or bool(t > 0.6)
        return -self.w * y * (2.0 if self.on else 1.0)


class Noise(Counter):
    def forward(self, t, y):
        return -self.w * y + 0.01 * torch.randn_like(y)


class Dropout(Counter):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, t, y):
        return -self.w * self.drop(y)


class Steady(Counter):
    """Keeps what nothing depends on."""

    def forward(self, t, y):
        self.n += 1
        self.last = -self.w * y
        return self.last


FIELDS = (Counter, Mean, Latch, Noise, Dropout)
CONTROLLERS = (Fixed(steps=4), PID(rtol=0.5, atol=0.5, dt0=0.3, dt_max=0.3))
Y0 = torch.linspace(0.5, 1.5, 8, dtype=D)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize(
    "adjoint", [Checkpointed(activations=0), Checkpointed(memory=2), Backsolve(), Interpolated(), Reversible()]
)
def test_it_is_refused_where_f_is_evaluated_again(field, controller, adjoint):
    torch.manual_seed(0)
    f = field()
    y = solve(f, Y0, [0.0, 1.0], method="heun", controller=controller, adjoint=adjoint).ys[-1]
    name = type(adjoint).__name__
    if field is Latch and name != "Checkpointed":
        f.on = False  # nothing is kept to compare with but f at the start
        f.n += 1
        f.forward = lambda t, y: Counter.forward(f, t, y)
    what = rf"backward pass of `adjoint={name}\(\)` than in .*random numbers.*Write `adjoint=Direct\(\)`"
    with pytest.raises(ReplayError, match=what):
        y.sum().backward()


@pytest.mark.parametrize("field", [Counter, Mean, Noise, Dropout])
def test_with_a_step_size_for_each_sample(field):
    torch.manual_seed(0)
    y = solve(field(), Y0[:, None], [0.0, 1.0], per_sample=True).ys[-1]
    with pytest.raises(ReplayError, match=r"backward pass of `adjoint=Checkpointed\(\)` than in "):
        y.sum().backward()


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_what_was_computed_is_differentiated_where_nothing_is_made_again(adjoint):
    f = Counter()
    y = solve(f, Y0[:1], [0.0, 1.0], method="euler", controller=Fixed(steps=4), adjoint=adjoint).ys[-1]
    (grad,) = torch.autograd.grad(y.sum(), f.w)
    w = torch.ones((), dtype=D, requires_grad=True)
    expected = Y0[0]
    for n in (1, 2, 3, 4):
        expected = expected * (1 - 0.25 * w / n)
    assert y.item() == pytest.approx(expected.item())
    assert grad.item() == pytest.approx(torch.autograd.grad(expected, w)[0].item())


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(memory=2), Backsolve(), Interpolated(), Reversible()])
@pytest.mark.parametrize("method", ["euler", "tsit5", "radauIIA3"])
def test_a_field_that_is_the_same_again_is_not_refused(dtype, adjoint, method):
    f = Steady().to(dtype)
    controller = None if method == "tsit5" else Fixed(steps=5)
    y = solve(f, Y0.to(dtype) * 1e-12, [3.0, 4.0], method=method, controller=controller, adjoint=adjoint).ys[-1]
    y.sum().backward()
    assert f.w.grad is not None


def test_rounding_is_no_difference_but_a_small_component_counts():
    before = torch.tensor([1e6, 1e-6], dtype=D)
    start = torch.zeros(2, dtype=D)
    same = SameAgain("`adjoint=Checkpointed()`")
    same.check(before * (1 + 1e-15), before, start)
    with pytest.raises(ReplayError):
        same.check(before + torch.tensor([0.0, 1e-7], dtype=D), before, start)


@pytest.mark.parametrize("field", [Counter, Mean, Noise, Dropout])
def test_check_gradient_says_it_and_goes_on(field):
    torch.manual_seed(0)
    check = check_gradient(field(), Y0, [0.0, 1.0], method="heun", controller=Fixed(steps=4), repeats=1)
    assert "`f` does not return the same for the same t and y" in str(check)
    assert isinstance(check.recommended, Direct)
    failures = [row.failure for row in check.rows if not isinstance(row.adjoint, Direct)]
    assert all(failure.startswith("ReplayError: `f` returned something else") for failure in failures)


@pytest.mark.parametrize("method", ["tsit5", "rk4", "trapezoid", "trbdf2", "radauIIA5", "implicit_euler"])
def test_autocast_is_no_state(method):
    torch.manual_seed(0)
    net = nn.Linear(3, 3)
    y0 = torch.ones(2, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = solve(lambda t, y: torch.tanh(net(y)), y0, (0.0, 1.0), method=method, controller=Fixed(steps=8)).ys
    ys[-1].sum().backward()
    assert bool(torch.isfinite(y0.grad).all())


def test_a_start_made_in_inference_mode():
    with torch.inference_mode():
        y0 = torch.ones(2, 3)
    p = torch.tensor(0.5, requires_grad=True)
    solve(lambda t, y: -p * y, y0, (0.0, 1.0), rtol=1e-6).ys[-1].sum().backward()
    assert p.grad.item() == pytest.approx(-3.6392, rel=1e-4)


def remade(how, adjoint, training=False):
    """A layer whose weight is made anew at each evaluation, and all gradients of one solve through it."""
    torch.manual_seed(0)
    layer = how(nn.Linear(3, 3).to(D))
    layer.train(training)
    y0 = torch.linspace(-1, 1, 6, dtype=D).reshape(2, 3).requires_grad_()
    ys = solve(
        lambda t, y: torch.tanh(layer(y)), y0, [0.0, 1.0], method="rk4", controller=Fixed(steps=3), adjoint=adjoint
    )
    return torch.autograd.grad(ys.ys[-1].square().sum(), [y0, *layer.parameters()])


REMADE = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("name", REMADE)
def test_weights_that_are_made_anew(name):
    for ours, direct in zip(remade(REMADE[name], Checkpointed()), remade(REMADE[name], Direct()), strict=True):
        torch.testing.assert_close(ours, direct, rtol=1e-12, atol=1e-13)


def test_the_vectors_of_spectral_norm_in_training_are_a_state():
    def slowly(layer):
        layer.weight.data.copy_(torch.diag(torch.tensor([1.0, 0.9, 0.8])))  # whose iteration takes its time
        return parametrizations.spectral_norm(layer, n_power_iterations=1)

    with pytest.raises(ReplayError, match="`spectral_norm` in training"):
        remade(slowly, Checkpointed(activations=0), training=True)
    assert all(bool(torch.isfinite(grad).all()) for grad in remade(slowly, Direct(), training=True))


@pytest.mark.parametrize("name", ["spectral_norm", "weight_norm"])
def test_weights_that_are_kept_need_direct(name):
    """`parametrize.cached()` keeps the weight of the first evaluation, with its graph, for the later ones."""
    expected = remade(REMADE[name], Direct())
    for adjoint in (Direct(), Checkpointed()):
        with parametrize.cached():
            torch.testing.assert_close(remade(REMADE[name], adjoint), expected, rtol=1e-12, atol=1e-13)
    for adjoint in (Checkpointed(activations=0), Backsolve(), Interpolated(), Reversible()):
        with parametrize.cached(), pytest.raises(LostGradientError, match=r"use `adjoint=Direct\(\)`"):
            remade(REMADE[name], adjoint)
