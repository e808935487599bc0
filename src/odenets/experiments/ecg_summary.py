"""The numbers of the ECG experiment over splits, networks and seeds, made of the rows of its runs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odenets.experiments.differences import Comparison, Measure
from odenets.experiments.driver import Row, groups, values_of

RESNET, ODENET, MATCHED = "ResNet", "ODE-Net", "ODE-Net (matched)"
DOCUMENT = {RESNET: {"test_loss": 0.10, "accuracy": 0.975}, ODENET: {"test_loss": 0.09, "accuracy": 0.975}}


def collapsed(row: Row) -> bool:
    """Whether a network ended up calling every test beat the same, as training at a high rate sometimes does."""
    return np.count_nonzero(np.sum(row["confusion"], axis=0)) == 1


COMPARISON = Comparison(
    RESNET,
    (
        Measure("test_loss", "cross entropy"),
        Measure("accuracy", "accuracy", higher_is_better=True),
        Measure("macro_f1", "macro-F1", higher_is_better=True),
    ),
    within=("split",),
    collapsed=collapsed,
)


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """ODE-Net minus ResNet, paired by seed: mean and 95 % confidence interval (Student's t) of each quantity."""
    return COMPARISON.differences(rows)


def summarise(rows: Sequence[Row], synthetic: bool) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds for each split and network, and the time to the ResNet's error.

    The document's numbers stand beside those of its networks on its split, unless the beats are `synthetic`.
    """
    out = []
    for (split,), here in groups(rows, ["split"]).items():
        goals = {row["seed"]: row["test_losses"][-1] for row in here if row["network"] == RESNET}
        for (name,), mine in groups(here, ["network"]).items():
            document = DOCUMENT.get(name, {}) if split == "random" and not synthetic else {}
            out.append({"split": split, "network": name, **_summary_row(mine, goals, document)})
    return out


def _summary_row(mine: Sequence[Row], goals: Mapping[int, float], document: Mapping[str, float]) -> dict[str, Any]:
    arrivals = [seconds_until(row, goals[row["seed"]]) for row in mine if row["seed"] in goals]
    reached = [seconds for seconds in arrivals if seconds is not None]
    out: dict[str, Any] = {"seeds": len(mine), "parameters": mine[0]["parameters"]}
    for key in ("test_loss", "accuracy", "macro_f1"):
        values = values_of(mine, key)
        out[key] = statistics.fmean(values)
        out[f"{key}_median"] = statistics.median(values)
        out[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        out[f"{key}_document"] = document.get(key)
    out["collapsed"] = [row["seed"] for row in mine if collapsed(row)]
    out["seconds_per_epoch"] = statistics.median(values_of(mine, "seconds_per_epoch"))
    out["seconds_to_resnet"] = statistics.median(reached) if reached else None
    out["reached"] = len(reached)
    evaluations = values_of(mine, "nfe")
    out["nfe"] = statistics.fmean(evaluations) if evaluations else None
    return out


def seconds_until(row: Row, goal: float) -> float | None:
    """Training seconds until the test loss of an epoch's end is at most `goal`; None if it never is."""
    seconds = 0.0
    for loss, elapsed in zip(row["test_losses"], row["seconds"]):
        seconds += elapsed
        if loss <= goal:
            return seconds
    return None


def class_means(rows: Sequence[Row], base: Sequence[Row]) -> list[dict[str, Any]]:
    """Sensitivity and precision of every class for each split and network, mean over the seeds."""
    return [
        {"split": split, "network": name, "quantity": key, "values": np.mean([r[key] for r in mine], axis=0).tolist()}
        for (split, name), mine in groups([*rows, *base], ["split", "network"]).items()
        for key in ("sensitivity", "precision")
    ]
