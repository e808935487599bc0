"""The Kaggle "heartbeat" files `mitbih_train.csv` and `mitbih_test.csv`: 87,554 and 21,892 beats, 392 MB.

Each line holds the 187 numbers of a row (see `odenets.data.beats`) and its label 0 … 4; there is no header.
The rows say nothing about the records that they come from, so these files have one split, their own. The
origin of the numbers is the MIT-BIH Arrhythmia Database, which `odenets.data.mitdb` reads and which gives the
same rows with their records.
"""

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import torch

from odenets.data.beats import CLASSES, ROW_LENGTH, UNKNOWN_RECORD, Beats
from odenets.data.cache import cache_folder, load_beats, save_beats
from odenets.data.errors import DataError
from odenets.extra import experiments_extra
from odenets.progress import Progress, progress_bar

__all__ = ["FILE_NAMES", "KAGGLE_URL", "read_kaggle", "read_rows"]

KAGGLE_URL = "https://www.kaggle.com/shayanfazeli/heartbeat"
FILE_NAMES = ("mitbih_train.csv", "mitbih_test.csv")
READER_VERSION = 1  # part of the cache's key
COLUMNS = ROW_LENGTH + 1


def read_kaggle(
    folder: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = progress_bar,
) -> tuple[Beats, Beats]:
    """The beats of the training file and of the test file in `folder`; their `record` is -1 throughout.

    Both are kept in `cache_dir` (see `odenets.data.cache.cache_folder`) until the files change. Raises
    `DataError` for a file that is missing or whose lines are not 187 numbers in [0, 1] and a label.
    """
    paths = [Path(folder) / name for name in FILE_NAMES]
    for path in paths:
        _require_file(path)
    train, test = [_cached_beats(path, cache_dir) for path in progress(paths, "Reading CSV files")]
    return train, test


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(
            f"There is no {path.name} in {path.parent}: both {' and '.join(FILE_NAMES)} are needed. They are "
            f"at {KAGGLE_URL} (a free account is needed); the same beats come from the raw records with "
            f"`data='mitdb'`."
        )


def _cached_beats(path: Path, cache_dir: str | os.PathLike[str] | None) -> Beats:
    cache = _cache_path(path, cache_dir)
    beats = load_beats(cache)
    if beats is None:
        beats = _to_beats(*read_rows(path), path.name)
        save_beats(cache, beats)
    return beats


def _cache_path(path: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Named by size and time of change: to hash 392 MB would take longer than to load the result."""
    state = path.stat()
    key = f"reader {READER_VERSION}\n{path.name} {state.st_size} {state.st_mtime_ns}"
    return cache_folder(cache_dir) / f"kaggle-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _to_beats(x: np.ndarray, y: np.ndarray, name: str) -> Beats:
    source = f"Kaggle heartbeat file {name} ({len(y):,} beats, from the MIT-BIH Arrhythmia Database)."
    record = torch.full((len(y),), UNKNOWN_RECORD)
    return Beats(torch.from_numpy(x), torch.from_numpy(y), record, source, synthetic=False)


def read_rows(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 187) float32 in [0, 1] and labels (n,) int64 of one file; `DataError` with the bad line."""
    path = Path(path)
    _require_file(path)
    with experiments_extra("reading CSV files"):
        import pandas as pd  # noqa: PLC0415 — slow to import
    try:
        table = pd.read_csv(path, header=None, dtype=np.float32, engine="c").to_numpy()
    except (
        ValueError,
        OverflowError,
    ) as error:  # ParserError, EmptyDataError, UnicodeDecodeError are ValueErrors
        raise _first_fault(path) from error
    if not _is_valid(table):
        raise _first_fault(path)
    return np.ascontiguousarray(table[:, :-1]), table[:, -1].astype(np.int64)


def _is_valid(table: np.ndarray) -> bool:
    if table.shape[1] != COLUMNS:
        return False
    x, label = table[:, :-1], table[:, -1]
    in_range = x.min() >= 0 and x.max() <= 1  # False where there is a NaN
    return bool(in_range and np.isin(label, range(len(CLASSES))).all())


def _first_fault(path: Path) -> DataError:
    """Read the file again, slowly, to say which line is wrong and how."""
    empty = True
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            fault = _fault(line.strip().split(",")) if line.strip() else None  # pandas skips blank lines too
            if fault:
                return DataError(f"{path}, line {number}: {fault}. {_what_is_expected()}")
            empty = empty and not line.strip()
    state = "is empty" if empty else "cannot be read, though each of its lines looks right"
    return DataError(f"{path} {state}. {_what_is_expected()}")


def _fault(fields: list[str]) -> str | None:
    """What is wrong with one line, or None."""
    if len(fields) != COLUMNS:
        return f"{len(fields)} columns"
    for column, field in enumerate(fields, start=1):
        fault = _number_fault(field, is_label=column == COLUMNS)
        if fault:
            return f"column {column} is {field!r}, {fault}"
    return None


def _number_fault(field: str, is_label: bool) -> str | None:
    try:
        value = float(field)
    except ValueError:
        return "not a number"
    if not math.isfinite(value):
        return "not a finite number"
    if is_label:
        return None if value in range(len(CLASSES)) else "not a label 0, 1, 2, 3 or 4"
    return None if 0 <= value <= 1 else "outside [0, 1]"


def _what_is_expected() -> str:
    return (
        f"A line holds {ROW_LENGTH} numbers in [0, 1] and a label 0 … 4, {COLUMNS} columns, without a "
        f"header. Fetch the file again from {KAGGLE_URL}"
    )
