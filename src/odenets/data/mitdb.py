"""The MIT-BIH Arrhythmia Database 1.0.0: 48 half-hour records → one row a heartbeat.

The rule is the one that made the Kaggle "heartbeat" files, found by reproducing 999 of their rows
exactly and all of their class counts. It is not the one that their paper describes (125 Hz, 10 s windows):

- signal: integer values of the first channel (mostly lead MLII), 360 Hz, unfiltered;
- a beat's segment runs from its own sample a (inclusive) to b + ⌊(c - b)/5⌋ (exclusive), with b and c the
  next two annotations of any kind, beats or not; the end of the record stands in for c after the last
  annotation;
- every third sample from a itself, that is 120 Hz; then scaled, cut and padded (`segments` and `scale_rows`).

Database: G. B. Moody and R. G. Mark, "The impact of the MIT-BIH Arrhythmia Database", IEEE Engineering in
Medicine and Biology 20(3):45-50, 2001; https://physionet.org/content/mitdb/1.0.0/ (Open Data Commons
Attribution 1.0).
Division into DS1 and DS2: P. de Chazal, M. O'Dwyer and R. B. Reilly, IEEE TBME 51(7):1196-1206, 2004.
"""

import functools
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from odenets.data.beats import FINE_LENGTH, SAMPLING_HZ, Beats, scale_rows, segments
from odenets.data.cache import cache_folder, load_beats, save_beats
from odenets.data.download import content_hash, download_files, read_hash_table
from odenets.data.errors import DataError
from odenets.extra import experiments_extra
from odenets.progress import Progress, progress_bar

__all__ = [
    "BASE_URL",
    "DS1",
    "DS2",
    "PACED",
    "RECORDS",
    "cached_mitdb",
    "download_mitdb",
    "read_mitdb",
    "read_record",
]

BASE_URL = "https://physionet.org/files/mitdb/1.0.0/"
RULE_VERSION = 1  # part of the cache's key: raise it with any change to the rows

DS1 = (
    101,
    106,
    108,
    109,
    112,
    114,
    115,
    116,
    118,
    119,
    122,
    124,
    201,
    203,
    205,
    207,
    208,
    209,
    215,
    220,
    223,
    230,
)
DS2 = (
    100,
    103,
    105,
    111,
    113,
    117,
    121,
    123,
    200,
    202,
    210,
    212,
    213,
    214,
    219,
    221,
    222,
    228,
    231,
    232,
    233,
    234,
)
PACED = (102, 104, 107, 217)
RECORDS = tuple(sorted(DS1 + DS2 + PACED))

SYMBOLS = (
    "NLRej",
    "AaJS",
    "VE",
    "F",
    "/fQ",
)  # annotation symbols of the five classes, in the order of `CLASSES`
NOT_A_BEAT = -1
HEADER_ENDING, SIGNAL_ENDING, ANNOTATION_ENDING = ".hea", ".dat", ".atr"
ENDINGS = (HEADER_ENDING, SIGNAL_ENDING, ANNOTATION_ENDING)


@functools.cache
def _wfdb() -> Any:
    """The package wfdb, which takes a second to import."""
    with experiments_extra("reading the records"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # wfdb 4.3 uses keywords that pandas 3.1 deprecates
        import wfdb  # noqa: PLC0415 — slow to import
        import wfdb.io.annotation  # noqa: PLC0415
    return wfdb


@functools.cache
def _class_of_code() -> np.ndarray:
    """Class of each annotation code (six bits), -1 for those that mark no beat."""
    ann_label_table = _wfdb().io.annotation.ann_label_table
    code = dict(zip(ann_label_table["symbol"], ann_label_table["label_store"]))
    table = np.full(64, NOT_A_BEAT)
    for label, symbols in enumerate(SYMBOLS):
        table[[code[symbol] for symbol in symbols]] = label
    return table


# ---- from files to beats


def read_mitdb(
    folder: str | os.PathLike[str],
    records: Sequence[int] = RECORDS,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = progress_bar,
) -> Beats:
    """All beats of `records` in `folder`, in the order of the records and of time.

    The result is kept in `cache_dir` (see `odenets.data.cache.cache_folder`) under the hashes of the files,
    so changed files are read again. Raises `DataError` for a file that is missing or damaged.
    """
    folder = Path(folder)
    hashes = {path.name: content_hash(path) for path in _record_files(folder, records)}
    path = _cache_path(hashes, cache_dir)
    cached = load_beats(path)
    if cached is not None:
        return cached
    parts = [read_record(folder, record) for record in progress(records, "Reading records")]
    beats = _join(parts, records, _source(hashes, records))
    save_beats(path, beats)
    return beats


def cached_mitdb(cache_dir: str | os.PathLike[str] | None = None) -> Beats | None:
    """The beats of the 48 published records where an earlier run has kept them, else None."""
    return load_beats(_cache_path(published_hashes(), cache_dir))


def published_hashes() -> dict[str, str]:
    """Name → `content_hash` of the 144 files of the 48 published records."""
    return read_hash_table(files("odenets.data").joinpath("mitdb.sha256").read_text("ascii"))


def _record_files(folder: Path, records: Sequence[int]) -> list[Path]:
    paths = [folder / f"{record}{ending}" for record in records for ending in ENDINGS]
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"Record {path.stem} is not complete: there is no {path.name} in {folder}. A record is three "
                f"files (.hea, .dat, .atr); fetch all of them with `download_mitdb({str(folder)!r})` or from "
                f"{BASE_URL}."
            )
    return paths


def _cache_path(hashes: Mapping[str, str], cache_dir: str | os.PathLike[str] | None) -> Path:
    lines = [f"rule {RULE_VERSION}"] + [f"{digest}  {name}" for name, digest in sorted(hashes.items())]
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return cache_folder(cache_dir) / f"mitdb-{fingerprint[:16]}.npz"


def _join(parts: Sequence[tuple[np.ndarray, np.ndarray]], records: Sequence[int], source: str) -> Beats:
    x = torch.from_numpy(np.concatenate([rows for rows, _ in parts]))
    y = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    sizes = torch.tensor([len(labels) for _, labels in parts])
    return Beats(x, y, torch.tensor(records).repeat_interleave(sizes), source, synthetic=False)


def _source(hashes: Mapping[str, str], records: Sequence[int]) -> str:
    published = published_hashes()
    same = all(published.get(name) == digest for name, digest in hashes.items())
    count = f"all {len(RECORDS)} records" if len(records) == len(RECORDS) else f"{len(records)} records"
    state = "as published" if same else "the files differ from the published ones"
    return f"MIT-BIH Arrhythmia Database 1.0.0 (Moody and Mark 2001, PhysioNet), {count}, {state}."


# ---- one record


def read_record(folder: str | os.PathLike[str], record: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 187) float32 in [0, 1] and labels (n,) int64 of one record, by the rule at the top.

    Raises `DataError` where the header cannot be read, the signal is shorter than the header says, or an
    annotation does not fit the signal.
    """
    folder = Path(folder)
    _record_files(folder, [record])
    header = _read_header(folder, record)
    _check_signal_size(folder, record, header)
    signal = _read_signal(folder, record)
    at, codes = _read_annotations(folder, record)
    _check_annotations(folder, record, at, header.sig_len)
    return _cut(signal, at, _class_of_code()[codes])


def _cut(signal: np.ndarray, at: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`signal` (samples,), positions `at` and classes `label` (m,) of the annotations → rows, labels."""
    a, b, c = at[:-1], at[1:], np.append(at[2:], len(signal))
    beat = label[:-1] != NOT_A_BEAT  # the last annotation of a record has no next one and makes no row
    index, lengths = segments(a[beat], b[beat], c[beat])
    return scale_rows(signal[index], lengths), label[:-1][beat]


def read_fine(
    folder: str | os.PathLike[str], count: int, seed: int, progress: Progress = progress_bar
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Beats at all 360 Hz, at most `count` of each class, drawn from all records.

    Returns:
        Rows (n, `FINE_LENGTH`) in [0, 1], scaled as the others and padded with zeros, their lengths (n,) and labels.

    Raises:
        DataError: As `read_record`.
    """
    folder = Path(folder)
    _record_files(folder, RECORDS)
    marks = {record: _read_annotations(folder, record) for record in RECORDS}
    found = [
        (record, k, label)
        for record, (_, codes) in marks.items()
        for k, label in enumerate(_class_of_code()[codes][:-1].tolist())
        if label != NOT_A_BEAT
    ]
    random, labels = np.random.default_rng(seed), np.array([label for *_, label in found])
    chosen = [random.permutation(np.flatnonzero(labels == label))[:count] for label in range(len(SYMBOLS))]
    wanted: dict[int, list[int]] = {}
    for i in sorted(np.concatenate(chosen).tolist()):
        wanted.setdefault(found[i][0], []).append(i)
    parts = []
    for record, mine in progress(list(wanted.items()), "Reading records"):
        at = np.append(marks[record][0], _read_header(folder, record).sig_len)
        k = np.array([found[i][1] for i in mine])
        index, lengths = segments(at[k], at[k + 1], at[k + 2], step=1)
        rows = scale_rows(_read_signal(folder, record)[index], lengths, FINE_LENGTH)
        parts.append((rows, lengths.clip(max=FINE_LENGTH), labels[mine]))
    rows, lengths, labels = (np.concatenate(part) for part in zip(*parts))
    return rows, lengths, labels


def _read_header(folder: Path, record: int) -> Any:
    path = folder / f"{record}{HEADER_ENDING}"
    wfdb = _wfdb()
    try:
        header = wfdb.rdheader(str(folder / str(record)))
        form = (header.fs, set(header.fmt), set(header.file_name), bool(header.sig_len))
    except Exception as error:  # wfdb lets its parser's own errors through, of any type
        raise DataError(f"{path} (record {record}) is not a readable header: {error}. {_fetch_again(path)}") from error
    signal = f"{record}{SIGNAL_ENDING}"
    if form != (SAMPLING_HZ, {"212"}, {signal}, True):
        raise DataError(
            f"{path} (record {record}) says {header.fs} Hz, formats {header.fmt}, files {header.file_name} "
            f"and {header.sig_len} samples; a record of this database has {SAMPLING_HZ} Hz, format 212, the file "
            f"{signal} and a known length. {_fetch_again(path)}"
        )
    return header


def _check_signal_size(folder: Path, record: int, header: Any) -> None:
    """Format 212 packs two samples into three bytes."""
    path = folder / f"{record}{SIGNAL_ENDING}"
    expected = (header.n_sig * header.sig_len * 3 + 1) // 2
    size = path.stat().st_size
    if size < expected:
        raise DataError(
            f"{path} (record {record}) is truncated: {size} bytes, but {header.n_sig} channels of "
            f"{header.sig_len} samples, as its header says, take {expected}. {_fetch_again(path)}"
        )


def _read_signal(folder: Path, record: int) -> np.ndarray:
    """Integer values (samples,) of the first channel."""
    path = folder / str(record)
    signal = _wfdb().rdrecord(str(path), channels=[0], physical=False, return_res=16)
    return signal.d_signal[:, 0].astype(np.int64)


def _read_annotations(folder: Path, record: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample (m,) and code (m,) of every annotation of a record, in time order."""
    path = folder / f"{record}{ANNOTATION_ENDING}"
    wfdb = _wfdb()
    try:
        # `label_store` (codes) and not `symbol`: the way to the latter uses deprecated pandas calls
        found = wfdb.rdann(str(folder / str(record)), path.suffix[1:], return_label_elements=["label_store"])
    except Exception as error:  # wfdb lets its parser's own errors through, of any type
        raise DataError(
            f"{path} (record {record}) has no readable annotations: {error}. {_fetch_again(path)}"
        ) from error
    return np.asarray(found.sample, np.int64), np.asarray(found.label_store, np.int64)


def _check_annotations(folder: Path, record: int, at: np.ndarray, samples: int) -> None:
    path = folder / f"{record}{ANNOTATION_ENDING}"
    if len(at) < 2:
        raise DataError(
            f"{path} (record {record}) holds {len(at)} annotations, too few for a beat. {_fetch_again(path)}"
        )
    if at.max() >= samples:
        raise DataError(
            f"{path} (record {record}) has an annotation at sample {at.max()}, beyond the {samples} samples "
            f"of the signal: the two files do not belong together. {_fetch_again(path)}"
        )
    late = np.flatnonzero(np.diff(at, prepend=-1) <= 0)
    if len(late):
        raise DataError(
            f"{path} (record {record}) has annotation number {late[0]} at sample {at[late[0]]}, which is not "
            f"after the one before it. {_fetch_again(path)}"
        )


def _fetch_again(path: Path) -> str:
    return f"Fetch it again from {BASE_URL}{path.name}"


# ---- the network


def download_mitdb(
    dest: str | os.PathLike[str],
    base_url: str = BASE_URL,
    hashes: Mapping[str, str] | None = None,
    progress: Progress = progress_bar,
) -> Path:
    """Fetch the 48 records (144 files, 90 MB) into the folder `dest` and return it.

    Every file is checked against `hashes` (name → `odenets.data.download.content_hash`; by default those of
    the published records, which the package carries) and verified ones are not fetched again. Raises as
    `odenets.data.download.download_files` does.
    """
    hint = (
        f"With the records already on disk, set the environment variable ODENETS_DATA (or `data_dir`) to "
        f"their folder; with a browser they are at {BASE_URL}"
    )
    folder = Path(dest).expanduser()
    download_files(base_url, published_hashes() if hashes is None else hashes, folder, hint, progress)
    return folder
