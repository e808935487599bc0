"""The folder of a run: it keeps the config that makes the run that run, and refuses another."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from odenets.files.lock import LOCK, RunFolderError, folder_errors, is_first_process, lock_folder
from odenets.files.whole import remove_leftovers, temporary_name, write_atomically, write_synced

_CONFIG = "config.json"


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make `folder` and create a file in it, to fail before hours of work and not after: `RunFolderError`."""
    folder = Path(folder)
    with folder_errors("The run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(folder / "probe")
        write_synced(probe, b"")
        probe.unlink()


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
    if not is_first_process():
        return path
    with lock_folder(path):
        check_writable(path)
        remove_leftovers(path)
        if any(file.name != LOCK for file in path.iterdir()):
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
    if not is_first_process():
        return
    if any(file.is_file() and file.name not in (_CONFIG, LOCK) for file in path.rglob("*")):
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
