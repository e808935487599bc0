"""SYNTHETIC heartbeats, for machines that hold no real ones: tests and demonstrations, not for results.

The beats come from the dynamical model of P. E. McSharry, G. D. Clifford, L. Tarassenko and L. A. Smith, "A
dynamical model for generating synthetic electrocardiogram signals", IEEE TBME 50(3):289-294, 2003, eq. (1):

    dx/dt = αx - ωy        α = 1 - √(x² + y²),  ω = 2π/RR
    dy/dt = αy + ωx        θ = atan2(y, x)
    dz/dt = -Σ aᵢ Δθᵢ exp(-Δθᵢ²/2bᵢ²) - (z - z₀(t)),   i ∈ {P, Q, R, S, T},   Δθᵢ = θ - θᵢ

The point (x, y) runs round the unit circle once a beat; each time it passes the angle θᵢ of a wave, z (the
ECG, in mV) makes a bump. Here the waves are given as a doctor reads them, by height hᵢ (mV), time tᵢ (s, from
the R peak) and width σᵢ (s): θᵢ = ωtᵢ, bᵢ = ωσᵢ and aᵢ = hᵢ/(ωσᵢ²) then give a bump of height hᵢ at
any heart rate.

The paper has one kind of beat. Ours has the five classes of `odenets.data.beats`, drawn with the shapes and
rhythms of the textbook (G. D. Clifford, F. Azuaje and P. E. McSharry, eds., "Advanced Methods and Tools for
ECG Data Analysis", 2006, chapter 1): S is premature, with nearly the patient's own narrow QRS and an odd or
absent P; V is premature, wide and large, without P, its T against its QRS, and a full pause follows; F is a
mixture of the patient's N and V; Q is paced (a spike, then a wide QRS, at a steady rate) or unreadable. Each
beat belongs to one of 44 made-up patients with a rhythm, wave shapes, noise and diseases of their own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odenets.data.beats import CLASSES, DECIMATION, FINE_LENGTH, ROW_LENGTH, SAMPLING_HZ, Beats, scale_rows, segments
from odenets.solve import solve

__all__ = ["PATIENTS", "SHARES", "make_synthetic"]

PATIENTS = 44
SHARES = (0.82771, 0.02539, 0.06612, 0.00734, 0.07345)  # of the five classes in the MIT-BIH records
N, S, V, F, Q = range(len(CLASSES))

# Waves P, Q, R, S, T of one beat: heights (mV), times after the R peak (s), widths (s, standard deviations).
P_WAVE, Q_WAVE, R_WAVE, S_WAVE, T_WAVE = range(5)
NORMAL = np.array(
    [[0.12, -0.10, 1.10, -0.22, 0.28], [-0.17, -0.035, 0, 0.035, 0.27], [0.022, 0.010, 0.011, 0.011, 0.050]]
)
BLOCK = np.array(
    [[0.12, 0.00, 0.90, -0.45, -0.15], [-0.18, -0.060, 0, 0.060, 0.30], [0.022, 0.020, 0.024, 0.026, 0.055]]
)
ECTOPIC = np.array(
    [[0.0, -0.15, 1.60, -0.55, -0.45], [-0.17, -0.090, 0, 0.110, 0.31], [0.022, 0.030, 0.034, 0.040, 0.065]]
)
# A pacemaker's spike takes the place of the P wave.
PACED = np.array(
    [[0.70, -0.10, 1.20, -0.50, -0.35], [-0.075, -0.055, 0, 0.080, 0.31], [0.004, 0.020, 0.030, 0.034, 0.060]]
)

RESPIRATION_HZ, RESPIRATION_MV = 0.25, 0.15  # z₀(t), as in the paper
UNITS_PER_MV = 200.0  # of the recorders' converters: small waves have the same steps as in the records

START = -0.3  # where the solve starts, in beats: early enough for the widest QRS
FIRST, LAST, STEP = -0.06, 1.28, 0.0025  # what it keeps, in beats: a row, and room for the annotators' jitter


@dataclass(frozen=True)
class _Patients:
    """44 made-up people; the first axis of every array is the patient."""

    rr: np.ndarray  # (p,) mean time between beats, s
    irregularity: np.ndarray  # (p,) standard deviation of that time, as a share of it
    noise: np.ndarray  # (p,) mV
    shapes: np.ndarray  # (p, class, 3, wave) heights, times, widths of a beat of each class
    share: np.ndarray  # (p, class) how the beats of a class are spread over the patients; columns sum to 1


def make_synthetic(beats: int = 12_000, seed: int = 0, why: str = "") -> Beats:
    """`beats` synthetic heartbeats of five classes in the proportions of the real records, in random order.

    The same `seed` gives the same beats; `record` is the number of the synthetic patient, 0 … 43. `why` is
    added to the source sentence: say there why no real data is used. Takes about two seconds for the default
    number. Raises `ValueError` for fewer than 200 beats, which would leave a class without any.
    """
    rng, label, who, *drawn = _drawn(beats, seed)
    rows = _record(rng, *drawn)[0]
    source = f"SYNTHETIC beats ({beats:,}) from the model of McSharry et al. (2003), of no human heart. {why}"
    return Beats(torch.from_numpy(rows), torch.from_numpy(label), torch.from_numpy(who), source.strip(), synthetic=True)


def make_fine(beats: int = 12_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same at all 360 Hz: rows (n, `FINE_LENGTH`) in [0, 1], their lengths (n,) and labels (n,)."""
    rng, label, _, *drawn = _drawn(beats, seed)
    return *_record(rng, *drawn, step=1, width=FINE_LENGTH), label


def _drawn(beats: int, seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray, Any, Any, Any]:
    """What to go on drawing from, labels (n,), patients (n,), curves (times, n), intervals (n, 3) and noise (n,)."""
    if beats < 200:
        raise ValueError(f"`beats` must be at least 200 so that every class has some, got {beats}")
    rng = np.random.default_rng(seed)
    patients = _draw_patients(rng)
    label, who = _draw_labels(rng, patients, beats)
    following = _draw_following(rng, patients, label, who)
    rr = _draw_intervals(rng, patients, label, following, who)
    waves = np.stack([_draw_waves(rng, patients, kind, who) for kind in (label, following)], 1)
    z = _integrate(waves, rr, rng.uniform(0, 2 * np.pi, beats))
    return rng, label, who, z, rr, _noise(rng, patients, label, who)


# ---- who and what


def _draw_patients(rng: np.random.Generator) -> _Patients:
    number = np.arange(PATIENTS)
    paced = number // 2 % 11 == 0  # 0, 1, 22, 23: two with an even and two with an odd number
    fibrillating = rng.random(PATIENTS) < 0.15
    return _Patients(
        rr=rng.uniform(0.62, 1.05, PATIENTS),
        irregularity=np.select([paced, fibrillating], [0.01, 0.18], rng.uniform(0.02, 0.07, PATIENTS)),
        noise=rng.uniform(0.006, 0.028, PATIENTS),
        shapes=_draw_shapes(rng),
        share=_draw_shares(rng, paced),
    )


def _draw_shapes(rng: np.random.Generator) -> np.ndarray:
    """Heights, times and widths (patient, class, 3, wave) of each patient's beats."""
    blocked = rng.random(PATIENTS) < 0.2
    normal = np.where(blocked[:, None, None], BLOCK, NORMAL) * _spread(rng, 0.25, 0.08, 0.12)
    normal[rng.random(PATIENTS) < 0.15, 0, T_WAVE] *= -0.7
    ectopic = ECTOPIC * _spread(rng, 0.25, 0.08, 0.15)
    ectopic[rng.random(PATIENTS) < 0.3, 0] *= -1
    paced = PACED * _spread(rng, 0.2, 0.08, 0.1)
    early = normal * _spread(rng, 0.2, 0.03, 0.1)
    fusion = (normal + ectopic) / 2  # the parts vary from beat to beat, see `_draw_waves`
    return np.stack([normal, early, ectopic, fusion, paced], 1)


def _spread(rng: np.random.Generator, height: float, time: float, width: float) -> np.ndarray:
    """Factors (patient, 3, wave) around 1 for heights, times (one for all waves of a patient), widths."""
    shape = (PATIENTS, len(NORMAL[0]))
    times = np.repeat(rng.normal(0, time, (PATIENTS, 1)), shape[1], axis=1)
    return np.exp(np.stack([rng.normal(0, height, shape), times, rng.normal(0, width, shape)], 1))


def _draw_shares(rng: np.random.Generator, paced: np.ndarray) -> np.ndarray:
    """How the beats of each class are spread (patient, class). Ectopic beats gather in a few patients."""
    share = np.stack(
        [np.ones(PATIENTS)] + [rng.gamma(0.4, 1.0, PATIENTS) + 0.01 for _ in (S, V, F)] + [paced + 0.002], 1
    )
    share[paced, :Q] *= 0.05
    return share / share.sum(0)


def _draw_labels(rng: np.random.Generator, patients: _Patients, beats: int) -> tuple[np.ndarray, np.ndarray]:
    """Class and patient (n,) of every beat, in random order, each class with its exact share."""
    counts = [round(beats * share) for share in SHARES]
    counts[N] += beats - sum(counts)
    label = np.repeat(np.arange(len(CLASSES)), counts)
    who = np.concatenate([rng.choice(PATIENTS, count, p=patients.share[:, c]) for c, count in enumerate(counts)])
    order = rng.permutation(beats)
    return label[order], who[order]


def _draw_following(rng: np.random.Generator, patients: _Patients, label: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Class (n,) of the beat after each beat, which the end of a row shows: S, V and Q also come in runs."""
    mix = patients.share * np.array(SHARES)
    mix = mix / mix.sum(1, keepdims=True)  # (patient, class)
    following = (rng.random((len(label), 1)) > mix.cumsum(1)[who]).sum(1).clip(max=Q)
    run = rng.random(len(label)) < np.array([0, 0.3, 0.1, 0, 0.9])[label]
    return np.where(run, label, following)


def _draw_intervals(
    rng: np.random.Generator, patients: _Patients, label: np.ndarray, following: np.ndarray, who: np.ndarray
) -> np.ndarray:
    """Times (n, 3) in s: from the beat before to this one, on to the next one, and on to the one after."""
    mean = patients.rr[who]
    normal = mean[:, None] * (1 + patients.irregularity[who, None] * rng.normal(size=(len(who), 3)))
    before = normal[:, 0] * _prematurity(rng, label)
    after = np.where(_is_early(following), normal[:, 1], _pause(rng, label, before, normal[:, 1]))
    after = after * _prematurity(rng, following)
    last = _pause(rng, following, after, normal[:, 2])
    return np.stack([before, after, last], 1).clip(0.35, 2.0)


def _is_early(label: np.ndarray) -> np.ndarray:
    return (label == S) | (label == V)


def _prematurity(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """The interval before a beat, as a share of the normal one."""
    return np.where(_is_early(label), rng.uniform(0.55, 0.9, len(label)), 1.0)


def _pause(rng: np.random.Generator, label: np.ndarray, before: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The interval after a beat: after V the sinus keeps its beat (a full pause), after S it starts anew."""
    return np.select(
        [label == V, label == S], [2 * normal - before, normal * rng.uniform(1.0, 1.3, len(label))], normal
    )


def _draw_waves(rng: np.random.Generator, patients: _Patients, label: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Heights (mV), times (s) and widths (s) (n, 3, wave) of beats of these classes and patients."""
    n = len(label)
    waves = patients.shapes[who, label].copy()
    mixed = (label == F) | ((label == Q) & (rng.random(n) < 0.15))  # fusions, of N with V or with paced
    other = np.where(label == Q, Q, V)
    part = rng.uniform(0.25, 0.8, n)[:, None, None]
    mixture = part * patients.shapes[who, other] + (1 - part) * patients.shapes[who, N]
    waves = np.where(mixed[:, None, None], mixture, waves)
    early = label == S
    waves[early, 0, P_WAVE] *= rng.uniform(-0.8, 0.3, early.sum())
    aberrant = early & (rng.random(n) < 0.2)
    waves[aberrant, 2, Q_WAVE:T_WAVE] *= 1.5
    waves[:, 1, T_WAVE] *= np.sqrt(patients.rr[who] / 0.85)  # Bazett: the QT time goes with the root of RR
    return waves * np.exp(rng.normal(0, 1, waves.shape) * np.array([0.08, 0.02, 0.06])[:, None])


def _noise(rng: np.random.Generator, patients: _Patients, label: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Standard deviation (n,) of the noise of each beat, in mV; unreadable beats have five times as much."""
    unreadable = (label == Q) & (patients.share[who, Q] < 1 / PATIENTS)
    return patients.noise[who] * np.exp(rng.normal(0, 0.4, len(who))) * np.where(unreadable, 5.0, 1.0)


# ---- the model


def _integrate(waves: np.ndarray, rr: np.ndarray, breath: np.ndarray) -> np.ndarray:
    """z (times, n) in mV at the phases `_phases()`, for all beats in one solve.

    `waves` (n, 2, 3, wave) of this beat and the next, `rr` (n, 3) s, `breath` (n,) phase of the respiration.
    """
    # All beats of a batch share one time axis, but not one heart rate. The axis is therefore the phase τ in
    # beats (R peaks at 0 and 1) and the field is dt/dτ = RR times equation (1): the R peaks of all beats fall
    # together, so the solver takes its small steps there once, and not wherever one of 12,000 beats has its
    # own peak.
    model = _Model(*(torch.from_numpy(v).float() for v in (waves, rr, breath)))
    angle = torch.full((len(rr),), 2 * np.pi * START)
    y0 = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)  # (n, 3), on the circle
    t = torch.cat([torch.tensor([START]), torch.from_numpy(_phases()).float()])
    with torch.no_grad():
        # Against a solve at 1e-9 this is off by 3 µV (root mean square), below the recorder's 5 µV.
        solution = solve(model, y0, t, method="tsit5", rtol=1e-4, atol=1e-4)
    return solution.ys[1:, :, 2].numpy()


def _phases() -> np.ndarray:
    return np.arange(FIRST, LAST, STEP)


class _Model:
    """The vector field: equation (1) in phase time, for beats each with its own waves and intervals."""

    def __init__(self, waves: Tensor, rr: Tensor, breath: Tensor) -> None:
        height, time, width = waves.flatten(1, 1).unbind(2)  # each (n, 2, wave)
        self.time, self.inverse_width, self.slope = time, 1 / width, height / width
        self.rr, self.breath = rr.unbind(1), breath
        self.turn = 2 * np.pi * torch.arange(2.0)  # angle of the R peak of this beat and of the next

    def __call__(self, tau: Tensor, state: Tensor) -> Tensor:
        x, y, z = state.unbind(1)
        before, after, last = self.rr
        rr = torch.where(tau < 0, before, torch.where(tau < 1, after, last))
        omega = 2 * np.pi / rr
        alpha = 1 - torch.sqrt(x * x + y * y)
        theta = _unwrap(torch.atan2(y, x), 2 * np.pi * tau)
        seconds = (theta[:, None] - self.turn) / omega[:, None]  # (n, 2) since each of the two R peaks
        scaled = (seconds[:, :, None] - self.time) * self.inverse_width  # (n, 2, wave): Δθᵢ/bᵢ
        bumps = (self.slope * scaled * torch.exp(-0.5 * scaled * scaled)).sum((1, 2))  # Σ aᵢ Δθᵢ exp(…)
        clock = torch.where(tau < 1, rr * tau, after + rr * (tau - 1))  # s since the R peak of this beat
        z0 = RESPIRATION_MV * torch.sin(2 * np.pi * RESPIRATION_HZ * clock + self.breath)
        return rr[:, None] * torch.stack([alpha * x - omega * y, alpha * y + omega * x, -bumps - (z - z0)], 1)


def _unwrap(angle: Tensor, near: Tensor) -> Tensor:
    """`angle` plus whole turns, within half a turn of `near`: this beat's waves are not the next one's."""
    return near + torch.remainder(angle - near + np.pi, 2 * np.pi) - np.pi


# ---- the recorder


def _record(
    rng: np.random.Generator,
    z: np.ndarray,
    rr: np.ndarray,
    noise: np.ndarray,
    step: int = DECIMATION,
    width: int = ROW_LENGTH,
) -> tuple[np.ndarray, np.ndarray]:
    """Curves `z` (times, n) in mV at `_phases()` → rows (n, 187) and lengths, through the rule of the real records."""
    jitter = rng.normal(0, 1.5, (3, len(rr))).round().clip(-6, 6).astype(np.int64)  # annotators are human
    peaks = np.stack([0 * rr[:, 1], rr[:, 1], rr[:, 1] + rr[:, 2]])  # (3, n) s
    samples, lengths = segments(*((SAMPLING_HZ * peaks).round().astype(np.int64) + jitter), step=step)
    beat = np.repeat(np.arange(len(rr)), lengths)
    values = _at(z, _phase(samples / SAMPLING_HZ, rr[beat]), beat)
    values = values + noise[beat] * rng.normal(size=len(values))
    return scale_rows((values * UNITS_PER_MV).round(), lengths, width), lengths.clip(max=width)


def _phase(seconds: np.ndarray, rr: np.ndarray) -> np.ndarray:
    """Phase in beats of times (m,) after the R peak, with the intervals `rr` (m, 3) of their beats."""
    before, after, last = rr.T
    return np.select([seconds < 0, seconds < after], [seconds / before, seconds / after], 1 + (seconds - after) / last)


def _at(z: np.ndarray, phase: np.ndarray, beat: np.ndarray) -> np.ndarray:
    """Curve number `beat` (m,) of `z` (times, n) at `phase` (m,), between two times by a straight line."""
    place = ((phase - FIRST) / STEP).clip(0, len(z) - 1.001)
    left = place.astype(np.int64)
    return z[left, beat] + (place - left) * (z[left + 1, beat] - z[left, beat])
