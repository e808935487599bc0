"""The stays of PhysioNet 2012: reading, what is refused, synthetic ones, and the archive from a server."""

import io
import tarfile

import pytest
import torch

from odenets.data import physionet
from odenets.data.errors import DataError
from odenets.data.physionet import VARIABLES, load_stays, quantised
from odenets.data.stays import make_stays

STAYS = {
    7: "Time,Parameter,Value\n00:00,RecordID,7\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n00:00,ICUType,4\n"
    "00:00,Weight,80\n00:07,HR,73\n00:07,HR,75\n10:30,pH,7.4\n10:30,HR,60\n",
    9: "Time,Parameter,Value\n00:00,RecordID,9\n00:00,Age,61\n00:00,Gender,1\n00:00,Height,170\n00:00,ICUType,1\n"
    "00:00,Weight,-1\n",
}
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n7,6,1,5,-1,0\n9,16,8,8,-1,1\n"


def write(folder, stays=STAYS, outcomes=OUTCOMES):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "set-a.tar.gz", "w:gz") as tar:
        for name, text in stays.items():
            member = tarfile.TarInfo(f"set-a/{name}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    (folder / "Outcomes-a.txt").write_text(outcomes)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ODENETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ODENETS_DATA", raising=False)


def test_stays_become_series_and_are_kept(tmp_path):
    folder = write(tmp_path / "physionet2012")
    stays = load_stays("a", data_dir=tmp_path)
    series = stays.series
    assert series.ids == (7, 9)
    assert stays.died.tolist() == [0, 1]
    assert series.lengths.tolist() == [3, 1]
    hr, ph, weight = (VARIABLES.index(name) for name in ("HR", "pH", "Weight"))
    torch.testing.assert_close(series.times[0], torch.tensor([0, 7 / 60, 10.5], dtype=torch.float64))
    assert series.values[0, :, hr].nan_to_num(-1).tolist() == [-1, 75, 60]
    assert series.values[0, 0, weight] == 80
    assert series.values[0, 2, ph] == torch.tensor(7.4)
    assert not series.mask[1].any()
    assert series.static is not None
    assert series.static.nan_to_num(-1).tolist() == [[54, 0, -1, 0, 0, 0, 1], [61, 1, 170, 1, 0, 0, 0]]
    series.checked()
    (folder / "set-a.tar.gz").unlink()
    assert load_stays("a", "physionet").series.ids == (7, 9)


@pytest.mark.parametrize(
    ("stays", "outcomes", "words"),
    [
        ({7: STAYS[7]}, OUTCOMES, ["set-a.tar.gz", "no stay 9"]),
        (STAYS, OUTCOMES.replace("9,16", "8,16"), ["no stay 8"]),
        (STAYS | {7: "Time,Parameter,Value\n00:00,Speed,3\n"}, OUTCOMES, ["7.txt, line 2", "'Speed'"]),
        (STAYS | {7: "Time,Parameter,Value\nnoon,HR,3\n"}, OUTCOMES, ["7.txt, line 2", "'noon,HR,3'"]),
        (STAYS, "RecordID\n7\n", ["Outcomes-a.txt, line 2"]),
    ],
)
def test_damaged_files_say_where(tmp_path, stays, outcomes, words):
    write(tmp_path, stays, outcomes)
    with pytest.raises(DataError) as caught:
        load_stays("a", data_dir=tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="has no set-a"):
        load_stays("a", data_dir=tmp_path)
    with pytest.raises(ValueError, match="`which` must be one of a, b; got 'c'"):
        load_stays("c")
    monkeypatch.setattr(physionet, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(DataError, match="Could not download"):
        load_stays("a", "physionet")
    stays = load_stays("b", "auto")
    assert stays.synthetic
    assert stays.source.startswith("SYNTHETIC")
    write(tmp_path)
    (tmp_path / "Outcomes-a.txt").unlink()
    with pytest.raises(DataError, match="no Outcomes-a"):
        load_stays("a", data_dir=tmp_path)
    (tmp_path / "set-a.tar.gz").write_bytes(b"nothing")
    (tmp_path / "Outcomes-a.txt").write_text(OUTCOMES)
    with pytest.raises(DataError, match="cannot be read"):
        load_stays("a", data_dir=tmp_path)


def test_made_up_stays_are_always_the_same_and_say_something():
    series, died = make_stays(300, seed=1)
    again, _ = make_stays(300, seed=1)
    torch.testing.assert_close(series.values, again.values, equal_nan=True)
    series.checked()
    assert 0.1 < died.float().mean() < 0.5
    lactate = series.values[..., series.channels.index("Lactate")].nanmean(1)
    seen = ~lactate.isnan()
    assert lactate[seen & (died == 1)].mean() > lactate[seen & (died == 0)].mean() + 0.2


def test_coarser_times_keep_the_last_value_of_each(tmp_path):
    series = load_stays("a", data_dir=write(tmp_path)).series
    coarse = quantised(series, 11.0).checked()
    assert coarse.lengths.tolist() == [1, 1]
    hr, ph = (VARIABLES.index(name) for name in ("HR", "pH"))
    assert coarse.values[0, 0, [hr, ph]].tolist() == [60, torch.tensor(7.4)]
    fine = quantised(series, 1e-6)
    torch.testing.assert_close(fine.values, series.values, equal_nan=True)
    with pytest.raises(ValueError, match="`unit` must be a positive number"):
        quantised(series, 0.0)
