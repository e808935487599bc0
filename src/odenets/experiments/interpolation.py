"""What was measured between the rows that are shown: latent ODEs, straight lines, the last value, the mean (section 6).

Run it:     odenets run interpolation                  (PhysioNet 2012, set a; a quarter of an hour a seed)
Expect:     (one seed) of the values in rows that are not shown a latent ODE with a GRU leaves 0.58, 0.52, 0.48, 0.46,
            0.45 of the variance with 5, 10, 20, 30 and 50 % of the rows shown, straight lines 0.73, 0.62, 0.50, 0.45
            and 0.39, the last value 0.84, 0.77, 0.68, 0.62 and 0.56.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from odenets.data.physionet import SOURCES, quantised
from odenets.experiments import interpolation_shown as shown
from odenets.experiments.driver import Row, collect, means, numbers_of, seeds_of
from odenets.experiments.option import check_at_least, check_choices, option
from odenets.experiments.physionet import prepared, task_of
from odenets.experiments.result import Result
from odenets.experiments.training import descend
from odenets.nn import LatentODE, count_parameters
from odenets.nn.series.inputs import last_values
from odenets.path.missing import filled
from odenets.series import Scaling, Series, collate

SMALL = {"data": "synthetic", "samples": 60, "hours": 2.0, "iterations": 2, "seeds": 1, "hidden": 8, "latent": 4}
ROWS = 256  # stays of one forward pass when predicting
SIGMA = 0.7  # about what a scaled value is off by, so that the bound is neither all fit nor all prior
WARM = 0.3  # the share of the steps in which the weight of the prior rises to 1


@dataclass(frozen=True)
class Config:
    """Options of the interpolation experiment."""

    data: str = option("auto", "Real stays, or synthetic ones; auto takes what there is.", SOURCES)
    data_dir: str | None = option(None, "Folder with set-a.tar.gz and Outcomes-a.txt; also ODENETS_DATA.")
    samples: int = option(4000, "The most stays.")
    hours: float = option(0.5, "Times are rounded down to multiples of so many hours; 0 leaves them.")
    latent: int = option(16, "Dimension of the latent state.")
    hidden: int = option(64, "Width of the encoders' states.")
    iterations: int = option(1500, "Steps of the optimizer.")
    batch_size: int = option(64, "Stays in a step.")
    lr: float = option(5e-3, "Highest learning rate of Adam.")
    seed: int = option(0, "First seed, of weights, order and what is shown.")
    seeds: int = option(1, "Number of seeds.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, samples=40, hours=0, latent=1, hidden=1, iterations=1, batch_size=1, seed=0, seeds=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train everything; each training is kept in `folder`, so a stopped run goes on."""
    pieces: dict[str, Callable[[], Row]] = {"problem": partial(_problem_row, config)}
    for seed in seeds_of(config):
        pieces |= {f"simple-{i}-{seed}": partial(simple_row, config, name, seed) for i, name in enumerate(SIMPLE)}
        pieces |= {f"model-{i}-{seed}": partial(model_row, config, name, seed) for i, name in enumerate(ENCODERS)}
    problem, *rows = collect(pieces, folder, progress=progress, label="trainings")
    return Result(
        experiment="interpolation",
        title="Irregular time series: what was measured between the rows that are shown",
        lead=shown.lead(problem, rows),
        config=dataclasses.asdict(config),
        source=problem["source"],
        synthetic=problem["synthetic"],
        sections=(shown.accuracy(rows), shown.published(problem, rows), shown.cost(rows)),
        summary={"table": means(rows, ["model"], shown.ERRORS), "runs": numbers_of(rows), "problem": problem},
    )


class Problem(NamedTuple):
    """Scaled stays to train with and to test on, and the range of each channel in these units, (C,)."""

    train: Series
    test: Series
    width: Tensor


@functools.lru_cache(maxsize=1)
def problem_of(data: str, data_dir: str | None, samples: int, hours: float) -> Problem:
    """Four fifths of set a and one, divided as Rubanova et al. (2019) do; everything is scaled by the first part."""
    task = task_of("A", data, data_dir, samples)
    train = dataclasses.replace(task.train, series=collate([task.train.series, task.valid.series]))
    raw = quantised(train.series, hours) if hours else train.series
    scaling = Scaling.fit(raw)
    greatest, least = (sign * (sign * raw.values).nan_to_num(-torch.inf).amax((0, 1)) for sign in (1, -1))
    parts = prepared(task._replace(train=train), hours)
    width = ((greatest - least) / scaling.deviation).float()
    return Problem(parts[0], parts[2], width.where(width > 0, 1.0))


def _problem(config: Config) -> Problem:
    return problem_of(config.data, config.data_dir, config.samples, config.hours)


def _problem_row(config: Config) -> Row:
    task, problem = task_of("A", config.data, config.data_dir, config.samples), _problem(config)
    return {
        "source": task.train.source,
        "synthetic": task.train.synthetic,
        "train": len(problem.train),
        "test": len(problem.test),
        "channels": problem.test.values.shape[2],
        "rows": float(problem.test.lengths.double().mean()),
    }


# --- what fills in ---------------------------------------------------------------------------------------------------


def mean(series: Series) -> Tensor:
    """(N, L, C), the mean of each channel, which is 0."""
    return torch.zeros_like(series.values)


def last(series: Series) -> Tensor:
    """(N, L, C), the last value shown, the mean before the first."""
    return last_values(series.values)[0]


def line(series: Series) -> Tensor:
    """(N, L, C), straight lines between the values shown, level outside of them, the mean where there is none."""
    fill = partial(filled, holds=False, zeros=True, looks=False)
    return torch.func.vmap(fill)(series.times, series.values)


SIMPLE: dict[str, Callable[[Series], Tensor]] = {shown.MEAN: mean, shown.LAST: last, shown.LINE: line}
ENCODERS = {shown.GRU: "gru", shown.ODE: "ode_rnn"}


def errors(predict: Callable[[Series, Series], Tensor], problem: Problem, seed: int) -> Row:
    """The mean squared error of the values that are not shown, each once; in scaled units, and over the ranges.

    Args:
        predict: Of what is shown, and of all rows, the values (N, L, C) in the latter.
        problem: What is tested on.
        seed: Of what is shown.
    """
    found: dict[str, float] = {}
    test = problem.test
    for share in shown.SHARES:
        seen = test.drawn(share, seed)
        square = (predict(test.kept(seen, "a row"), test) - test.values).square()
        asked = test.mask & ~seen[..., None]
        found[shown.key(share)] = float(square[asked].double().mean())
        found[shown.key(share, "range")] = float((square / problem.width.square())[asked].double().mean())
    return found


def simple_row(config: Config, name: str, seed: int) -> Row:
    """What needs no training."""
    return {"model": name, "seed": seed, **errors(partial(_filled, SIMPLE[name]), _problem(config), seed)}


def _filled(fill: Callable[[Series], Tensor], seen: Series, every: Series) -> Tensor:
    """What `fill` puts into the rows of `every` that are not in `seen`."""
    place = torch.searchsorted(seen.times.where(seen.rows, torch.inf), every.times)
    there = place.clamp(max=seen.times.shape[1] - 1)
    same = (seen.times.gather(1, there) == every.times) & every.rows
    values = every.values.where(same[..., None], torch.nan)
    return fill(dataclasses.replace(every, values=values))


def model_row(config: Config, name: str, seed: int) -> Row:
    """Train a latent ODE on the rows of stays, a random share of them shown, and test it with each share."""
    problem = _problem(config)
    torch.manual_seed(seed)
    static = 0 if problem.train.static is None else problem.train.static.shape[1]
    model = LatentODE(
        problem.train.values.shape[2],
        config.latent,
        config.hidden,
        static=static,
        sigma=SIGMA,
        encoder=ENCODERS[name],
    )
    begun = time.perf_counter()
    losses = descend(model, partial(_loss, model, problem.train, config.batch_size), config.iterations, config.lr)
    return {
        "model": name,
        "seed": seed,
        "seconds": time.perf_counter() - begun,
        "parameters": count_parameters(model),
        "losses": losses,
        **errors(partial(_predicted, model.eval()), problem, seed),
    }


def _loss(model: LatentODE, train: Series, batch_size: int, share: float) -> Tensor:
    """() of a random batch of which a random share of `shown.SHARES` is seen; minus the bound by observed value."""
    batch = train[torch.randperm(len(train))[:batch_size]]
    draw, seed = (int(torch.randint(n, ())) for n in (len(shown.SHARES), 2**31))
    seen = batch.thinned(shown.SHARES[draw], seed)
    bound = model.elbo(seen, batch, kl_weight=min(1.0, share / WARM))
    return -(bound / batch.mask.sum((1, 2)).clamp(min=1)).mean()


@torch.no_grad()
def _predicted(model: LatentODE, seen: Series, every: Series) -> Tensor:
    parts = range(0, len(every), ROWS)
    return torch.cat([model(seen[i : i + ROWS], every.times[i : i + ROWS]) for i in parts])
