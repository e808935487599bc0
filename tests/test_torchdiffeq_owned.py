"""Fields that return one array again and again, or change their state: the drop-in's own steps own what they keep."""

import numpy as np
import pytest
import torch

import odenets.torchdiffeq as ours
from odenets.torchdiffeq.schemes import NAMES

DOUBLE = torch.float64
OPTIONS = {"dopri5": {"rtol": 1e-6}, "fehlberg2": {"rtol": 1e-3, "atol": 1e-3}, "adaptive_heun": {"rtol": 1e-3}}
METHODS = pytest.mark.parametrize("method", NAMES)


def plain(t, y):
    return torch.stack([y[1], -y[0] * (1 + t / 10)])


class Buffer:
    def __init__(self):
        self.out = torch.zeros(2, dtype=DOUBLE)

    def __call__(self, t, y):
        self.out[:] = plain(t, y)
        return self.out


class Out(Buffer):
    def __call__(self, t, y):
        return torch.mul(plain(t, y), 1.0, out=self.out)


class Row:
    def __init__(self):
        self.cache = torch.zeros(3, 2, dtype=DOUBLE)

    def __call__(self, t, y):
        self.cache[1] = plain(t, y)
        return self.cache[1]


class Simulator:
    def __init__(self):
        self.array = np.zeros(2)

    def __call__(self, t, y):
        self.array[:] = plain(t, y).numpy()
        return torch.from_numpy(self.array)


class Spoils:
    """It changes its state in place."""

    def __call__(self, t, y):
        out = plain(t, y)
        y.mul_(0.5).add_(7)
        return out


class SpoilsAndReturns:
    """It returns the state that it was given, changed."""

    def __call__(self, t, y):
        return y.copy_(plain(t, y.clone()))


KINDS = pytest.mark.parametrize("kind", [Buffer, Out, Row, Simulator, Spoils, SpoilsAndReturns])


def solved(f, y0, method, interface):
    t = torch.linspace(0, 1, 11, dtype=DOUBLE)
    options = {"max_order": 5} if method.endswith("adams") else {}
    with torch.no_grad():
        return interface(f, y0, t, method=method, options=options, **OPTIONS.get(method, {"rtol": 1e-4, "atol": 1e-6}))


@KINDS
@METHODS
def test_the_answer_is_that_of_a_field_that_returns_something_new(kind, method):
    y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    expected = solved(plain, y0, method, ours.odeint)
    for interface in (
        (ours.odeint, ours.odeint_adjoint) if method in ("dopri5", "rk4", "fixed_adams") else (ours.odeint,)
    ):
        assert torch.allclose(solved(kind(), y0, method, interface), expected, rtol=0, atol=1e-12)
    assert y0.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", [Buffer, Out, Row, Simulator, Spoils])
def test_a_tuple_state_keeps_its_parts(kind):
    inner = kind()
    f = lambda t, y: (inner(t, y[0]), -y[1])  # noqa: E731
    y0 = (torch.tensor([1.0, 0.0], dtype=DOUBLE), torch.ones(1, dtype=DOUBLE))
    with torch.no_grad():
        for method in ("dopri5", "rk4", "fixed_adams"):
            t = torch.linspace(0, 1, 21, dtype=DOUBLE)
            expected = ours.odeint(lambda t, y: (plain(t, y[0]), -y[1]), y0, t, method=method, rtol=1e-4)
            found = ours.odeint(f, y0, t, method=method, rtol=1e-4)
            assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, expected))
    assert y0[0].tolist() == [1.0, 0.0]


@KINDS
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {}),
        ("rk4", {"step_size": 0.1, "interp": "cubic"}),
        ("fixed_adams", {"step_size": 0.05, "interp": "cubic", "max_order": 5}),
    ],
)
def test_events_too(kind, method, options):
    y0, answers = torch.tensor([1.0, 0.0], dtype=DOUBLE), []
    arguments = {"event_fn": lambda t, y: y[0] - 0.3, "method": method, "options": options, "rtol": 1e-4}
    with torch.no_grad():
        for f in (plain, kind()):
            answers.append(ours.odeint_event(f, y0, torch.zeros((), dtype=DOUBLE), **arguments))
    for found, expected in zip(*answers):
        assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert y0.tolist() == [1.0, 0.0]
