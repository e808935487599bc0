"""What all experiments share: pieces of work that are done once each, and what many seeds say together.

An experiment is networks × settings × seeds. Each combination is a piece: a function that returns a row, a mapping of
names to numbers, texts, lists or tensors. `collect` runs the pieces, keeps every row in the run folder and shows how
far it is, so a run that is stopped goes on where it was. Tables, figures and sentences are made of the rows alone.
A training by `odenets.train.fit` is no piece: `fit` itself keeps it in the run folder, and it becomes a `Trained`.
"""

import contextlib
import dataclasses
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from odenets.experiments.result import Cell, Table
from odenets.extra import experiments_extra
from odenets.files import check_writable, remove_leftovers, write_atomically
from odenets.progress import no_progress, progress_bar
from odenets.train import History

Row: TypeAlias = Mapping[str, Any]

MEAN_AND_RANGE = "mean of the seeds and, as a band, their range"  # what the figures of trainings draw of several


_only_kept = ContextVar("only_kept", default=False)


@contextlib.contextmanager
def only_kept() -> Iterator[None]:
    """Inside of it `collect` makes no row: results are made of the rows that are kept."""
    token = _only_kept.set(True)
    try:
        yield
    finally:
        _only_kept.reset(token)


def collect(pieces: Mapping[str, Callable[[], Row]], folder: Path, *, progress: bool, label: str) -> list[Row]:
    """The row of every piece, in order.

    Args:
        pieces: A name (it becomes a file's: letters, digits, underscores, hyphens, dots) and what makes the row.
        folder: The run folder; `pieces/NAME.json` in it is a row that is there already.
        progress: Whether to show a bar with the time left.
        label: What stands before the bar.

    Raises:
        ValueError: Names that cannot be those of files, or of different files where capitals do not count.
        LookupError: Inside of `only_kept`, where a row is not there.
    """
    _check_names(pieces)
    kept = folder / "pieces"
    if _only_kept.get() and (missing := [name for name in pieces if not (kept / f"{name}.json").exists()]):
        raise LookupError(f"{len(missing)} of {len(pieces)} pieces are not there: {', '.join(missing[:3])}, …")
    check_writable(kept)
    remove_leftovers(kept)
    bar = progress_bar if progress else no_progress
    return [_row(kept / f"{name}.json", work) for name, work in bar(list(pieces.items()), label)]


def _check_names(pieces: Mapping[str, Any]) -> None:
    files: dict[str, str] = {}
    for name in pieces:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise ValueError(
                f"`pieces` has the name {name!r}, and it becomes a file's: "
                "write it in letters, digits, underscores, hyphens and dots, and begin with none of the last two"
            )
        other = files.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"`pieces` has the names {other!r} and {name!r}, which may be one file: rename one")


def _row(path: Path, work: Callable[[], Row]) -> Row:
    if not path.exists():
        write_atomically(path, json.dumps(_listed(work())))
    return json.loads(path.read_text(encoding="utf-8"))


def _listed(value: Any) -> Any:
    """The value with lists in place of tensors and arrays."""
    if isinstance(value, Mapping):
        return {name: _listed(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    return value.tolist() if hasattr(value, "tolist") else value


def numbers_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows without their lists: what `summary.json` keeps."""
    return [{name: value for name, value in row.items() if not isinstance(value, list | dict)} for row in rows]


class Trained(NamedTuple):
    """A network that `fit` has trained: its row, and a record for each epoch, as mappings."""

    network: nn.Module
    row: dict[str, Any]
    history: list[dict[str, Any]]

    @classmethod
    def of(cls, network: nn.Module, row: dict[str, Any], history: History) -> "Trained":
        return cls(network.cpu(), row, [dataclasses.asdict(record) for record in history.records])


def histories(trained: Iterable[Trained]) -> dict[str, list[dict[str, Any]]]:
    """The records of each network, all seeds together, as the figures of trainings take them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in trained:
        found.setdefault(one.row["network"], []).extend(one.history)
    return found


def seeds_of(config: Any) -> range:
    """The seeds that a config with `seed` and `seeds` asks for."""
    return range(config.seed, config.seed + config.seeds)


# --- what many seeds say ---------------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """A column of a table of means: the key of the rows, its heading, and how it is written."""

    key: str
    heading: str
    digits: int = 3
    scale: float = 1.0
    scientific: bool = False


def groups(rows: Iterable[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows with equal entries `by`, in the order in which they come first."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in by), []).append(row)
    return found


def values_of(rows: Iterable[Row], key: str) -> list[float]:
    """The numbers that the rows have under that key."""
    return [row[key] for row in rows if row.get(key) is not None]


def means(rows: Iterable[Row], by: Sequence[str], quantities: Sequence[Quantity]) -> list[dict[str, Any]]:
    """Mean, standard deviation, median and range of each quantity for each group; what no row has is None."""
    return [
        {
            **dict(zip(by, names)),
            "seeds": len(_seeds(mine)),
            **{quantity.key: spread(values_of(mine, quantity.key)) for quantity in quantities},
        }
        for names, mine in groups(rows, by).items()
    ]


def _seeds(rows: Iterable[Row]) -> set[int]:
    return {row["seed"] for row in rows if row.get("seed") is not None}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, standard deviation (of more than one), median, lowest and highest; None of nothing."""
    if not values:
        return None
    finite = all(map(math.isfinite, values))  # `statistics` refuses others, and a training may diverge
    return {
        "mean": statistics.fmean(values) if finite else sum(values) / len(values),
        "sd": statistics.stdev(values) if finite and len(values) > 1 else math.nan,
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def mean_text(values: Sequence[float], digits: int = 3, scale: float = 1.0, scientific: bool = False) -> str | None:
    """The mean as a cell, "0.912 ± 0.004" of several values; None of nothing."""
    found = spread(values)
    return None if found is None else plus_minus(found["mean"], found["sd"], digits, scale, scientific)


def plus_minus(mean: float, sd: float | None, digits: int = 3, scale: float = 1.0, scientific: bool = False) -> str:
    """Mean and standard deviation as a cell; the mean alone where there is no other, None or NaN."""
    form = f".{digits}{'e' if scientific else 'f'}"
    text = f"{scale * mean:{form}}"
    return text if sd is None or math.isnan(sd) else f"{text} ± {scale * sd:{form}}"


def means_table(
    title: str,
    rows: Sequence[Row],
    by: Mapping[str, str],
    quantities: Sequence[Quantity],
    *,
    published: Mapping[tuple[Any, ...], Mapping[str, Cell]] | None = None,
    note: str = "",
) -> Table:
    """A row for each group of `by` (key → heading), mean ± standard deviation of each quantity that a row has.

    `published` adds columns: group → heading → the number that somebody else reports, with the source in `note`.
    """
    shown = [quantity for quantity in quantities if values_of(rows, quantity.key)]
    others = list(dict.fromkeys(name for cells in (published or {}).values() for name in cells))
    lines = []
    for names, mine in groups(rows, list(by)).items():
        cells = [mean_text(values_of(mine, q.key), q.digits, q.scale, q.scientific) for q in shown]
        theirs = (published or {}).get(names, {})
        first, *more = (name if isinstance(name, int | float | None) else str(name) for name in names)
        lines.append((str(first), *more, *cells, *(theirs.get(name) for name in others)))
    seeds = max(len(_seeds(mine)) for mine in groups(rows, list(by)).values())
    over = ("", "One seed.")[seeds] if seeds < 2 else f"Mean ± standard deviation over {seeds} seeds."
    columns = (*by.values(), *(quantity.heading for quantity in shown), *others)
    return Table(title, columns, tuple(lines), f"{over} {note}".strip())


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """The confidence interval of a mean by Student's t; (None, None) from fewer than two values.

    (NaN, NaN) where one of them is not finite.
    """
    found = spread(values)
    if found is None or len(values) < 2:
        return None, None
    with experiments_extra("a confidence interval"):
        from scipy.special import stdtrit  # noqa: PLC0415 — slow to import

    half = found["sd"] / math.sqrt(len(values))
    half *= float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    return found["mean"] - half, found["mean"] + half


# --- tables and sentences of plain rows ------------------------------------------------------------------------------


def rows_table(
    title: str, rows: Iterable[Row], columns: Mapping[str, str], note: str = "", *, empty: bool = True
) -> Table:
    """A row for each row: heading → the key of its value, or "key:format" to write it as Python formats it.

    What a row lacks is a dash, and a column that has nothing else is left out unless `empty`; the first column is text.
    """
    rows = list(rows)
    keys = {heading: key.partition(":")[::2] for heading, key in columns.items()}
    shown = {head: key for head, key in keys.items() if empty or any(row.get(key[0]) is not None for row in rows)}
    cells = [[_cell(row.get(key), form) for key, form in shown.values()] for row in rows]
    return Table(title, tuple(shown), tuple((str(first), *others) for first, *others in cells), note)


def _cell(value: Any, form: str) -> Cell:
    return format(value, form) if form and value is not None else value


def listed(parts: Iterable[str], none: str = "none") -> str:
    """The parts as in a sentence, a, b and c; `none` where there is nothing."""
    *before, last = list(parts) or [none]
    return f"{', '.join(before)} and {last}" if before else last
