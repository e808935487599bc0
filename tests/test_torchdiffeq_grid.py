"""The stops of the drop-in's steps: each met once, at once, wherever the times lie."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odenets.torchdiffeq as ours

DOUBLE = torch.float64
FAR = [0.0, 1.7e9, -1.7e9]


@pytest.mark.parametrize("start", FAR)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("method", "options", "stages"),
    [
        ("euler", {}, 1),
        ("euler", {"interp": "cubic"}, 1),
        ("rk4", {}, 4),
        ("explicit_adams", {"max_order": 4}, None),
        ("implicit_midpoint", {}, None),
    ],
)
def test_close_times_far_from_zero_are_all_steps(start, sign, method, options, stages):
    """y' = −y in steps of 1e-3; the times themselves are rounded to 2.4e-7."""
    count = 0

    def f(t, y):
        nonlocal count
        count += 1
        return -sign * y

    t = start + sign * 1e-3 * torch.arange(21, dtype=DOUBLE)
    steps = []
    f.callback_step = lambda t, y, dt: steps.append(float(t))
    y = ours.odeint(f, torch.ones(1, dtype=DOUBLE), t, method=method, options=options)
    assert steps == t[:-1].tolist()
    assert stages is None or count == 20 * stages
    exact = (1 - t.diff().abs()).cumprod(0) if method == "euler" else torch.exp(-(t[1:] - t[0]).abs())
    assert torch.allclose(y[1:].flatten(), exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("start", FAR)
def test_stops_of_adaptive_steps_far_from_zero(start):
    stops = start + torch.tensor([0.25, 0.250001, 0.75], dtype=DOUBLE)
    ends = []
    f = lambda t, y: -y  # noqa: E731
    f.callback_accept_step = lambda t, y, dt: ends.append(float(t + dt))
    t = start + torch.tensor([0.0, 1.0], dtype=DOUBLE)
    y = ours.odeint(f, torch.ones(1, dtype=DOUBLE), t, options={"step_t": stops}, rtol=1e-6)
    assert all(min(abs(end - stop) for end in ends) <= 3e-7 for stop in stops.tolist())
    assert float(y[-1]) == pytest.approx(math.exp(-1), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(min_value=1, max_value=40), st.floats(min_value=1e-3, max_value=1e3))
def test_a_step_size_makes_the_steps_that_it_says(number, step):
    steps = []
    f = lambda t, y: torch.zeros_like(y)  # noqa: E731
    f.callback_step = lambda t, y, dt: steps.append(float(dt))
    t = torch.tensor([0.0, number * step], dtype=DOUBLE)
    ours.odeint(f, torch.zeros(1, dtype=DOUBLE), t, method="euler", options={"step_size": step})
    assert steps == pytest.approx([step] * number)
