"""Small records in the form of the MIT-BIH database, for tests of what reads them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

with warnings.catch_warnings():  # wfdb uses keywords that pandas 3.1 deprecates, here and when it writes
    warnings.simplefilter("ignore", DeprecationWarning)
    import wfdb

SYMBOLS = 'NLRejAaJSVEF/fQ+~|x!"'


def write_record(
    folder: Path, record: int, samples: int, at: Sequence[int], symbols: Sequence[str], seed: int = 0, fs: float = 360
) -> np.ndarray:
    """Write the three files of a record with two random channels; returns the first channel (samples,)."""
    folder.mkdir(parents=True, exist_ok=True)
    signal = np.random.default_rng(seed).integers(-1000, 1000, (samples, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        wfdb.wrsamp(
            str(record),
            fs=fs,
            units=["mV", "mV"],
            sig_name=["MLII", "V5"],
            d_signal=signal,
            fmt=["212", "212"],
            adc_gain=[200.0, 200.0],
            baseline=[1024, 1024],
            write_dir=str(folder),
        )
        wfdb.wrann(str(record), "atr", np.array(at), list(symbols), write_dir=str(folder))
    return signal[:, 0]


def write_regular_record(folder: Path, record: int, beats: int = 12) -> None:
    """A record of `beats` rows, one every 100 samples, of all five classes in turn."""
    at = [20 + 100 * k for k in range(beats + 1)]
    write_record(folder, record, at[-1] + 100, at, ("NSVFQ" * beats)[: beats + 1], seed=record)
