"""Files that are whole or absent, and the folder of a run. Standard library only.

A process can be killed, and a disk can fill, between any two bytes. So nothing here is written in place:
it is written beside its place, flushed to the disk, and renamed, which POSIX makes atomic.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = [
    "DamagedFolderError",
    "RunFolderError",
    "append_line",
    "check_writable",
    "differences",
    "folder_errors",
    "free_run_folder",
    "lock_folder",
    "open_run_folder",
    "read_directory",
    "remove_leftovers",
    "replace_directory",
    "write_atomically",
    "write_directory",
]

_MANIFEST = "manifest.json"
_CONFIG = "config.json"
_LEFTOVER = ".tmp"  # every temporary name starts with a dot and ends with this
_LOCK = ".lock"
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a system says of a lock that another process holds


class RunFolderError(RuntimeError):
    """A run folder that cannot be used: not writable, no space, in use, or it belongs to something else."""


class DamagedFolderError(RuntimeError):
    """A folder of `write_directory` with a file missing, cut short or changed: the message names it."""


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, whole or not at all; an earlier file there is replaced.

    The folder of `path` must exist. Raises the `OSError` of the system, and then leaves no temporary file and
    the earlier file as it was.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        _write_synced(temporary, data.encode() if isinstance(data, str) else data)
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
    earlier = _temporary_name(final) if final.exists() else None
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
    temporary = _temporary_name(final)
    try:
        temporary.mkdir()
        for name, data in {**files, _MANIFEST: _manifest(files)}.items():
            _write_synced(temporary / name, data)
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


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make `folder` and create a file in it, to fail before hours of work and not after: `RunFolderError`."""
    folder = Path(folder)
    with folder_errors("The run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary_name(folder / "probe")
        _write_synced(probe, b"")
        probe.unlink()


@contextlib.contextmanager
def folder_errors(what: str, path: Path, kept: str = "") -> Iterator[None]:
    """Turn an `OSError` in the block into a `RunFolderError`: `what` could not be written, where, and why.

    `kept` is a sentence on what is still good; the message ends with what to do.
    """
    try:
        yield
    except OSError as error:
        parts = [f"{what} could not be written ({path}): {error.strerror or error}.", kept, _remedy(error)]
        raise RunFolderError(" ".join(part for part in parts if part)) from error


_held: dict[Path, tuple[int, int]] = {}  # the locked folders, and the process (not a fork of it) and thread that did it


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """In the block no other process, nor another thread, may lock `folder`; it is made if need be.

    The lock is one of the operating system, which ends with the process, however it ends: a kill leaves nothing
    that blocks. It may be taken again inside of the block. With several processes every one may call this, but only
    the first (`RANK`, as torchrun sets it) locks: the others belong to its run. Raises `RunFolderError`, which names
    the holder, where the folder is locked, and where it cannot be written.
    """
    if not _is_first_process():
        yield
        return
    folder, me = Path(folder).resolve(), (os.getpid(), threading.get_ident())
    if _held.get(folder) == me:
        yield
        return
    descriptor = _lock(folder)
    _held[folder] = me
    try:
        yield
    finally:
        del _held[folder]
        if sys.platform != "win32":  # which removes no open file; a free `.lock` does no harm
            with contextlib.suppress(OSError):
                (folder / _LOCK).unlink()
        os.close(descriptor)


def _is_first_process() -> bool:
    """Whether this is the process that looks after the run folder: the first of torchrun's, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _lock(folder: Path) -> int:
    """The open file `.lock` of the folder, locked, with a sentence on who holds it inside."""
    path = folder / _LOCK
    with folder_errors("The run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock_descriptor(descriptor)
    except OSError as error:
        if error.errno in _BUSY:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise RunFolderError(
                f"The run folder {folder} is in use by {holder}. Wait until that has ended, or use another folder."
            ) from None
        warnings.warn(
            f"The run folder {folder} cannot be locked ({error.strerror}): its file system has no locks. See to it "
            "that no other process uses the folder.",
            RuntimeWarning,
            stacklevel=4,
        )
    if not _is_still(descriptor, path):  # its holder removed it between the two calls
        os.close(descriptor)
        return _lock(folder)
    holder = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with folder_errors("The run folder", folder):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
    return descriptor


def _lock_descriptor(descriptor: int) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # a byte far behind the text: nobody could read a locked one
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def open_run_folder(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    resume: bool = False,
    may_change: Collection[str] = ("epochs", "checkpoint_every"),
) -> Path:
    """Make `path` the folder of the run of `config`, or go back to it; returns it as a `Path`.

    `config` is what makes the run that run, in values that JSON holds; it is kept as `config.json`. A new or
    empty folder is taken without `resume`. A folder that holds this run is taken with it; only the `may_change`
    entries (at any depth) may differ, and the file then gets their new values. With several processes every one may
    call this, but only the first (`RANK`, as torchrun sets it) looks and writes.

    Raises `RunFolderError` for a folder that cannot be written, that another process has locked (`lock_folder`, as
    `fit` does; wrap the whole run in it), that holds something else, another config, the same run without `resume`, or
    nothing with it; `TypeError` for a `config` that JSON cannot hold.
    """
    path, text = Path(path), _config_text(config)
    if not _is_first_process():
        return path
    with lock_folder(path):
        check_writable(path)
        remove_leftovers(path)
        if any(file.name != _LOCK for file in path.iterdir()):
            _check_same_run(path, json.loads(text), resume, may_change)
        elif resume:
            raise RunFolderError(
                f"The run folder {path} holds no run to go on with. Name the folder of the run, or start one here: "
                "leave out `resume=True` (`--resume`)."
            )
        with folder_errors(f"`{_CONFIG}`", path):
            write_atomically(path / _CONFIG, text)
    return path


def free_run_folder(path: str | os.PathLike[str]) -> None:
    """Empty the folder of a run that failed before it kept anything, for a corrected one; others stay as they are."""
    path = Path(path)
    if not _is_first_process():
        return
    if any(file.is_file() and file.name not in (_CONFIG, _LOCK) for file in path.rglob("*")):
        return
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    (path / _CONFIG).unlink(missing_ok=True)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str] = ()) -> list[str]:
    """How two configs differ, a sentence an entry; entries whose own name is in `may_change` are left out."""
    return [
        f"`{name}` is {old!r} there and {new!r} here"
        for name, old, new in _differences(saved, now, "")
        if name.rpartition(".")[2] not in may_change
    ]


def _temporary_name(path: Path) -> Path:
    # Not `tempfile`: its files are readable by their owner only, whatever the umask says.
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_LEFTOVER}")


def _write_synced(path: Path, data: bytes) -> None:
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


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some disk space, or use a folder on another disk."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Use a folder that you may write to."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "A part of that path is a file: use another folder."
    return "Use another folder."


def _config_text(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
    except TypeError as error:
        raise TypeError(
            f"`config` must hold only what JSON can hold (numbers, text, lists, dicts, None): {error}. "
            "Turn such values into text first, for example `str(path)`."
        ) from None


def _check_same_run(path: Path, config: dict[str, Any], resume: bool, may_change: Collection[str]) -> None:
    changed = differences(_read_config(path), config, may_change)
    if changed:
        raise RunFolderError(
            f"The run folder {path} belongs to a run with another config: {'; '.join(changed)}. "
            "Use another folder, or the config of that run."
        )
    if not resume:
        raise RunFolderError(
            f"The run folder {path} already holds this run. Go on with it by `resume=True` (`--resume`), "
            "use another folder, or delete this one."
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / _CONFIG).read_bytes())
    except FileNotFoundError:
        raise RunFolderError(
            f"The folder {path} is not empty and is no run folder: it has no `{_CONFIG}`. Use a new or an empty folder."
        ) from None
    except ValueError:
        raise RunFolderError(
            f"{path / _CONFIG} is damaged: it is not JSON. Use another folder, or delete this one."
        ) from None


def _differences(saved: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        if saved != now:
            yield name, saved, now
        return
    for key in sorted(saved.keys() | now.keys()):
        yield from _differences(saved.get(key), now.get(key), f"{name}.{key}" if name else key)
