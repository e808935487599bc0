"""The spirals experiment: its curves, what is seen of them, its two models, and a run that goes on."""

import json
import math

import pytest
import torch

from odenets.experiments import spirals
from odenets.experiments import spirals_shown as shown
from odenets.experiments.spirals import AHEAD, BEFORE, GAP, SEEN, Config, Held, Latent, Rolled, run

TINY = {**spirals.SMALL, "iterations": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spirals")
    return folder, run(Config(**TINY), folder, progress=False)


def test_half_of_the_spirals_turn_clockwise_around_their_own_centre():
    drawn = spirals.draw(40, 0)
    assert drawn.clockwise.tolist() == [True] * 20 + [False] * 20
    for which, centre, turn in ((True, -5.0, -1), (False, 5.0, 1)):
        x, y = (drawn.clean[drawn.clockwise == which] - torch.tensor([centre, 0.0])).double().unbind(-1)
        cross = x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]
        there = cross.isfinite()
        assert bool((turn * cross[there] > 0).all())
        angle = torch.atan2(cross, x[:, :-1] * x[:, 1:] + y[:, :-1] * y[:, 1:])[there]
        torch.testing.assert_close(angle, torch.full_like(angle, turn * GAP), rtol=0, atol=1e-4)
    radius = (drawn.clean - torch.where(drawn.clockwise[:, None, None], -1, 1) * torch.tensor([5.0, 0.0])).norm(dim=-1)
    assert bool((radius.diff(dim=1)[radius.diff(dim=1).isfinite()] > 0).all())
    assert drawn.clean[:, : BEFORE + SEEN].isfinite().all()
    noise = (drawn.noisy - drawn.clean).double()
    assert float(noise.square().nanmean().sqrt()) == pytest.approx(0.3, rel=0.03)


def test_seeds_draw_other_spirals():
    one, same, other = (spirals.draw(40, seed).noisy.nan_to_num() for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("number", [1, 30, 100])
def test_so_many_points_are_seen_and_stand_on_the_grid(number):
    drawn = spirals.draw(40, 0)
    series = spirals.seen(drawn, number, 0)
    assert series.lengths.tolist() == [number] * 40
    assert not series.times[:, 0].any()
    full = spirals.on_grid(series, torch.arange(SEEN))
    assert full.mask.all(2).sum(1).tolist() == [number] * 40
    expected = drawn.noisy[:, BEFORE : BEFORE + SEEN] / spirals.SCALE
    assert torch.equal(full.values[full.mask], expected[full.mask])
    few = spirals.on_grid(series, torch.tensor([0, 7]))
    assert torch.equal(few.times[3], spirals.grid(0, 8)[[0, 7]])
    assert torch.equal(few.values.nan_to_num(), full.values[:, [0, 7]].nan_to_num())


def test_the_error_leaves_out_what_is_not_there():
    truth = torch.tensor([[[0.0, 0.0], [math.nan, math.nan]]])
    assert spirals.rmse(torch.tensor([[[3.0, 1.0], [9.0, 9.0]]]), truth) == pytest.approx(math.sqrt(5))
    assert spirals.rmse(truth, truth) == 0


def test_the_last_point_holds():
    series = spirals.seen(spirals.draw(40, 0), 30, 0)
    predicted = Held().predict(series, SEEN, SEEN + AHEAD)
    assert predicted.shape == (40, AHEAD, 2)
    assert torch.equal(predicted[:, 7], series.values[torch.arange(40), series.lengths - 1])


def test_the_rnn_goes_on_from_its_own_predictions():
    """Each stride ends in a point that is then as good as seen; places between are asked from where it begins."""
    torch.manual_seed(0)
    model, series = Rolled(), spirals.seen(spirals.draw(40, 0), 40, 0)
    predicted = model.predict(series, SEEN, SEEN + 6)  # strides of 2
    longer = torch.cat([series.values, predicted[:, 1:2]], dim=1)
    times = torch.cat([series.times, spirals.grid(SEEN + 1, SEEN + 2).expand(40, -1)], dim=1)
    again = model.predict(spirals.Series(times, longer), SEEN + 2, SEEN + 6)
    torch.testing.assert_close(again, predicted[:, 2:])


def test_each_model_learns_from_its_loss():
    series = spirals.seen(spirals.draw(40, 0), 10, 0)
    config = Config(spirals=40, iterations=20, batch_size=20)
    for make in (Latent, Rolled):
        losses = spirals.trained(make, series, config, 0)[1]
        assert losses[-1] < 0.8 * losses[0]


def test_the_latent_ode_is_asked_backward_in_time_too():
    torch.manual_seed(0)
    model, series = Latent(), spirals.seen(spirals.draw(40, 0), 5, 0)[[0, 30]]
    both = model.predict(series, -BEFORE, SEEN)
    assert both.shape == (2, BEFORE + SEEN, 2)
    torch.testing.assert_close(both[:, BEFORE:], model.predict(series, 0, SEEN), rtol=0, atol=1e-3)


def test_small_run(small):
    _, result = small
    table = {(row["model"], row["points"]): row for row in result.summary["table"]}
    assert set(table) == {(m, n) for m in (shown.ODE, shown.RNN, shown.HELD) for n in (30, 50, 100)}
    assert len(list(result.pictures())) == 1 + 6 + 1
    for row in table.values():
        assert row["new_clean"]["mean"] > 0
    json.dumps(result.summary["runs"], allow_nan=False)


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    monkeypatch.setattr(spirals, "model_row", lambda *arguments: pytest.fail("trained again"))
    again = run(Config(**TINY), folder, resume=True, progress=False)
    assert str(again.summary) == str(first.summary)
    assert again.lead == first.lead


def test_words_follow_the_numbers():
    def rows(ode, rnn):
        models = {shown.ODE: ode, shown.RNN: rnn, shown.HELD: 3.0}
        return [{"model": m, "points": n, "new_clean": x} for m, x in models.items() for n in (30, 50, 100)]

    said = shown.lead(rows(0.14, 0.3))
    assert "at or below its published error with 30 and 50 points, and ahead of the RNN with every number" in said
    said = shown.lead(rows(0.2, 0.1))
    assert "at or below its published error with no number of points, and ahead of the RNN with no number" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spirals": 4}, "`spirals` must be at least 40, got 4"),
        ({"iterations": 0}, "`iterations` must be at least 1, got 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
