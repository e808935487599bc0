"""Prepared beats on disk: one uncompressed .npz a data set, written whole or not at all."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from odenets.data.beats import Beats
from odenets.data.errors import DataError
from odenets.files import write_atomically

__all__ = ["cache_folder", "load_beats", "save_beats"]


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where prepared data is kept: `cache_dir`, else `ODENETS_CACHE`, else the user's own cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if os.environ.get("ODENETS_CACHE"):
        return Path(os.environ["ODENETS_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "odenets"


def save_beats(path: Path, beats: Beats) -> None:
    """Write `beats` to `path`, exactly: one byte a value would take a fourth of the space but round.

    Raises `DataError` where the folder cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        x=beats.x.numpy(),
        y=beats.y.numpy(),
        record=beats.record.numpy(),
        source=np.array(beats.source),
        synthetic=np.array(beats.synthetic),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise DataError(
            f"The prepared beats cannot be kept in {path.parent}: {error}. Set the environment variable "
            f"ODENETS_CACHE (or `cache_dir`) to a folder that can be written and has 100 MB to spare."
        ) from error


def load_beats(path: Path) -> Beats | None:
    """Beats saved at `path`, or None where there are none or the file is damaged: then prepare them again."""
    try:
        # numpy does not close a file that it opened itself and found damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y, record = (torch.from_numpy(arrays[name]) for name in ("x", "y", "record"))
            return Beats(x, y, record, str(arrays["source"]), bool(arrays["synthetic"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # the cache is ours to rebuild
        return None
