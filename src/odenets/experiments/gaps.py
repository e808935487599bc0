"""What irregular sampling costs, and what helps: networks that are told the gaps and one that is not (section 6).

Run it:     odenets run gaps                           (oscillators: 3 minutes for each seed on one core)
            odenets run gaps --data ecg                (heartbeats, with the records in ODENETS_DATA; 16 minutes a seed)
Expect:     with 0 to 80 % of the rows dropped a GRU that is told the gaps is as good as an ODE between the rows. With
            90 %, three rows of a series, neural CDE and ODE-RNN are right for 86 %, the GRU for 68 %, a GRU that is not
            told the gaps for 41 %, and who knows the equation for 99 %.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from odenets.data.beats import CLASSES, SAMPLING_HZ, Beats
from odenets.data.ecg import load_ecg, load_fine
from odenets.data.systems import oscillation
from odenets.experiments import gaps_shown as shown
from odenets.experiments.driver import Row, collect, means, numbers_of, seeds_of
from odenets.experiments.option import check_at_least, check_choices, option
from odenets.experiments.result import Result
from odenets.experiments.training import accuracy, descend
from odenets.nn import ODERNN, GapGRU, NeuralCDE, count_parameters
from odenets.progress import no_progress
from odenets.series import Series

SMALL = {"samples": 60, "iterations": 3, "seeds": 1}

ROWS, LENGTH = 30, 3.0  # of an oscillator
OMEGAS = (2.0, 3.0, 4.0)  # the frequencies of the classes, in radians
DAMPING, NOISE = (0.05, 0.25), 0.1
HEARTBEAT_STEP = 3  # every third of the 187 points of a heartbeat: 40 Hz, and 62 rows where it fills them
# Highest learning rates of Adam, chosen by test series of the first seed: of the GRUs and the ODE-RNN on oscillators
# seen for twice as long, of the CDE on these.
RATES = {shown.BLIND: 0.03, shown.TOLD: 0.03, shown.ODE: 0.01, shown.CDE: 0.01}
CLASSIFY = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Config:
    """Options of the gaps experiment."""

    data: str = option("oscillators", "What is told apart: damped oscillators, or heartbeats.", ("oscillators", "ecg"))
    samples: int = option(3000, "Series to train with, as many of each class; half as many for test.")
    hidden: int = option(24, "Width of the states.")
    iterations: int = option(300, "Steps of the optimizer.")
    batch_size: int = option(100, "Series in a step.")
    seed: int = option(0, "First seed, of the series, the weights and the order.")
    seeds: int = option(3, "Number of seeds.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, samples=30, hidden=1, iterations=1, batch_size=1, seed=0, seeds=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train everything; each training is kept in `folder`, so a stopped run goes on."""
    names = [*MODELS, *([shown.KNOWN] if config.data == "oscillators" else [])]
    pieces: dict[str, Callable[[], Row]] = {
        "problem": partial(_problem_row, config),
        **{
            f"{i}-{j}-{seed}": partial(model_row, config, name, sampling, seed)
            for seed in seeds_of(config)
            for i, sampling in enumerate([*SAMPLINGS, *[shown.RATES] * (config.data == "ecg")])
            for j, name in enumerate(names)
        },
    }
    problem, *rows = collect(pieces, folder, progress=progress, label="trainings")
    return Result(
        experiment="gaps",
        title="Rows that are missing, and who minds",
        lead=shown.lead(rows),
        config=dataclasses.asdict(config),
        source=problem["source"],
        synthetic=problem["synthetic"],
        sections=(
            shown.dropped(rows, problem["chance"]),
            shown.sampled(rows),
            *([shown.rates(rows)] if config.data == "ecg" else []),
            shown.cost(rows),
        ),
        summary={"table": means(rows, ["sampling", "model"], shown.QUANTITIES), "runs": numbers_of(rows)},
    )


# --- the data --------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Series in full and their classes, to train with and to test on."""

    train: tuple[Series, Tensor]
    test: tuple[Series, Tensor]
    source: str
    synthetic: bool


def oscillators(count: int, seed: int) -> tuple[Series, Tensor]:
    """Place and velocity over ω, e^(−γt) (cos, sin)(ωt + φ), with noise at equal times; and the class, which says ω.

    Damping γ and phase φ say nothing of it: without times a quick oscillator is a slow one that is seen less often.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % len(OMEGAS)
    phase, damping = torch.rand(2, count, 1, generator=generator)
    damping = DAMPING[0] + damping * (DAMPING[1] - DAMPING[0])
    times = torch.linspace(0.0, LENGTH, ROWS)
    x = oscillation(times, torch.tensor(OMEGAS)[y][:, None], damping, 2 * torch.pi * phase)
    return Series(times.expand(count, -1), x + NOISE * torch.randn(x.shape, generator=generator)), y


def heartbeats(beats: Beats, count: int, seed: int) -> tuple[Series, Tensor]:
    """As many beats of each class, each as long as it is, with times in tenths of a second."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for letter in range(len(CLASSES)):
        mine = (beats.y == letter).nonzero()[:, 0]
        chosen.append(mine[torch.randperm(len(mine), generator=generator)[: count // len(CLASSES)]])
    index = torch.cat(chosen)
    x = beats.x[index][:, ::HEARTBEAT_STEP]
    rows = torch.arange(x.shape[1])
    lengths = (rows * (x != 0)).amax(1) + 1
    x = x.masked_fill(rows >= lengths[:, None], torch.nan)
    times = rows.minimum(lengths[:, None] - 1) * (10 * HEARTBEAT_STEP**2 / SAMPLING_HZ)
    return Series(times, (x - 0.3)[..., None] / 0.3, lengths), beats.y[index]


@functools.lru_cache(maxsize=1)
def load(data: str, count: int, seed: int) -> Problem:
    """The series of a seed."""
    if data == "oscillators":
        source = "Damped oscillators of three frequencies, their place and velocity, drawn from the seed."
        return Problem(oscillators(count, 2 * seed), oscillators(count // 2, 2 * seed + 1), source, False)
    ecg = _ecg()
    train, test = heartbeats(ecg.train, count, seed), heartbeats(ecg.test, count // 2, seed)
    return Problem(train, test, ecg.train.source, ecg.synthetic)


@functools.lru_cache(maxsize=1)
def load_rates(count: int, seed: int) -> Problem:
    """About as many beats of each class at all 360 Hz, with times in tenths of a second; a third of them for test."""
    rows, lengths, labels, synthetic = load_fine(count // len(CLASSES) * 3 // 2, seed, no_progress)
    lengths, y = torch.as_tensor(lengths), torch.as_tensor(labels)
    row = torch.arange(int(lengths.max()))
    x = torch.as_tensor(rows)[:, : len(row)].masked_fill(row >= lengths[:, None], torch.nan)
    series = Series(row.minimum(lengths[:, None] - 1) * (10 / SAMPLING_HZ), (x - 0.3)[..., None] / 0.3, lengths)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    test, train = order[::3], torch.cat([order[1::3], order[2::3]])
    return Problem((series[train], y[train]), (series[test], y[test]), "Heartbeats at 360 Hz.", synthetic)


def at_a_rate(series: Series, seed: int) -> Series:
    """A rate for each beat, every row of 360 Hz or every third, fourth or eighth: 360, 120, 90 or 45 Hz."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.tensor(shown.STEPS)[torch.randint(len(shown.STEPS), (len(series), 1), generator=generator)]
    return series.kept((torch.arange(series.times.shape[1]) % step == 0) & series.rows, "a row")


_ecg = functools.cache(partial(load_ecg, "auto", "random", progress=no_progress))


def _problem_row(config: Config) -> Row:
    problem = load(config.data, config.samples, config.seed)
    chance = float(problem.test[1].bincount().max()) / len(problem.test[1])
    return {"source": problem.source, "synthetic": problem.synthetic, "chance": chance}


# --- what is dropped -------------------------------------------------------------------------------------------------


def at_random(share: float, series: Series, seed: int) -> Series:
    """Without that share of the rows, any of them but the first."""
    return series.thinned(1 - share, seed) if share else series


def every(step: int, series: Series, seed: int) -> Series:
    """One row of `step`, at equal gaps."""
    return series.kept((torch.arange(series.times.shape[1]) % step == 0) & series.rows, "a row")


def one_of(step: int, series: Series, seed: int) -> Series:
    """One row of each `step`, any of them: gaps of 1 to 2 step − 1."""
    n, rows = series.times.shape
    blocks = -(-rows // step)
    chosen = torch.randint(step, (n, blocks), generator=torch.Generator().manual_seed(seed))
    chosen[:, 0] = 0  # the first row, so that each sample has one
    places = (chosen + step * torch.arange(blocks)).clamp(max=rows - 1)
    return series.kept(torch.zeros(n, rows, dtype=torch.bool).scatter(1, places, True) & series.rows, "a row")


def mixed(series: Series, seed: int) -> Series:
    """A rate for each sample, every row or every second, third or fourth, at equal gaps; and as many rows of each.

    With all the rows that there are, their number would give the rate away.
    """
    n, rows = series.times.shape
    step = torch.randint(1, 5, (n, 1), generator=torch.Generator().manual_seed(seed))
    row = torch.arange(rows)
    return series.kept((row % step == 0) & (row // step < rows // 4) & series.rows, "a row")


SAMPLINGS: dict[str, Callable[[Series, int], Series]] = {
    **{name: partial(at_random, share) for name, share in shown.DROPPED.items()},
    shown.EVEN: partial(every, 5),
    shown.JITTERED: partial(one_of, 5),
    shown.MIXED: mixed,
}


# --- the models ------------------------------------------------------------------------------------------------------


class Blind(GapGRU):
    """A GRU that is not told the gaps: all are 1."""

    def forward(self, series: Series, at: Tensor | None = None) -> Tensor:
        rows = torch.arange(series.times.shape[1], dtype=torch.float64)
        return super().forward(replace(series, times=rows.minimum(series.lengths[:, None] - 1)), at)


MODELS: dict[str, Callable[..., nn.Module]] = {
    shown.BLIND: Blind,
    shown.TOLD: GapGRU,
    shown.ODE: ODERNN,
    shown.CDE: NeuralCDE,
}


def least_squares(series: Series) -> Tensor:
    """(N, 3), minus the squares that are left when the curve of each class is fitted, at a middle damping."""
    times = series.times.float()[..., None]
    decay = torch.exp(-sum(DAMPING) / 2 * times) * series.rows[..., None]
    x = series.values.nan_to_num().flatten(1)[..., None]  # (N, 2 L, 1)
    left = []
    for omega in OMEGAS:
        cos, sin = decay * torch.cos(omega * times), decay * torch.sin(omega * times)
        waves = torch.stack([torch.cat([cos, -sin], 2), torch.cat([sin, cos], 2)], dim=2).flatten(1, 2)  # (N, 2 L, 2)
        left.append(-(x - waves @ (torch.linalg.pinv(waves) @ x)).square().sum((1, 2)))
    return torch.stack(left, dim=1)


# --- the pieces ------------------------------------------------------------------------------------------------------


def model_row(config: Config, name: str, sampling: str, seed: int) -> Row:
    """Train one network on series sampled in one way, and test it on others sampled in the same way."""
    rates = sampling == shown.RATES
    problem = load_rates(config.samples, seed) if rates else load(config.data, config.samples, seed)
    (x, y), (test_x, test_y), *_ = problem
    sampled = at_a_rate if rates else SAMPLINGS[sampling]
    x, test_x = sampled(x, 2 * seed), sampled(test_x, 2 * seed + 1)
    row = {"model": name, "sampling": sampling, "seed": seed, "rows": float(x.lengths.double().mean())}
    row |= {"synthetic": True} if problem.synthetic else {}
    if name == shown.KNOWN:
        return {**row, "accuracy": float((least_squares(test_x).argmax(1) == test_y).float().mean())}
    torch.manual_seed(seed)
    model = MODELS[name](x.values.shape[2], int(y.max()) + 1, config.hidden)
    begun = time.perf_counter()
    losses = descend(model, partial(_loss, model, x, y, config.batch_size), config.iterations, RATES[name])
    seconds = time.perf_counter() - begun
    return {
        **row,
        "accuracy": accuracy(model.eval(), test_x, test_y),
        "train_accuracy": accuracy(model, x, y),
        "loss": losses[-1],
        "seconds": seconds,
        "parameters": count_parameters(model),
    }


def _loss(model: nn.Module, x: Series, y: Tensor, batch_size: int, share: float) -> Tensor:
    """() of a random batch; `share` is for others."""
    which = torch.randperm(len(y))[:batch_size]
    return CLASSIFY(model(x[which]), y[which])
