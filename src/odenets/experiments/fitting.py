"""Constants of an ODE from noisy series: which way of fitting finds them from a poor start (beyond the introduction).

Run it:     odenets run fitting        (about 12 minutes on one free core; --resume goes on)
Expect:     (five seeds) predators and prey: plain finds 0 of 5, collocation alone 2, growing, multiple shooting and
            auto 5, in 4.9, 6.3, 9.3, 3.7 and 3.3 seconds of a core. A pendulum whose speed is hidden: plain 4, growing
            2, the others 5. Robertson's reactions: all. Wherever a fit finds the solution, every constant is within
            three of its standard errors.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from odenets.experiments.driver import Row, collect, groups, listed, numbers_of, rows_table, values_of
from odenets.experiments.fitted import NOISE_FOUND, PROBLEMS, PUBLISHED, fit_row
from odenets.experiments.option import check_at_least, check_choices, option
from odenets.experiments.result import Picture, Result, Section

SMALL = {"seeds": 2, "iterations": 10, "grid": "small"}
GRIDS = {"small": ("decay",), "full": ("predators", "pendulum", "robertson"), "network": ("network",)}
NAMES = {
    "decay": "Decay",
    "predators": "Predators and prey, 10 % of the times and of the values missing",
    "pendulum": "A damped pendulum of which the angle is observed",
    "robertson": "Robertson's stiff reactions",
    "network": "A network and the spiral of DiffEqFlux's example",
}


@dataclass(frozen=True)
class Config:
    """Options of the fitting experiment."""

    seed: int = option(0, "First seed, of the noise, the gaps and the starts.")
    seeds: int = option(5, "Number of seeds.")
    starts: int = option(1, "Starts for each seed.")
    iterations: int = option(25, "The most iterations of a fit; twice as many of Adam.")
    grid: str = option("full", "Which systems: one, three with constants, or a network.", tuple(GRIDS))

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, seed=0, seeds=1, starts=1, iterations=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Fit everything; each fit is a piece kept in `folder`, so a stopped run goes on."""
    pieces: dict[str, Callable[[], Row]] = {
        f"{name}-{strategy.replace(' ', '-')}-{seed}-{start}": partial(
            fit_row, name, strategy, seed, start, config.iterations
        )
        for name in GRIDS[config.grid]
        for seed in range(config.seed, config.seed + config.seeds)
        for strategy in PROBLEMS[name].strategies
        for start in range(PROBLEMS[name].starts or config.starts)
    }
    rows = collect(pieces, folder, progress=progress, label="fits")
    by = {name: mine for (name,), mine in groups(rows, ["problem"]).items()}
    table = [line for name, mine in by.items() for line in _lines(name, mine)]
    return Result(
        experiment="fitting",
        title="Which way of fitting finds the constants of an ODE?",
        lead=_lead(table),
        config=dataclasses.asdict(config),
        source="Series solved to 1e-9 (Robertson's to 1e-6), with noise and gaps drawn from the seed.",
        synthetic=False,
        sections=tuple(_section(name, mine, config) for name, mine in by.items()),
        summary={"table": table, "runs": numbers_of(rows)},
    )


def _lines(name: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line of the table for each strategy."""
    lines = []
    for (strategy,), mine in groups(rows, ["strategy"]).items():
        within = values_of(mine, "within")
        noise = values_of(mine, "noise")
        lines.append(
            {
                "problem": name,
                "strategy": strategy,
                "fits": len(mine),
                "found": fmean(values_of(mine, "found")),
                "within": fmean(within) if within else None,
                "noise": median(noise) if noise else None,
                "seconds": median(values_of(mine, "seconds")),
                "failed": sum("failed" in row for row in mine),
            }
        )
    return lines


def _lead(table: Sequence[dict[str, Any]]) -> str:
    parts = []
    for (name,), lines in groups(table, ["problem"]).items():
        found = [f"{line['strategy'].replace('_', ' ')} {line['found']:.0%}" for line in lines]
        parts.append(f"{name}: {listed(found)}")
    constant = [line for line in table if line["within"] is not None]
    fits = sum(line["found"] * line["fits"] for line in constant)
    inside = sum(line["found"] * line["fits"] * line["within"] for line in constant)
    return (
        f"Fits that find the solution, from starts that know nothing of the constants: {'; '.join(parts)}. "
        f"In {inside:.0f} of the {fits:.0f} fits of constants that found it every constant is within three of its "
        "standard errors. A plain fit that misses it ends in a solution that lies near the mean of the data, or cannot "
        "begin."
    )


def _section(name: str, rows: Sequence[Row], config: Config) -> Section:
    found = (
        "a root mean square error below 0.05"
        if name == "network"
        else f"residuals of at most {NOISE_FOUND:g} times the noise"
    )
    published = ""
    if any(row["strategy"] == PUBLISHED for row in rows):
        published = (
            f" “{PUBLISHED}” is multiple shooting cut as in the example of DiffEqFlux's documentation: 30 times in "
            "groups of 3 that share their ends, with 200 times the absolute gaps as a penalty; there each group begins "
            "at the data, here at states that are fitted, and the penalty is one of squares that rises."
        )
    table = rows_table(
        NAMES[name],
        _lines(name, rows),
        {
            "strategy": "strategy",
            "fits": "fits",
            "found": "found:.0%",
            "within 3 standard errors": "within:.0%",
            "residuals": "noise:.3g",
            "CPU seconds": "seconds:.3g",
            "could not begin": "failed",
        },
        f"Found: {found}. Within: those of them with every constant within three standard errors. Residuals: root mean "
        "square" + ("" if name == "network" else " over the noise") + f", median. CPU seconds: median.{published}",
        empty=False,
    )
    return Section(NAMES[name], _text(name, config), (table,), _pictures(name, rows))


def _text(name: str, config: Config) -> str:
    what = {
        "decay": "One constant, and the initial state.",
        "predators": "Lotka and Volterra's equations, four constants, each begun at a lognormal number (σ = 0.7) "
        "around 1; both initial states are fitted. Noise of 0.2 on values from 0.5 to 7, nearly three periods.",
        "pendulum": "Two constants, begun at lognormal numbers around 1 (4 and 0.1 are right), and both initial "
        "states. Noise of 0.1, three swings; the speed is not observed, so there is no collocation.",
        "robertson": "Three rates of 0.04, 3e7 and 1e4, begun off by lognormal factors (σ = 1), solved by trbdf2 at "
        "1e-3. Times from 1e-5 to 1e3, and noise of 1 % of each component's size (3 % of the second).",
        "network": "82 weights, y³ through 16 neurons and tanh, 30 times from 0 to 5 without noise, Adam and L-BFGS.",
    }[name]
    return f"{what} At most {config.iterations * (2 if name == 'network' else 1)} iterations a fit."


def _pictures(name: str, rows: Sequence[Row]) -> tuple[Picture, ...]:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    shown = {row["strategy"]: row for row in rows if "t" in row and row["seed"] == rows[0]["seed"]}
    lines = {s: figures.Line(row["t"], row["y"]) for s, row in shown.items() if s in ("plain", "auto")}
    if "plain" not in lines or "auto" not in lines or name == "robertson":
        return ()
    data = shown["plain"]
    lines["data"] = figures.Line(data["t_seen"], data["seen"])
    words = "The first column of the data (thin; a missing value is drawn as 0), and what two strategies made of it."
    return (Picture(f"{name}-fits", NAMES[name], words, figures.lines(lines, "time", "value", level="data")),)
