"""What an ODE-Net's solver costs and changes (section 6, "Slower training time" and "More hyperparameters").

Run it:     odenets run tolerance                      (digits: about 6 minutes on one core)
            odenets run tolerance --data ecg           (heartbeats, with the records in ODENETS_DATA: over an hour)
Expect:     on digits (three seeds) test errors of 3.3 to 5.7 % with every solver, 3.8 % for the ResNet, which trains in
            less than half the time. Solved to 1e-6 after training, tsit5 at every tolerance and bosh3 from 1e-2 on
            change their test loss by less than 1 %, bosh3 at 0.1 by 1.6 %, rk4 in one step, which is what tune chooses
            before the training, by 6 %, Euler's method in eight steps by 12 % and in one by 390 %. Evaluations of tsit5
            at 1e-5 grow from 24 to 38. With the kinetic energy 14 in place of 20 suffice at 1e-3, at a lower test loss
            (0.125 for 0.145) and in 0.93 of the time; the Jacobian's norm doubles the time.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from odenets.experiments.driver import Row, collect, groups, interval, means_table, numbers_of, values_of
from odenets.experiments.option import check_at_least, check_choices, option
from odenets.experiments.result import INTRODUCTION, Picture, Result, Section
from odenets.experiments.training_cost import (
    PENALTIES,
    PLAIN,
    QUANTITIES,
    RESNET,
    TUNED,
    Setting,
    adaptive,
    fixed,
    problem_row,
    summary_of,
    train_row,
)

SMALL = {"samples": 200, "epochs": 1, "seeds": 1, "grid": "small"}
METHODS = ("bosh3", "tsit5")
TOLERANCES = {"small": (1e-1, 1e-3), "full": (1e-1, 1e-2, 1e-3, 1e-5)}
STEPS = (fixed("euler", 1), fixed("euler", 8), fixed("rk4", 1))
RESOLVED = 0.01  # relative change of the test loss


@dataclass(frozen=True)
class Config:
    """Options of the tolerance experiment."""

    data: str = option("digits", "What is learnt: digits, or heartbeats.", ("digits", "ecg"))
    samples: int = option(8000, "The most training samples; half as many for test.")
    grid: str = option("full", "How many tolerances are tried.", tuple(TOLERANCES))
    epochs: int = option(15, "Epochs.")
    seed: int = option(0, "First seed, of the weights and the order of the samples.")
    seeds: int = option(3, "Number of seeds: three, for each takes minutes.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, samples=20, epochs=1, seed=0, seeds=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train everything; each training is kept in `folder`, so a stopped run goes on."""
    solvers = [adaptive(method, tolerance) for method in METHODS for tolerance in TOLERANCES[config.grid]]
    settings = [Setting(RESNET), *solvers, *STEPS, Setting(TUNED), *PENALTIES]
    seeds = range(config.seed, config.seed + config.seeds)
    pieces: dict[str, Callable[[], Row]] = {
        "problem": partial(problem_row, config.data, config.samples),
        **{
            f"{i}-{seed}": partial(train_row, config.data, config.samples, config.epochs, setting, seed)
            for seed in seeds
            for i, setting in enumerate(settings)
        },
    }
    order = {setting.name: i for i, setting in enumerate(settings)}
    problem, *rows = collect(pieces, folder, progress=progress, label="trainings")
    rows.sort(key=lambda row: order[row["setting"]])
    table = summary_of(rows)
    return Result(
        experiment="tolerance",
        title="What the solver of an ODE-Net costs and changes",
        lead=_lead(table, rows),
        config=dataclasses.asdict(config),
        source=problem["source"],
        synthetic=problem["synthetic"],
        sections=(
            _solvers(rows, config, problem["commonest"]),
            _resolution(rows, config),
            _tuned(rows, config),
            _growth(rows, config),
        ),
        summary={"table": table, "runs": numbers_of(rows)},
    )


# --- words -----------------------------------------------------------------------------------------------------------


def _lead(table: Sequence[Row], rows: Sequence[Row]) -> str:
    by = {row["setting"]: row for row in table if row["test_loss"] is not None}
    words = [_on_time(by), _on_the_trade(by, rows), _on_being_an_ode(by), _on_growth(by), _on_tune(by)]
    failed = [row for row in rows if row["failure"]]
    words.append(f"{len(failed)} of {len(rows)} trainings failed." if failed else "")
    return "\n\n".join(word for word in words if word)


def _mean(by: dict[str, Row], name: str, key: str) -> float:
    return by[name][key]["mean"]


def _on_time(by: dict[str, Row]) -> str:
    if RESNET not in by or PLAIN.name not in by:
        return ""
    ratio = _mean(by, PLAIN.name, "seconds") / _mean(by, RESNET, "seconds")
    word = "holds" if ratio > 1.1 else "does not hold"
    return (
        f"“Slower training”, in section 6 of {INTRODUCTION}, {word} here: an ODE-Net solved by tsit5 to 1e-3 trains "
        f"for {ratio:.1f} times as long as its ResNet, with a test error of "
        f"{_mean(by, PLAIN.name, 'test_error'):.1%} against {_mean(by, RESNET, 'test_error'):.1%}."
    )


def _on_the_trade(by: dict[str, Row], rows: Sequence[Row]) -> str:
    tried = [name for name in by if name.startswith(METHODS) and by[name]["nfe"]]
    if not tried:
        return ""
    cheap, dear = (f(tried, key=lambda name: _mean(by, name, "nfe")) for f in (min, max))
    costs = _mean(by, dear, "nfe") / _mean(by, cheap, "nfe")
    there = [row for row in rows if not row["failure"]]
    one, other = ({row["seed"]: row["test_error"] for row in _of(there, [name])} for name in (cheap, dear))
    low, high = interval([one[seed] - other[seed] for seed in one if seed in other])
    if low is None or high is None:
        what = "one seed cannot say what they buy"
    else:
        what = f"they buy a test error lower by {low:.1%} to {high:.1%} (95 % interval of the seeds' differences)"
        what = what if low > 0 else f"what they buy does not show in the test error ({low:.1%} to {high:.1%} lower)"
    return f"The trade-off: from {cheap} to {dear} the evaluations of f grow {costs:.1f} times; {what}."


def _on_being_an_ode(by: dict[str, Row]) -> str:
    known = {name: row["change"]["mean"] for name, row in by.items() if row["change"]}
    ode, resnet = ([name for name, value in known.items() if (value < RESOLVED) is which] for which in (True, False))
    told = "; ".join(f"{name} by {known[name]:.1%}" for name in resnet)
    return (
        f"Solved to 1e-6 after training, {len(ode)} of {len(known)} kinds of network change their test loss by less "
        "than 1 %: they are ODEs." + (f" The others have learnt their solver's steps: {told}." if resnet else "")
    )


def _on_growth(by: dict[str, Row]) -> str:
    if PLAIN.name not in by:
        return ""
    rise = _mean(by, PLAIN.name, "nfe") / _mean(by, PLAIN.name, "nfe_first")
    told = []
    for penalty in PENALTIES:
        if penalty.name in by:
            nfe, seconds = (_mean(by, penalty.name, k) / _mean(by, PLAIN.name, k) for k in ("nfe", "seconds"))
            error = _mean(by, penalty.name, "test_error")
            told.append(f"{penalty.name}: {nfe:.2f} times, {seconds:.2f} times the time, test error {error:.1%}")
    return (
        f"With tsit5 to 1e-3 the evaluations grow {rise:.2f} times from the first epoch to the last. Evaluations at "
        f"the end beside those: {'; '.join(told)}."
    )


def _on_tune(by: dict[str, Row]) -> str:
    if TUNED not in by:
        return ""
    grid = {name: row for name, row in by.items() if name.startswith((*METHODS, "euler", "rk4"))}
    quick = sum(_mean(grid, name, "seconds") < _mean(by, TUNED, "seconds") for name in grid)
    better = sum(_mean(grid, name, "test_loss") < _mean(by, TUNED, "test_loss") for name in grid)
    return (
        f"More hyperparameters: `tune`, asked once before the training, chose {by[TUNED]['chosen']}. Of the "
        f"{len(grid)} solvers of the grid {quick} trained faster and {better} ended at a lower test loss."
    )


# --- tables and figures ----------------------------------------------------------------------------------------------


def _table(title: str, rows: Sequence[Row], keys: Sequence[str], note: str) -> Any:
    return means_table(title, rows, {"setting": "network"}, [QUANTITIES[key] for key in keys], note=note)


def _of(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    return [row for row in rows if row["setting"] in names]


def _solver_names(config: Config) -> list[str]:
    return [adaptive(method, tolerance).name for method in METHODS for tolerance in TOLERANCES[config.grid]]


def _solvers(rows: Sequence[Row], config: Config, commonest: float) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    names = [RESNET, *_solver_names(config), *(setting.name for setting in STEPS)]
    errors, counts = {}, {}
    for method in METHODS:
        at = {x: _of(rows, [adaptive(method, x).name]) for x in TOLERANCES[config.grid]}
        errors[method] = _band(figures.Line, {x: [100 * v for v in values_of(r, "test_error")] for x, r in at.items()})
        counts[f"{method}, forward"] = _band(figures.Line, {x: values_of(r, "nfe") for x, r in at.items()})
        counts[f"{method}, backward"] = _band(figures.Line, {x: values_of(r, "nfe_backward") for x, r in at.items()})
    return Section(
        "Time, evaluations and test error",
        "Linear layer, ODE layer with one hidden layer in its field, linear layer; gradients by Checkpointed.",
        (
            _table(
                "Solvers",
                _of(rows, names),
                ("test_error", "test_loss", "nfe", "nfe_backward", "seconds"),
                f"The number is the tolerance. Always naming the most frequent class: {commonest:.1%} wrong. Seconds "
                "of the whole training, its tests included.",
            ),
        ),
        (
            Picture(
                "error",
                "Test error over the tolerance",
                "Test error after the last epoch over the tolerance of the training, mean and range of the seeds.",
                figures.lines(errors, "tolerance", "test error, %", log="x", marked=True),
            ),
            Picture(
                "evaluations",
                "Evaluations of f over the tolerance",
                "Evaluations of f a training step in the last epoch, forward and backward, over the tolerance.",
                figures.lines(counts, "tolerance", "evaluations of f", log="xy", marked=True),
            ),
        ),
    )


def _band(kind: Callable[..., Any], values: dict[Any, list[float]]) -> Any:
    """Mean and range over the seeds, at every place that has a value."""
    there = {x: found for x, found in values.items() if found}
    mean, low, high = ([f(found) for found in there.values()] for f in (statistics.fmean, min, max))
    return kind(list(there), mean, low, high)


def _resolution(rows: Sequence[Row], config: Config) -> Section:
    names = [*_solver_names(config), *(setting.name for setting in STEPS), TUNED]
    return Section(
        "An ODE, or a residual network in disguise?",
        "After the training the network is solved by tsit5 to 1e-6. What changes its test loss by 1 % and more is not "
        "the ODE that it seems (Ott et al., ICLR 2021).",
        (
            _table(
                "Trained networks under other solvers",
                _of(rows, names),
                ("test_loss", "change", "output_change", "lipschitz", "reconstruction"),
                "The last three columns are `odenets.diagnose` on 64 test samples: the larger change of the logits "
                "under a finer solver and under another method.",
            ),
        ),
    )


def _tuned(rows: Sequence[Row], config: Config) -> Section:
    names = [*_solver_names(config), *(setting.name for setting in STEPS), TUNED]
    chosen = "; ".join(f"seed {row['seed']}: {row['chosen']}" for row in _of(rows, [TUNED]) if row["chosen"])
    spent = values_of(_of(rows, [TUNED]), "tuning")
    return Section(
        "What tune chose, beside the grid",
        f"Asked before the training, of one batch of 64 ({chosen}), in {statistics.fmean(spent):.0f} seconds.",
        (_table("Loss and time", _of(rows, names), ("test_loss", "test_error", "seconds"), "Seconds without tuning."),),
    )


def _growth(rows: Sequence[Row], config: Config) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    names = [PLAIN.name, *(penalty.name for penalty in PENALTIES)]
    tsit5 = [adaptive("tsit5", x).name for x in TOLERANCES[config.grid]]
    panels = {"tsit5, by its tolerance": tsit5, "tsit5 to 0.001, regularised": names}
    drawn: dict[str, dict[str, Any]] = {title: {} for title in panels}
    for title, kinds in panels.items():
        for (name,), mine in groups(_of(rows, kinds), ["setting"]).items():
            curves = list(zip(*(row["nfe_by_epoch"] for row in mine if row.get("nfe_by_epoch"))))
            drawn[title][name] = _band(figures.Line, {i + 1: list(values) for i, values in enumerate(curves)})
    return Section(
        "Evaluations that grow, and what holds them",
        "“The dynamics we want to learn tend to become expensive to solve.” Kinetic energy and the Jacobian's norm "
        "(Finlay et al., ICML 2020) are integrated beside the state and added to the loss; weight decay is AdamW's.",
        (
            _table(
                "Regularisers, tsit5 to 1e-3",
                _of(rows, names),
                ("test_error", "test_loss", "nfe_first", "nfe", "seconds", "lipschitz"),
                "The first row is without any. Seconds include the second derivative that the Jacobian's norm needs.",
            ),
        ),
        (
            Picture(
                "growth",
                "Evaluations of f while training",
                "Mean evaluations of f a forward pass over the epochs, with the range of the seeds. Equal lines lie on "
                "each other.",
                figures.line_panels(drawn, "epoch", "evaluations of f", share_y=False),
            ),
        ),
    )
