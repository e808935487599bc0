"""What the physionet experiment says: words, tables and figures, made of its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odenets.experiments.driver import Quantity, Row, groups, interval, means_table
from odenets.experiments.result import INTRODUCTION, Picture, Section

FEATURES = ("count", "mean", "least", "greatest", "first", "last")
ALARMS = [i / 100 for i in range(101)]  # shares of the survivors that are alarmed, at which curves are kept
OUTLIERS = 5.0  # deviations beyond which a value counts as that far: a pH of 735 is a slip of the pen

MTAN = "mTAN"
PUBLISHED = {
    "A": {
        "GRU-D": "0.818 ± 0.008 (R)",
        "ODE-RNN": "0.833 ± 0.009 (R)",
        MTAN: "0.854 ± 0.001 (S)",
    },
    "B": {"GRU with gaps": "0.846 ± 0.004 (E)"},
}
SOURCES = {
    "A": "(R): Rubanova et al. 2019, table 6: set a alone, 80/20, the same division, no validation part, 41 channels "
    "at 0.016 h. (S): mTAND-Enc of Shukla and Marlin 2021, whose mTAND-Full has 0.858 ± 0.004.",
    "B": "(E): EBES, KDD 2025, second hand: set a divided 70/15/15, tested on set b; a transformer has 0.838 ± 0.008.",
}
AIM = {"A": 0.835, "B": 0.845}

QUANTITIES = (
    Quantity("auroc", "AUROC"),
    Quantity("auroc_low", "95 % interval of the stays, from"),
    Quantity("auroc_high", "to"),
    Quantity("auprc", "AUPRC"),
    Quantity("valid_auroc", "AUROC, validation"),
    Quantity("epochs", "epochs", 1),
    Quantity("epoch_seconds", "seconds an epoch", 1),
    Quantity("seconds", "seconds in all", 0),
    Quantity("parameters", "parameters", 0),
    Quantity("nfe", "evaluations of f a batch", 0),
)


def lead(config: Any, problem: Row, rows: Sequence[Row]) -> str:
    by = {name: np.mean([row["auroc"] for row in mine]) for (name,), mine in groups(rows, ["model"]).items()}
    odes = {name: value for name, value in by.items() if name.startswith("ODE")}
    best = max(odes, key=lambda name: odes[name])
    others = {name: value for name, value in by.items() if name not in odes}
    better = [f"{name} ({value:.3f})" for name, value in others.items() if value > odes[best]]
    told = f"better than it: {', '.join(better)}" if better else "nothing else here is better"
    words = [
        f"{problem['train']:,} stays to train with, {problem['valid']:,} to stop by, {problem['test']:,} to test on, "
        f"of whom {problem['deaths']:.1%} died. The best ODE model, {best}, has an area under the ROC curve of "
        f"{odes[best]:.3f}; {told}."
    ]
    if not problem["synthetic"]:
        reached = "is reached" if odes[best] >= AIM[config.protocol] else "is not reached"
        words.append(f"The aim in this protocol, {AIM[config.protocol]}, {reached}.")
    twin = "GRU, mean state" if best.endswith("mean state") else "GRU with gaps"
    gru = {row["seed"]: row["auroc"] for row in rows if row["model"] == twin}
    differences = [row["auroc"] - gru[row["seed"]] for row in rows if row["model"] == best]
    low, high = interval(differences)
    if low is not None and high is not None:
        words.append(
            f"What the ODE between the rows buys over the same GRU that is told the gaps: {np.mean(differences):+.3f} "
            f"({low:+.3f} to {high:+.3f}, 95 % interval of the seeds' differences). “The biggest advantage” in section "
            f"6 of {INTRODUCTION} is that such series can be used at all."
        )
    return "\n\n".join(words)


def accuracy(config: Any, problem: Row, rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    theirs: Mapping[tuple[Any, ...], Mapping[str, Any]] = {
        (name,): {"published AUROC": value} for name, value in PUBLISHED[config.protocol].items()
    }
    curves = {name: figures.Line(ALARMS, mine[0]["found"]) for (name,), mine in groups(rows, ["model"]).items()}
    losses = {
        name: figures.Line(list(range(1, len(found) + 1)), found)
        for name, found in (
            (row["model"], row.get("valid_loss_by_epoch")) for row in rows if row["seed"] == config.seed
        )
        if found
    }
    real = not problem["synthetic"]
    return Section(
        "Who is told apart",
        "The network's last state (where it says so, beside the mean of all) gives two logits; it sees each row's "
        "values, which of them are new, and the gaps. "
        f"Trees and logistic regression see {', '.join(FEATURES)} of each variable. All see age, sex, height and unit.",
        (
            means_table(
                "Areas under the curves, on the test stays",
                rows,
                {"model": "model"},
                QUANTITIES[:5],
                published=theirs if real else None,
                note=SOURCES[config.protocol] if real else "",
            ),
        ),
        (
            Picture(
                "roc",
                "ROC curves",
                "Share of those who died that is found, over the share of survivors that is alarmed too; first seed.",
                figures.lines(curves, "false alarms, share of survivors", "found, share of deaths"),
            ),
            Picture(
                "validation",
                "Validation loss while training",
                "Cross entropy on the validation stays, first seed; a training ends where it falls no more.",
                figures.lines(losses, "epoch", "validation loss"),
            ),
        ),
    )


def cost(rows: Sequence[Row]) -> Section:
    trained = [row for row in rows if row.get("epochs")]
    return Section(
        "What it costs",
        "Seconds are those of the training on this machine, validation left out. An evaluation of f is one call for "
        "all stays of a batch that have a row left; an ODE-RNN solves once for each row of the longest stay.",
        (means_table("Training", trained, {"model": "model"}, QUANTITIES[5:]),),
    )


def protocol(config: Any, problem: Row) -> Section:
    where = {
        "A": "Set a alone, divided 80/20 with the seed that Rubanova et al. 2019 use; a fifth of the training part is "
        "for validation, which they do not have.",
        "B": "Trained on 70 % of set a, stopped by another 15 %, tested on all of set b.",
    }[config.protocol]
    return Section(
        "The protocol",
        f"{where} {problem['channels']} variables, {problem['observed']:.0%} of the values of a row observed. Times "
        f"are rounded down to {config.hours:g} hours: {problem['coarse_rows']:.0f} rows a stay instead of "
        f"{problem['rows']:.0f}. Values are scaled by the training part, and those beyond {OUTLIERS:g} deviations "
        "count as that far.",
    )
