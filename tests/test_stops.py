"""Times on which a step has to end, and times at which f jumps."""

import math

import pytest
import torch
from torch import nn

from odenets import PID, Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible, solve

D = torch.float64
ONE = torch.ones(1, dtype=D)
ADJOINTS = [Checkpointed(), Checkpointed(memory=2), Direct(), Interpolated(), Backsolve(), Reversible()]


def times_of(**options):
    """Every time at which f is evaluated."""
    seen = []

    def f(t, y):
        seen.append(float(t.flatten()[0]))
        return torch.cos(t) * y

    sol = solve(f, torch.ones(2, 1, dtype=D), **options)
    return seen, sol


@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"method": "rk4", "controller": Fixed(steps=3)}])
def test_steps_end_on_stops_and_the_solution_is_the_same(options):
    plain = solve(lambda t, y: torch.cos(t) * y, torch.ones(2, 1, dtype=D), [0.0, 2.0], **options)
    seen, sol = times_of(t=[0.0, 2.0], stops=[0.7, 1.1], **options)
    assert {0.7, 1.1} <= set(seen)
    assert int(torch.as_tensor(sol.stats.steps).max()) > int(torch.as_tensor(plain.stats.steps).max())
    torch.testing.assert_close(sol.ys, plain.ys, rtol=5e-3, atol=1e-5)


def test_stops_elsewhere_change_nothing():
    plain = solve(lambda t, y: torch.cos(t) * y, ONE, [0.0, 2.0])
    for stops in ([], (0.0, 2.0, -1.0, 5.0), torch.tensor([3.0]), range(2, 5)):
        jumps = [time for time in stops if not 0 <= time <= 2]
        sol = solve(lambda t, y: torch.cos(t) * y, ONE, [0.0, 2.0], stops=stops, jumps=jumps)
        assert torch.equal(sol.ys, plain.ys)
        assert sol.stats == plain.stats


FIXED = {"method": "rk4", "controller": Fixed(dt=0.5)}


@pytest.mark.parametrize("options", [{}, FIXED, {"per_sample": True}, {"per_sample": True, "rows": True}])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_jump_on_an_end_is_one(options, closed, sign):
    def f(t, y):
        outside = ((t <= 2) | (t >= 3)) if closed else ((t < 2) | (t > 3))
        return torch.where(outside, 1e6, 1.0) * torch.ones_like(y)

    options = dict(options)
    jumps = [[2.0, 3.0]] if options.pop("rows", False) else [2.0, 3.0]
    sol = solve(f, torch.zeros(1, 1, dtype=D), [2.0, 3.0][:: int(sign)], jumps=jumps, **options)
    assert abs(sol.ys[-1].item() - sign) < 1e-12
    assert int(sol.stats.steps) < 8


@pytest.mark.parametrize("options", [FIXED, {"per_sample": True}])
def test_a_jump_is_where_it_is_named_whatever_its_digits(options):
    ends = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=D).cumsum(1) * 3 - 3
    for start, at, end in ends.tolist():
        for t in ([start, end], [end, start]):
            y0 = torch.zeros(1, 1, dtype=D)
            sol = solve(lambda t, y, at: torch.where(t >= at, 1e3, 1.0) + 0 * y, y0, t, (at,), jumps=[at], **options)
            want = (1 if t[1] == end else -1) * (at - start + 1000 * (end - at))
            assert sol.ys[-1].item() == pytest.approx(want, rel=1e-12), (start, at, end)


def pulse(t, y):
    """1 from 5 to 5.001, else 0."""
    return torch.where((t >= 5) & (t < 5.001), 1.0, 0.0).to(y.dtype) + 0 * y


@pytest.mark.parametrize(
    "options", [{}, {"per_sample": True}, {"method": "bosh3"}, {"method": "trbdf2"}, {"dense": True}]
)
@pytest.mark.parametrize(("origin", "sign"), [(0.0, 1.0), (1.7e9, 1.0), (0.0, -1.0)])
def test_no_pulse_is_missed_however_short(options, origin, sign):
    def f(t, y):
        return sign * pulse(sign * (t - origin), y)

    t = torch.tensor([origin, origin + sign * 10.0], dtype=D)
    y0 = torch.zeros(2, 1, dtype=D)
    missed = solve(f, y0, t, **options)
    jumps = [origin + sign * 5.0, origin + sign * 5.001]
    sol = solve(f, y0, t, jumps=jumps, **options)
    width = abs(jumps[1] - jumps[0])
    assert missed.ys[-1].abs().max() < 1e-3
    torch.testing.assert_close(sol.ys[-1], torch.full((2, 1), width, dtype=D), rtol=1e-9, atol=0)
    if "dense" in options:
        torch.testing.assert_close(sol(t[:1] + sign * 5.0), y0[None], rtol=0, atol=1e-9)


class TwoCompartments(nn.Module):
    """A drug infused at the rate 1 from t = 1 to t = 2: it is eliminated at k, and moves to and fro."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.5, 0.3, 0.2], dtype=D))

    @property
    def matrix(self):
        k, there, back = self.rates
        return torch.stack([torch.stack([-k - there, back]), torch.stack([there, -back])])

    def forward(self, t, y):
        rate = torch.where((t >= 1) & (t < 2), 1.0, 0.0).to(y.dtype)
        return y @ self.matrix.T + rate * torch.tensor([1.0, 0.0], dtype=D)

    def exact(self, y0):
        """By matrix exponentials: from 0 to 1, to 2, to 4."""
        a = self.matrix
        grow = torch.linalg.matrix_exp(a)
        infused = torch.linalg.solve(a, (grow - torch.eye(2, dtype=D)) @ torch.tensor([1.0, 0.0], dtype=D))
        return (y0 @ grow.T @ grow.T + infused) @ grow.T @ grow.T


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("times", [(0.0, 4.0), (0.0, 0.5, 2.0, 3.0, 4.0)])
def test_dosing_in_two_compartments_and_its_gradient(adjoint, times):
    field, y0 = TwoCompartments(), torch.tensor([[1.0, 0.0], [0.2, 2.0]], dtype=D, requires_grad=True)
    sol = solve(field, y0, list(times), jumps=[1.0, 2.0], rtol=1e-9, atol=1e-11, adjoint=adjoint)
    exact = field.exact(y0)
    torch.testing.assert_close(sol.ys[-1], exact, rtol=1e-7, atol=0)
    inputs = (y0, field.rates)
    got, right = (torch.autograd.grad(y.square().sum(), inputs) for y in (sol.ys[-1], exact))
    for a, b in zip(got, right):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_per_sample_gradients_with_jumps():
    field, y0 = TwoCompartments(), torch.tensor([[1.0, 0.0], [0.2, 2.0]], dtype=D, requires_grad=True)

    def f(t, y):
        rate = torch.where((t >= 1) & (t < 2), 1.0, 0.0).to(y.dtype)
        return y @ field.matrix.T + rate * torch.tensor([1.0, 0.0], dtype=D)

    sol = solve(f, y0, [0.0, 0.5, 4.0], jumps=[1.0, 2.0], rtol=1e-9, atol=1e-11, per_sample=True)
    exact = field.exact(y0)
    got, right = (torch.autograd.grad(y.square().sum(), (y0, field.rates)) for y in (sol.ys[-1], exact))
    for a, b in zip(got, right):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Direct(), Reversible()], ids=str)
@pytest.mark.parametrize("controller", [PID(), Fixed(dt=0.17), Fixed(steps=3)], ids=str)
def test_gradients_to_the_times_are_those_of_what_was_computed(adjoint, controller):
    """By differences: the stops stay, the times move."""

    def end(t):
        f = lambda t, y: torch.sin(3 * t) * y + (t > 0.5)  # noqa: E731
        y0 = torch.tensor([1.0, 2.0], dtype=D)
        sol = solve(f, y0, t, method="bosh3", controller=controller, adjoint=adjoint, stops=[0.2], jumps=[0.5])
        return sol.ys[1:].square().sum()

    t = torch.tensor([0.0, 0.8, 1.0], dtype=D, requires_grad=True)
    (grad,) = torch.autograd.grad(end(t), t)
    if controller.adaptive:  # step sizes are constants to the gradient, and not to differences
        assert torch.isfinite(grad).all()
        return
    for i in range(3):
        move = torch.zeros(3, dtype=D)
        move[i] = 1e-6
        slope = (end(t.detach() + move) - end(t.detach() - move)) / 2e-6
        torch.testing.assert_close(grad[i], slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"method": "heun"}, {"method": "rk4", "controller": Fixed(dt=2.5)}], ids=str)
def test_inside_of_another_graph(options):
    def end(y):
        sol = solve(pulse, y, [0.0, 3.0, 10.0], jumps=[5.0, 5.001], **options)
        return sol.ys[-1]

    eager = torch.compile(end, backend="eager", fullgraph=True)
    torch.testing.assert_close(eager(torch.zeros(1, dtype=D)), torch.full((1,), 0.001, dtype=D), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"adjoint": Direct()}], ids=str)
def test_compiled(options):
    field, y0 = TwoCompartments(), torch.tensor([[1.0, 0.0], [0.2, 2.0]], dtype=D, requires_grad=True)
    with_jumps = {"jumps": [1.0, 2.0], "stops": [0.3], "rtol": 1e-9, "atol": 1e-11}
    exact = field.exact(y0)
    for times in ([0.0, 4.0], [0.0, 0.5, 4.0]):
        sol = solve(field, y0, times, compile=True, **with_jumps, **options)
        got, right = (torch.autograd.grad(y.square().sum(), (y0, field.rates)) for y in (sol.ys[-1], exact))
        for a, b in zip(got, right):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        exact = field.exact(y0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stops": 0.5}, TypeError, r"`stops` must be a sequence of times, got 0.5: write `stops=\(time,\)`"),
        ({"jumps": "noon"}, TypeError, "`jumps` must be a sequence of times, got 'noon'"),
        ({"jumps": [math.nan]}, ValueError, "`jumps` must be finite times, got nan"),
        ({"stops": ["1"]}, TypeError, "`stops` must be finite times, got '1'"),
        (
            {"stops": torch.tensor([0.5], requires_grad=True)},
            ValueError,
            r"`stops` get no gradient: write stops.detach\(\)",
        ),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, ONE, [0.0, 1.0], **options)
