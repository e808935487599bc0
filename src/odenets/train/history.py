"""What came out of a training: one record an epoch, in memory and as lines of `metrics.jsonl`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odenets.files import RunFolderError

__all__ = ["METRICS", "EpochRecord", "History", "read_metrics", "whole_lines"]

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one network with one seed; one line of `metrics.jsonl`.

    `epoch` counts from 1. The losses are means over the samples: `train_loss` as the epoch went, under
    changing weights, `test_loss` after it. `test_accuracy` is None unless the targets are classes. `nfe`
    and `nfe_backward` are mean evaluations of f per training batch, None for a network without ODE
    layers. `seconds` is the wall time of the training alone, without tests and checkpoints; `samples`
    were trained on in it.
    """

    network: str
    seed: int
    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float | None
    nfe: float | None
    nfe_backward: float | None
    seconds: float
    samples: int

    def to_json(self) -> str:
        """This record as one line of JSON; `EpochRecord(**json.loads(line))` is its inverse."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)


@dataclass(frozen=True)
class History:
    """The records of all epochs, in order; never empty."""

    records: tuple[EpochRecord, ...]

    @property
    def final(self) -> EpochRecord:
        """The last epoch."""
        return self.records[-1]

    @property
    def best(self) -> EpochRecord:
        """The epoch with the highest test accuracy, or, without classes, with the lowest test loss."""
        return min(self.records, key=lambda r: (-(r.test_accuracy or 0.0), r.test_loss))

    def column(self, name: str) -> list[Any]:
        """One field over the epochs, for example `history.column("test_loss")`."""
        return [getattr(record, name) for record in self.records]


def read_metrics(folder: Path | str) -> list[EpochRecord]:
    """All records in the `metrics.jsonl` of a run folder, of all networks and seeds, in the order written."""
    lines = whole_lines(Path(folder) / METRICS)
    return [EpochRecord(**entry) for _, entry in lines]


def whole_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of `path` with their contents; none without the file. An unfinished last line is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    try:
        return [(line, json.loads(line)) for line in lines]
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: a line is not JSON ({error}). Delete that line.") from None
