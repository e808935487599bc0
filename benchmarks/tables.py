"""Write the tables and figures of the README and the docs from the committed JSON files of results/.

Run it:  python benchmarks/tables.py                      (with --check: writes nothing, fails where one is out of date)
         python benchmarks/tables.py --take runs/descent  (first keeps that finished run in results/experiments/)
A table stands between `<!-- table: NAME -->` and `<!-- end -->`; a figure is a file of docs/figures/.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from odenets.files import write_atomically
from pages import adjoints, changed, experiments, findings, multistep, pictures, scale, series, speed, together
from pages.text import ROOT

PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "benchmarks",
            "experiments-results",
            "findings",
            "gpu",
            "gradients",
            "how-it-works",
            "introduction",
            "irregular",
            "scale",
            "solve",
        )
    ),
)
FIGURES = {
    ROOT / "docs" / "figures" / f"{p.__name__}.svg": p for p in (pictures.speed, pictures.memory, pictures.energy)
}
UNLINKED = re.compile(r"\| `([a-z]+)` \|")  # an experiment in a table
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.S)
TABLES: dict[str, Callable[[], str]] = {
    "bench-best": speed.best_ways,
    "bench-summary": speed.summary,
    "bench": speed.every_row,
    "bench-gpu": speed.gpu,
    "bench-limits": speed.limits,
    "bench-memory": speed.memory,
    "changed": changed.ratios,
    "ecg-both": findings.both_splits,
    "ecg-random": lambda: findings.ecg("random"),
    "ecg-inter-patient": lambda: findings.ecg("inter-patient"),
    "ecg-differences": findings.ecg_differences,
    "ecg-classes": findings.ecg_classes,
    "ecg-time": findings.ecg_time,
    "ecg-fast": findings.ecg_fast,
    "ecg-classical": lambda: findings.ecg_fast("ecg-rk4"),
    "cubic": findings.cubic,
    "experiments": experiments.every_result,
    "together": together.pairs,
    "multistep": multistep.evaluations,
    "series": series.steps,
    "scale-axes": scale.axes,
    "scale-laws": scale.laws,
    "scale-steps": scale.steps,
    "scale-processes": scale.processes,
    "scale-many": scale.many,
    "gradient-errors": adjoints.errors,
    "gradient-evaluations": adjoints.evaluations,
    "gradient-costs": adjoints.costs,
    "gradient-equations": adjoints.equations,
}


def filled(text: str) -> str:
    """The text with every table made anew, and with a link to the results of each experiment that has some."""
    return UNLINKED.sub(linked, BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text))


def linked(match: re.Match[str]) -> str:
    """The cell of an experiment, as a link where its results are kept."""
    there = (experiments.FOLDER / f"{match[1]}.json").exists()
    return f"| [`{match[1]}`](experiments-results.md#{match[1]}) |" if there else match[0]


def contents() -> dict[Path, str]:
    """What the pages and the figures should hold."""
    return {path: filled(path.read_text()) for path in PAGES} | {path: draw() for path, draw in FIGURES.items()}


Take = Annotated[list[Path] | None, typer.Option(help="Folder of a finished run.")]


def main(check: bool = False, take: Take = None) -> None:
    """Write the tables and the figures, or with --check say whether they are up to date."""
    for folder in take or ():
        print(f"wrote {experiments.take(folder)}")
    for path, text in contents().items():
        if not check:
            write_atomically(path, text)
        elif not path.exists() or path.read_text() != text:
            raise SystemExit(f"{path.name} is out of date; run python benchmarks/tables.py")


if __name__ == "__main__":
    typer.run(main)
