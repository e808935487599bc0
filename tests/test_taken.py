"""Results of experiments that are kept: taken from a finished run, told again without running anything."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from odenets.experiments import EXPERIMENTS, descent, tolerance
from odenets.report import summary_json

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("pages.experiments")
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "pages"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a finished run in its small form, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "descent"
    result = descent.run(descent.Config(**descent.SMALL), folder, progress=False)
    (folder / "summary.json").write_text(summary_json(result))
    return folder, result


@pytest.fixture
def run(first):
    return first[0]


def test_a_run_is_told_again_from_what_is_kept(pages, first, tmp_path):
    run, result = first
    path = pages.take(run, tmp_path)
    assert path == tmp_path / "descent.json"
    assert str(run) not in path.read_text()
    kept = json.loads(path.read_text())
    assert kept["command"] == "odenets run descent --steps 200 --grid 7"
    again = pages.remade(kept)
    assert again.lead == result.lead
    assert [s.tables for s in again.sections] == [s.tables for s in result.sections]
    text = pages.told("descent", kept)
    assert text.startswith(f"## descent\n\n**{result.title}.** ")
    for table in (table for section in result.sections for table in section.tables):
        assert pages.table_text(table) in text
    before = path.read_text()
    assert pages.take(run, tmp_path).read_text() == before


def test_a_kept_result_that_lacks_a_piece_runs_nothing(pages, run, tmp_path):
    kept = json.loads(pages.take(run, tmp_path).read_text())
    del kept["pieces"]["edge-0"]
    with pytest.raises(LookupError, match=r"1 of .* pieces are not there: edge-0"):
        pages.remade(kept)


def test_a_run_that_is_not_finished_is_not_taken(pages, tmp_path):
    (tmp_path / "pieces").mkdir()
    with pytest.raises(SystemExit, match=r"holds no finished run: there is no summary\.json"):
        pages.take(tmp_path)
    (tmp_path / "summary.json").write_text('{"experiment": "tour"}')
    with pytest.raises(SystemExit, match="holds 'tour', which is not made of pieces"):
        pages.take(tmp_path)


def test_pieces_of_older_code_are_not_taken(pages, run, tmp_path):
    folder = tmp_path / "run"
    (folder / "pieces").mkdir(parents=True)
    (folder / "summary.json").write_text((run / "summary.json").read_text())
    (folder / "pieces" / "edge-0.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not finished, or of older code .*: go on with --resume"):
        pages.take(folder, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_the_command_names_what_differs_from_the_defaults_and_no_path(pages):
    config = {"data": "ecg", "samples": 8000, "grid": "full", "epochs": 3, "seed": 0, "seeds": 3}
    assert pages.command(EXPERIMENTS["tolerance"], config) == "odenets run tolerance --data ecg --epochs 3"
    assert set(config) == {*tolerance.Config.__dataclass_fields__}
    config = {**vars(EXPERIMENTS["robustness"].config()), "data_dir": "/somewhere"}
    assert pages.command(EXPERIMENTS["robustness"], config) == "odenets run robustness"


def test_numbers_of_pictures_are_shorter_than_those_of_rows(pages):
    row = {"exact": 1 / 3, "curve": [1 / 3, 2], "map": [[1 / 3, None, float("inf")]], "deep": {"x": 1 / 3}, "text": "a"}
    expected = {"exact": 1 / 3, "curve": [0.3333333, 2], "map": [[0.3333, None, float("inf")]], "deep": {"x": 1 / 3}}
    assert pages.shortened(row) == {**expected, "text": "a"}


def test_what_markdown_would_read_is_escaped(pages):
    assert pages.escaped("f(x*) of |x| <b> [1]\\") == r"f(x\*) of \|x\| \<b> \[1]" + "\\\\"


def test_kept_results_are_those_of_full_forms_and_hold_no_path():
    for path in (ROOT / "results" / "experiments").glob("*.json"):
        kept = json.loads(path.read_text())
        small = EXPERIMENTS[kept["experiment"]].small
        assert not all(kept["config"][name] == value for name, value in small.items()), path.name
        assert not any(start in path.read_text() for start in ("/home/", "/tmp/", "/work/", "/root/")), path.name
