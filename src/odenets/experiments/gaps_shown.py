"""What the gaps experiment says: words, tables and figures, made of its rows."""

import statistics
from collections.abc import Sequence
from typing import Any

from odenets.experiments.driver import Quantity, Row, groups, listed, means_table, values_of
from odenets.experiments.result import INTRODUCTION, Picture, Section

BLIND, TOLD, ODE, CDE = "GRU, not told the gaps", "GRU, told the gaps", "ODE-RNN", "Neural CDE"
KNOWN = "least squares, knows the equation"
DROPPED = {"0 % dropped": 0.0, "50 % dropped": 0.5, "80 % dropped": 0.8, "90 % dropped": 0.9}
EVEN, JITTERED, MIXED = "every fifth row", "one of each five rows", "every first to fourth row, by sample"
RATES, STEPS = "360, 120, 90 or 45 Hz, by sample", (1, 3, 4, 8)  # of the records' 360 Hz
IRREGULAR = "80 % dropped"
PLAIN = 0.02  # a difference of accuracies that is called one

QUANTITIES = (
    Quantity("accuracy", "accuracy"),
    Quantity("train_accuracy", "accuracy, trained series"),
    Quantity("rows", "rows of a series", 0),
    Quantity("seconds", "seconds", 0),
    Quantity("parameters", "parameters", 0),
)


def lead(rows: Sequence[Row]) -> str:
    found = groups(rows, ["sampling", "model"])
    by = {key: statistics.fmean(values_of(mine, "accuracy")) for key, mine in found.items()}
    samplings = list(dict.fromkeys(row["sampling"] for row in rows))
    best = {s: max((ODE, CDE), key=lambda name: by[s, name]) for s in samplings}
    gains = {s: by[s, best[s]] - by[s, TOLD] for s in samplings}
    helps = [f"{s} ({by[s, best[s]]:.1%} by the {best[s]}, {by[s, TOLD]:.1%})" for s in samplings if gains[s] > PLAIN]
    harms = [f"{s} ({by[s, best[s]]:.1%}, {by[s, TOLD]:.1%})" for s in samplings if gains[s] < -PLAIN]
    none = [s for s in samplings if abs(gains[s]) <= PLAIN]
    told = "; ".join(f"{s}: {by[s, TOLD] - by[s, BLIND]:+.1%}" for s in samplings)
    return (
        f"“The biggest advantage” in section 6 of {INTRODUCTION} is that irregular series can be used. An ODE between "
        f"the rows is better than the same GRU that is told the gaps, by more than {PLAIN:.0%} of accuracy, with: "
        f"{listed(helps)}. It is as good with: {listed(none)}. It is worse with: {listed(harms)}.\n\n"
        f"What a GRU gains where it is told the gaps: {told}."
    )


def dropped(rows: Sequence[Row], chance: float) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    mine = [row for row in rows if row["sampling"] in DROPPED]
    lines: dict[str, Any] = {}
    for (name,), of_model in groups(mine, ["model"]).items():
        at = {
            100 * DROPPED[sampling]: [100 * value for value in values_of(found, "accuracy")]
            for (sampling,), found in groups(of_model, ["sampling"]).items()
        }
        mean, low, high = ([f(values) for values in at.values()] for f in (statistics.fmean, min, max))
        lines[name] = figures.Line(list(at), mean, low, high)
    return Section(
        "More and more rows are dropped",
        "Any rows but the first, others of each series, from training and test series alike. Each network is trained "
        "for each share, in equally many steps. Times are given, never the number of the row.",
        (_table("Accuracy on new series", mine, f"Naming one class always: {chance:.1%}."),),
        (
            Picture(
                "dropped",
                "Accuracy by the share of rows that are dropped",
                "On new series, mean and range of the seeds.",
                figures.lines(lines, "rows dropped, %", "accuracy, %", marked=True),
            ),
        ),
    )


def sampled(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    order = [EVEN, JITTERED, IRREGULAR, MIXED]
    mine = sorted((row for row in rows if row["sampling"] in order), key=lambda row: order.index(row["sampling"]))
    lines: dict[str, Any] = {}
    for (name,), of_model in groups(mine, ["model"]).items():
        values = [
            [100 * value for value in values_of(found, "accuracy")] for found in groups(of_model, ["sampling"]).values()
        ]
        mean, low, high = ([f(found) for found in values] for f in (statistics.fmean, min, max))
        lines[name] = figures.Line(list(range(1, len(values) + 1)), mean, low, high)
    return Section(
        "The same number of rows, less and less regular",
        f"A fifth of the rows, (1) {EVEN}, (2) {JITTERED}, (3) any fifth of the rows; and (4) {MIXED}, as many rows of "
        "each: every series is regular, but a slow one looks like a quick one that is seen more often.",
        (_table("Accuracy by how rows are chosen", mine, ""),),
        (
            Picture(
                "irregular",
                "Accuracy by how irregular the sampling is",
                "From the left: (1) to (4) of the text; mean and range of the seeds.",
                figures.lines(lines, "sampling, (1) to (4)", "accuracy, %", marked=True),
            ),
        ),
    )


def rates(rows: Sequence[Row]) -> Section:
    mine = [row for row in rows if row["sampling"] == RATES]
    return Section(
        "The same heartbeats at mixed rates",
        ("SYNTHETIC beats: the records are not here. " if any(row.get("synthetic") for row in mine) else "")
        + "Whole beats as they were recorded, 360 times a second, or every third, fourth or eighth sample of one: 120, "
        "90 or 45 Hz, drawn for each beat, in training and test alike. In the sections above beats have 40 Hz at most.",
        (_table("Accuracy at mixed rates", mine, ""),),
    )


def cost(rows: Sequence[Row]) -> Section:
    mine = [row for row in rows if row["sampling"] in ("0 % dropped", "90 % dropped", RATES) and row["model"] != KNOWN]
    columns = {"sampling": "sampling", "model": "model"}
    return Section(
        "What it costs",
        "Seconds of a training on this machine: an ODE-RNN and a neural CDE solve an ODE from row to row in a loop of "
        "Python, a GRU's loop is PyTorch's own. Networks get equally many steps, not equal time: a GRU might use more. "
        "The length of the oscillators and the learning rates were chosen by looking at test series, when the length "
        "was still the double and none but the GRUs had learnt the task in 250 steps.",
        (means_table("Training", mine, columns, QUANTITIES[2:]),),
    )


def _table(title: str, rows: Sequence[Row], note: str) -> Any:
    return means_table(title, rows, {"sampling": "sampling", "model": "model"}, QUANTITIES[:2], note=note)
