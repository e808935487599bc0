"""Events of samples that have their own steps: what each sample has alone, it has in a batch."""

import math

import pytest
import torch

from odenets import Event, LostGradientError, SolveError, Status, solve

TIGHT = {"rtol": 1e-9, "atol": 1e-11}
G = 9.81


def tensor(*values, grad=True):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def decay(t, y, k):
    return -k[:, None] * y


def ball(t, y):
    return torch.stack([y[:, 1], torch.full_like(y[:, 1], -G)], -1)


FLOOR = Event(
    lambda t, y: y[:, 0], direction=-1, jump=lambda t, y: torch.stack([torch.zeros_like(y[:, 0]), -0.8 * y[:, 1]], -1)
)
HEIGHTS = tensor([10.0, 0.0], [5.0, 1.0], [1000.0, 0.0], [0.0, 9.0])


def test_each_sample_ends_at_its_own_time_with_the_gradients_of_the_closed_form():
    k, y0, c = tensor(0.7, 1.4, 0.01), tensor([3.0], [4.0], [2.0]), tensor(1.2)
    t = torch.tensor([0.5, 1.0, 20.0], dtype=torch.float64, requires_grad=True)
    event = Event(lambda t, y, k: y[:, 0] - c)
    solution = solve(decay, y0, t, (k,), event=event, per_sample=True, **TIGHT)
    when = torch.cat([t[0] + torch.log(y0[:2, 0] / c) / k[:2], t[2:]])
    last = y0 * torch.exp(-k * (when - t[0]))[:, None]
    assert solution.statuses == (Status.EVENT, Status.EVENT, Status.SUCCESS)
    assert solution.status is Status.SUCCESS  # not all have ended by an event
    torch.testing.assert_close(solution.ts, torch.stack([t[:1].expand(3), t[1:2].expand(3), when], 1))
    torch.testing.assert_close(solution.ys[-1], last, rtol=1e-7, atol=0)
    assert solution.events[0].sample.tolist() == [0, 1]
    torch.testing.assert_close(solution.events[0].t, when[:2])
    torch.testing.assert_close(solution.events[0].y, last[:2], rtol=1e-7, atol=0)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found, exact = (
        torch.autograd.grad(x @ weights + y.sum(), (k, y0, c, t))
        for x, y in ((solution.ts[:, -1], solution.ys[-1]), (when, last))
    )
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("own", [False, True], ids=["shared times", "own times"])
def test_bouncing_balls_are_those_that_bounce_alone(own):
    t = torch.linspace(0, 3, 7, dtype=torch.float64).expand(4, -1)
    t = (t + tensor([0.0], [1.0], [-2.0], [5.0]).detach()) * tensor([1.0], [1.5], [1.0], [0.3]).detach() if own else t
    batch = solve(ball, HEIGHTS, t if own else t[0], event=FLOOR, per_sample=True, **TIGHT)
    total = 0.0
    for i in range(4):
        alone = solve(ball, HEIGHTS[i : i + 1], t[i], event=Event(lambda t, y: y[0, 0], -1, jump=FLOOR.jump), **TIGHT)
        mine = batch.events[0].sample == i
        assert int(mine.sum()) == len(alone.events[0].t)
        torch.testing.assert_close(batch.events[0].t[mine], alone.events[0].t, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(batch.events[0].y[mine], alone.events[0].y[:, 0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(batch.ys[:, i], alone.ys[:, 0], rtol=1e-8, atol=1e-8)
        total = total + alone.ys[-1].square().sum() + alone.events[0].t.sum()
    found = torch.autograd.grad(batch.ys[-1].square().sum() + batch.events[0].t.sum(), HEIGHTS)[0]
    torch.testing.assert_close(found, torch.autograd.grad(total, HEIGHTS)[0], rtol=1e-6, atol=1e-6)
    assert batch.stats.nfe_backward > 0
    assert batch.stats.accepted.shape == (4,)
    assert set(batch.events[0].sample.tolist()) == ({0, 1} if own else {0, 1, 3})


def test_several_events_counts_and_nested_states():
    def f(t, y):
        return {"x": y["v"], "v": -y["x"]}

    start = {"x": tensor([0.0], [0.0], [0.0]), "v": tensor([1.0], [2.0], [-1.0])}
    events = [
        Event(lambda t, y: y["x"] - 0.5, terminal=False),
        Event(lambda t, y: y["x"], direction=1, terminal=2),
    ]
    solution = solve(f, start, (0.0, 10.0), event=events, per_sample=True, rtol=1e-7, atol=1e-9)
    assert solution.statuses == (Status.SUCCESS, Status.SUCCESS, Status.EVENT)
    assert solution.ts[:, -1].tolist() == pytest.approx([10.0, 10.0, 3 * math.pi], rel=1e-6)
    assert solution.events[1].sample.tolist() == [0, 1, 2, 2]
    exact = [x + 2 * math.pi * n for s in (0.5, 0.25) for n in (0, 1) for x in (math.asin(s), math.pi - math.asin(s))]
    mine = solution.events[0].sample < 2
    assert solution.events[0].t[mine].tolist() == pytest.approx(exact, rel=1e-6)
    assert solution.events[0].y["x"].shape[1:] == (1,)


def test_a_sample_that_fails_leaves_the_others_their_events():
    f = lambda t, y: y * y  # noqa: E731 — blows up at 1 / y0
    event = Event(lambda t, y: y - 10.0)
    y0 = tensor(1.0, -1.0, math.nan, grad=False)  # (batch,)
    with pytest.raises(SolveError, match="NON_FINITE_START"):
        solve(f, y0, (0.0, 5.0), event=event, per_sample=True)
    solution = solve(f, y0, (0.0, 5.0), event=event, per_sample=True, on_failure="status", **TIGHT)
    assert solution.statuses == (Status.EVENT, Status.SUCCESS, Status.NON_FINITE_START)
    assert solution.ts[0].tolist() == pytest.approx([0.0, 0.9], rel=1e-7)
    assert solution.ys[-1].tolist()[:2] == pytest.approx([10.0, -1 / 6], rel=1e-7)


def test_a_condition_of_all_samples_and_one_without_a_slope_are_refused():
    with pytest.raises(ValueError, match="one real number for each of 4 samples"):
        solve(ball, HEIGHTS, (0, 1.0), event=Event(lambda t, y: y), per_sample=True)
    event = Event(lambda t, y: torch.where(y[:, 0] > 1, 1.0, -1.0))
    solution = solve(ball, HEIGHTS[:2], (0, 9.0), event=event, per_sample=True)
    with pytest.raises(LostGradientError, match="has no slope there"):
        solution.events[0].t.sum().backward()


@pytest.mark.parametrize("batch", [0, 1])
def test_few_samples(batch):
    solution = solve(ball, HEIGHTS[:batch].detach(), (0.0, 1.0, 2.0), event=FLOOR, per_sample=True)
    assert solution.ys.shape == (3, batch, 2)
    assert len(solution.events[0].t) == batch


@pytest.mark.parametrize("origin", [1e6 + 0.1, -1e9])
def test_times_far_from_zero_keep_their_digits(origin):
    landed = Event(FLOOR.condition, direction=-1)
    start = HEIGHTS[:2].detach()
    near, far = (solve(ball, start, (t, t + 2.0), event=landed, per_sample=True, **TIGHT) for t in (0.0, origin))
    torch.testing.assert_close(far.ts - origin, near.ts, rtol=0, atol=1e-15 * abs(origin) + 1e-6)
    torch.testing.assert_close(far.ts[:, -1], far.events[0].t, rtol=0, atol=0)


@pytest.mark.parametrize("axes", [1, 3, 5])
def test_states_of_few_and_many_axes(axes):
    y0 = torch.full((2,) * axes, 3.0, dtype=torch.float64, requires_grad=True)
    event = Event(lambda t, y: y.reshape(2, -1).mean(1) - 1)
    end = solve(lambda t, y: -y, y0, (0.0, 9.0), event=event, per_sample=True, **TIGHT).ts[:, -1]
    assert end.tolist() == pytest.approx([math.log(3)] * 2, rel=1e-7)
    (found,) = torch.autograd.grad(end.sum(), y0)
    torch.testing.assert_close(found, torch.full_like(y0, 2 / 3 / y0.numel()), rtol=1e-6, atol=0)
