"""Spirals seen at random times and predicted behind them: a latent ODE beside an RNN (Chen et al. 2018, section 5.1).

Run it:     odenets run spirals                        (8 minutes for each seed on an idle core)
Expect:     the published errors, 0.16, 0.15 and 0.13 with 30, 50 and 100 points, are not reached. Of one seed the
            latent ODE came to 0.57, 0.46 and 0.67, the model and loss of torchdiffeq's example, with as many steps,
            to 0.71, 0.38 and 0.40, the RNN to 0.49, 0.54 and 0.53; who knows both curves to 0.05, 0.04 and 0.03, so
            the noise does not forbid what is published. On training spirals held out, 30 points, ours came to 1.8 by
            the bound alone, which leaves open what z does behind the points seen, and to 0.45 to 0.78, in trials that
            differ in seed, batch, steps and weights, with the two terms that it has more. What makes the example's
            model better with 50 and more (a plain RNN, a field of two layers, coordinates that are not scaled) is not
            taken apart.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odenets.experiments import spirals_shown as shown
from odenets.experiments.driver import Row, collect, means, numbers_of, seeds_of
from odenets.experiments.option import check_at_least, option
from odenets.experiments.result import Result
from odenets.experiments.spirals_data import AHEAD, BEFORE, SCALE, SEEN, Spirals, draw, seen
from odenets.experiments.spirals_models import MODELS, UNTRAINED, AsPublished, Latent
from odenets.experiments.training import descend
from odenets.nn import count_parameters
from odenets.series import Series

SMALL = {"spirals": 40, "iterations": 4, "seeds": 1}

NUMBERS = (30, 50, 100)  # points seen
DRAWN = 1  # spirals of each direction in a figure


@dataclass(frozen=True)
class Config:
    """Options of the spirals experiment."""

    spirals: int = option(1000, "Spirals to train with; a quarter as many others for test.")
    iterations: int = option(800, "Steps of the optimizer.")
    batch_size: int = option(200, "Spirals in a step.")
    lr: float = option(0.01, "Learning rate of Adam: the highest, where it rises and falls again.")
    seed: int = option(0, "First seed, of the spirals, the weights and the order.")
    seeds: int = option(3, "Number of seeds.")

    def __post_init__(self) -> None:
        check_at_least(self, spirals=40, iterations=1, batch_size=1, seed=0, seeds=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train everything; each training is kept in `folder`, so a stopped run goes on."""
    pieces: dict[str, Callable[[], Row]] = {
        f"{name.replace(',', '').replace(' ', '-')}-{number}-{seed}": partial(model_row, config, name, number, seed)
        for seed in seeds_of(config)
        for number in NUMBERS
        for name in (*UNTRAINED, *MODELS)
    }
    rows = collect(pieces, folder, progress=progress, label="trainings")
    return Result(
        experiment="spirals",
        title="Spirals seen at random times, and what comes behind them",
        lead=shown.lead(rows),
        config=dataclasses.asdict(config),
        source="Spirals drawn from the seed, half of them clockwise, with normal noise of 0.3.",
        synthetic=False,
        sections=(
            shown.errors(rows),
            shown.curves(rows, config.seed),
            shown.latent(rows, config.seed),
            shown.cost(rows),
        ),
        summary={"table": means(rows, ["model", "points"], shown.QUANTITIES), "runs": numbers_of(rows)},
    )


# --- the pieces ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _data(count: int, seed: int) -> tuple[Spirals, Spirals]:
    """To train with, and others to test on."""
    return draw(count, 2 * seed), draw(count // 4, 2 * seed + 1)


def model_row(config: Config, name: str, number: int, seed: int) -> Row:
    """Train one model (some need no training) on so many points of each spiral."""
    train, test = _data(config.spirals, seed)
    given, asked = seen(train, number, seed), seen(test, number, seed)
    begun = time.perf_counter()
    model, losses = (UNTRAINED[name](), None) if name in UNTRAINED else trained(MODELS[name], given, config, seed)
    row = {
        "model": name,
        "points": number,
        "seed": seed,
        "seconds": None if losses is None else time.perf_counter() - begun,
        "parameters": count_parameters(model) if isinstance(model, nn.Module) else None,
        "nfe": model.model.stats.nfe if isinstance(model, Latent) and model.model.stats else None,
        **_scores(model, asked, test, "new"),
        **_scores(model, given, train, "same"),
        "loss_by_part": losses,
    }
    return {**row, **_pictures(model, asked, test)} if seed == config.seed and name in MODELS else row


def trained(make: Callable[[], Any], series: Series, config: Config, seed: int) -> tuple[Any, list[float]]:
    """A model after the training, and its mean loss in each twentieth of it."""
    torch.manual_seed(seed)
    model = make()

    def loss(share: float) -> Tensor:
        return model.loss(series[torch.randperm(len(series))[: config.batch_size]], share)

    losses = descend(model, loss, config.iterations, config.lr, falling=make is not AsPublished)
    return model.eval(), losses


@torch.no_grad()
def _scores(model: Any, series: Series, spirals: Spirals, which: str) -> dict[str, float]:
    """RMSE of a coordinate on the points behind those seen, without their noise and with it, and a spiral's median."""
    predicted = SCALE * model.predict(series, SEEN, SEEN + AHEAD)
    behind = slice(BEFORE + SEEN, None)
    return {
        f"{which}_clean": rmse(predicted, spirals.clean[:, behind]),
        f"{which}_median": median_rmse(predicted, spirals.clean[:, behind]),
        f"{which}_noisy": rmse(predicted, spirals.noisy[:, behind]),
    }


def rmse(predicted: Tensor, truth: Tensor) -> float:
    """Over all coordinates of all points that are there."""
    return float((predicted - truth).double().square().nanmean().sqrt())


def median_rmse(predicted: Tensor, truth: Tensor) -> float:
    """That of the spiral in the middle, of those that have points there."""
    return float((predicted - truth).double().square().nanmean((1, 2)).sqrt().nanmedian())


@torch.no_grad()
def _pictures(model: Any, series: Series, spirals: Spirals) -> dict[str, Any]:
    """What is drawn: spirals of both directions with predictions, and the first two principal axes of z(t₀)."""
    some = _some(spirals)
    few = series[some]
    drawn: dict[str, Any] = {
        "truth": spirals.clean[some],
        "seen": SCALE * few.values,
        "ahead": SCALE * model.predict(few, SEEN, SEEN + AHEAD),
    }
    if not isinstance(model, Latent):
        return drawn
    z = model.states(series, 1)[0][:, 0]
    axes = torch.linalg.svd(z - z.mean(0), full_matrices=False)[2][:2]
    backward = SCALE * model.predict(few, -BEFORE, SEEN)
    return {**drawn, "back": backward, "z": (z - z.mean(0)) @ axes.T, "clockwise": spirals.clockwise}


def _some(spirals: Spirals) -> list[int]:
    """A few of each direction, of those that go on to the last point asked for."""
    whole = spirals.clean.isfinite().all(2).all(1)
    of_each = ((whole & (spirals.clockwise == which)).nonzero()[:DRAWN, 0].tolist() for which in (True, False))
    return [i for few in of_each for i in few]
