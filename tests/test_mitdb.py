import os

import numpy as np
import pytest
import torch

from odenets.data import mitdb
from odenets.data.errors import DataError, NoNetwork
from odenets.data.mitdb import cached_mitdb, download_mitdb, published_hashes, read_mitdb, read_record
from odenets.progress import no_progress
from tiny_records import SYMBOLS, write_record, write_regular_record

CLASS = {symbol: k for k, symbols in enumerate(["NLRej", "AaJS", "VE", "F", "/fQ"]) for symbol in symbols}


def rows_by_the_rule(signal, at, symbols):
    """The rule, word by word, for one record."""
    rows, labels = [], []
    for i in range(len(at) - 1):
        if symbols[i] not in CLASS:
            continue
        a, b = at[i], at[i + 1]
        c = at[i + 2] if i + 2 < len(at) else len(signal)
        x = signal[a : b + (c - b) // 5 : 3].astype(np.float64)
        x = (x - x.min()) / (x.max() - x.min())
        rows.append(np.pad(x[:187], (0, 187 - len(x[:187]))).astype(np.float32))
        labels.append(CLASS[symbols[i]])
    return np.array(rows), np.array(labels)


def test_rows_are_those_of_the_rule(tmp_path):
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.integers(6, 1200, 80))  # long and short: rows that are cut and rows that are padded
    symbols = list(SYMBOLS) + list(rng.choice(list(SYMBOLS), 80 - len(SYMBOLS)))
    signal = write_record(tmp_path, 100, at[-1] + 300, at, symbols)
    rows, labels = read_record(tmp_path, 100)
    expected_rows, expected_labels = rows_by_the_rule(signal, at, symbols)
    assert set(labels) == {0, 1, 2, 3, 4}
    assert np.array_equal(labels, expected_labels)
    assert np.array_equal(rows, expected_rows)
    assert (rows[:, -1] != 0).any()
    assert (rows[:, -1] == 0).any()


def test_fine_rows_have_every_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(mitdb, "RECORDS", (100, 200))
    signals = {}
    for record, gap in ((100, 300), (200, 700)):  # 420 samples, and 840, of which 561 are kept
        at = [20 + gap * k for k in range(6)]
        signals[record] = write_record(tmp_path, record, at[-1] + gap, at, "NSVFQ+", seed=record)
    rows, lengths, labels = mitdb.read_fine(tmp_path, 5, 0, no_progress)
    assert labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert lengths.tolist() == [360] * 5 + [561] * 5
    for i, (record, start) in enumerate([(100, 20), (200, 20)]):
        segment = signals[record][start : start + (360, 840)[i]].astype(np.float64)
        scaled = ((segment - segment.min()) / np.ptp(segment)).astype(np.float32)[:561]
        assert np.array_equal(rows[5 * i, : len(scaled)], scaled)
        assert not rows[5 * i, len(scaled) :].any()
    again = mitdb.read_fine(tmp_path, 1, 0, no_progress)
    assert np.bincount(again[2]).tolist() == [1] * 5


def test_the_last_annotation_makes_no_row_but_ends_one(tmp_path):
    signal = write_record(tmp_path, 100, 1000, [100, 400], "NN")
    rows, labels = read_record(tmp_path, 100)
    segment = signal[100 : 400 + 600 // 5 : 3].astype(float)  # the record's end stands in for a third annotation
    assert labels.tolist() == [0]
    assert np.count_nonzero(rows[0]) == len(segment) - 1  # all but the minimum
    assert rows[0, 0] == np.float32((segment[0] - segment.min()) / np.ptp(segment))


def test_records_are_read_in_order_with_their_numbers(tmp_path):
    for record in (200, 100):
        write_regular_record(tmp_path, record)
    seen = []
    beats = read_mitdb(tmp_path, [100, 200], tmp_path / "cache", lambda items, text: seen.append(text) or items)
    assert beats.record.tolist() == [100] * 12 + [200] * 12
    assert beats.counts() == (6, 6, 4, 4, 4)
    assert (beats.x.dtype, beats.x.min(), beats.x.max()) == (torch.float32, 0, 1)
    assert not beats.synthetic
    assert seen == ["Reading records"]


def test_source_says_how_many_records_and_that_they_are_not_the_published_ones(tmp_path):
    write_regular_record(tmp_path, 100)
    source = read_mitdb(tmp_path, [100], tmp_path / "cache", no_progress).source
    assert "MIT-BIH Arrhythmia Database 1.0.0" in source
    assert "1 records, the files differ from the published ones" in source


# ---- the cache


@pytest.fixture
def folder(tmp_path):
    write_regular_record(tmp_path / "records", 100)
    return tmp_path / "records"


def read(folder):
    return read_mitdb(folder, [100], folder.parent / "cache", no_progress)


def test_the_second_time_the_rows_come_from_the_cache(folder, monkeypatch):
    first = read(folder)
    monkeypatch.setattr(mitdb, "read_record", None)
    again = read(folder)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.record, again.record)
    assert first.source == again.source


def test_changed_files_are_read_again(folder):
    first = read(folder)
    write_record(folder, 100, 1320, [20 + 100 * k for k in range(13)], "NSVFQNSVFQNSV", seed=5)
    assert not torch.equal(first.x, read(folder).x)


def test_a_damaged_cache_is_made_again(folder):
    first = read(folder)
    (path,) = (folder.parent / "cache").iterdir()
    path.write_bytes(b"damaged")
    assert torch.equal(first.x, read(folder).x)
    assert len(path.read_bytes()) > 1000


def test_published_beats_are_found_in_the_cache_without_their_files(folder, monkeypatch):
    hashes = {path.name: mitdb.content_hash(path) for path in folder.iterdir()}
    monkeypatch.setattr(mitdb, "published_hashes", lambda: hashes)
    assert cached_mitdb(folder.parent / "cache") is None
    beats = read(folder)
    assert "as published" in beats.source
    assert torch.equal(cached_mitdb(folder.parent / "cache").x, beats.x)


# ---- bad input


@pytest.mark.parametrize("ending", [".hea", ".dat", ".atr"])
def test_a_missing_file(folder, ending):
    (folder / f"100{ending}").unlink()
    with pytest.raises(DataError, match=rf"Record 100 is not complete: there is no 100\{ending} in .*records"):
        read(folder)


def test_a_truncated_signal(folder):
    path = folder / "100.dat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"100\.dat \(record 100\) is truncated: 3959 bytes.*take 3960"):
        read(folder)


def test_an_empty_signal(folder):
    (folder / "100.dat").write_bytes(b"")
    with pytest.raises(DataError, match=r"100\.dat \(record 100\) is truncated: 0 bytes"):
        read(folder)


@pytest.mark.parametrize("text", ["", "no header at all\n", "\x00\xff\x00", "100 2 360\n", "100/2 2 360 1320\n"])
def test_an_unreadable_header(folder, text):
    (folder / "100.hea").write_text(text, "latin-1")
    with pytest.raises(DataError, match=r"100\.hea \(record 100\) (is not a readable header|says)"):
        read(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("100 2 360", "100 2 250", "250 Hz"), (".dat 212", ".dat 16", "formats"), ("100.dat", "101.dat", "101.dat")],
)
def test_a_header_of_another_kind_of_record(folder, old, new, said):
    path = folder / "100.hea"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"100\.hea \(record 100\) says .*{said}.*has 360 Hz, format 212, the file"):
        read(folder)


def test_an_annotation_beyond_the_signal(folder):
    write_record(folder, 100, 1000, [20, 500, 1000], "NNN")
    with pytest.raises(DataError, match="annotation at sample 1000, beyond the 1000 samples of the signal"):
        read(folder)


def test_two_annotations_at_one_sample(folder):
    write_record(folder, 100, 1000, [20, 500, 500, 700], "NNNN")
    with pytest.raises(DataError, match="annotation number 2 at sample 500, which is not after the one before"):
        read(folder)


@pytest.mark.parametrize("data", [b"", b"\x00\x00"])
def test_annotations_that_are_empty(folder, data):
    (folder / "100.atr").write_bytes(data)
    with pytest.raises(DataError, match=r"100\.atr \(record 100\) (has no readable|holds 0) annotations"):
        read(folder)


def test_annotations_that_are_cut_off(folder):
    path = folder / "100.atr"
    path.write_bytes(path.read_bytes()[:7])  # the format is pairs of bytes
    with pytest.raises(DataError, match=r"100\.atr \(record 100\) has no readable annotations"):
        read(folder)


def test_one_annotation_is_too_few(folder):
    write_record(folder, 100, 1000, [20], "N")
    with pytest.raises(DataError, match="holds 1 annotations, too few for a beat"):
        read(folder)


# ---- the network (its own tests are those of `download`)


def test_hashes_of_all_files_of_all_records_are_known():
    hashes = published_hashes()
    assert set(hashes) == {f"{record}{ending}" for record in mitdb.RECORDS for ending in (".hea", ".dat", ".atr")}
    assert all(len(digest) == 64 for digest in hashes.values())


def test_without_a_network_the_message_says_how_to_use_local_files(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(NoNetwork, match=r"http://127\.0\.0\.1:9/100\.atr.*ODENETS_DATA \(or `data_dir`\)"):
        download_mitdb(tmp_path / "new", "http://127.0.0.1:9/", progress=no_progress)


def test_a_download_is_a_folder_of_records(folder, tmp_path):
    hashes = {path.name: mitdb.content_hash(path) for path in folder.iterdir()}
    dest = download_mitdb(tmp_path / "dest", folder.as_uri(), hashes, no_progress)
    assert torch.equal(read_mitdb(dest, [100], tmp_path / "cache", no_progress).x, read(folder).x)


# ---- the real records


@pytest.mark.slow
@pytest.mark.skipif("ODENETS_DATA" not in os.environ, reason="ODENETS_DATA is not set")
def test_the_real_records_give_the_published_counts(tmp_path):
    folder = os.path.join(os.environ["ODENETS_DATA"], "mitdb")
    beats = read_mitdb(folder, cache_dir=tmp_path, progress=no_progress)
    assert beats.counts() == (90_589, 2_779, 7_236, 803, 8_039)
    assert beats.source.endswith("all 48 records, as published.")
    assert (beats.x == 0).float().mean() == pytest.approx(0.409, abs=5e-4)
    assert len(cached_mitdb(tmp_path)) == len(beats)
