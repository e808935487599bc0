"""Series of known systems: their equations, what is seen of them, and what is refused."""

import pytest
import torch

from odenets import solve
from odenets.data import lotka_volterra, oscillators
from odenets.data.systems import OSCILLATOR, PREDATORS

MAKE = (oscillators, lotka_volterra)


def test_an_oscillator_is_the_solution_of_its_equation():
    series, truth = oscillators(3, 3, rows=20, length=3.0, noise=0.0, missing=0.0)
    assert truth.shape == (3, len(OSCILLATOR))
    omega, gamma, amplitude, phase = truth.double().T
    begin = amplitude[:, None] * torch.stack([phase.cos(), phase.sin()], dim=1)

    def field(t, z):
        x, y = z.unbind(1)
        return torch.stack([-gamma * x - omega * y, omega * x - gamma * y], 1)

    exact = solve(field, begin, series.times, per_sample=True, rtol=1e-9, atol=1e-9).ys.movedim(0, 1)
    assert (series.values - exact).abs().where(series.rows[..., None], 0.0).max() < 1e-5


def test_predators_and_prey_keep_what_they_keep():
    """δx − γ ln x + βy − α ln y is the same at all times of a series."""
    series, truth = lotka_volterra(3, 1, rows=20, noise=0.0, missing=0.0)
    assert truth.shape == (3, len(PREDATORS))
    alpha, beta, gamma, delta, *begin = truth.double().T[..., None]
    torch.testing.assert_close(series.values[:, :1], torch.stack(begin, dim=2).float())
    x, y = series.values.double().unbind(2)
    kept = delta * x - gamma * x.log() + beta * y - alpha * y.log()
    assert ((kept - kept[:, :1]) / kept[:, :1]).abs().where(series.rows, 0.0).max() < 5e-5


@pytest.mark.parametrize("make", MAKE, ids=lambda f: f.__name__)
def test_what_is_seen(make):
    series, truth = make(200, 7, rows=20, length=1.0, missing=0.4)
    again, other = make(200, 7, rows=20, length=1.0, missing=0.4), make(200, 8, rows=2, length=0.1)[1]
    assert torch.equal(series.times, again[0].times)
    assert torch.equal(truth, again[1])
    assert not torch.equal(truth, other)
    series.checked()
    assert not series.start.any()
    assert 0.9 < float(series.end.max()) <= 1
    assert series.mask[:, 0].all()
    later = series.rows.clone()
    later[:, 0] = False
    seen = series.mask[later]
    assert seen.any(1).all()  # no row without a value
    assert float(seen.double().mean()) == pytest.approx(0.6 / (1 - 0.4**2), abs=0.02)
    whole = make(200, 7, rows=20, length=1.0, missing=0.0)[0].lengths
    assert (int(whole.min()), int(whole.max())) == (10, 20)
    assert make(1, rows=1)[0].values.shape == (1, 1, 2)


@pytest.mark.parametrize("make", MAKE, ids=lambda f: f.__name__)
def test_noise_is_as_large_as_it_is_said(make):
    clean, noisy = (make(100, 0, length=1.0, noise=noise, missing=0.0)[0] for noise in (0.0, 0.3))
    off = noisy.values - clean.values if make is oscillators else (noisy.values / clean.values).log()
    assert float(off[clean.rows].std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "`count` must be an integer ≥ 1, got 0"),
        ({"rows": 0}, "`rows` must be"),
        ({"length": 0.0}, "`length` must be a positive number"),
        ({"noise": -1.0}, "`noise` must be a number ≥ 0, got -1.0"),
        ({"missing": 1.0}, "`missing` must be from 0 up to, but without, 1, got 1.0"),
        ({"seed": -1}, "`seed` must be an integer ≥ 0"),
    ],
)
def test_refuses(options, words):
    for make in MAKE:
        with pytest.raises(ValueError, match=words):
            make(**{"count": 2, "length": 1.0, **options})
