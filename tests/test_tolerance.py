"""The tolerance experiment: its settings and losses, its words by the numbers, and a run that goes on."""

from functools import partial

import pytest
import torch
from torch import nn

from odenets.data.synthetic import make_synthetic
from odenets.experiments import tolerance, training_cost
from odenets.experiments.tolerance import Config, run
from odenets.experiments.training_cost import (
    PENALTIES,
    PLAIN,
    RESNET,
    Setting,
    adaptive,
    fixed,
    load,
    network,
    summary_of,
    train_row,
)
from odenets.nn import count_parameters

TINY = {**tolerance.SMALL, "samples": 96}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tolerance")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_cost, "_TUNING_SECONDS", 0.1)
        return folder, run(Config(**TINY), folder, progress=False)


def test_the_digits_are_split_once():
    problem = load("digits", 10_000)
    assert len(problem.train[0]) + len(problem.test[0]) == 1797
    assert problem.outputs == 10
    assert float(problem.train[0].max()) == 1.0
    assert 0.85 < problem.commonest < 0.95
    few = load("digits", 100)
    assert torch.equal(few.train[0], problem.train[0][:100])
    assert len(few.test[0]) == 50


def test_resnet_and_ode_net_are_of_a_size():
    problem = load("digits", 64)
    sizes = [count_parameters(network(problem, setting, 0)) for setting in (Setting(RESNET), PLAIN)]
    assert sizes[0] / sizes[1] == pytest.approx(1.0, abs=0.4)


def test_equal_seeds_start_from_equal_weights():
    problem = load("digits", 64)
    one, same, other = (network(problem, adaptive("tsit5", t), seed) for t, seed in ((1e-1, 0), (1e-5, 0), (1e-1, 1)))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_loss_has_its_regularisers_in_training_alone():
    problem = load("digits", 64)
    setting = PENALTIES[2]
    model = network(problem, setting, 0)
    x, y = problem.train
    out = model(x)
    plain = nn.functional.cross_entropy(out, y)
    costs = model.block.regularisation
    whole = training_cost._loss(model, setting.regularise, out, y)
    expected = plain + 0.01 * costs["kinetic"].mean() + 0.01 * costs["jacobian"].mean()
    torch.testing.assert_close(whole, expected)
    out = model.eval()(x)
    assert torch.equal(training_cost._loss(model, setting.regularise, out, y), nn.functional.cross_entropy(out, y))


def test_one_step_of_euler_is_no_ode_and_a_tight_tolerance_is():
    coarse, fine = (train_row("digits", 128, 3, setting, 0) for setting in (fixed("euler", 1), adaptive("tsit5", 1e-5)))
    assert (coarse["nfe"], coarse["nfe_backward"]) == (1.0, 0.0)
    assert fine["change"] < 1e-4 < 1e-2 < coarse["output_change"]
    assert fine["reconstruction"] < 1e-2


def test_a_training_that_fails_is_a_row(monkeypatch):
    steps = Setting("doomed", {"method": "tsit5", "max_steps": 1, "rtol": 1e-6, "atol": 1e-6})
    row = train_row("digits", 64, 1, steps, 0)
    assert row["failure"].startswith("SolveError: MAX_STEPS")
    assert "test_loss" not in row
    assert summary_of([row])[0]["failed"] == 1


def test_the_numbers_of_the_small_form(small):
    result = small[1]
    table = {row["setting"]: row for row in result.summary["table"]}
    assert len(table) == 1 + 4 + 3 + 1 + 4
    assert table["rk4, 1 steps"]["nfe"]["mean"] == 4.0
    assert table[RESNET]["nfe"] is None
    assert table["tsit5 0.001"]["change"]["mean"] < 0.01
    chosen = table[training_cost.TUNED]["chosen"]
    assert f"chose {chosen}" in result.lead
    assert "“Slower training”" in result.lead
    assert all(row["failed"] == 0 for row in table.values())


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    monkeypatch.setattr(tolerance, "train_row", lambda *arguments: pytest.fail("trained again"))
    again = run(Config(**TINY), folder, resume=True, progress=False)
    assert str(again.summary) == str(first.summary)
    assert again.lead == first.lead


def test_words_follow_the_numbers(small):
    rows = [dict(row) for row in small[1].summary["table"]]
    by = {row["setting"]: row for row in rows}
    assert " holds here" in tolerance._on_time({**by, RESNET: {**by[RESNET], "seconds": {"mean": 1e-9}}})
    assert "does not hold here" in tolerance._on_time({**by, RESNET: {**by[RESNET], "seconds": {"mean": 1e9}}})
    disguised = {**by, "euler, 1 steps": {**by["euler, 1 steps"], "change": {"mean": 0.5}}}
    assert "euler, 1 steps by 50.0%" in tolerance._on_being_an_ode(disguised)


def test_heartbeats(monkeypatch):
    """Made-up ones here; the records where ODENETS_DATA names them."""
    monkeypatch.setattr("odenets.data.ecg.make_synthetic", partial(make_synthetic, 1200))
    real = training_cost.load_ecg
    monkeypatch.setattr(training_cost, "load_ecg", lambda data, *rest, **options: real("synthetic", *rest, **options))
    problem = load.__wrapped__("ecg", 64)
    assert problem.synthetic
    assert problem.train[0].shape == (64, 187)
    assert problem.test[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "mnist"}, "`data` must be one of digits, ecg; got 'mnist'"),
        ({"grid": "huge"}, "`grid` must be one of small, full; got 'huge'"),
        ({"samples": 5}, "`samples` must be at least 20, got 5"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_a_run_whose_trainings_all_fail_says_so(tmp_path, monkeypatch):
    def fails(data, samples, epochs, setting, seed):
        row = {"setting": setting.name, "seed": seed, "chosen": None, "tuning": 0.0}
        return {**row, "failure": "NonFiniteLoss: the loss is NaN"}

    monkeypatch.setattr(tolerance, "train_row", fails)
    result = run(Config(**TINY), tmp_path, progress=False)
    assert "13 of 13 trainings failed" in result.lead
