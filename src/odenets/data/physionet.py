"""PhysioNet/CinC Challenge 2012: intensive-care stays of 48 hours, 37 variables at irregular times, and who died.

Database: I. Silva, G. Moody, D. J. Scott, L. A. Celi and R. G. Mark, "Predicting in-hospital mortality of ICU patients:
The PhysioNet/Computing in Cardiology Challenge 2012", Computing in Cardiology 39:245-248, 2012;
https://physionet.org/content/challenge-2012/1.0.0/ (Open Data Commons Attribution 1.0).
"""

import csv
import io
import math
import os
import tarfile
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.data.cache import cache_folder
from odenets.data.download import download_files, read_hash_table
from odenets.data.errors import DataError, NoNetwork
from odenets.data.stays import make_stays
from odenets.files import write_atomically
from odenets.progress import Progress, progress_bar
from odenets.series import Series

BASE_URL = "https://physionet.org/files/challenge-2012/1.0.0/"
SETS = ("a", "b")
SOURCES = ("auto", "physionet", "synthetic")
RULE_VERSION = 1  # part of the cache's name: raise it with any change to what is read

VARIABLES = (
    *("Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol", "Creatinine", "DiasABP", "FiO2", "GCS"),
    *("Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg", "Na", "NIDiasABP", "NIMAP"),
    *("NISysABP", "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI"),
    *("TroponinT", "Urine", "WBC", "Weight"),
)
STATIC = ("Age", "Gender", "Height", "CoronaryUnit", "CardiacUnit", "MedicalUnit", "SurgicalUnit")
_UNITS = {1: 3, 2: 4, 3: 5, 4: 6}  # ICUType → the column of STATIC


@dataclass(frozen=True, eq=False)
class Stays:
    """Intensive-care stays: `series` (37 channels, hours since admission), and `died`, (N,), in hospital: 0 or 1.

    `source` is a sentence for the report; it starts with "SYNTHETIC" where `synthetic` is True.
    """

    series: Series
    died: Tensor
    source: str
    synthetic: bool

    def __len__(self) -> int:
        return len(self.series)


def load_stays(
    which: str = "a",
    data: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = progress_bar,
) -> Stays:
    """Set a or set b, 4,000 stays each.

    Args:
        which: "a" or "b".
        data: "physionet" the real stays (local, else kept from an earlier run, else downloaded, 13 MB for both);
            "synthetic" stays from a model; "auto" the real ones, and only where they are not here and no network
            answers synthetic ones: then `synthetic` is True and `source` says so and why.
        data_dir: A folder with `set-a.tar.gz` and `Outcomes-a.txt`, or with `physionet2012/` in it; without it, the
            environment variable ODENETS_DATA.
        cache_dir: Where to keep what was downloaded and read; see `odenets.data.cache.cache_folder`.
        progress: Shows how far slow loops are.

    Raises:
        DataError: Data that is missing, incomplete or damaged, with the file, the line and the remedy.
        ValueError: An unknown `which` or `data`.
    """
    for name, value, allowed in (("which", which, SETS), ("data", data, SOURCES)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {shown(value)}")
    if data == "synthetic":
        return _synthetic(which)
    found = _local(which, data_dir)
    kept = cache_folder(cache_dir) / f"physionet2012-{which}-{RULE_VERSION}.npz"
    if found is None and kept.exists():
        return _loaded(kept, which)
    if found is None:
        try:
            found = cache_folder(cache_dir) / "physionet2012"
            download_files(BASE_URL, _hashes(which), found, _HINT, progress)
        except NoNetwork as error:
            if data == "physionet":
                raise
            return _synthetic(which, f" Real stays are not here and could not be downloaded ({error.__cause__}).")
    if not kept.exists() or kept.stat().st_mtime < (found / f"set-{which}.tar.gz").stat().st_mtime:
        _keep(kept, _read(found, which, progress))
    return _loaded(kept, which)


_HINT = (
    "With the files already on disk, set the environment variable ODENETS_DATA (or `data_dir`) to the folder with "
    'set-a.tar.gz and Outcomes-a.txt; without them, data="synthetic" takes stays from a model.'
)


def _hashes(which: str) -> dict[str, str]:
    table = read_hash_table(files("odenets.data").joinpath("physionet2012.sha256").read_text(encoding="utf-8"))
    return {name: table[name] for name in (f"set-{which}.tar.gz", f"Outcomes-{which}.txt")}


def _local(which: str, data_dir: str | os.PathLike[str] | None) -> Path | None:
    given = os.environ.get("ODENETS_DATA") if data_dir is None else data_dir
    if not given:
        return None
    folder = Path(given).expanduser()
    for place in (folder / "physionet2012", folder):
        if (place / f"set-{which}.tar.gz").is_file():
            if not (place / f"Outcomes-{which}.txt").is_file():
                raise DataError(f"{place} has set-{which}.tar.gz and no Outcomes-{which}.txt: put both there")
            return place
    if data_dir is not None:
        raise DataError(f"`data_dir` is {str(folder)!r}, which has no set-{which}.tar.gz, there or in physionet2012/")
    return None


def _synthetic(which: str, why: str = "") -> Stays:
    series, died = make_stays(seed=SETS.index(which))
    source = f"SYNTHETIC stays from a model of patients, not real data.{why}"
    return Stays(series, died, source, synthetic=True)


# ---- reading


def _read(folder: Path, which: str, progress: Progress) -> dict[str, np.ndarray]:
    """Every value as (stay, hour, variable, value), the static numbers and the outcomes of one set."""
    outcomes = _outcomes(folder / f"Outcomes-{which}.txt")
    texts: dict[int, str] = {}
    archive = folder / f"set-{which}.tar.gz"
    try:
        with tarfile.open(archive) as tar:
            for member in progress(tar.getmembers(), "Unpacking"):
                if member.isfile() and member.name.endswith(".txt"):
                    content = tar.extractfile(member)
                    texts[int(Path(member.name).stem)] = "" if content is None else content.read().decode()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{archive} cannot be read: {error}. Get it again from {BASE_URL}") from error
    missing = sorted(set(outcomes) - set(texts))
    if missing or not texts:
        raise DataError(f"{archive} has no stay {missing[0] if missing else ''}, which the outcomes name")
    names = sorted(texts)
    unknown = [name for name in names if name not in outcomes]
    if unknown:
        raise DataError(f"Outcomes-{which}.txt has no line for stay {unknown[0]} of {archive.name}: add it")
    events: list[tuple[int, float, int, float]] = []
    static = np.full((len(names), len(STATIC)), np.nan, dtype=np.float32)
    for i, name in enumerate(progress(names, "Reading stays")):
        _read_stay(i, texts[name], f"{archive.name}/{name}.txt", events, static[i])
    died = np.array([outcomes[name] for name in names], dtype=np.int64)
    return {"events": np.array(events, dtype=np.float64), "static": static, "died": died, "names": np.array(names)}


def _outcomes(path: Path) -> dict[int, int]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        try:
            return {int(row["RecordID"]): int(row["In-hospital_death"]) for row in rows}
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}, line {rows.line_num}: {error}. Get it again from {BASE_URL}") from error


_INDEX = {name: k for k, name in enumerate(VARIABLES)}


def _read_stay(i: int, text: str, where: str, events: list, static: np.ndarray) -> None:
    """Add the values of one stay; −1 means that a number is not known."""
    for number, line in enumerate(text.splitlines()[1:], 2):
        try:
            clock, name, written = line.split(",")
            hour, minute = clock.split(":")
            value = float(written)
            at = int(hour) + int(minute) / 60
        except ValueError as error:
            raise DataError(f"{where}, line {number}: {line!r} is not time,variable,value ({error})") from error
        if name in ("RecordID", "") or value < 0:
            continue
        if name in ("Age", "Gender", "Height"):
            static[STATIC.index(name)] = value
        elif name == "ICUType":
            static[3:] = 0.0
            static[_UNITS[int(value)]] = 1.0
        elif name in _INDEX:
            events.append((i, at, _INDEX[name], value))
        else:
            raise DataError(f"{where}, line {number}: {name!r} is none of the {len(VARIABLES)} variables")


def _keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def _loaded(path: Path, which: str) -> Stays:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        events, static, died, names = (torch.from_numpy(arrays[x]) for x in ("events", "static", "died", "names"))
    series = _series(events, static, tuple(names.tolist()))
    source = f"PhysioNet/CinC Challenge 2012, set {which}: {len(died):,} intensive-care stays of 48 hours."
    return Stays(series, died, source, synthetic=False)


def _series(events: Tensor, static: Tensor, names: tuple[int, ...]) -> Series:
    """One row for each time of a stay; the last of two values of one variable at one time counts."""
    n = len(names)
    places, row_of = events[:, :2].unique(dim=0, return_inverse=True)  # sorted by stay, then time
    owner = places[:, 0].long()
    counts = torch.bincount(owner, minlength=n)
    starts = counts.cumsum(0) - counts
    longest = max(int(counts.max()), 1)
    column = torch.arange(len(places)) - starts[owner]
    times = torch.zeros(n, longest, dtype=torch.float64)
    times[owner, column] = places[:, 1]
    lengths = counts.clamp(min=1)  # a stay in which nothing was measured has one empty row at admission
    times = times.where(torch.arange(longest) < lengths[:, None], times.gather(1, lengths[:, None] - 1))
    values = torch.full((n, longest, len(VARIABLES)), math.nan)
    for k in range(len(VARIABLES)):  # one variable after the other, so that the last of equal places is written last
        mine = events[:, 2] == k
        values[owner[row_of[mine]], column[row_of[mine]], k] = events[mine, 3].float()
    return Series(times, values, lengths, static, VARIABLES, names)


def quantised(series: Series, unit: float) -> Series:
    """The series with times rounded down to multiples of `unit` and rows of one time made one, the last value counts.

    Fewer rows are fewer solves: `odenets run physionet` says what it costs in accuracy.

    Args:
        unit: In the unit of the times, > 0.
    """
    if not unit > 0:
        raise ValueError(f"`unit` must be a positive number, got {shown(unit)}")
    place = (series.times / unit + 1e-9).floor()
    new = torch.ones_like(place, dtype=torch.bool)
    new[:, 1:] = place.diff(dim=1) > 0
    new &= series.rows
    row = (new.cumsum(1) - 1).clamp(min=0)  # where each old row goes
    lengths = new.sum(1)
    longest = int(lengths.max())
    n, _, c = series.values.shape
    values = series.values.new_full((n, longest, c), math.nan)
    for j in range(series.values.shape[1]):  # later rows over earlier ones
        at = row[:, j, None, None].expand(-1, 1, c)
        old, mine = values.gather(1, at), series.values[:, j : j + 1]
        values.scatter_(1, at, mine.where(~mine.isnan(), old))
    first = torch.zeros(n, longest, dtype=torch.float64)
    first.scatter_(1, row, place * unit)
    inside = torch.arange(longest) < lengths[:, None]
    return replace(
        series, times=first.where(inside, first.gather(1, lengths[:, None] - 1)), values=values, lengths=lengths
    )
