"""The tables of what the twins show: heartbeats (section 5 of the document) and x³ + 0.1x (sections 2.6 and 4.4)."""

from typing import Any

from odenets.experiments.ecg import ALWAYS, CLASSES, NEIGHBOUR, seconds_until
from pages.text import load, markdown, optional, with_versions


def spread(row: dict[str, Any], key: str, digits: int, scale: float = 1.0) -> str:
    return f"{scale * row[key]:.{digits}f} ± {scale * row[f'{key}_sd']:.{digits}f}"


def both_splits() -> str:
    """Accuracy and macro-F1 of networks and baselines on both splits, medians over the seeds."""
    result = load("ecg")
    found: dict[str, list[str]] = {}
    for row in (*result["table"], *result["baselines"]):  # splits in one order for every network
        medians = (row.get(f"{key}_median", row[key]) for key in ("accuracy", "macro_f1"))
        cells = found.setdefault(row["network"], [f"{row['parameters']:,}" if "parameters" in row else ""])
        cells += (f"{100 * next(medians):.1f}", f"{next(medians):.2f}")
    rows = [(IN_WORDS.get(name, name), *cells) for name, cells in found.items()]
    split = ("known patients: right, %", "macro-F1")
    return markdown(("", "parameters", *split, "new patients: right, %", "macro-F1"), rows)


IN_WORDS = {ALWAYS: "calling every beat normal", NEIGHBOUR: "copying the nearest training beat"}


def ecg(split: str) -> str:
    """Networks and baselines on one split."""
    result = load("ecg")
    rows = [
        (
            row["network"],
            f"{row['parameters']:,}",
            spread(row, "test_loss", 3),
            f"{row['test_loss_median']:.3f}",
            optional(row["test_loss_document"], 2),
            spread(row, "accuracy", 2, 100),
            f"{100 * row['accuracy_median']:.2f}",
            optional(row["accuracy_document"], 1, 100),
            spread(row, "macro_f1", 3),
        )
        for row in result["table"]
        if row["split"] == split
    ]
    rows += [
        (row["network"], "", "", "", "", f"{100 * row['accuracy']:.2f}", "", "", f"{row['macro_f1']:.3f}")
        for row in result["baselines"]
        if row["split"] == split
    ]
    head = (
        *("", "parameters", "cross entropy", "median", "document"),
        *("accuracy %", "median", "document", "macro-F1"),
    )
    lost = [row for row in result["table"] if row["split"] == split and row["collapsed"]]
    notes = [f"{row['network']}, seeds {row['collapsed']}: calls every beat normal." for row in lost]
    return markdown(head, rows) + "".join(f"\n{note}\n" for note in notes)


def ecg_differences() -> str:
    """ODE-Net minus ResNet, paired by seed."""
    rows = []
    for d in load("ecg")["differences"]:
        rows.append(difference(d, d, ""))
        if d["without_collapsed"]:
            rows.append(difference(d, d["without_collapsed"], f" (without seeds {d['collapsed']})"))
    return markdown(("", "mean", "95 % interval", "settled"), rows)


def difference(d: dict[str, Any], estimate: dict[str, float], remark: str) -> tuple[str, ...]:
    name = {"test_loss": "cross entropy", "accuracy": "accuracy", "macro_f1": "macro-F1"}[d["quantity"]]
    low, high = estimate["low"], estimate["high"]
    label = f"{d['split']}: {d['network']} − ResNet, {name}{remark}"
    settled = "no" if low <= 0 <= high else "yes"
    return label, f"{estimate['mean']:+.4f}", f"[{low:+.4f}, {high:+.4f}]", settled


def ecg_classes() -> str:
    """Sensitivity and precision of every class."""
    rows = [
        (f"{m['split']}: {m['network']}, {m['quantity']}", *(f"{100 * v:.1f}" for v in m["values"]))
        for m in load("ecg")["classes"]
        if m["network"] != "always N"
    ]
    return markdown(("%", *CLASSES), rows)


def ecg_time() -> str:
    """What training cost, in a run of its own."""
    result = load("ecg-time")
    rows = [
        (
            row["network"],
            optional(row["nfe"], 1),
            f"{row['seconds_per_epoch']:.2f}",
            optional(row["seconds_to_resnet"], 1),
        )
        for row in result["table"]
    ]
    head = ("", "nfe a batch, last epoch", "seconds an epoch", "seconds to the ResNet's final test loss")
    return with_versions(markdown(head, rows), result)


def ecg_fast(name: str = "ecg-fast") -> str:
    """The ODE-Net in one step beside the ResNet, seed by seed."""
    result = load(name)
    pairs: dict[int, dict[str, Any]] = {}
    for row in result["runs"]:
        pairs.setdefault(row["seed"], {})[row["network"]] = row
    rows = []
    for seed, pair in pairs.items():
        resnet, odenet = pair["ResNet"], pair["ODE-Net"]
        goal = resnet["test_losses"][-1]
        times = [optional(seconds_until(row, goal), 1) for row in (resnet, odenet)]
        errors = [f"{value:.4f}" for value in (goal, odenet["test_loss"], odenet["exact_test_loss"])]
        change = abs(odenet["exact_test_loss"] - odenet["test_loss"]) / odenet["test_loss"]
        accuracies = [f"{100 * row['accuracy']:.2f}" for row in (resnet, odenet)]
        per_epoch = [f"{row['seconds_per_epoch']:.2f}" for row in (resnet, odenet)]
        rows.append((str(seed), *per_epoch, *times, *accuracies, *errors, f"{100 * change:.2f} %"))
    head = ("seed", "ResNet, s an epoch", "ODE-Net", "ResNet, s to its final test loss", "ODE-Net, s to that")
    head = (*head, "ResNet right, %", "ODE-Net", "ResNet's test loss", "ODE-Net's", "solved to 1e-6", "change")
    return with_versions(markdown(head, rows), result)


def cubic() -> str:
    """Errors of both networks under both settings."""
    rows = [
        (
            f"{row['settings']} settings: {row['network']}",
            str(row["parameters"]),
            f"{row['in_sample']:.2f}",
            f"{row['out_of_sample']:.2f}",
            f"{row['lowest']:.2f} to {row['highest']:.2f}",
            f"{row['extrapolation']:.2f}",
            optional(row["document"], 2),
        )
        for row in load("cubic")["table"]
    ]
    head = ("", "parameters", "in-sample", "out-of-sample", "range", "on [−3, 3]", "document")
    return markdown(head, rows)
