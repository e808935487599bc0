"""Write the README's result tables from the committed JSON files of results/.

Run it:  python benchmarks/tables.py            (with --check it writes nothing and fails where a table is out of date)
A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from odenets.experiments.ecg import CLASSES
from odenets.files import write_atomically

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.S)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def with_versions(table: str, result: dict[str, Any], *packages: str) -> str:
    """The table, and below it what it was made with."""
    versions = result["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", *packages))
    return f"{table}\n{versions['cpu']}, {named}, Python {versions['python']}, float32, one thread.\n"


def spread(row: dict[str, Any], key: str, digits: int, scale: float = 1.0) -> str:
    return f"{scale * row[key]:.{digits}f} ± {scale * row[f'{key}_sd']:.{digits}f}"


def optional(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


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


def training_step() -> str:
    """One training step, beside torchdiffeq."""
    result = load("training_step")
    peers = [row for row in result["rows"] if row["contestant"].startswith("torchdiffeq")]
    rows = [
        (
            row["contestant"],
            f"{row['ms']:.2f}",
            *(f"{peer['ms'] / row['ms']:.1f}" for peer in peers),
            f"{row['nfe']} + {row['nfe_backward']}" if "nfe" in row else "",
            f"{row['gradient_error']:.1e}" if "nfe" in row else "",
        )
        for row in result["rows"]
    ]
    head = ("", "ms", *(f"× {peer['contestant'].split()[1]}" for peer in peers), "nfe + backward", "gradient error")
    return with_versions(markdown(head, rows), result, "torchdiffeq")


TABLES: dict[str, Callable[[], str]] = {
    "ecg-random": lambda: ecg("random"),
    "ecg-inter-patient": lambda: ecg("inter-patient"),
    "ecg-differences": ecg_differences,
    "ecg-classes": ecg_classes,
    "ecg-time": ecg_time,
    "cubic": cubic,
    "training-step": training_step,
}


def filled(text: str) -> str:
    """The text with every table made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def main(check: bool = False) -> None:
    """Write the tables, or with --check say whether they are up to date."""
    path = ROOT / "README.md"
    text = path.read_text()
    if check and filled(text) != text:
        raise SystemExit("README.md: the tables are out of date; run python benchmarks/tables.py")
    if not check:
        write_atomically(path, filled(text))


if __name__ == "__main__":
    typer.run(main)
