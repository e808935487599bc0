"""`t` of shape (batch, T): each sample its own start, outputs and end."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from odenets import METHODS, PID, Checkpointed, SolveError, Status, path, solve, support

D = torch.float64
OPTIONS = {"rtol": 1e-3, "atol": 1e-5, "per_sample": True}
# Of other lengths, with equal times at the start, in between and at the end; the last one stands still.
ROWS = [
    [0.0, 0.3, 0.7, 2.0, 2.0],
    [1.0, 1.0, 1.5, 1.6, 3.0],
    [5.0, 5.2, 5.2, 5.4, 5.5],
    [-0.5, -0.5, -0.5, -0.5, 1.0],
    [7.0, 7.0, 7.0, 7.0, 7.0],
]


class Swing(nn.Module):
    """A field that depends on time and on each sample's own rate."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -1.2], dtype=D))

    def forward(self, t, y, mu):
        return mu * torch.sin(3 * t) * torch.tanh(self.weight * y) - y


def run(t, y0, mu, weights, **options):
    """The solution, and the gradients to y0, the times and the weight of the field."""
    field, y0, t = Swing(), y0.clone().requires_grad_(), t.clone().requires_grad_()
    sol = solve(field, y0, t, (mu,), **OPTIONS | options)
    return sol, torch.autograd.grad((sol.ys * weights).sum(), (y0, t, field.weight))


def sizes(n=5, times=5):
    y0 = torch.linspace(-1, 2, 2 * n, dtype=D).reshape(n, 2)
    return (
        y0,
        torch.linspace(0.3, 5, n, dtype=D)[:, None],
        torch.linspace(1, 2, times * n * 2, dtype=D).reshape(-1, n, 2),
    )


@pytest.mark.parametrize(
    ("options", "sign"),
    [({}, 1), ({"adjoint": Checkpointed(memory=40)}, 1), ({"jumps": [-1.2, -5.45], "stops": [-1.9, 0.0]}, -1)],
)
def test_each_row_is_solved_as_a_batch_of_one(options, sign):
    t, (y0, mu, weights) = sign * torch.tensor(ROWS, dtype=D), sizes()
    together, grads = run(t, y0, mu, weights, **options)
    total = torch.zeros(2, dtype=D)
    for i in range(len(ROWS)):
        one = slice(i, i + 1)
        for given in (t[i],) if options else (t[i], t[one]):  # as the times of the batch, and as a row
            alone, own = run(given, y0[one], mu[one], weights[:, one], **options)
            assert torch.equal(together.ys[:, i], alone.ys[:, 0])
            assert together.stats.accepted[i] == alone.stats.accepted
            assert together.stats.rejected[i] == alone.stats.rejected
            torch.testing.assert_close(grads[0][i], own[0][0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(grads[1][i], own[1].reshape(-1), rtol=1e-12, atol=1e-13)
        total += own[2]
    torch.testing.assert_close(grads[2], total, rtol=1e-12, atol=1e-13)
    assert together.ts.shape == (5, 5)
    assert together.statuses == (Status.SUCCESS,) * 5


@pytest.mark.parametrize(("origin", "sign", "shape"), [(0.0, -1, (5,)), (1e6, 1, (5, 1))])
def test_gradients_to_every_time_and_values_are_the_closed_forms(origin, sign, shape):
    def f(t, y):  # y = y0 exp(sin(t) − sin(start)), t from the origin
        return torch.cos(t - origin) * y

    t = (sign * torch.tensor(ROWS, dtype=D) + origin).requires_grad_()
    y0 = torch.linspace(0.5, 1, 5, dtype=D)
    ys = solve(f, y0.reshape(shape), t, method="dopri8", rtol=1e-9, atol=1e-9, per_sample=True).ys.reshape(5, 5)
    phase = torch.sin(t - origin)
    exact = y0[:, None] * torch.exp(phase - phase[:, :1])
    torch.testing.assert_close(ys.T, exact, rtol=1e-5, atol=0)
    weights = torch.linspace(1, 2, 25, dtype=D).reshape(5, 5)
    got, right = (torch.autograd.grad((x * weights).sum(), t)[0] for x in (ys.T, exact))
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_far_from_zero_each_row_counts_from_its_own_start():
    t = torch.tensor([[0.0, 1.0], [1.7e9, 1.7e9 + 1], [-1e12, -1e12 + 1]], dtype=D)
    ys = solve(lambda t, y: -y, torch.ones(3, 1, dtype=D), t, rtol=1e-12, atol=1e-12, per_sample=True).ys
    assert (ys[-1] - math.exp(-1)).abs().max() < 1e-12
    assert torch.equal(ys[-1, 0], ys[-1, 1])


@pytest.mark.parametrize(
    "t",
    [
        [[0.0, 1.0, 3.0], [2.0, 2.5, 2.5]],
        ((0, 1, 3), torch.tensor([2.0, 2.5, 2.5])),
        np.array([[0, 1, 3], [2, 2.5, 2.5]]),
        torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.5, 2.5]]),
    ],
    ids=lambda t: type(t).__name__,
)
def test_irregular_series_padded_by_their_last_time(t):
    def f(t, state):
        x, v = state
        assert t.shape == (2, 1, 1)
        return v, -x

    y0 = (torch.ones(2, 1, 1, dtype=D), torch.zeros(2, 1, 1, dtype=D))
    sol = solve(f, y0, t, rtol=1e-8, atol=1e-8, per_sample=True)
    assert sol.ts.shape == (2, 3)
    lag = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.5, 0.5]], dtype=D).T[..., None, None]
    torch.testing.assert_close(sol.ys[0], torch.cos(lag), rtol=0, atol=1e-6)


def test_a_gradient_through_a_list_of_rows():
    starts, end = torch.zeros(2, 1, dtype=D), torch.ones(1, dtype=D, requires_grad=True)
    rows = [torch.cat([starts[0], end]), torch.cat([starts[1], 2 * end])]
    sol = solve(lambda t, y: -y, torch.ones(2, 1, dtype=D), rows, rtol=1e-9, atol=1e-9, per_sample=True)
    (grad,) = torch.autograd.grad(sol.ys[-1].sum(), end)
    assert grad.item() == pytest.approx(-math.exp(-1) - 2 * math.exp(-2), rel=1e-6)


def test_a_path_whose_knots_lie_in_the_rows():
    u = path.Constant(torch.tensor([0.0, 1.0, 2.0], dtype=D), torch.tensor([1.0, 5.0, 0.0], dtype=D), outside="hold")
    t = torch.tensor([[0.0, 3.0], [0.5, 1.5], [0.9, 1.9]], dtype=D)
    ys = solve(lambda t, y, u: u(t) + 0 * y, torch.zeros(3, 1, dtype=D), t, (u,), per_sample=True).ys
    torch.testing.assert_close(ys[-1, :, 0], torch.tensor([6.0, 3.0, 4.6], dtype=D), rtol=1e-9, atol=0)


def test_a_failure_is_told_in_the_samples_own_time():
    def f(t, y):
        return y**2  # from 1 it blows up one unit after the start

    t = torch.tensor([[0.0, 0.5], [100.0, 102.0]], dtype=D)
    with pytest.raises(SolveError, match=r"DIVERGED at t = 101.*sample 1") as error:
        solve(f, torch.ones(2, 1, dtype=D), t, per_sample=True)
    assert error.value.failure.sample == 1
    options = {"per_sample": True, "max_steps": 6, "on_failure": "status", "dense": True}
    limited = solve(f, torch.ones(2, 1, dtype=D), t[:, [0, 0, 1]], **options)
    with pytest.raises(ValueError, match=r"`t` of sample 1 must lie in its solved interval \[100.0, 100"):
        limited(t[:, 1:])
    assert limited.statuses == (Status.SUCCESS, Status.MAX_STEPS)
    assert torch.isfinite(limited.ys[:, 0]).all()
    assert limited.ys[:, 1].isfinite().flatten().tolist() == [True, True, False]


def test_a_sample_at_rest_that_is_not_finite_fails():
    y0 = torch.tensor([[1.0], [math.nan]])
    sol = solve(lambda t, y: -y, y0, [[0.0, 1.0], [2.0, 2.0]], per_sample=True, on_failure="status")
    assert sol.statuses == (Status.SUCCESS, Status.NON_FINITE_START)


def weighted(ys):
    return (ys * torch.linspace(1, 2, ys.numel(), dtype=D).reshape(ys.shape)).sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_dense_output_and_its_gradients_are_those_of_outputs_there(sign):
    """Of samples with times of their own; what is asked of the dense output, asked of the solve instead."""
    rows, (y0, mu, _) = sign * torch.tensor(ROWS[1:], dtype=D), sizes(4)
    ends, field = rows[:, [0, -1]].requires_grad_(), Swing()
    asked = (rows[:, :1] + (rows[:, -1:] - rows[:, :1]) * torch.tensor([0.0, 0.3, 0.31, 0.9], dtype=D)).requires_grad_()
    inputs = (y0.requires_grad_(), ends, asked, field.weight)
    dense = solve(field, y0, ends, (mu,), dense=True, adjoint=Checkpointed(memory=40), **OPTIONS)
    given = torch.cat([ends[:, :1], asked, ends[:, 1:]], dim=1)
    wanted = solve(field, y0, given, (mu,), **OPTIONS)
    assert torch.equal(dense.ys[-1], wanted.ys[-1])
    states = dense(asked)
    torch.testing.assert_close(states, wanted.ys[1:-1], rtol=1e-12, atol=1e-13)
    grads = [
        torch.autograd.grad(weighted(ys), inputs) for ys in (states + dense.ys[-1], wanted.ys[1:-1] + wanted.ys[-1])
    ]
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_dense_output_at_times_of_all_samples():
    rate = torch.tensor([[0.5], [40.0]], dtype=D)

    def f(t, state):
        return (-rate * state[0],)

    y0 = (torch.ones(2, 1, dtype=D),)
    sol = solve(f, y0, [1.0, 3.0], rtol=1e-7, atol=1e-9, dense=True, per_sample=True)
    assert sol.stats.accepted[1] > sol.stats.accepted[0]
    exact = torch.exp(-rate * (torch.tensor([1.0, 1.7, 3.0], dtype=D)[:, None, None] - 1))
    torch.testing.assert_close(sol([1.0, 1.7, 3.0])[0], exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(sol(torch.tensor(1.7, dtype=D))[0], exact[1], rtol=0, atol=1e-6)
    assert sol(torch.zeros(2, 0))[0].shape == (0, 2, 1)
    with pytest.raises(ValueError, match=r"`t` of sample 0 must lie in its solved interval \[1.0, 3.0\], got 3.5"):
        sol(3.5)
    with pytest.raises(ValueError, match=r"a row for each of the 2; got shape \(3, 1\)"):
        sol(torch.ones(3, 1))
    still = solve(f, y0, [[2.0, 2.0], [5.0, 5.0]], dense=True, per_sample=True)
    assert torch.equal(still(torch.tensor([[2.0], [5.0]]))[0][0], y0[0])


@pytest.mark.parametrize("t", [torch.zeros(0, 3), torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[1.0], [3.0]])])
def test_where_no_sample_has_anywhere_to_go(t):
    t = t.to(D).requires_grad_()
    y0 = torch.ones(len(t), 2, dtype=D)
    sol = solve(lambda t, y: t * y, y0, t, per_sample=True)
    assert torch.equal(sol.ys, y0.expand(t.shape[1], *y0.shape))
    (grad,) = torch.autograd.grad(sol.ys[-1].sum(), t)
    if t.shape == (2, 2):  # dy/dt = f = t y at the later time, − that at the start
        assert torch.equal(grad, torch.tensor([[-2.0, 2.0], [-6.0, 6.0]], dtype=D))


@pytest.mark.parametrize(
    ("t", "message"),
    [
        ([[0.0, 1.0]], r"a row for each of the 2 samples of `y0`, got shape \(1, 2\): write t.expand\(2, -1\)"),
        ([[0.0, 1.0], [0.0]], "row 0 has 2 times and row 1 has 1: repeat the last time"),
        ([[0.0, 1.0], [1.0, 0.0]], "one way in all rows; row 0 increases and row 1 decreases"),
        ([[0.0, 1.0, 1.0], [3.0, 4.0, 3.5]], r"monotone in each row.*t\[1, 1\] = 4.0 is followed by 3.5: sort row 1"),
        ([[0.0, 1.0], [0.0, math.nan]], "finite, got nan in row 1: repeat its last time"),
        (
            torch.tensor([[0.0, 1.0], [1.7e9, 1.7e9 + 1000]]),
            r"`t\[1\]` is in torch.float32, which near 1.7.*tells apart",
        ),
        (torch.zeros(2, 0), r"at least one time in each row, got shape \(2, 0\)"),
        (torch.zeros(2, 2, dtype=torch.bool), "`t` must be real numbers"),
        ([[0.0, 1.0], [0.0, "1"]], "must be a number, got '1'"),
        (np.array([["2020-01-01", "2020-01-02"]] * 2, dtype="datetime64[s]"), "count the time from the first one"),
    ],
    ids=str,
)
def test_what_are_no_rows_of_times_is_refused(t, message):
    with pytest.raises((ValueError, TypeError), match=message):
        solve(lambda t, y: -y, torch.ones(2, 1), t, per_sample=True)


@pytest.mark.parametrize(
    "t", [torch.zeros(2, 2), [[0.0, 1.0], [0.0, 1.0]], np.zeros((2, 2))], ids=lambda t: str(type(t))
)
def test_rows_without_steps_of_their_own_are_refused(t):
    with pytest.raises(ValueError, match=r"`t` must be 1-D.*each sample of `y0` has its own times.*`per_sample=True`"):
        solve(lambda t, y: -y, torch.ones(2, 1), t)


def test_a_field_whose_dtype_cannot_hold_the_time_of_one_sample():
    t = torch.tensor([[0.0, 1.0], [1e8, 1e8 + 1]], dtype=D)
    with pytest.raises(ValueError, match=r"`f` depends on t.*near t = 100000000 "):
        solve(lambda t, y: torch.cos(t) * y, torch.ones(2, 1), t, per_sample=True)


def test_rows_go_through_a_transform_and_around_a_graph():
    t, y0 = torch.tensor([[0.0, 1.0], [2.0, 4.0]], dtype=D), torch.ones(2, 1, dtype=D)
    options = {"rtol": 1e-8, "atol": 1e-8, "per_sample": True}
    for state in (lambda sol: sol.ys[-1], lambda sol: sol(t[:, 1:])):
        grad = torch.func.grad(lambda y: state(solve(lambda t, y: -y, y, t, dense=True, **options)).sum())(y0)  # noqa: B023
        torch.testing.assert_close(grad[:, 0], torch.exp(t[:, 0] - t[:, 1]), rtol=1e-6, atol=0)
    with pytest.raises(NotImplementedError, match="has no derivative to `t` in forward mode"):
        torch.func.grad(lambda t: solve(lambda t, y: -y, y0, t, **options).ys[-1].sum())(t)
    request = support.Request(METHODS["tsit5"], PID(), Checkpointed(), per_sample=True)
    assert support.fits_a_graph(request._replace(place=support.Place.GRAPH))
    assert not support.fits_a_graph(request._replace(own_times=True, place=support.Place.GRAPH))


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 20])  # along the samples, and not
@pytest.mark.parametrize("options", [{}, {"jumps": [1.2, 5.45]}], ids=str)
def test_compiled_rows_are_the_same(width, options):
    rows = torch.tensor(ROWS, dtype=D)
    y0 = torch.linspace(-1, 2, 5 * width, dtype=D).reshape(5, width).requires_grad_()

    def f(t, y):
        return torch.sin(3 * t) * y - y**3

    for given in (rows, rows[:, [0, 2, 3, 4]] + 0.1):  # the same program
        t = given.clone().requires_grad_()
        found = [solve(f, y0, t, compile=compile, **OPTIONS, **options) for compile in (True, False)]
        assert torch.equal(*(sol.stats.accepted for sol in found))
        values = [(sol.ys.detach(), *torch.autograd.grad(sol.ys.square().sum(), (y0, t))) for sol in found]
        for ours, theirs in zip(*values):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
