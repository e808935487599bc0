"""Checkpoints, and the other files of one network in a run folder."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from odenets.files import (
    DamagedFolderError,
    RunFolderError,
    append_line,
    check_writable,
    differences,
    folder_errors,
    lock_folder,
    read_directory,
    remove_leftovers,
    write_atomically,
    write_directory,
)
from odenets.train.history import METRICS, EpochRecord, whole_lines

__all__ = ["Checkpoint", "CheckpointError", "Label", "Store"]

_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be resumed: damaged, or of another network, config, number of samples or processes."""


@dataclass(frozen=True)
class Label:
    """Which network with which seed: the name of its files."""

    name: str
    seed: int

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"`name` is {self.name!r}; it names files, so it must be letters, digits and `.`, `_`, `-`, "
                "and start with a letter or digit, such as 'odenet'."
            )

    def __str__(self) -> str:
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on, as files that `files.write_directory` checks with hashes.

    Not `Accelerator.save_state`: it knows neither the position in an epoch nor whether a file is whole,
    and its random states are pickles. Here weights are safetensors, and the rest JSON and tensors read by
    `weights_only`.
    """

    about: dict[str, Any]
    records: Sequence[EpochRecord]
    weights: dict[str, Tensor]
    state: dict[str, Any]
    path: Path | None = None  # where it was read from

    def files(self) -> dict[str, bytes]:
        """This checkpoint as files, for `files.write_directory`."""
        records = [dataclasses.asdict(record) for record in self.records]
        about = {"format": _FORMAT, **self.about, "records": records}
        buffer = io.BytesIO()
        torch.save(self.state, buffer)
        return {
            "checkpoint.json": json.dumps(about, indent=1).encode(),
            "weights.safetensors": save_tensors(self.weights),
            "state.pt": buffer.getvalue(),
        }

    @staticmethod
    def read(path: Path) -> "Checkpoint":
        """The checkpoint in the folder `path`, every byte checked; raises `CheckpointError`."""
        try:
            files = read_directory(path)
        except DamagedFolderError as error:
            raise CheckpointError(f"The checkpoint is damaged: {error}. {_way_out(path)}") from error
        about = json.loads(files["checkpoint.json"])
        if about.pop("format") != _FORMAT:
            raise CheckpointError(f"{path} was written by another version of odenets. {_way_out(path)}")
        records = [EpochRecord(**entry) for entry in about.pop("records")]
        state = torch.load(io.BytesIO(files["state.pt"]), map_location="cpu", weights_only=True)
        return Checkpoint(about, records, load_tensors(files["weights.safetensors"]), state, path)

    def check(self, about: Mapping[str, Any], network: nn.Module) -> None:
        """Raise `CheckpointError` unless a run that is `about` this, with this network, can go on from here."""
        saved = {key: self.about[key] for key in about}
        wrong = differences(saved, about, may_change=("epochs", "checkpoint_every"))
        if wrong:
            self._refuse(f"is of another run: {'; '.join(wrong)}. Go on with what it had")
        wrong = _other_weights(self.weights, network.state_dict())
        if wrong:
            self._refuse(f"is of another network: {'; '.join(wrong)}. Go on with the network it had")
        begun = self.about["position"]["epoch"] + (self.about["position"]["step"] > 0)
        epochs = about["config"]["epochs"]
        if begun > epochs:
            self._refuse(f"is from epoch {begun}, but `epochs` is {epochs}. Set `epochs` to at least {begun}")

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"The checkpoint {self.path} {what}. {_way_out(self.path)}")


def _way_out(path: Path | None) -> str:
    """What to do about a checkpoint that cannot be used; a sentence more where an older one was left."""
    if path is None:
        return ""
    older = max((other for other in path.parent.glob("step-*") if other.name < path.name), default=None)
    back = f"Delete {path} to go back to {older.name}. " if older else ""
    return (
        f"{back}Delete {path.parent} to train this network from the start, or train without `resume` in another folder."
    )


def _other_weights(saved: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """How two sets of weights differ in names, shapes and types: at most three sentences."""
    missing = [f"it has no `{name}`" for name in now if name not in saved]
    extra = [f"it has a `{name}`" for name in saved if name not in now]
    other = [
        f"`{name}` is {_kind(saved[name])} there and {_kind(now[name])} here"
        for name in now
        if name in saved and _kind(saved[name]) != _kind(now[name])
    ]
    found = missing + extra + other
    return found[:3] + ([f"and {len(found) - 3} more"] if len(found) > 3 else [])


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


@dataclass(frozen=True)
class Store:
    """The files of one network and seed in a run folder; only the main process writes."""

    folder: Path
    label: Label
    main: bool

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints" / str(self.label)

    @property
    def weights(self) -> Path:
        return self.folder / f"{self.label}.safetensors"

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """The block in which no other process writes here; raises `RunFolderError` where one does."""
        return lock_folder(self.folder) if self.main else contextlib.nullcontext()

    def prepare(self, resume: bool) -> None:
        """Make the folders, clean up after killed processes, and refuse to overwrite or to guess."""
        if not self.main:
            return
        check_writable(self.folder)
        check_writable(self.checkpoints)
        with folder_errors("The run folder", self.folder):
            remove_leftovers(self.folder)
            remove_leftovers(self.checkpoints)
        kept = self.latest() or (self.weights if self.weights.exists() else None)
        if kept is not None and not resume:
            raise RunFolderError(
                f"The run folder {self.folder} already has {self.label}: {kept}. Go on with it by "
                f"`resume=True`, use another folder, or delete {self.checkpoints} and {self.weights}."
            )
        if kept == self.weights:
            raise RunFolderError(
                f"{self.weights} is of a finished training, whose checkpoint is gone: there is nothing to "
                "resume. Use another folder, or delete that file to train again."
            )

    def latest(self) -> Path | None:
        """The newest checkpoint. Every one with this name is complete: it got the name when it was."""
        return max(self.checkpoints.glob("step-*"), default=None)

    def save(self, step: int, checkpoint: Checkpoint, ends_epoch: bool) -> None:
        """Write a checkpoint after `step` steps, with the line of an epoch that it ends; delete the older."""
        final = self.checkpoints / f"step-{step:08d}"
        before = sorted(self.checkpoints.glob("step-*"))
        kept = f"The checkpoint {before[-1]} is intact." if before else "There is no earlier checkpoint."
        if ends_epoch:
            record = checkpoint.records[-1]
            with folder_errors(f"Epoch {record.epoch} of {self.label}", self.folder / METRICS, kept):
                append_line(self.folder / METRICS, record.to_json())
        with folder_errors(f"The checkpoint of {self.label} after step {step}", final, kept):
            write_directory(final, checkpoint.files())
            for older in before:
                shutil.rmtree(older)

    def save_weights(self, tensors: dict[str, Tensor]) -> None:
        """Write the final weights, one safetensors file."""
        if self.main:
            kept = f"They are also in {self.latest()}."
            with folder_errors(f"The final weights of {self.label}", self.weights, kept):
                write_atomically(self.weights, save_tensors(tensors))

    def rewrite_metrics(self, records: Sequence[EpochRecord]) -> None:
        """Make the lines of this network and seed exactly `records`; those of others stay as they are."""
        path = self.folder / METRICS
        if not self.main or not (records or path.exists()):
            return
        lines = whole_lines(path)
        mine = (self.label.name, self.label.seed)
        others = [line for line, entry in lines if (entry["network"], entry["seed"]) != mine]
        text = "".join(f"{line}\n" for line in [*others, *(record.to_json() for record in records)])
        with folder_errors(f"`{METRICS}`", self.folder):
            write_atomically(path, text)
