"""CSV files: series of them, and outcomes; what is wrong is told with the file and its line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from odenets.data.errors import DataError
from odenets.series import Series, from_long

FIRST = 2  # the line of a file that is the first below its heading
_FEW = 5  # names in an error


@dataclass(frozen=True)
class Columns:
    """Which column of a file is what."""

    id: str
    time: str
    values: tuple[str, ...]
    static: tuple[str, ...] = ()
    unit: str = "h"


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
    known = {"values": list(columns.values), "static": list(columns.static), "unit": columns.unit}
    try:
        series = from_long(frame, id=columns.id, time=columns.time, dtype=torch.float64, **known)
    except (TypeError, ValueError) as error:
        text = re.sub(r"^line (\d+)", lambda found: f"line {int(found[1]) + FIRST}", str(error))
        raise DataError(f"{path}, {text}") from None
    unseen = ~series.mask.flatten(1).any(1)
    if unseen.any():
        name = series.ids[int(unseen.nonzero()[0])]
        raise DataError(f"{path}: {columns.id} {name!r} has no measurement at all: leave its lines out")
    return series


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
        begun = first.index[(first[id] == name).to_numpy().argmax()]
        raise DataError(
            f"{path}: `--target` {target!r} must be one value for a sample, but {id} {name!r} has "
            f"{value[name]} in line {begun + FIRST} and {known[target][line]} in line {line + FIRST}: mend it, or give "
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
        raise DataError(f"{path}, line {line + FIRST}: {id} {frame[id][line]!r} has a line already: keep one of them")
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


def with_columns_of(frame: pd.DataFrame, columns: Columns, target: str) -> Columns:
    """The columns, with all that nothing else was said of as measurements, where none were named; never the target."""
    if target in (*columns.values, *columns.static):
        raise DataError(f"`--target` {target!r} is named by `--values` or `--static`, too: leave it out there")
    taken = {columns.id, columns.time, *columns.static, target}
    return columns if columns.values else replace(columns, values=tuple(c for c in frame.columns if c not in taken))


def _few(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(map(str, names[:_FEW])) + more
