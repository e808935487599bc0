"""One process a run folder, by a lock of the operating system; and what is said of a folder that cannot be used.

This file runs alone: it needs the standard library and nothing of ours.
"""

import contextlib
import errno
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


LOCK = ".lock"
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a system says of a lock that another process holds


class RunFolderError(RuntimeError):
    """A run folder that cannot be used: not writable, no space, in use, or it belongs to something else."""


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


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some disk space, or use a folder on another disk."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Use a folder that you may write to."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "A part of that path is a file: use another folder."
    return "Use another folder."


_held: dict[Path, tuple[int, int]] = {}  # the locked folders, and the process (not a fork of it) and thread that did it


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """In the block no other process, nor another thread, may lock `folder`; it is made if need be.

    The lock is one of the operating system, which ends with the process, however it ends: a kill leaves nothing
    that blocks. It may be taken again inside of the block. With several processes every one may call this, but only
    the first (`RANK`, as torchrun sets it) locks: the others belong to its run. Raises `RunFolderError`, which names
    the holder, where the folder is locked, and where it cannot be written.
    """
    if not is_first_process():
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
                (folder / LOCK).unlink()
        os.close(descriptor)


def is_first_process() -> bool:
    """Whether this is the process that looks after the run folder: the first of torchrun's, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _lock(folder: Path) -> int:
    """The open file `.lock` of the folder, locked, with a sentence on who holds it inside."""
    path = folder / LOCK
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
