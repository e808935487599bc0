"""The gaps experiment: its series, what is dropped of them, what knows the gaps, and a run that goes on."""

import json

import pytest
import torch

from odenets.data.synthetic import make_fine, make_synthetic
from odenets.experiments import gaps
from odenets.experiments import gaps_shown as shown
from odenets.experiments.gaps import SAMPLINGS, Config, run

TINY = {**gaps.SMALL, "iterations": 1, "samples": 30, "hidden": 4}


@pytest.fixture(scope="module")
def beats():
    return make_synthetic(200)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gaps")
    return folder, run(Config(**TINY), folder, progress=False)


def test_an_oscillator_turns_with_the_frequency_of_its_class():
    series, y = gaps.oscillators(300, 0)
    assert y.bincount().tolist() == [100, 100, 100]
    for kind, omega in enumerate(gaps.OMEGAS):
        z = torch.view_as_complex(series.values[y == kind].double())
        turned = (z[:, 1:5] * z[:, :4].conj()).sum().angle()
        assert float(turned) == pytest.approx(omega * gaps.LENGTH / (gaps.ROWS - 1), rel=0.02)


def test_only_the_times_tell_the_classes_apart():
    """Rows of a slow oscillator are those of a quick one that is looked at more often."""
    series, y = gaps.oscillators(60, 0)
    assert (gaps.least_squares(series).argmax(1) == y).all()
    quick = gaps.replace(series, times=series.times * gaps.OMEGAS[0] / gaps.OMEGAS[1])
    assert (gaps.least_squares(quick).argmax(1)[y == 0] == 1).all()
    torch.manual_seed(0)
    for name, make in gaps.MODELS.items():
        model = make(2, 3, 4)
        with torch.no_grad():
            assert torch.equal(model(series), model(quick)) is (name == shown.BLIND)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_what_is_dropped(name):
    series, _ = gaps.oscillators(90, 0)
    kept = SAMPLINGS[name](series, 0)
    assert torch.equal(kept.start, series.start)
    assert torch.equal(kept.times, SAMPLINGS[name](series, 0).times)
    gap = kept.times.diff(dim=1) / series.times[0, 1]
    if name in shown.DROPPED:
        assert kept.lengths.tolist() == [round(gaps.ROWS * (1 - shown.DROPPED[name]))] * 90
        return
    steps = [row[: int(n) - 1].round().int().tolist() for row, n in zip(gap, kept.lengths)]
    if name == shown.EVEN:
        assert {step for row in steps for step in row} == {5}
    elif name == shown.MIXED:
        assert {tuple(set(row)) for row in steps} == {(1,), (2,), (3,), (4,)}
        assert set(kept.lengths.tolist()) == {gaps.ROWS // 4}  # else their number would tell
    else:
        assert {len(row) for row in steps} == {gaps.ROWS // 5 - 1}
        assert set(range(1, 10)) == {step for row in steps for step in row}


def test_heartbeats_are_as_long_as_they_are(beats):
    series, y = gaps.heartbeats(beats, 25, 0)
    assert series.checked().values.shape[2] == 1
    assert y.bincount().tolist() == [min(5, n) for n in beats.counts()]
    assert int(series.lengths.min()) > 10
    torch.testing.assert_close(series.times[:, 1], torch.full((len(y),), 0.25, dtype=torch.float64))
    assert (series.end - series.start == 0.25 * (series.lengths - 1)).all()


def test_small_run(small):
    _, result = small
    table = {(row["sampling"], row["model"]) for row in result.summary["table"]}
    assert table == {(s, m) for s in SAMPLINGS for m in (*gaps.MODELS, shown.KNOWN)}
    assert len(list(result.pictures())) == 2
    json.dumps(result.summary["runs"], allow_nan=False)


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    monkeypatch.setattr(gaps, "model_row", lambda *arguments: pytest.fail("trained again"))
    again = run(Config(**TINY), folder, resume=True, progress=False)
    assert str(again.summary) == str(first.summary)
    assert again.lead == first.lead


def test_heartbeats_are_taken_too(beats, monkeypatch):
    data = gaps.Problem(gaps.heartbeats(beats, 25, 0), gaps.heartbeats(beats, 15, 1), beats.source, True)
    monkeypatch.setattr(gaps, "load", lambda *arguments: data)
    row = gaps.model_row(Config(data="ecg", iterations=1, samples=30), shown.ODE, shown.MIXED, 0)
    assert 0 <= row["accuracy"] <= 1


def test_heartbeats_at_mixed_rates_are_the_same_beats(monkeypatch):
    fine = make_fine(200)
    monkeypatch.setattr(gaps, "load_fine", lambda *_: (*fine, True))
    gaps.load_rates.cache_clear()
    (series, y), (test, _), *_ = gaps.load_rates(30, 0)
    assert len(series) + len(test) == len(y) + len(test) == 200
    assert int(series.checked().lengths.max()) > 187
    torch.testing.assert_close(series.times[:, 1], torch.full((len(y),), 10 / 360, dtype=torch.float64))
    kept = gaps.at_a_rate(series, 0)
    step = (kept.times[:, 1] * 36).round()
    assert step.unique().tolist() == [1, 3, 4, 8]  # 360, 120, 90 and 45 Hz
    for i in range(8):
        one = kept[i]
        torch.testing.assert_close(one.values[0], series[i].values[0, :: int(step[i])])
        assert torch.equal(one.times[0], series[i].times[0, :: int(step[i])])
    config = Config(data="ecg", iterations=1, samples=30, hidden=4)
    row = gaps.model_row(config, shown.TOLD, shown.RATES, 0)
    assert row["synthetic"]
    assert row["rows"] == float(kept.lengths.double().mean())
    words = shown.rates([{**row, "seed": 0}])
    assert words.text.startswith("SYNTHETIC")
    gaps.load_rates.cache_clear()


@pytest.mark.slow
def test_the_small_form_of_heartbeats_runs(tmp_path):
    result = run(Config(**TINY, data="ecg"), tmp_path, progress=False)
    found = {row["sampling"] for row in result.summary["table"]}
    assert found == {*SAMPLINGS, shown.RATES}
    assert [section.title for section in result.sections][2] == "The same heartbeats at mixed rates"
    json.dumps(result.summary["runs"], allow_nan=False)


def test_words_follow_the_numbers():
    def rows(told, ode):
        models = {shown.BLIND: 0.4, shown.TOLD: told, shown.ODE: ode, shown.CDE: 0.1}
        return [
            {"model": m, "sampling": s, "accuracy": x} for m, x in models.items() for s in (shown.EVEN, shown.MIXED)
        ]

    helps = shown.lead(rows(0.8, 0.9))
    assert f"of accuracy, with: {shown.EVEN} (90.0% by the ODE-RNN, 80.0%) and" in helps
    assert "It is as good with: none. It is worse with: none." in helps
    assert f"It is as good with: {shown.EVEN} and {shown.MIXED}." in shown.lead(rows(0.8, 0.81))
    harms = shown.lead(rows(0.8, 0.7))
    assert f"with: none. It is as good with: none. It is worse with: {shown.EVEN} (70.0%, 80.0%) and" in harms
    assert f"told the gaps: {shown.EVEN}: +40.0%" in harms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "mnist"}, "`data` must be one of oscillators, ecg; got 'mnist'"),
        ({"samples": 5}, "`samples` must be at least 30, got 5"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
