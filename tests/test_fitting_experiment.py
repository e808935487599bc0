"""The fitting experiment: its data, a small run that goes on, and what it says."""

import dataclasses
import json

import pytest
import torch

from odenets.experiments import fitted, fitting
from odenets.experiments.fitting import Config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitting")
    return folder, fitting.run(Config(**fitting.SMALL), folder, progress=False)


def test_a_run_says_what_it_found(small):
    _, result = small
    assert [(line["strategy"], line["fits"], line["found"]) for line in result.summary["table"]] == [
        ("plain", 2, 1.0),
        ("auto", 2, 1.0),
    ]
    assert "decay: plain 100% and auto 100%" in result.lead
    inside = sum(run["within"] for run in result.summary["runs"])
    assert f"In {inside:.0f} of the 4 fits of constants that found it" in result.lead
    (section,) = result.sections
    assert section.tables[0].rows[0][:2] == ("plain", 2)
    assert [picture.name for picture in section.pictures] == ["decay-fits"]


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    monkeypatch.setattr(fitting, "fit_row", lambda *_: pytest.fail("fitted again"))
    again = fitting.run(Config(**fitting.SMALL), folder, resume=True, progress=False)
    assert json.dumps(again.summary) == json.dumps(first.summary)


def test_data_have_the_noise_and_gaps_that_they_say():
    times = torch.linspace(0, 4, 1001, dtype=torch.float64)
    problem = dataclasses.replace(fitted.PROBLEMS["decay"], gaps=0.1, times=times)
    seen = [fitted.data_of(problem, seed) for seed in range(3)]
    assert sum(len(times) for times, _ in seen) / 3003 == pytest.approx(0.9, abs=0.03)
    assert all(times[0] == 0 and times[-1] == 4 for times, _ in seen)  # which are always there
    missing = torch.cat([values.isnan().flatten() for _, values in seen]).double().mean()
    assert missing == pytest.approx(0.1, abs=0.03)
    off = torch.cat([values[:, 0] - 2 * torch.exp(-0.5 * times) for times, values in seen])
    assert off[~off.isnan()].std() == pytest.approx(0.05, rel=0.1)


def test_a_fit_that_cannot_begin_is_a_row(monkeypatch):
    monkeypatch.setattr(fitted, "fit_trajectory", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("cannot")))
    row = fitted.fit_row("decay", "plain", 0, 0, 1)
    assert row["failed"] == "cannot"
    assert row["found"] == 0


@pytest.mark.slow
def test_from_a_poor_start_a_plain_fit_ends_near_the_mean_and_auto_finds_the_solution():
    plain, auto = (fitted.fit_row("predators", strategy, 0, 0, 25) for strategy in ("plain", "auto"))
    assert plain["noise"] > 5
    assert plain["found"] == 0
    assert auto["noise"] < 1.2
    assert auto["worst"] < 3


@pytest.mark.slow
def test_a_network_is_a_row_without_constants():
    row = fitted.fit_row("network", fitted.PUBLISHED, 0, 0, 1)
    assert row["noise"] > 0
    assert "constants" not in row


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"iterations": 0}, {"grid": "huge"}])
def test_a_config_refuses_what_cannot_be_run(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        Config(**wrong)
