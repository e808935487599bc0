"""The physionet experiment: its divisions, its features, its areas, and a run that goes on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from odenets.experiments import physionet
from odenets.experiments.physionet import NETWORKS, SMALL, Config, area, features, precision_area, run, task_of
from odenets.series import from_arrays

NAN = float("nan")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("physionet")
    return folder, run(Config(**SMALL), folder, progress=False)


def test_no_stay_is_on_two_sides():
    for protocol, sizes in (("A", (256, 64, 80)), ("B", (280, 60, 400))):
        task = task_of(protocol, "synthetic", None, 400)
        assert tuple(map(len, task)) == sizes
        ids = [set(part.series.ids) for part in task[: 3 if protocol == "A" else 2]]
        assert len(set.union(*ids)) == sum(map(len, ids))


def test_features_are_what_they_say():
    series = from_arrays(
        [[0.0, 1.0, 2.0], [0.0]], [[[1.0, NAN], [5.0, NAN], [3.0, 2.0]], [[NAN, 4.0]]], static=[[7.0], [8.0]]
    )
    first, second = features(series)
    count, mean, least, greatest, begin, end = first[:12].reshape(6, 2)[:, 0]
    assert (count, mean, least, greatest, begin, end) == (3, 3, 1, 5, 1, 3)
    assert first[-1] == 7
    assert second[0] == 0
    assert np.isnan(second[[2, 4, 6, 8, 10]]).all()
    assert second[1:12:2].tolist() == [1, 4, 4, 4, 4, 4]


def test_the_areas_are_those_of_the_curves():
    generator = np.random.default_rng(0)
    for digits in (1, 6):
        died, chances = generator.integers(0, 2, 60), generator.random(60).round(digits)
        assert area(died, chances) == pytest.approx(roc_auc_score(died, chances), abs=1e-12)
        assert precision_area(died, chances) == pytest.approx(average_precision_score(died, chances), abs=1e-12)


def test_a_run_has_every_model_and_goes_on(small, monkeypatch):
    folder, result = small
    assert result.synthetic
    rows = {run["model"]: run for run in result.summary["runs"]}
    assert set(rows) == {*NETWORKS, physionet.TREES, physionet.LOGISTIC}
    for row in rows.values():
        assert 0 <= row["auroc_low"] <= row["auroc"] <= row["auroc_high"] <= 1
    assert rows["ODE-RNN"]["nfe"] > 0
    assert "aim" not in result.lead
    assert "published AUROC" not in json.dumps(dataclasses.asdict(result.sections[0].tables[0]))
    monkeypatch.setattr(physionet, "_network_row", lambda *_: 1 / 0)  # nothing is trained again
    again = run(Config(**SMALL), folder, resume=True, progress=False)
    assert again.summary["runs"] == result.summary["runs"]


def test_mtan_is_trained_where_it_is_asked_for(tmp_path, monkeypatch):
    row = physionet._network_row(Config(**SMALL, mtan=True), "mTAN", 0, tmp_path)
    assert 0 <= row["auroc"] <= 1
    names = []
    monkeypatch.setattr(physionet, "collect", lambda pieces, *_, **__: names.extend(pieces) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(Config(**SMALL, mtan=True), tmp_path)
    assert "mTAN-0" in names


def test_the_published_numbers_stand_beside_real_ones_alone(small):
    _, result = small
    shown = physionet.shown.accuracy(Config(), {**result.summary["problem"], "synthetic": False}, _rows(small))
    table = shown.tables[0]
    assert table.columns[-1] == "published AUROC"
    assert any("0.846" in str(row[-1]) for row in table.rows)
    assert "EBES" in table.note
    words = physionet.shown.lead(Config(), {**result.summary["problem"], "synthetic": False}, _rows(small))
    assert "The aim in this protocol, 0.845, is not reached." in words


def _rows(small):
    return [
        json.loads(path.read_text()) for path in sorted((small[0] / "pieces").glob("*.json")) if path.stem != "problem"
    ]


@pytest.mark.slow
def test_on_real_stays_a_network_tells_who_dies(tmp_path):
    result = run(Config(samples=1500, epochs=6, seeds=1), tmp_path, progress=False)
    if result.synthetic:
        pytest.fail("ODENETS_DATA must name the real stays for this test")
    found = {row["model"]: row["auroc"] for row in result.summary["runs"]}
    assert min(found["ODE-RNN"], found["GRU with gaps"], found[physionet.TREES]) > 0.75
    assert torch.isfinite(torch.tensor(list(found.values()))).all()
