"""The tensor form that every source of heartbeats has, and the rule that makes its rows.

One row is one heartbeat: 187 numbers in [0, 1] at 120 Hz, from the R peak of the beat to a fifth of the way
between the next beat and the one after it, padded with zeros. The Kaggle "heartbeat" files have this form;
the raw records and the synthetic beats are brought to it by the same two functions below.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odenets.data.errors import DataError

__all__ = [
    "CLASSES",
    "CLASS_NAMES",
    "ROW_LENGTH",
    "SAMPLING_HZ",
    "UNKNOWN_RECORD",
    "Beats",
    "scale_rows",
    "segments",
]

CLASSES = ("N", "S", "V", "F", "Q")
"""Letters of the five classes; the label of a beat is the position of its letter."""

CLASS_NAMES = (
    "normal",
    "supraventricular premature",
    "premature ventricular contraction",
    "fusion of ventricular and normal",
    "unclassified or paced",
)
"""Long names of `CLASSES`, in the same order."""

SAMPLING_HZ = 360  # of the signals, before every third sample is taken
DECIMATION = 3
ROW_LENGTH = 187
FINE_LENGTH = ROW_LENGTH * DECIMATION  # of a row with every sample
UNKNOWN_RECORD = -1


@dataclass(frozen=True, eq=False)
class Beats:
    """Heartbeats as tensors.

    `x` (n, 187) float32 in [0, 1]; `y` (n,) int64, index into `CLASSES`; `record` (n,) int64, number of the
    record (or synthetic patient) a beat comes from, -1 where unknown; `source` a sentence fit for a report;
    `synthetic` True where no human heart was involved. Raises `DataError` where shapes or types disagree.
    """

    x: Tensor
    y: Tensor
    record: Tensor
    source: str
    synthetic: bool

    def __post_init__(self) -> None:
        n = len(self.y)
        _require("x", self.x, (n, ROW_LENGTH), torch.float32)
        _require("y", self.y, (n,), torch.int64)
        _require("record", self.record, (n,), torch.int64)

    def __len__(self) -> int:
        return len(self.y)

    def counts(self) -> tuple[int, ...]:
        """Number of beats of each of the five classes."""
        return tuple(torch.bincount(self.y, minlength=len(CLASSES)).tolist())

    def select(self, index: Tensor) -> "Beats":
        """The beats at `index` (int64 positions or a boolean mask), in that order."""
        return Beats(self.x[index], self.y[index], self.record[index], self.source, self.synthetic)


def _require(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise DataError(
            f"`{name}` must have shape {shape} and type {dtype}, got {tuple(tensor.shape)} and "
            f"{tensor.dtype}; `x`, `y` and `record` hold one entry for each beat."
        )


def segments(a: np.ndarray, b: np.ndarray, c: np.ndarray, step: int = DECIMATION) -> tuple[np.ndarray, np.ndarray]:
    """Which samples (at 360 Hz) make the rows of beats at `a`, with the next two annotations at `b` and `c`.

    All three are (n,) integers with a < b < c. A segment runs from a (inclusive) to b + ⌊(c - b)/5⌋
    (exclusive), in steps of three samples, or of `step`. Returns the samples of all segments, one segment
    after the other, and the lengths (n,).
    """
    stop = b + (c - b) // 5
    lengths = -((a - stop) // step)  # rounded up
    return np.repeat(a, lengths) + step * _position_in_segment(lengths), lengths


def _position_in_segment(lengths: np.ndarray) -> np.ndarray:
    """0 … lengths[0]-1, 0 … lengths[1]-1, … in one array."""
    first = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(first, lengths)


def scale_rows(values: np.ndarray, lengths: np.ndarray, width: int = ROW_LENGTH) -> np.ndarray:
    """Segments of any length → rows (n, 187) float32 in [0, 1], or (n, width).

    `values` holds the segments one after the other, `lengths` (n,) says how long each is (at least 1).
    Each segment is scaled by its own minimum and maximum, over its whole length and before it is cut to 187
    values; shorter ones are padded with zeros. A flat segment gives a row of zeros.
    """
    rows = np.zeros((len(lengths), width), np.float32)
    if len(lengths) == 0:
        return rows
    first = np.cumsum(lengths) - lengths
    low = np.minimum.reduceat(values, first)
    span = np.maximum.reduceat(values, first) - low
    span = np.where(span > 0, span, 1)
    position = _position_in_segment(lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    scaled = (values - low[row]) / span[row]  # float64, so the one rounding to float32 is the correct one
    keep = position < width
    rows[row[keep], position[keep]] = scaled[keep]
    return rows
