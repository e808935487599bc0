from pathlib import Path

import pytest
import torch

from odenets.data.beats import Beats
from odenets.data.cache import cache_folder, load_beats, save_beats
from odenets.data.errors import DataError


@pytest.fixture
def beats():
    return Beats(torch.rand(3, 187), torch.tensor([0, 4, 1]), torch.tensor([100, 100, -1]), "A source.", True)


def test_beats_come_back_exactly(tmp_path, beats):
    path = tmp_path / "new" / "beats.npz"
    save_beats(path, beats)
    again = load_beats(path)
    assert torch.equal(again.x, beats.x)
    assert torch.equal(again.y, beats.y)
    assert torch.equal(again.record, beats.record)
    assert (again.source, again.synthetic) == ("A source.", True)


def test_a_missing_file_is_none(tmp_path):
    assert load_beats(tmp_path / "beats.npz") is None


@pytest.mark.parametrize("keep", [0, 100, 1500])
def test_a_damaged_file_is_none(tmp_path, beats, keep):
    path = tmp_path / "beats.npz"
    save_beats(path, beats)
    path.write_bytes(path.read_bytes()[:keep])
    assert load_beats(path) is None


def test_a_flipped_byte_is_noticed(tmp_path, beats):
    path = tmp_path / "beats.npz"
    save_beats(path, beats)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert load_beats(path) is None


def test_a_folder_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path, beats):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be kept in .* Set the environment variable ODENETS_CACHE"):
        save_beats(tmp_path / "file" / "beats.npz", beats)


def test_the_folder_is_the_argument_else_the_variable_else_the_users_own(monkeypatch):
    monkeypatch.setenv("ODENETS_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder("/given") == Path("/given")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("ODENETS_CACHE")
    assert cache_folder() == Path("/xdg/odenets")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/me/.cache/odenets")
