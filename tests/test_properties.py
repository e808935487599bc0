"""What holds of every solve, whatever the problem: symmetries of the equation are symmetries of the answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odenets import METHODS, ExplicitRungeKutta, Fixed, solve

EXPLICIT = sorted(name for name, method in METHODS.items() if isinstance(method, ExplicitRungeKutta))
ADAPTIVE = ["bosh3", "dopri5", "tsit5", "dopri8"]
TIGHT = {"rtol": 1e-8, "atol": 1e-10}
seeds = st.integers(0, 2**16)


def random(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(seed, width):
    a, b = random(seed, width, width), random(seed + 1, width)
    return lambda t, y: torch.tanh(y @ a.T + b * torch.sin(t)) - 0.3 * y


@settings(max_examples=8, deadline=None)
@given(seed=seeds, name=st.sampled_from(ADAPTIVE), start=st.sampled_from([0.0, -3.0, 1e4]), length=st.floats(0.01, 3))
def test_a_solve_forward_and_back_returns(seed, name, start, length):
    f, y0 = smooth(seed, 3), random(seed + 2, 2, 3)
    there = solve(f, y0, (start, start + length), method=name, **TIGHT).ys[-1]
    back = solve(f, there, (start + length, start), method=name, **TIGHT).ys[-1]
    torch.testing.assert_close(back, y0, rtol=0, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, name=st.sampled_from(EXPLICIT), adaptive=st.booleans())
def test_another_basis_gives_the_answer_in_that_basis(seed, name, adaptive):
    # A rotation leaves the mean square of the error as it is, where the tolerance is the same for all components.
    a, y0 = random(seed, 3, 3) / 2, random(seed + 1, 3)
    basis, _ = torch.linalg.qr(random(seed + 2, 3, 3))
    adaptive = adaptive and METHODS[name].adaptive
    how = {"rtol": 0.0, "atol": 1e-5} if adaptive else {"controller": Fixed(steps=5)}
    plain = solve(lambda t, y: a @ y, y0, (0.0, 1.0), method=name, **how)
    other = solve(lambda t, y: basis @ a @ basis.T @ y, basis @ y0, (0.0, 1.0), method=name, **how)
    torch.testing.assert_close(other.ys[-1], basis @ plain.ys[-1], rtol=1e-9, atol=1e-11)
    assert other.stats.steps == plain.stats.steps


@settings(max_examples=15, deadline=None)
@given(seed=seeds, name=st.sampled_from(ADAPTIVE), per_sample=st.booleans(), order=st.permutations(range(4)))
def test_the_order_of_the_samples_is_that_of_the_answers(seed, name, per_sample, order):
    f, y0 = smooth(seed, 2), random(seed + 2, 4, 2)
    plain = solve(f, y0, (0.0, 0.5, 1.0), method=name, per_sample=per_sample)
    mixed = solve(f, y0[order], (0.0, 0.5, 1.0), method=name, per_sample=per_sample)
    torch.testing.assert_close(mixed.ys, plain.ys[:, order], rtol=1e-11, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, name=st.sampled_from(EXPLICIT), cut=st.integers(1, 7), sign=st.sampled_from([1.0, -1.0]))
def test_two_solves_end_to_end_are_one(seed, name, cut, sign):
    f, y0, middle = smooth(seed, 2), random(seed + 2, 2), sign * cut / 8
    how = {"method": name, "controller": Fixed(dt=1 / 8)}
    whole = solve(f, y0, (0.0, middle, sign), **how).ys
    first = solve(f, y0, (0.0, middle), **how).ys[-1]
    torch.testing.assert_close(whole[1], first, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(whole[2], solve(f, first, (middle, sign), **how).ys[-1], rtol=1e-13, atol=1e-13)


@settings(max_examples=10, deadline=None)
@given(
    seed=seeds, name=st.sampled_from(ADAPTIVE), stops=st.lists(st.floats(-0.5, 2.5), max_size=4), jumps=st.booleans()
)
def test_a_stop_changes_nothing_but_the_steps(seed, name, stops, jumps):
    f, y0, t = smooth(seed, 2), random(seed + 2, 2), torch.linspace(0, 2, 5, dtype=torch.float64)
    plain = solve(f, y0, t, method=name, **TIGHT)
    stopped = solve(f, y0, t, method=name, **{"jumps" if jumps else "stops": stops}, **TIGHT)
    torch.testing.assert_close(stopped.ys, plain.ys, rtol=1e-5, atol=1e-6)
    assert stopped.stats.accepted >= plain.stats.accepted - 2


@pytest.mark.parametrize("name", ["euler", "rk4", "tsit5", "trbdf2"])
def test_a_stop_on_the_grid_of_fixed_steps_changes_not_even_these(name):
    f, y0 = smooth(3, 2), random(5, 2)
    how = {"method": name, "controller": Fixed(dt=0.25)}
    plain, stopped = (solve(f, y0, (0.0, 2.0), stops=stops, **how) for stops in ((), (0.5, 1.25)))
    torch.testing.assert_close(stopped.ys, plain.ys, rtol=1e-14, atol=0)
    assert stopped.stats.accepted == plain.stats.accepted == 8
