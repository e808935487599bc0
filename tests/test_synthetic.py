import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from sklearn.neighbors import KNeighborsClassifier

from odenets.data import synthetic
from odenets.data.synthetic import NORMAL, PATIENTS, SHARES, make_synthetic


@pytest.fixture(scope="module")
def beats():
    return make_synthetic(4000)


def test_the_form_is_that_of_the_real_beats(beats):
    assert beats.x.shape == (4000, 187)
    assert (beats.x.dtype, beats.x.min(), beats.x.max()) == (torch.float32, 0, 1)
    assert 0.3 < (beats.x == 0).float().mean() < 0.5  # padding, as in the real ones (0.41)
    assert (beats.x.max(1).values == 1).float().mean() > 0.98  # all but segments longer than a row


def test_it_says_that_it_is_synthetic_and_why():
    beats = make_synthetic(200, why="No network.")
    assert beats.synthetic
    assert beats.source.startswith("SYNTHETIC beats (200)")
    assert beats.source.endswith("No network.")


def test_classes_have_the_shares_of_the_real_records(beats):
    assert sum(SHARES) == pytest.approx(1, abs=1e-4)
    for count, share in zip(beats.counts(), SHARES):
        assert count == pytest.approx(4000 * share, abs=1)


def test_both_halves_of_the_patients_have_all_classes(beats):
    assert set(beats.record.tolist()) == set(range(PATIENTS))
    for half in (0, 1):
        assert min(beats.select(beats.record % 2 == half).counts()) > 0


def test_the_seed_decides_everything():
    one, same, other = (make_synthetic(300, seed) for seed in (1, 1, 2))
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.y, same.y)
    assert torch.equal(one.record, same.record)
    assert not torch.equal(one.x, other.x)


def test_a_nearest_neighbour_errs_sometimes_but_not_often(beats):
    x, y = beats.x.numpy(), beats.y.numpy()
    nearest = KNeighborsClassifier(1).fit(x[:3200], y[:3200])
    error = (nearest.predict(x[3200:]) != y[3200:]).mean()
    assert 0.01 < error < 0.1  # of the real beats it misjudges 2.2 %


def test_too_few_beats_are_an_error():
    with pytest.raises(ValueError, match="`beats` must be at least 200 so that every class has some, got 199"):
        make_synthetic(199)


def paper_equation(t, state, rr):
    """Equation (1) of the paper as it stands there, with the waves of `NORMAL`, for a constant interval `rr`."""
    x, y, z = state
    height, time, width = NORMAL
    omega = 2 * np.pi / rr
    b = omega * width
    a = height * omega / b**2
    delta = np.mod(np.arctan2(y, x) - omega * time + np.pi, 2 * np.pi) - np.pi
    alpha = 1 - np.hypot(x, y)
    z0 = 0.15 * np.sin(2 * np.pi * 0.25 * t)
    dz = -np.sum(a * delta * np.exp(-(delta**2) / (2 * b**2))) - (z - z0)
    return [alpha * x - omega * y, alpha * y + omega * x, dz]


def test_the_curve_solves_the_equation_of_the_paper():
    rr = 0.9
    waves = np.broadcast_to(NORMAL, (1, 2, 3, 5)).copy()
    z = synthetic._integrate(waves, np.full((1, 3), rr), np.zeros(1))[:, 0]
    seconds = np.append(synthetic.START, synthetic._phases()) * rr
    angle = 2 * np.pi * synthetic.START
    start = [np.cos(angle), np.sin(angle), 0.0]
    expected = solve_ivp(
        paper_equation,
        (seconds[0], seconds[-1]),
        start,
        t_eval=seconds,
        args=(rr,),
        rtol=1e-8,
        atol=1e-8,
        max_step=0.01,
    )
    assert np.abs(z - expected.y[2, 1:]).max() < 0.01  # mV; the R wave has 1.1


def test_waves_have_their_height_whatever_the_heart_rate():
    waves = np.zeros((2, 2, 3, 5))
    waves[:, :, 2] = 0.01
    waves[:, :, 0, 2] = 1.0  # R waves of 1 mV only
    z = synthetic._integrate(waves, np.array([[0.5] * 3, [1.2] * 3]), np.zeros(2))
    rise = z.max(0) - z[0]
    assert rise == pytest.approx([1.0, 1.0], abs=0.1)


def test_a_full_pause_follows_v():
    rng = np.random.default_rng(0)
    patients = synthetic._draw_patients(rng)
    who = np.zeros(50, np.int64)  # a paced patient: a steady rate
    label, following = np.full(50, synthetic.V), np.full(50, synthetic.N)
    before, after, _ = synthetic._draw_intervals(rng, patients, label, following, who).T
    assert (before < 0.95 * patients.rr[0]).all()
    assert before + after == pytest.approx(2 * patients.rr[0], rel=0.05)
