"""Files and folders that are whole or absent.

A process can be killed, and a disk can fill, between any two bytes. So nothing here is written in place:
it is written beside its place, flushed to the disk, and renamed, which POSIX makes atomic.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MANIFEST = "manifest.json"
_LEFTOVER = ".tmp"  # every temporary name starts with a dot and ends with this


class DamagedFolderError(RuntimeError):
    """A folder of `write_directory` with a file missing, cut short or changed: the message names it."""


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, whole or not at all; an earlier file there is replaced.

    The folder of `path` must exist. Raises the `OSError` of the system, and then leaves no temporary file and
    the earlier file as it was.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        write_synced(temporary, data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def replace_directory(tmp: str | os.PathLike[str], final: str | os.PathLike[str]) -> None:
    """Flush the folder `tmp` to the disk and give it the name `final`, in place of an earlier folder there.

    Both must be on one file system. Where `final` is new this is atomic; where it exists, the earlier folder
    is moved aside first, because POSIX renames no folder over a full one, so for an instant there is neither.
    """
    tmp, final = Path(tmp), Path(final)
    _sync_tree(tmp)
    earlier = temporary_name(final) if final.exists() else None
    if earlier is not None:
        os.rename(final, earlier)
    os.rename(tmp, final)
    _sync_folder(final.parent)
    if earlier is not None:
        shutil.rmtree(earlier)


def write_directory(final: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write a folder `final` of `files` (plain names to contents) and a manifest of their sizes and hashes.

    The folder appears whole or not at all; its parent must exist. `read_directory` reads and checks it.
    Raises the `OSError` of the system, and then leaves no temporary folder.
    """
    final = Path(final)
    temporary = temporary_name(final)
    try:
        temporary.mkdir()
        for name, data in {**files, _MANIFEST: _manifest(files)}.items():
            write_synced(temporary / name, data)
        replace_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_directory(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Read a folder of `write_directory`, every byte checked. Raises `DamagedFolderError`."""
    path = Path(path)
    manifest = _read_manifest(path / _MANIFEST)
    return {name: _read_checked(path / name, entry) for name, entry in manifest.items()}


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files and folders that killed processes left in `folder` (not deeper)."""
    for leftover in Path(folder).glob(f".*{_LEFTOVER}"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append `line` and a newline to `path` in one write, flushed to the disk. Raises the system's `OSError`.

    Where the write fails half-way (a full disk), the file is cut back, so that it holds only whole lines.
    Only a crash of the machine can leave half a line, always as the last one and without its newline.
    """
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            data = f"{line}\n".encode()
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def temporary_name(path: Path) -> Path:
    # Not `tempfile`: its files are readable by their owner only, whatever the umask says.
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_LEFTOVER}")


def write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the names in `folder`, so that a rename survives a power cut. Windows has no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _sync_tree(path)
        else:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _manifest(files: Mapping[str, bytes]) -> bytes:
    entries = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    return json.dumps(entries, indent=1).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedFolderError(f"{path} is missing") from None
    except ValueError:  # bytes that are no UTF-8, or text that is no JSON
        raise DamagedFolderError(f"{path} is damaged: it is not JSON") from None


def _read_checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedFolderError(f"{path} is missing") from None
    if len(data) != entry["bytes"]:
        raise DamagedFolderError(f"{path} is damaged: it has {len(data)} bytes, not {entry['bytes']}")
    if _sha256(data) != entry["sha256"]:
        raise DamagedFolderError(f"{path} is damaged: its contents have changed since it was written")
    return data
