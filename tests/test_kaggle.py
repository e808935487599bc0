import numpy as np
import pytest
import torch

from odenets.data import kaggle
from odenets.data.errors import DataError
from odenets.data.kaggle import KAGGLE_URL, read_kaggle, read_rows
from odenets.progress import no_progress


def make_table(rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.random((rows, 187), np.float32)
    return x, np.arange(rows) % 5


def lines_of(x, y):
    """The text of the real files: every number with 19 digits."""
    return [",".join(f"{v:.18e}" for v in [*row, label]) for row, label in zip(x.astype(float), y)]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(kaggle.FILE_NAMES):
        (tmp_path / name).write_text("\n".join(lines_of(*make_table(10 + seed, seed))) + "\n")
    return tmp_path


@pytest.fixture
def lines():
    return lines_of(*make_table(4, 0))


def read_text(folder, text):
    path = folder / "mitbih_test.csv"
    path.write_text(text)
    return read_rows(path)


def read(folder):
    return read_kaggle(folder, folder / "cache", no_progress)


def test_rows_and_labels_come_back_exactly(folder):
    for seed, beats in enumerate(read(folder)):
        x, y = make_table(10 + seed, seed)
        assert torch.equal(beats.x, torch.from_numpy(x))
        assert torch.equal(beats.y, torch.from_numpy(y))
        assert (beats.record == -1).all()
        assert kaggle.FILE_NAMES[seed] in beats.source


def test_the_second_time_the_rows_come_from_the_cache_until_a_file_changes(folder, monkeypatch):
    first, _ = read(folder)
    with monkeypatch.context() as patch:
        patch.setattr(kaggle, "read_rows", None)
        again, _ = read(folder)
    assert torch.equal(first.x, again.x)
    (folder / "mitbih_train.csv").write_text("\n".join(lines_of(*make_table(3, 9))))
    changed, _ = read(folder)
    assert len(changed) == 3


def test_blank_lines_do_not_matter(folder, lines):
    x, _ = read_text(folder, "\n".join([lines[0], "", *lines[1:], "", ""]))
    assert len(x) == 4


@pytest.mark.parametrize("name", kaggle.FILE_NAMES)
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"There is no {name} in .*{KAGGLE_URL}"):
        read(folder)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(folder, text):
    with pytest.raises(DataError, match=r"mitbih_test\.csv is empty\. A line holds 187 numbers"):
        read_text(folder, text)


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize(("change", "columns"), [(lambda s: s + ",1", 189), (lambda s: s[: s.rindex(",")], 187)])
def test_a_wrong_number_of_columns(folder, lines, bad, change, columns):
    lines[bad] = change(lines[bad])
    with pytest.raises(DataError, match=rf"mitbih_test\.csv, line {bad + 1}: {columns} columns"):
        read_text(folder, "\n".join(lines))


def test_every_line_one_column_short(folder, lines):
    with pytest.raises(DataError, match="line 1: 187 columns"):
        read_text(folder, "\n".join(line[: line.rindex(",")] for line in lines))


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("abc", "'abc', not a number"),
        ("", "'', not a number"),
        ("nan", "'nan', not a finite number"),
        ("inf", "'inf', not a finite number"),
        ("1e999", "'1e999', not a finite number"),
        ("1.5", r"'1\.5', outside \[0, 1\]"),
        ("-0.1", r"'-0\.1', outside \[0, 1\]"),
    ],
)
def test_a_bad_number(folder, lines, value, fault):
    lines[2] = f"{lines[2][: lines[2].index(',')]},{value},{lines[2].split(',', 2)[2]}"
    with pytest.raises(DataError, match=rf"line 3: column 2 is {fault}"):
        read_text(folder, "\n".join(lines))


@pytest.mark.parametrize("label", ["5", "-1", "0.5"])
def test_a_bad_label(folder, lines, label):
    lines[3] = lines[3][: lines[3].rindex(",") + 1] + label
    with pytest.raises(DataError, match=rf"line 4: column 188 is '{label}', not a label 0, 1, 2, 3 or 4"):
        read_text(folder, "\n".join(lines))


def test_a_header_line(folder, lines):
    with pytest.raises(DataError, match=r"line 1: column 1 is 'c0', not a number.*without a header"):
        read_text(folder, "\n".join([",".join(f"c{k}" for k in range(188)), *lines]))


def test_bytes_that_are_no_text(folder):
    path = folder / "mitbih_test.csv"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match="line 1: 1 columns"):
        read_rows(path)
