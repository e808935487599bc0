import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from odenets.data import ecg, mitdb
from odenets.data.beats import Beats
from odenets.data.ecg import load_ecg, split_beats
from odenets.data.errors import DataError, NoNetwork
from odenets.data.kaggle import FILE_NAMES, KAGGLE_URL
from odenets.data.mitdb import DS1, DS2, PACED, RECORDS
from odenets.data.synthetic import make_synthetic
from odenets.progress import no_progress
from tiny_records import write_regular_record

BEATS_A_RECORD = 12
REAL_DATA = os.environ.get("ODENETS_DATA", "")  # read before `alone` takes it away


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder with all 48 records, small ones."""
    folder = tmp_path_factory.mktemp("records")
    for record in RECORDS:
        write_regular_record(folder, record, BEATS_A_RECORD)
    return folder


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No data but what a test makes, no network, few synthetic beats."""
    monkeypatch.delenv("ODENETS_DATA", raising=False)
    monkeypatch.setenv("ODENETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(ecg, "download_mitdb", partial(mitdb.download_mitdb, base_url="http://127.0.0.1:9/"))
    monkeypatch.setattr(ecg, "make_synthetic", partial(make_synthetic, 400))


@pytest.fixture
def as_published(records, monkeypatch):
    """Take the small records for the published ones."""
    hashes = {path.name: mitdb.content_hash(path) for path in records.iterdir()}
    monkeypatch.setattr(mitdb, "published_hashes", lambda: hashes)


def write_kaggle(folder, rows=(10, 5)):
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in zip(FILE_NAMES, rows):
        table = np.random.default_rng(n).random((n, 188)).round(3)
        table[:, -1] = np.arange(n) % 5
        np.savetxt(folder / name, table, delimiter=",")


def load(**options):
    return load_ecg(progress=no_progress, **options)


# ---- which source


@pytest.mark.parametrize("place", ["", "mitdb"])
def test_local_records_come_first(records, tmp_path, place):
    shutil.copytree(records, tmp_path / "data" / place)
    write_kaggle(tmp_path / "data")
    data = load(data_dir=tmp_path / "data")
    assert len(data.train) + len(data.test) == len(RECORDS) * BEATS_A_RECORD
    assert data.source.startswith("MIT-BIH Arrhythmia Database")
    assert not data.synthetic
    assert not data.test.synthetic


def test_the_variable_is_used_where_there_is_no_argument(records, tmp_path, monkeypatch):
    monkeypatch.setenv("ODENETS_DATA", str(records))
    assert load().source.startswith("MIT-BIH")
    write_kaggle(tmp_path / "other")
    assert load(data="kaggle", data_dir=tmp_path / "other").source.startswith("Kaggle")


def test_kept_records_come_before_the_csv_files(records, tmp_path, as_published):
    load(data_dir=records)
    write_kaggle(tmp_path / "data")
    assert load(data_dir=tmp_path / "data").source.startswith("MIT-BIH")
    assert load(data="mitdb").source.startswith("MIT-BIH")


@pytest.mark.parametrize("place", ["", "heartbeat"])
def test_csv_files_come_before_the_download(tmp_path, place):
    write_kaggle(tmp_path / "data" / place)
    data = load(data_dir=tmp_path / "data")
    assert (len(data.train), len(data.test)) == (10, 5)  # their own division
    assert all(name in data.source for name in FILE_NAMES)
    assert not data.synthetic


def test_records_are_downloaded_where_there_is_nothing(records, as_published, monkeypatch, tmp_path):
    monkeypatch.setattr(ecg, "download_mitdb", partial(mitdb.download_mitdb, base_url=records.as_uri()))
    assert load().source.endswith("all 48 records, as published.")
    assert (tmp_path / "cache" / "mitdb" / "234.dat").is_file()


@pytest.mark.parametrize("split", ecg.SPLITS)
def test_without_data_and_network_beats_are_synthetic_and_say_why(split, tmp_path):
    write_kaggle(tmp_path / "elsewhere")
    data = load(split=split)
    assert data.synthetic
    assert data.train.synthetic
    assert data.test.synthetic
    assert data.source.startswith("SYNTHETIC")
    for part in (
        "neither `data_dir` nor ODENETS_DATA is set",
        "refused",
        mitdb.BASE_URL,
        KAGGLE_URL,
        "set ODENETS_DATA",
    ):
        assert part in data.source


def test_inter_patient_auto_passes_over_the_csv_files(tmp_path):
    write_kaggle(tmp_path / "data")
    assert load(split="inter-patient", data_dir=tmp_path / "data").synthetic


def test_asked_for_records_are_never_replaced_by_synthetic_beats():
    with pytest.raises(NoNetwork, match=r"Could not download .*ODENETS_DATA"):
        load(data="mitdb")


def test_a_server_that_refuses_is_no_reason_for_synthetic_beats(monkeypatch):
    def refuse(*args, **options):
        raise DataError("answered 503")

    monkeypatch.setattr(ecg, "download_mitdb", refuse)
    with pytest.raises(DataError, match="answered 503"):
        load()


def test_an_incomplete_folder_is_an_error_not_a_smaller_data_set(records, tmp_path):
    shutil.copytree(records, tmp_path / "part")
    (tmp_path / "part" / "119.atr").unlink()
    with pytest.raises(DataError, match=r"Record 119 is not complete: there is no 119\.atr"):
        load(data_dir=tmp_path / "part")


def test_synthetic_on_request():
    data = load(data="synthetic")
    assert data.source.startswith("SYNTHETIC")
    assert len(data.train) + len(data.test) == 400


# ---- bad arguments


def test_an_unknown_source_or_split():
    with pytest.raises(ValueError, match="`data` must be one of auto, mitdb, kaggle, synthetic; got 'csv'"):
        load(data="csv")
    with pytest.raises(ValueError, match="`split` must be one of random, inter-patient; got 'patient'"):
        load(split="patient")


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"`data_dir` is '.*nowhere', which is not a folder"):
        load(data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("ODENETS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"`ODENETS_DATA` is '.*nowhere', which is not a folder"):
        load()


@pytest.mark.parametrize("data", ["auto", "mitdb"])
@pytest.mark.parametrize("split", ecg.SPLITS)
def test_a_named_folder_without_data_is_refused_where_the_variable_is_a_hint(
    records, tmp_path, monkeypatch, as_published, data, split
):
    load(data_dir=records)  # which are kept: a source further on is there
    (tmp_path / "empty").mkdir()
    looked_for = r"neither the MIT-BIH records \(100\.hea, .*`mitdb/`\) nor mitbih_train\.csv or mitbih_test\.csv"
    with pytest.raises(DataError, match=rf"`data_dir` is '.*empty', which holds {looked_for}"):
        load(data=data, split=split, data_dir=tmp_path / "empty")
    monkeypatch.setenv("ODENETS_DATA", str(tmp_path / "empty"))
    assert load(data=data, split=split).source.startswith("MIT-BIH")


def test_synthetic_beats_need_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ODENETS_DATA", str(tmp_path / "nowhere"))
    assert load(data="synthetic").synthetic
    assert load(data="synthetic", data_dir=tmp_path / "nowhere").synthetic


def test_kaggle_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"There is no mitbih_train\.csv or mitbih_test\.csv in any local folder"):
        load(data="kaggle")
    with pytest.raises(DataError, match=rf"in {tmp_path}. Get both files from {KAGGLE_URL}"):
        load(data="kaggle", data_dir=tmp_path)


def test_kaggle_files_cannot_be_split_by_patient(tmp_path):
    write_kaggle(tmp_path)
    with pytest.raises(DataError, match=r"`split` 'inter-patient' needs to know whose beats.*use the raw records"):
        load(data="kaggle", split="inter-patient", data_dir=tmp_path)


# ---- splits


def numbered(y, record, synthetic=False):
    """Beats whose first value is their number."""
    x = torch.zeros(len(y), 187)
    x[:, 0] = torch.arange(len(y)) / 1e6
    return Beats(x, torch.tensor(y), torch.tensor(record), "Numbered.", synthetic)


def numbers(beats):
    return (beats.x[:, 0] * 1e6).round().int().tolist()


def test_random_takes_a_fifth_of_each_class_and_every_beat_once():
    beats = numbered([0] * 60 + [1] * 13 + [2] * 20 + [3] * 5 + [4] * 8, [100] * 106)
    data = split_beats(beats, "random")
    assert data.test.counts() == (12, 3, 4, 1, 2)
    assert sorted(numbers(data.train) + numbers(data.test)) == list(range(106))
    assert data.train.y.tolist() != sorted(data.train.y.tolist())
    assert data.test.y.tolist() != sorted(data.test.y.tolist())
    assert (data.split, data.source) == ("random", "Numbered.")


def test_random_depends_on_the_seed_only():
    beats = numbered([0, 1, 2, 3, 4] * 20, [100] * 100)
    one, same, other = (split_beats(beats, "random", seed) for seed in (1, 1, 2))
    assert numbers(one.test) == numbers(same.test)
    assert numbers(one.train) == numbers(same.train)
    assert set(numbers(one.test)) != set(numbers(other.test))


def test_random_of_the_full_set_has_the_published_counts():
    y = torch.arange(5).repeat_interleave(torch.tensor(ecg.FULL_COUNTS))
    train, test = ecg._random_split(y, ecg.FULL_COUNTS, 0)
    assert torch.bincount(y[test]).tolist() == [18_118, 556, 1_448, 162, 1_608]
    assert torch.bincount(y[train]).tolist() == [72_471, 2_223, 5_788, 641, 6_431]


def test_inter_patient_is_ds1_and_ds2_without_the_paced(records):
    data = load(split="inter-patient", data_dir=records)
    assert set(data.train.record.tolist()) == set(DS1)
    assert set(data.test.record.tolist()) == set(DS2)
    assert len(data.train) == len(data.test) == 22 * BEATS_A_RECORD
    assert len(set(DS1) | set(DS2) | set(PACED)) == 48


def test_inter_patient_of_synthetic_beats_shares_no_patient():
    data = load(data="synthetic", split="inter-patient")
    assert not set(data.train.record.tolist()) & set(data.test.record.tolist())
    assert len(data.train) + len(data.test) == 400


def test_inter_patient_needs_records():
    with pytest.raises(DataError, match="'inter-patient' needs the record of every beat"):
        split_beats(numbered([0, 1], [-1, 100]), "inter-patient")


def test_an_empty_side_is_an_error():
    with pytest.raises(DataError, match="'inter-patient' of these 2 beats leaves a side empty"):
        split_beats(numbered([0, 1], [100, 100]), "inter-patient")


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA, reason="ODENETS_DATA is not set")
def test_the_real_splits_have_the_published_counts(tmp_path):
    random = load(data="mitdb", data_dir=REAL_DATA, cache_dir=tmp_path)
    assert random.train.counts() == (72_471, 2_223, 5_788, 641, 6_431)
    assert random.test.counts() == (18_118, 556, 1_448, 162, 1_608)
    by_patient = load(data="mitdb", split="inter-patient", data_dir=REAL_DATA, cache_dir=tmp_path)
    assert by_patient.train.counts() == (45_845, 943, 3_788, 415, 8)
    assert by_patient.test.counts() == (44_238, 1_836, 3_221, 388, 7)
