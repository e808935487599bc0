"""Whole files, checked folders, and run folders that refuse what they should."""

import concurrent.futures
import errno
import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from odenets.files import (
    DamagedFolderError,
    RunFolderError,
    append_line,
    check_writable,
    differences,
    free_run_folder,
    lock,
    lock_folder,
    open_run_folder,
    read_directory,
    remove_leftovers,
    replace_directory,
    run_folder,
    write_atomically,
    write_directory,
)

CONFIG = {"experiment": "ecg", "train": {"lr": 0.1, "epochs": 5}}


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- write_atomically


@pytest.mark.parametrize(("data", "written"), [("θ\n", "θ\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_a_file_is_written_and_replaced(tmp_path, data, written):
    write_atomically(tmp_path / "a", "earlier and longer")
    write_atomically(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == written
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch, call):
    write_atomically(tmp_path / "a", "earlier")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", "later")
    assert (tmp_path / "a").read_text() == "earlier"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_file_has_the_mode_of_the_umask(tmp_path):
    write_atomically(tmp_path / "a", "")
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


# -- folders


def test_replace_directory_takes_the_place_of_an_earlier_folder(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "who").write_text(name)
    replace_directory(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "deep" / "who").read_text() == "new"
    assert names(tmp_path) == ["final"]


def test_a_folder_comes_back_as_it_was_written(tmp_path):
    contents = {"a.bin": b"\x00" * 1000, "empty": b"", "b.json": b"{}"}
    write_directory(tmp_path / "folder", contents)
    assert read_directory(tmp_path / "folder") == contents
    assert names(tmp_path) == ["folder"]


def test_a_failed_folder_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_directory(tmp_path / "folder", {"a": b"a"})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("a", lambda path: path.write_bytes(b"0123"), r"/folder/a is damaged: it has 4 bytes, not 10"),
        ("a", lambda path: path.write_bytes(b"012345678X"), r"/folder/a is damaged: its contents have changed"),
        ("a", Path.unlink, r"/folder/a is missing"),
        ("manifest.json", Path.unlink, r"/folder/manifest.json is missing"),
        ("manifest.json", lambda path: path.write_text("{"), r"/folder/manifest.json is damaged: it is not JSON"),
    ],
)
def test_damage_is_found_and_named(tmp_path, name, damage, message):
    write_directory(tmp_path / "folder", {"a": b"0123456789"})
    damage(tmp_path / "folder" / name)
    with pytest.raises(DamagedFolderError, match=message):
        read_directory(tmp_path / "folder")


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.123.tmp").touch()
    (tmp_path / ".b.123.tmp" / "deep").mkdir(parents=True)
    for kept in ("a", ".hidden", "b.tmp"):
        (tmp_path / kept).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "a", "b.tmp"]


# -- lines


def test_lines_are_appended(tmp_path):
    append_line(tmp_path / "lines", "one")
    append_line(tmp_path / "lines", "θ")
    assert (tmp_path / "lines").read_text() == "one\nθ\n"


def test_a_line_that_fails_is_cut_back(tmp_path, monkeypatch):
    append_line(tmp_path / "lines", "one")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        append_line(tmp_path / "lines", "two")
    assert (tmp_path / "lines").read_text() == "one\n"


# -- run folders: what is taken


def test_a_new_folder_is_taken_and_keeps_the_config(tmp_path):
    folder = open_run_folder(tmp_path / "runs" / "one", CONFIG)
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert names(folder) == ["config.json"]


def test_an_empty_folder_is_taken_also_after_a_kill(tmp_path):
    (tmp_path / ".config.json.123.tmp").touch()
    open_run_folder(tmp_path, CONFIG)
    assert names(tmp_path) == ["config.json"]


def test_resume_goes_back_and_may_train_longer(tmp_path):
    open_run_folder(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").touch()
    open_run_folder(tmp_path, {"experiment": "ecg", "train": {"lr": 0.1, "epochs": 9}}, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["epochs"] == 9
    assert names(tmp_path) == ["config.json", "metrics.jsonl"]


def test_tuples_in_a_config_are_what_json_makes_of_them(tmp_path):
    open_run_folder(tmp_path, {"seeds": (0, 1)})
    open_run_folder(tmp_path, {"seeds": (0, 1)}, resume=True)


def test_only_the_first_process_looks_and_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert open_run_folder(tmp_path / "run", CONFIG) == tmp_path / "run"
    assert names(tmp_path) == []


def test_the_other_processes_of_a_run_need_no_lock_of_their_own(tmp_path, monkeypatch, holder):
    monkeypatch.setenv("RANK", "1")
    with lock_folder(tmp_path), lock_folder(tmp_path / "run"):
        free_run_folder(tmp_path)
        assert names(tmp_path) == [".lock"]
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RunFolderError, match=f"in use by process {holder.pid}"), lock_folder(tmp_path):
        pass


def test_the_folder_of_a_run_that_kept_nothing_is_freed(tmp_path):
    open_run_folder(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "net-seed0").mkdir(parents=True)
    free_run_folder(tmp_path)
    assert names(tmp_path) == []
    open_run_folder(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").touch()
    free_run_folder(tmp_path)
    assert names(tmp_path) == ["config.json", "metrics.jsonl"]


# -- run folders: what is refused, one test a message


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_run_cannot_be_gone_on_with(tmp_path, made):
    folder = tmp_path if made else tmp_path / "run"
    with pytest.raises(RunFolderError, match=r"holds no run to go on with\. Name .*: leave out `resume=True`"):
        open_run_folder(folder, CONFIG, resume=True)
    assert names(folder) == []
    open_run_folder(folder, CONFIG)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"is not empty and is no run folder: it has no `config.json`. Use a new"):
        open_run_folder(tmp_path, CONFIG)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"lr"')
    with pytest.raises(RunFolderError, match=r"config.json is damaged: it is not JSON. Use another folder"):
        open_run_folder(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_another_config_is_refused_and_the_differences_named(tmp_path, resume):
    open_run_folder(tmp_path, CONFIG)
    other = {"experiment": "ecg", "train": {"lr": 0.2, "epochs": 9}, "seed": 1}
    with pytest.raises(
        RunFolderError,
        match=r"another config: `seed` is None there and 1 here; `train.lr` is 0.1 there and 0.2 here. Use another",
    ):
        open_run_folder(tmp_path, other, resume=resume)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_the_same_run_without_resume_is_refused(tmp_path):
    open_run_folder(tmp_path, CONFIG)
    with pytest.raises(RunFolderError, match=r"already holds this run. Go on with it by `resume=True` \(`--resume`\)"):
        open_run_folder(tmp_path, CONFIG)


def test_a_config_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"`config` must hold only what JSON can hold .* not JSON serializable"):
        open_run_folder(tmp_path / "run", {"folder": Path("x")})
    assert names(tmp_path) == []


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"run folder could not be written \(.*/file/run\): .* use another folder"):
        check_writable(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some disk space"),
        (errno.EACCES, "Use a folder that you may write to"),
        (errno.EROFS, "Use a folder that you may write to"),
        (errno.EIO, "Use another folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path, monkeypatch, number, remedy):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder, "write_synced", fail)
    with pytest.raises(RunFolderError, match=f"{os.strerror(number)}. {remedy}"):
        open_run_folder(tmp_path, CONFIG)


def test_differences_are_listed_by_path():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["`a.c` is 2 there and 3 here"]
    assert differences({"a": {"c": 2}}, {"a": {"c": 3}}, may_change=["c"]) == []


# -- run folders: one process at a time

HOLD = f"""
import runpy, sys, time
with runpy.run_path({lock.__file__!r})["lock_folder"](sys.argv[1]):  # the file alone, without torch
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run folder `tmp_path`."""
    with subprocess.Popen((sys.executable, "-c", HOLD, str(tmp_path)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_with_its_holder_until_that_is_killed(tmp_path, holder):
    used = rf"is in use by process {holder.pid} on {platform.node()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d. Wait until"
    (tmp_path / ".metrics.jsonl.1.tmp").touch()  # what the other is writing
    for resume in (False, True):
        with pytest.raises(RunFolderError, match=used):
            open_run_folder(tmp_path, CONFIG, resume=resume)
    assert (tmp_path / ".metrics.jsonl.1.tmp").exists()
    holder.kill()
    holder.wait()
    assert names(tmp_path) == [".lock", ".metrics.jsonl.1.tmp"]
    open_run_folder(tmp_path, CONFIG)
    assert names(tmp_path) == ["config.json"]


def test_a_lock_may_be_taken_again_inside_but_not_by_another_thread(tmp_path):
    def other() -> str:
        with pytest.raises(RunFolderError) as refused, lock_folder(tmp_path):
            pass
        return str(refused.value)

    with lock_folder(tmp_path), concurrent.futures.ThreadPoolExecutor() as threads:
        open_run_folder(tmp_path, CONFIG)
        assert f"is in use by process {os.getpid()} on" in threads.submit(other).result()
    assert names(tmp_path) == ["config.json"]
    with lock_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(descriptor):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock, "_lock_descriptor", no_locks)
    with pytest.warns(RuntimeWarning, match=r"cannot be locked \(Function not implemented\): its file"):
        open_run_folder(tmp_path, CONFIG)
    assert names(tmp_path) == ["config.json"]


def test_a_folder_that_cannot_be_made_is_refused_by_the_lock_too(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="A part of that path is a file"), lock_folder(tmp_path / "file" / "run"):
        pass
