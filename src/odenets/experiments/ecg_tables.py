"""The tables of the ECG experiment, made of its numbers."""

from collections.abc import Sequence
from typing import Any

from odenets.data.ecg import CLASSES
from odenets.experiments.driver import Row, plus_minus, rows_table
from odenets.experiments.result import Table

NEIGHBOUR, ALWAYS = "nearest neighbour", "always N"
_NOTES = {
    ALWAYS: "“Always N” calls every beat normal.",
    NEIGHBOUR: "“Nearest neighbour” takes the class of the nearest training beat.",
}
_MAIN_COLUMNS = {
    "": "network",
    "cross entropy": "test_loss",
    "accuracy %": "accuracy",
    "macro-F1": "macro_f1",
    "document: cross entropy": "test_loss_document",
    "document: accuracy %": "accuracy_document",
    "parameters": "parameters",
}


def main_table(found: Sequence[Row], base: Sequence[Row]) -> Table:
    """Cross entropy, accuracy and macro-F1 of networks and baselines, with the document's numbers if it has any."""
    seeds = found[0]["seeds"]
    return rows_table(
        f"Test beats, {found[0]['split']} split, {'one seed' if seeds == 1 else f'{seeds} seeds'}",
        [*map(_network_cells, found), *map(_baseline_cells, base)],
        _MAIN_COLUMNS,
        empty=False,
        note=("" if seeds == 1 else "Mean ± standard deviation over the seeds. ")
        + "Macro-F1 is the mean over the classes."
        + "".join(f" {_NOTES[row['network']]}" for row in base)
        + "".join(
            f" {row['network']}, seeds {row['collapsed']}: calls every beat the same."
            for row in found
            if row["collapsed"]
        ),
    )


def _network_cells(row: Row) -> dict[str, Any]:
    document = row["accuracy_document"]
    means = {
        "test_loss": plus_minus(row["test_loss"], row["test_loss_sd"], 3),
        "accuracy": plus_minus(row["accuracy"], row["accuracy_sd"], 2, 100),
        "macro_f1": plus_minus(row["macro_f1"], row["macro_f1_sd"], 3),
    }
    return {**row, **means, "accuracy_document": None if document is None else 100 * document}


def _baseline_cells(row: Row) -> dict[str, Any]:
    accuracy, macro_f1 = plus_minus(row["accuracy"], None, 2, 100), plus_minus(row["macro_f1"], None, 3)
    return {"network": row["network"], "accuracy": accuracy, "macro_f1": macro_f1}


def class_table(means: Sequence[Row], seeds: int) -> Table:
    """Sensitivity and precision of every class."""
    rows = tuple((f"{m['network']}, {m['quantity']}", *(f"{100 * value:.1f}" for value in m["values"])) for m in means)
    over = "" if seeds == 1 else f", mean of {seeds} seeds"
    note = "Sensitivity: of the beats of a class, the share found. Precision: of those called so, the share that are."
    return Table(f"Sensitivity and precision per class, %{over}", ("", *CLASSES), rows, note)


_TIME_COLUMNS = {
    "": "network",
    "nfe a batch, last epoch": "nfe",
    "seconds an epoch": "seconds_per_epoch",
    "seconds to the ResNet's final test loss": "seconds_to_resnet",
}


def time_table(found: Sequence[Row]) -> Table:
    """What training cost."""
    note = "nfe: evaluations of f. The ResNet's own row says when it first had the loss that it ends with."
    if found[0]["seeds"] == 1:
        return rows_table("Time", found, _TIME_COLUMNS, note)
    rows = [{**row, "there": f"{row['reached']} of {row['seeds']}"} for row in found]
    return rows_table("Time", rows, {**_TIME_COLUMNS, "seeds there": "there"}, f"Medians over the seeds. {note}")
