"""CSV files: series of them, and outcomes; what is wrong is told with the file and its line."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from odenets.data.errors import DataError
from odenets.series import Series, from_long

_FIRST = 2  # the line of a file that is the first below its heading
_FEW = 5  # names in an error
_WORDS = 50  # of a static column, at most


@dataclass(frozen=True)
class Columns:
    """Which column of a file is what."""

    id: str
    time: str
    values: tuple[str, ...]
    static: tuple[str, ...] = ()
    unit: str = "h"
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of static columns: each is a number, 0 or 1


def line_of(path: Path, place: int) -> int:
    """The line of the file where the row of that place, from 0, begins: blank lines, and cells of several, count."""
    begins, before = [], 0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            for row in rows:
                if len(row) > 1 or any(cell.strip() for cell in row):
                    begins.append(before + 1)
                before = rows.line_num
        return begins[place + 1]
    except (UnicodeDecodeError, csv.Error, IndexError):  # a packed file, or one that pandas reads in another way
        return place + _FIRST


def read_csv(path: Path, id: str) -> pd.DataFrame:
    """The table in a file; names of samples are text, so that 007 stays what it is.

    Raises:
        DataError: If there is none, or no column `id`.
    """
    try:
        frame = pd.read_csv(path, dtype={id: str}, low_memory=False)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: give the path of a CSV file") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is no CSV file that can be read: {reason}") from None
    need(frame, path, id)
    if frame.empty:
        raise DataError(f"{path} has no line below its heading")
    return frame


def need(frame: pd.DataFrame, path: Path, *columns: str) -> None:
    """Refuse a table without one of the columns, with those that it has."""
    for column in columns:
        if column not in frame:
            raise DataError(f"{path} has no column {column!r}; it has {', '.join(map(str, frame.columns))}")


def as_series(frame: pd.DataFrame, path: Path, columns: Columns) -> Series:
    """The series of a table.

    Raises:
        DataError: With the file and its line.
    """
    need(frame, path, columns.time, *columns.static, *columns.values)
    if not columns.values:
        raise DataError(f"{path} has no column of measurements beside those that are named: add one")
    frame, static = _with_words(frame, path, columns)
    known = {"values": list(columns.values), "static": static, "unit": columns.unit}
    try:
        series = from_long(frame, id=columns.id, time=columns.time, dtype=torch.float64, **known)
    except (TypeError, ValueError) as error:
        text = re.sub(r"^line (\d+)", lambda found: f"line {line_of(path, int(found[1]))}", str(error))
        for python, here in _REMEDIES:
            text = re.sub(python, here, text)
        raise DataError(f"{path}, {text}") from None
    unseen = ~series.mask.flatten(1).any(1)
    if unseen.any():
        name = series.ids[int(unseen.nonzero()[0])]
        raise DataError(f"{path}: {columns.id} {name!r} has no measurement at all: leave its lines out")
    return series


# What `from_long` tells who has a table in Python, and what somebody with a file can do.
_REMEDIES = (
    (r",? or (?:give words numbers, |write )frame\[.*$", ""),
    (r"write frame\[.*$", "write all of them in one form"),
)


def _with_words(frame: Any, path: Path, columns: Columns) -> tuple[pd.DataFrame, list[str]]:
    """The table with a column of 0 and 1 for each word of a static column, and the static columns then.

    Raises:
        DataError: If there is a word that the model does not know.
    """
    static: list[str] = []
    added: dict[str, Any] = {}
    for name in columns.static:
        if name not in columns.words:
            static.append(name)
            continue
        found, known = _stripped(frame[name]), columns.words[name]
        strange = (found.notna() & ~found.isin(known)).to_numpy()
        if strange.any():
            place = int(strange.argmax())
            raise DataError(
                f"{path}, line {line_of(path, place)}, column {name!r}: {found.iloc[place]!r} is none of "
                f"{', '.join(known)}, which the model was trained with: mend it, or leave it empty, as not known"
            )
        made = {f"{name}={word}": (found == word).astype(float).where(found.notna()) for word in known}
        added |= made
        static += made
    return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1), static


def _stripped(column: Any) -> Any:
    """Cells as text without blanks around it, NaN where there is nothing else."""
    text = column.where(column.isna(), column.astype(str).str.strip())
    return text.where(text != "")


def _is_text(column: Any) -> bool:
    """Whether there is something in the column, and none of it a number."""
    found = column[_stripped(column).notna()]
    numbers: Any = pd.to_numeric(found, errors="coerce")
    return len(found) > 0 and bool(numbers.isna().all())


def outcomes_of_column(frame: pd.DataFrame, path: Path, id: str, target: str, ids: Sequence[Any]) -> np.ndarray:
    """(samples,), the one value of the column `target` in the lines of each sample; empty cells count for nothing.

    Raises:
        DataError: If a sample has two, or none.
    """
    need(frame, path, target)
    known = frame.loc[frame[target].notna(), [id, target]]
    first = known.drop_duplicates(id)
    value = first.set_index(id)[target]
    other = (known[target].to_numpy() != known[id].map(value).to_numpy()).nonzero()[0]
    if len(other):
        line, name = known.index[other[0]], known[id].iloc[other[0]]
        begun = line_of(path, first.index[(first[id] == name).to_numpy().argmax()])
        raise DataError(
            f"{path}: `--target` {target!r} must be one value for a sample, but {id} {name!r} has "
            f"{value[name]} in line {begun} and {known[target][line]} in line {line_of(path, line)}: mend it, or give "
            "`--outcomes` a file with one line for each sample"
        )
    return _of_each(value, ids, path, id, target)


def outcomes_of_file(path: Path, id: str, target: str, ids: Sequence[Any]) -> np.ndarray:
    """(samples,), of a file with one line for each sample.

    Raises:
        DataError: If a sample has two lines, or none, or a line names no sample.
    """
    frame = read_csv(path, id)
    need(frame, path, target)
    twice = frame[id].duplicated()
    if twice.any():
        line = int(twice.to_numpy().argmax())
        raise DataError(
            f"{path}, line {line_of(path, line)}: {id} {frame[id][line]!r} has a line already: keep one of them"
        )
    known = set(ids)
    unknown = [name for name in frame[id] if name not in known]
    if unknown:
        raise DataError(f"{path} names samples that have no series, {_few(unknown)}: leave their lines out")
    frame = frame.loc[frame[target].notna(), [id, target]]
    return _of_each(frame.set_index(id)[target], ids, path, id, target)


def _of_each(value: Any, ids: Sequence[Any], path: Path, id: str, target: str) -> np.ndarray:
    lacking = [name for name in ids if name not in value.index]
    if lacking:
        raise DataError(f"{path} has no {target!r} of {id} {_few(lacking)}: add it, or leave these samples out")
    return value.reindex(list(ids)).infer_objects().to_numpy()


def with_columns_of(frame: pd.DataFrame, path: Path, columns: Columns, target: str) -> Columns:
    """The columns, with all that nothing else was said of as measurements, where none were named; never the target.

    Text in a static column becomes its words.

    Raises:
        DataError: If text is a measurement, or a static column has too many words.
    """
    if target in (*columns.values, *columns.static):
        raise DataError(f"`--target` {target!r} is named by `--values` or `--static`, too: leave it out there")
    taken = {columns.id, columns.time, *columns.static, target}
    values = columns.values or tuple(c for c in frame.columns if c not in taken)
    need(frame, path, *columns.static, *values)
    for name in values:
        if _is_text(frame[name]):
            place = int(_stripped(frame[name]).notna().to_numpy().argmax())
            raise DataError(
                f"{path}, line {line_of(path, place)}, column {name!r}: {frame[name].iloc[place]!r} is no number: name "
                "the column by `--static`, where it is a word for each sample, or the measurements by `--values`"
            )
    words = {
        name: tuple(sorted(set(_stripped(frame[name]).dropna()))) for name in columns.static if _is_text(frame[name])
    }
    for name, found in words.items():
        if len(found) > _WORDS:
            raise DataError(
                f"{path}, column {name!r} has {len(found)} different words, and each becomes a number, at most "
                f"{_WORDS}: leave it out of `--static`, and name the measurements by `--values`"
            )
    return replace(columns, values=values, words=words)


def _few(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(map(str, names[:_FEW])) + more
