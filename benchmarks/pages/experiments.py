"""What the experiments found: rows taken from run folders, told by each experiment's own code without running it."""

import dataclasses
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import odenets
from odenets.experiments import EXPERIMENTS, Experiment, Result
from odenets.experiments.driver import only_kept
from odenets.experiments.result import Table
from odenets.files import write_atomically
from odenets.report import grid
from pages.text import ROOT

FOLDER = ROOT / "results" / "experiments"


def take(run: Path, into: Path = FOLDER) -> Path:
    """Keep the rows of a finished run folder as a JSON file of `into`; returns its path.

    Raises:
        SystemExit: For a folder that holds no finished run, or one whose experiment makes no pieces.
    """
    if not (run / "summary.json").exists():
        raise SystemExit(f"{run} holds no finished run: there is no summary.json in it")
    summary = json.loads((run / "summary.json").read_text())
    files = sorted((run / "pieces").glob("*.json"))
    if summary["experiment"] not in EXPERIMENTS or not files:
        raise SystemExit(f"{run} holds {summary['experiment']!r}, which is not made of pieces that could be kept")
    experiment = EXPERIMENTS[summary["experiment"]]
    config = {name: None if name.endswith("_dir") else value for name, value in summary["config"].items()}
    kept = {
        "experiment": experiment.name,
        "command": command(experiment, config),
        "date": summary["made"]["date"],
        "commit": summary["made"].get("commit"),
        "versions": summary["versions"],
        "config": config,
        "pieces": {path.stem: shortened(json.loads(path.read_text())) for path in files},
    }
    try:
        remade(kept)
    except LookupError as error:
        raise SystemExit(f"{run} is not finished, or of older code ({error}): go on with --resume") from None
    usual = dataclasses.asdict(experiment.config())
    which = (f"-{config[name]}" for name in ("data", "protocol") if config.get(name) != usual.get(name))
    path = into / f"{experiment.name}{''.join(which)}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, written(kept))
    return path


def command(experiment: Experiment, config: dict[str, Any]) -> str:
    """The command that makes the run again: what differs from the defaults, and no path."""
    usual = dataclasses.asdict(experiment.config())
    given = {name: value for name, value in config.items() if value != usual[name] and not name.endswith("_dir")}
    flags = (f" --{'' if value is not False else 'no-'}{name.replace('_', '-')}" for name, value in given.items())
    values = ("" if isinstance(value, bool) else f" {value}" for value in given.values())
    return f"odenets run {experiment.name}" + "".join(map("".join, zip(flags, values)))


def shortened(value: Any, depth: int = 0) -> Any:
    """The value with 7 digits of the numbers in lists, and 4 of those in lists of lists, which pictures are made of."""
    if isinstance(value, dict):
        return {name: shortened(inner, depth) for name, inner in value.items()}
    if isinstance(value, list):
        return [shortened(inner, depth + 1) for inner in value]
    return float(f"{value:.{7 if depth == 1 else 4}g}") if depth and isinstance(value, float) else value


def written(kept: dict[str, Any]) -> str:
    """As JSON, a piece a line."""
    head = {name: value for name, value in kept.items() if name != "pieces"}
    pieces = ",\n".join(f"  {json.dumps(name)}: {_line(row)}" for name, row in kept["pieces"].items())
    return f'{json.dumps(head, indent=1, ensure_ascii=False)[:-2]},\n "pieces": {{\n{pieces}\n }}\n}}\n'


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def remade(kept: dict[str, Any]) -> Result:
    """The result of the kept rows; its pictures are not drawn.

    Raises:
        LookupError: If the experiment has pieces that are not kept.
    """
    experiment = EXPERIMENTS[kept["experiment"]]
    with tempfile.TemporaryDirectory() as name, only_kept(), mock.patch.object(odenets, "figures"):
        folder = Path(name)
        (folder / "pieces").mkdir()
        for piece, row in kept["pieces"].items():
            (folder / "pieces" / f"{piece}.json").write_text(json.dumps(row))
        return experiment.run(experiment.config(**kept["config"]), folder, resume=True, progress=False)


def every_result() -> str:
    """All that is kept, an experiment after the other."""
    return "\n".join(told(path.stem, json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json")))


def told(name: str, kept: dict[str, Any]) -> str:
    """One experiment: its title, what it found, its tables, and how they were made."""
    result, versions = remade(kept), kept["versions"]
    tables = "".join(f"\n{table_text(table)}" for section in result.sections for table in section.tables)
    commit = f", commit {kept['commit']}" if kept["commit"] else ""
    return (
        f"## {name}\n\n**{result.title}{'' if result.title.endswith('?') else '.'}** {escaped(result.lead)}\n{tables}\n"
        f"`{kept['command']}`, {kept['date'].split()[0]}{commit}; {versions['cpu']}, torch {versions['torch']}, Python "
        f"{versions['python']}, threads: {versions['threads']}. {escaped(result.source)}\n"
    )


def table_text(table: Table) -> str:
    """Title, table and note in Markdown."""
    shown = grid(table)
    rule = ["---:" if cell.number else "---" for cell in shown["head"]]
    rows = [[escaped(cell.text) for cell in row] for row in (shown["head"], *shown["rows"])]
    note = f"\n{escaped(table.note)}\n" if table.note else ""
    return f"**{escaped(table.title)}**\n\n" + "".join(map(_row, (rows[0], rule, *rows[1:]))) + note


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def escaped(text: str) -> str:
    """The text with a backslash before what Markdown would read as more than a character."""
    return "".join(f"\\{c}" if c in "\\*|<[" else c for c in text)
