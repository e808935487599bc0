"""`load_ecg`, the one way to the heartbeats: finds the best source that a machine has, and splits it.

Two splits. "random" (that of the Kaggle files and of the published ODE-Net example) spreads the beats of
every patient over both sides, so it mostly measures memory of patients: in the real records, 94 % of the
nearest neighbours of a test beat are beats of the same record. "inter-patient" asks the medical question,
about people never seen before.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.data.beats import CLASS_NAMES, CLASSES, UNKNOWN_RECORD, Beats
from odenets.data.cache import cache_folder
from odenets.data.errors import DataError, NoNetwork
from odenets.data.kaggle import FILE_NAMES, KAGGLE_URL, read_kaggle
from odenets.data.mitdb import BASE_URL, DS1, DS2, RECORDS, cached_mitdb, download_mitdb, read_fine, read_mitdb
from odenets.data.synthetic import PATIENTS, make_fine, make_synthetic
from odenets.progress import Progress, progress_bar

__all__ = [
    "CLASSES",
    "CLASS_NAMES",
    "SOURCES",
    "SPLITS",
    "Beats",
    "DataError",
    "ECGData",
    "load_ecg",
    "split_beats",
]

SOURCES = ("auto", "mitdb", "kaggle", "synthetic")
SPLITS = ("random", "inter-patient")

FULL_COUNTS = (90_589, 2_779, 7_236, 803, 8_039)  # beats of each class in the 48 records
FULL_TEST_COUNTS = (18_118, 556, 1_448, 162, 1_608)  # and in the Kaggle test file: not quite 20 % of each
TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class ECGData:
    """A data set ready for an experiment: `train` and `test` beats, and the name of the `split`.

    `source` is a sentence for the report; it starts with "SYNTHETIC" where `synthetic` is True.
    """

    train: Beats
    test: Beats
    split: str
    source: str
    synthetic: bool


def load_ecg(
    data: str = "auto",
    split: str = "random",
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = progress_bar,
) -> ECGData:
    """Load heartbeats and split them.

    Args:
        data: "mitdb" the raw records (local, else kept from an earlier run, else downloaded, 90 MB);
            "kaggle" the two CSV files (local); "synthetic" beats from a model; "auto" the first there is of:
            local records, kept records, local CSV files (not for "inter-patient", which they cannot serve),
            the download, and, only where no network answers, synthetic beats: then `synthetic` is True and
            `source` says so and why.
        split: "random" or "inter-patient", see the top of this file. The Kaggle files have a random one.
        seed: Of the random split. The synthetic beats themselves are always the same.
        data_dir: Where to look: a folder with `mitdb/` or `heartbeat/` in it, or with the records or CSV
            files themselves. Without it, the environment variable ODENETS_DATA. "synthetic" looks nowhere.
        cache_dir: Where to keep downloads and prepared beats; see `odenets.data.cache.cache_folder`.
        progress: Shows how far slow loops are; `odenets.progress.no_progress` shows nothing.

    Raises:
        DataError: Data that is missing, incomplete or damaged, or cannot be split so, with the remedy.
        ValueError: An unknown `data` or `split`.
    """
    _require_choice("data", data, SOURCES)
    _require_choice("split", split, SPLITS)
    if data == "synthetic":
        return split_beats(make_synthetic(), split, seed)
    folder = _data_folder(data_dir)
    if data == "kaggle" or (data == "auto" and split == "random" and _kaggle_is_next(folder, cache_dir)):
        return _kaggle(folder, split, cache_dir, progress)
    if data_dir is not None:
        _require_data(folder)
    return split_beats(_records(folder, cache_dir, progress, or_synthetic=data == "auto"), split, seed)


def load_fine(
    count: int, seed: int = 0, progress: Progress = progress_bar
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """At most `count` beats of each class at all 360 Hz: rows (n, 561) in [0, 1], padded with zeros, their lengths (n,)
    and labels (n,), and whether they are synthetic.

    They are drawn from the records in ODENETS_DATA, or those that were downloaded; from the model without them.
    """
    folder = _find_records(_data_folder(None)) or _find_records(cache_folder(None))
    if folder is not None:
        return *read_fine(folder, count, seed, progress), False
    rows, lengths, labels = make_fine(max(200, 8 * count), seed)
    kept = np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(len(CLASSES))])
    return rows[kept], lengths[kept], labels[kept], True


def _require_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {shown(value)}")


# ---- sources


def _data_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    name, value = ("data_dir", data_dir) if data_dir is not None else ("ODENETS_DATA", os.environ.get("ODENETS_DATA"))
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"`{name}` is {str(value)!r}, which is not a folder; give the one that holds the heartbeat data."
        )
    return folder


def _find(folder: Path | None, subfolder: str, names: Sequence[str]) -> Path | None:
    """`folder`/`subfolder` or `folder` itself, whichever has one of the files `names`."""
    if folder is None:
        return None
    places = (folder / subfolder, folder)
    return next((place for place in places if any((place / name).is_file() for name in names)), None)


def _find_records(folder: Path | None) -> Path | None:
    return _find(folder, "mitdb", [f"{record}.hea" for record in RECORDS])


def _find_kaggle(folder: Path | None) -> Path | None:
    return _find(folder, "heartbeat", FILE_NAMES)


def _require_data(folder: Path | None) -> None:
    """Refuse a folder that the caller named and that holds nothing, rather than go on to the next source."""
    if folder is not None and _find_records(folder) is None and _find_kaggle(folder) is None:
        raise DataError(
            f"`data_dir` is {str(folder)!r}, which holds neither the MIT-BIH records ({RECORDS[0]}.hea, …; there or in "
            f"`mitdb/`) nor {' or '.join(FILE_NAMES)} (there or in `heartbeat/`). Name the folder that does, or leave "
            "`data_dir` out."
        )


def _kaggle_is_next(folder: Path | None, cache_dir: str | os.PathLike[str] | None) -> bool:
    found = _find_kaggle(folder) is not None
    return found and _find_records(folder) is None and cached_mitdb(cache_dir) is None


def _kaggle(folder: Path | None, split: str, cache_dir: str | os.PathLike[str] | None, progress: Progress) -> ECGData:
    if split != "random":
        raise DataError(
            f"`split` {split!r} needs to know whose beats they are, which the Kaggle files do not say; use "
            f"the raw records with `data='mitdb'`, or `split='random'`."
        )
    found = _find_kaggle(folder)
    if found is None:
        raise DataError(
            f"There is no {' or '.join(FILE_NAMES)} in {_named(folder)}. Get both files from {KAGGLE_URL} "
            f"and set `data_dir` (or ODENETS_DATA) to their folder."
        )
    train, test = read_kaggle(found, cache_dir, progress)
    source = f"{train.source} {test.source} Their own random division: beats of one patient are on both sides."
    return ECGData(train, test, split, source, synthetic=False)


def _records(
    folder: Path | None, cache_dir: str | os.PathLike[str] | None, progress: Progress, or_synthetic: bool
) -> Beats:
    found = _find_records(folder)
    if found is not None:
        return read_mitdb(found, cache_dir=cache_dir, progress=progress)
    kept = cached_mitdb(cache_dir)
    if kept is not None:
        return kept
    try:
        downloaded = download_mitdb(cache_folder(cache_dir) / "mitdb", progress=progress)
    except NoNetwork as error:
        if not or_synthetic:
            raise
        return make_synthetic(why=_why_synthetic(folder, error))
    return read_mitdb(downloaded, cache_dir=cache_dir, progress=progress)


def _why_synthetic(folder: Path | None, error: NoNetwork) -> str:
    return (
        f"Real beats were not found in {_named(folder)} and could not be downloaded ({error.__cause__}). To "
        f"use them, run once with a network, or put the MIT-BIH records ({BASE_URL}) or the Kaggle files "
        f"({KAGGLE_URL}) in a folder and set ODENETS_DATA (or `data_dir`) to it."
    )


def _named(folder: Path | None) -> str:
    return str(folder) if folder is not None else "any local folder (neither `data_dir` nor ODENETS_DATA is set)"


# ---- splits


def split_beats(beats: Beats, split: str, seed: int = 0) -> ECGData:
    """Divide `beats` into train and test.

    "random": within each class the test beats are drawn without replacement, as many as in the Kaggle test
    file where `beats` are all those of the 48 records, else 20 %; both sides are shuffled. Fixed by `seed`.
    "inter-patient": by record, DS1 for training and DS2 for testing (de Chazal 2004; the four paced records
    are left out, and records 201 and 202, of one man, are on different sides); of synthetic patients, the
    even numbers for training. Not shuffled, and `seed` plays no part.
    Raises `DataError` where a side would be empty or the records are unknown.
    """
    _require_choice("split", split, SPLITS)
    if split == "random":
        train, test = _random_split(beats.y, beats.counts(), seed)
    else:
        train, test = _split_by_record(beats)
    if len(train) == 0 or len(test) == 0:
        raise DataError(f"`split` {split!r} of these {len(beats)} beats leaves a side empty; give more of the records.")
    return ECGData(beats.select(train), beats.select(test), split, beats.source, beats.synthetic)


def _random_split(y: Tensor, counts: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the train and of the test beats."""
    generator = torch.Generator().manual_seed(seed)
    test_counts = FULL_TEST_COUNTS if counts == FULL_COUNTS else [round(TEST_SHARE * count) for count in counts]
    train, test = [], []
    for label, n_test in enumerate(test_counts):
        drawn = _shuffled((y == label).nonzero()[:, 0], generator)
        test.append(drawn[:n_test])
        train.append(drawn[n_test:])
    return _shuffled(torch.cat(train), generator), _shuffled(torch.cat(test), generator)


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]


def _split_by_record(beats: Beats) -> tuple[Tensor, Tensor]:
    if (beats.record == UNKNOWN_RECORD).any():
        raise DataError(
            "`split` 'inter-patient' needs the record of every beat, which these do not have; use 'random'."
        )
    train, test = (range(0, PATIENTS, 2), range(1, PATIENTS, 2)) if beats.synthetic else (DS1, DS2)
    return _positions(beats.record, train), _positions(beats.record, test)


def _positions(record: Tensor, side: Sequence[int]) -> Tensor:
    return torch.isin(record, torch.tensor(side)).nonzero()[:, 0]
