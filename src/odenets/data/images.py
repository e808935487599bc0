"""Pictures of digits: the small ones that come with scikit-learn, and MNIST from files at hand."""

import functools
import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.data.errors import DataError
from odenets.extra import experiments_extra

__all__ = ["IMAGES", "Images", "load_images", "small_digits"]

IMAGES = ("digits", "mnist")
_PARTS = {"train": "train", "test": "t10k"}  # as MNIST's files are named
_TYPES = {"images": (0x803, 3), "labels": (0x801, 1)}  # the magic number of the format, and the axes


@functools.cache
def small_digits() -> tuple[Tensor, Tensor]:
    """The digits of scikit-learn: pixels from 0 to 16, (1797, 64), and classes, (1797,)."""
    with experiments_extra("the digits of scikit-learn"):
        from sklearn.datasets import load_digits  # noqa: PLC0415 — seconds to import

    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32), torch.tensor(classes)


@dataclass(frozen=True)
class Images:
    """Grey pictures x, (N, 1, height, width) in [0, 1], and classes y, (N,), in three parts."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    source: str


def load_images(data: str = "digits", data_dir: str | Path | None = None, seed: int = 0) -> Images:
    """Load pictures of the ten digits.

    Args:
        data: "digits": 1,797 pictures of 8 × 8 that come with scikit-learn. "mnist": 28 × 28, from MNIST's own files
            (`t10k-images-idx3-ubyte`, …, also with `.gz`). Where only the 10,000 test pictures are there, those are
            divided; else the official test set is the test part.
        data_dir: The folder with MNIST's files, or with `mnist/` in it; without it, the variable ODENETS_DATA.
        seed: Of the order in which the parts are drawn: 8 : 1 : 1, or 9 : 1 of the official training set.

    Raises:
        ValueError: An unknown `data`.
        DataError: Files that are missing or damaged; the text says which.
    """
    if data not in IMAGES:
        raise ValueError(f"`data` must be one of {', '.join(IMAGES)}; got {shown(data)}")
    if data == "digits":
        pixels, classes = small_digits()
        return _divided(pixels.reshape(-1, 1, 8, 8) / 16, classes, seed, "Digits of scikit-learn, 8 × 8.")
    folder = _folder(data_dir)
    x, y = _read(folder, "test")
    if not any((folder / f"{_PARTS['train']}-images-idx3-ubyte{end}").exists() for end in ("", ".gz")):
        return _divided(x, y, seed, "MNIST, 28 × 28: the 10,000 test pictures, divided.")
    more, classes = _read(folder, "train")
    order = torch.randperm(len(more), generator=torch.Generator().manual_seed(seed))
    last, first = order.split([len(order) // 10, len(order) - len(order) // 10])
    train, validation = (more[first], classes[first]), (more[last], classes[last])
    return Images(train, validation, (x, y), "MNIST, 28 × 28, with its own test set.")


def _divided(x: Tensor, y: Tensor, seed: int, source: str) -> Images:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    tenth = len(x) // 10
    train, validation, test = ((x[part], y[part]) for part in order.split([len(x) - 2 * tenth, tenth, tenth]))
    return Images(train, validation, test, source)


def _folder(data_dir: str | Path | None) -> Path:
    given = os.environ.get("ODENETS_DATA") if data_dir is None else data_dir
    if not given:
        raise DataError(
            "MNIST is read from files: pass `data_dir` (`--data-dir`) or set ODENETS_DATA to a folder with "
            "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or take data='digits'"
        )
    inner = Path(given) / "mnist"
    return inner if inner.is_dir() else Path(given)


def _read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    x, y = (_read_file(folder, f"{_PARTS[part]}-{kind}-idx{axes}-ubyte", kind) for kind, (_, axes) in _TYPES.items())
    if len(x) != len(y):
        raise DataError(f"{folder} holds {len(x)} pictures and {len(y)} classes of MNIST's {part} part")
    return x[:, None].float() / 255, y.long()


def _read_file(folder: Path, name: str, kind: str) -> Tensor:
    """The bytes of a file in MNIST's format: a magic number, the sizes of the axes, then a byte a value."""
    path = next((folder / f"{name}{end}" for end in ("", ".gz") if (folder / f"{name}{end}").exists()), None)
    if path is None:
        raise DataError(f"There is no {name} (or {name}.gz) in {folder}: it is one of MNIST's files")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    magic, axes = _TYPES[kind]
    head = 4 * (axes + 1)
    sizes = [int.from_bytes(content[i : i + 4]) for i in range(0, head, 4)]
    expected = head + torch.Size(sizes[1:]).numel()
    if sizes[0] != magic or len(content) != expected:
        raise DataError(f"{path} is damaged: it is no whole file of MNIST's {kind} ({len(content)} bytes)")
    return torch.frombuffer(bytearray(content[head:]), dtype=torch.uint8).reshape(sizes[1:])
