"""The interpolation experiment: what fills in, what counts as an error, and a run that goes on."""

import json

import pytest
import torch

from odenets.experiments import interpolation
from odenets.experiments import interpolation_shown as shown
from odenets.experiments.interpolation import SMALL, Config, Problem, errors, last, line, mean, problem_of, run
from odenets.series import from_arrays

NAN = float("nan")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpolation")
    return folder, run(Config(**SMALL), folder, progress=False)


def test_straight_lines_last_values_and_means():
    series = from_arrays(
        [[0.0, 1.0, 3.0, 5.0], [0.0, 2.0]], [[[NAN, NAN], [2.0, NAN], [NAN, NAN], [6.0, NAN]], [[1.0, 4.0], [NAN, NAN]]]
    )
    assert line(series)[0].T.tolist() == [[2, 2, 4, 6], [0, 0, 0, 0]]
    assert last(series)[0].T.tolist() == [[0, 2, 2, 6], [0, 0, 0, 0]]
    assert line(series)[1, :2].tolist() == [[1, 4], [1, 4]]
    assert not mean(series).any()


def test_an_error_is_that_of_the_values_which_are_not_shown():
    """Who says what was shown, and one more everywhere else, is off by one; over the range of the channel by a half."""
    series = from_arrays([range(40)] * 3, [torch.randn(40, 2)] * 3)
    problem = Problem(series, series, torch.tensor([2.0, 2.0]))

    def predict(seen, every):
        known = interpolation._filled(lambda x: x.values, seen, every)
        rows = seen.lengths[0]
        assert (~known.isnan()).sum(1).unique().tolist() == [rows]
        return known.where(~known.isnan(), every.values + 1)

    found = errors(predict, problem, 0)
    for share in shown.SHARES:
        assert found[shown.key(share)] == pytest.approx(1.0, rel=1e-5)
        assert found[shown.key(share, "range")] == pytest.approx(0.25, rel=1e-5)


def test_a_straight_line_is_right_on_straight_lines_alone():
    times = torch.rand(5, 30, dtype=torch.float64).sort(1).values
    series = from_arrays(times, torch.stack([times, times**2], dim=2))
    problem = Problem(series, series, torch.ones(2))
    whole = errors(lambda seen, every: interpolation._filled(line, seen, every), problem, 0)
    steps = errors(lambda seen, every: interpolation._filled(last, seen, every), problem, 0)
    assert all(whole[shown.key(share)] < steps[shown.key(share)] for share in shown.SHARES)
    straight = Problem(series, from_arrays(times, times[..., None]), torch.ones(1))
    found = errors(lambda seen, every: interpolation._filled(line, seen, every), straight, 0)
    assert 0 < found[shown.key(0.5)] < 1e-3  # behind the last row that is shown it is level


def test_everything_is_scaled_by_the_part_that_is_trained_on():
    problem = problem_of("synthetic", None, 60, 0.5)
    assert (len(problem.train), len(problem.test)) == (48, 12)
    assert not set(problem.train.ids) & set(problem.test.ids)
    flat = problem.train.values.flatten(0, 1)
    assert flat.nanmean(0).abs().max() < 0.05
    assert float(problem.train.end.max()) == pytest.approx(1.0)


def test_a_run_has_every_model_and_goes_on(small, monkeypatch):
    folder, result = small
    rows = {row["model"]: row for row in result.summary["runs"]}
    assert set(rows) == {*interpolation.SIMPLE, *interpolation.ENCODERS}
    assert rows[shown.LINE][shown.key(0.5)] < rows[shown.LAST][shown.key(0.5)] < rows[shown.MEAN][shown.key(0.5)]
    assert "arXiv" not in json.dumps([section.tables[0].note for section in result.sections])  # beside real ones alone
    assert "arXiv" in shown.published({"synthetic": False}, result.summary["runs"]).tables[0].note
    json.dumps(result.summary["runs"], allow_nan=False)
    monkeypatch.setattr(interpolation, "model_row", lambda *_: pytest.fail("trained again"))
    assert run(Config(**SMALL), folder, resume=True, progress=False).summary["runs"] == result.summary["runs"]


def test_words_follow_the_numbers():
    problem = {"train": 10, "test": 5, "channels": 2, "rows": 7.0}

    def rows(ode):
        values = {shown.MEAN: 1.0, shown.LAST: 0.8, shown.LINE: 0.5, shown.GRU: 0.9, shown.ODE: ode}
        return [{"model": m, "seed": 0, **{shown.key(s): x for s in shown.SHARES}} for m, x in values.items()]

    assert "50%: 0.400 (latent ODE, ODE-RNN) against 0.500 (straight line)" in shown.lead(problem, rows(0.4))
    assert "50%: 0.900 (latent ODE, GRU) against 0.500 (straight line)" in shown.lead(problem, rows(0.95))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"data": "mnist"}, "`data` must be one of auto"), ({"latent": 0}, "`latent` must be at least 1, got 0")],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
