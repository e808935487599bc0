"""What an evaluation of f keeps for its pullback: enough, and no more."""

import collections

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from odenets.pullback.graph import Halves

BATCH, WIDTH = 5, 6
DTYPE = torch.float64


def linear(inputs=WIDTH, outputs=WIDTH):
    return nn.Linear(inputs, outputs, dtype=DTYPE)


class Of(nn.Module):
    """A field made of a function and the modules that it calls."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, t, y):
        return self.function(t, y, *self.inner)


def in_place(t, y, a, b):
    h = a(y)
    h.add_(t).mul_(2)
    return b(h.tanh_())


def halves(t, y, a, b):
    left, right = a(y).chunk(2, -1)
    return b(left * torch.sigmoid(right))


def drawn(t, y, a):
    return a(y) * torch.rand_like(y)


FULL = (BATCH, WIDTH)
FIELDS = {  # the field, and the shapes of what it has to keep
    "linear": (lambda: Of(lambda t, y, a: a(torch.sin(t) * y), linear()), []),
    "its own result": (lambda: Of(lambda t, y, a: torch.tanh(a(y)), linear()), []),
    "of t and y alone": (lambda: Of(lambda t, y, a: a(torch.cat([y**3, y.cos() * t], 1)), linear(2 * WIDTH)), []),
    "a narrow product": (
        lambda: Of(lambda t, y, a, b: b(torch.tanh(a(y[:, :3]))), linear(3, 9), linear(9)),
        [],
    ),
    "hidden": (lambda: Of(lambda t, y, a, b: b(torch.tanh(a(y) + t)), linear(), linear()), [FULL]),
    "in place": (lambda: Of(in_place, linear(), linear()), [FULL]),
    "relu": (lambda: Of(lambda t, y, a, b: b(F.relu(a(y))), linear(outputs=9), linear(9)), [(BATCH, 9)]),
    "silu": (lambda: Of(lambda t, y, a, b: b(F.silu(a(y))), linear(), linear()), [FULL, FULL]),
    "gated": (lambda: Of(halves, linear(outputs=2 * WIDTH), linear()), [FULL, FULL, (BATCH, 2 * WIDTH)]),
    "a view": (
        lambda: Of(
            lambda t, y, a, b: b(torch.tanh(a(y)).reshape(BATCH * 2, 3)).reshape(y.shape), linear(), linear(3, 3)
        ),
        [FULL],
    ),
    "layer norm": (
        lambda: Of(lambda t, y, a, b, n: b(n(a(y))), linear(), linear(), nn.LayerNorm(WIDTH, dtype=DTYPE)),
        [(BATCH, 1), (BATCH, 1), FULL, FULL],
    ),
    "weight norm": (
        lambda: Of(lambda t, y, a, b: b(torch.tanh(a(y))), nn.utils.parametrizations.weight_norm(linear()), linear()),
        [FULL],
    ),
    "no tensor of its own": (lambda: Of(lambda t, y: torch.sin(y) * t), []),
}


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def cut(field):
    """The cut of a field, its parameters, t and y."""
    names, rest = zip(*field.named_parameters()) if list(field.parameters()) else ((), ())
    t, y = torch.tensor(0.7, dtype=DTYPE), torch.randn(FULL, dtype=DTYPE)

    def bind(tensors):
        return lambda t, y: torch.func.functional_call(field, dict(zip(names, tensors)), (t, y))

    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x.detach()) for x in (t, y, *rest)]
    with mode, torch.no_grad():
        made = Halves(bind, range(len(rest)), fakes[0], fakes[1], fakes[2:])
    return made, rest, t, y


@pytest.mark.parametrize("name", FIELDS)
def test_the_pullback_of_what_was_kept_is_that_of_autograd(name):
    torch.manual_seed(0)
    make, shapes = FIELDS[name]
    field = make()
    made, rest, t, y = cut(field)
    assert sorted(activation.shape for activation in made.activations) == sorted(shapes)
    with torch.no_grad():
        k, *kept = made.evaluate(rest, t, y)
    inputs = (t.requires_grad_(), y.requires_grad_(), *rest)
    expected = field(t, y)
    torch.testing.assert_close(k, expected)
    assert [tuple(x.shape) for x in kept] == [activation.shape for activation in made.activations]
    k_bar = torch.randn_like(k)
    with torch.no_grad():
        bars = made.pull(rest, t, y, k, kept, k_bar)
    grads = torch.autograd.grad(expected, inputs, k_bar, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(bars, grads)


@torch.no_grad()
def test_the_pullback_repeats_no_layer():
    """A product for the input and one for the weight of each layer, and no tanh."""
    made, rest, t, y = cut(Of(lambda t, y, a, b, c: c(torch.tanh(b(torch.tanh(a(y))))), linear(), linear(), linear()))
    k, *kept = made.evaluate(rest, t, y)
    with Calls() as calls:
        made.pull(rest, t, y, k, kept, k)
    assert calls.count["mm"] == 6
    assert calls.count["addmm"] == calls.count["tanh"] == 0
    assert calls.count["tanh_backward"] == 2


@torch.no_grad()
def test_random_numbers_are_kept():
    """Not drawn again: the pullback is that of the evaluation."""
    field = Of(drawn, linear())
    made, rest, t, y = cut(field)
    k, *kept = made.evaluate(rest, t, y)
    bars = made.pull(rest, t, y, k, kept, torch.ones_like(k))
    factor = k / field.inner[0](y)
    torch.testing.assert_close(bars[1], factor @ field.inner[0].weight)


def test_bytes():
    made, *_ = cut(FIELDS["gated"][0]())
    assert sum(activation.nbytes for activation in made.activations) == 8 * BATCH * (2 * WIDTH + 2 * WIDTH)
