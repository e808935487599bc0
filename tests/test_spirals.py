"""The spirals experiment: its curves, what is seen of them, its two models, and a run that goes on."""

import json
import math

import pytest
import torch

from odenets.experiments import spirals, spirals_models
from odenets.experiments import spirals_shown as shown
from odenets.experiments.spirals import Config, run
from odenets.experiments.spirals_data import AHEAD, BEFORE, GAP, NOISE, SCALE, SEEN, curve, draw, grid, places, seen
from odenets.experiments.spirals_models import AsPublished, Held, Known, Latent, Rolled
from odenets.series import Series

TINY = {**spirals.SMALL, "iterations": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spirals")
    return folder, run(Config(**TINY), folder, progress=False)


def test_half_of_the_spirals_turn_clockwise_around_their_own_centre():
    drawn = draw(40, 0)
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
    one, same, other = (draw(40, seed).noisy.nan_to_num() for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("number", [1, 30, 100])
def test_so_many_points_are_seen_and_stand_on_the_grid(number):
    drawn = draw(40, 0)
    series = seen(drawn, number, 0)
    assert series.lengths.tolist() == [number] * 40
    assert not series.times[:, 0].any()
    at = places(series)
    assert bool((at.diff(dim=1) > 0).all())
    assert int(at.min()) >= 0
    assert int(at.max()) < SEEN
    torch.testing.assert_close(series.times, GAP * at.double(), rtol=0, atol=1e-12)
    expected = drawn.noisy[:, BEFORE : BEFORE + SEEN] / SCALE
    assert torch.equal(series.values, expected.gather(1, at[..., None].expand(-1, -1, 2)))


def test_the_error_leaves_out_what_is_not_there():
    truth = torch.tensor([[[0.0, 0.0], [math.nan, math.nan]]])
    assert spirals.rmse(torch.tensor([[[3.0, 1.0], [9.0, 9.0]]]), truth) == pytest.approx(math.sqrt(5))
    assert spirals.rmse(truth, truth) == 0
    three = torch.tensor([1.0, 2.0, 30.0])[:, None, None].expand(3, 1, 2)
    assert spirals.median_rmse(three, torch.zeros(3, 1, 2)) == 2


def test_who_knows_both_curves_is_as_good_as_the_noise_allows():
    """The place is one number: its error is the noise over the root of the squared speeds of the points seen."""
    drawn = draw(40, 0)
    noiseless = seen(drawn._replace(noisy=drawn.clean), 30, 0)
    exact = SCALE * Known().predict(noiseless, SEEN, SEEN + AHEAD)
    assert spirals.rmse(exact, drawn.clean[:, BEFORE + SEEN :]) < 1e-5
    off = spirals.rmse(SCALE * Known().predict(seen(drawn, 30, 0), SEEN, SEEN + AHEAD), drawn.clean[:, BEFORE + SEEN :])
    assert NOISE / math.sqrt(2 * 30) / 2 < off < 2 * NOISE / math.sqrt(30)


def test_a_curve_has_places_between_its_points():
    at = torch.tensor([500.0, 500.5, 501.0], dtype=torch.float64)
    for clockwise in (True, False):
        first, middle, last = curve(clockwise, at)
        torch.testing.assert_close(middle, (first + last) / 2, rtol=0, atol=1e-3)


def test_the_last_point_holds():
    series = seen(draw(40, 0), 30, 0)
    predicted = Held().predict(series, SEEN, SEEN + AHEAD)
    assert predicted.shape == (40, AHEAD, 2)
    assert torch.equal(predicted[:, 7], series.values[torch.arange(40), series.lengths - 1])


def test_the_rnn_goes_on_from_its_own_predictions():
    """Each stride ends in a point that is then as good as seen; places between are asked from where it begins."""
    torch.manual_seed(0)
    model, series = Rolled(), seen(draw(40, 0), 40, 0)
    predicted = model.predict(series, SEEN, SEEN + 6)  # strides of 2
    longer = torch.cat([series.values, predicted[:, 1:2]], dim=1)
    times = torch.cat([series.times, grid(SEEN + 1, SEEN + 2).expand(40, -1)], dim=1)
    again = model.predict(Series(times, longer), SEEN + 2, SEEN + 6)
    torch.testing.assert_close(again, predicted[:, 2:])


def test_each_model_learns_from_its_loss():
    series = seen(draw(40, 0), 10, 0)
    config = Config(spirals=40, iterations=12, batch_size=10)
    for make in (Latent, AsPublished, Rolled):
        losses = spirals.trained(make, series, config, 0)[1]
        assert losses[-1] < 0.8 * losses[0]


def test_the_latent_ode_is_asked_backward_in_time_too():
    torch.manual_seed(0)
    model, series = Latent(), seen(draw(40, 0), 5, 0)[[0, 30]]
    both = model.predict(series, -BEFORE, SEEN)
    assert both.shape == (2, BEFORE + SEEN, 2)
    torch.testing.assert_close(both[:, BEFORE:], model.predict(series, 0, SEEN), rtol=0, atol=1e-3)


def test_small_run(small):
    _, result = small
    table = {(row["model"], row["points"]): row for row in result.summary["table"]}
    assert set(table) == {
        (m, n) for m in (shown.ODE, shown.THEIRS, shown.RNN, shown.HELD, shown.KNOWN) for n in (30, 50, 100)
    }
    assert len(list(result.pictures())) == 1 + 9 + 1
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
    def rows(ode, theirs, rnn):
        models = {shown.ODE: ode, shown.THEIRS: theirs, shown.RNN: rnn, shown.HELD: 3.0, shown.KNOWN: 0.05}
        return [{"model": m, "points": n, "new_clean": x} for m, x in models.items() for n in (30, 50, 100)]

    said = shown.lead(rows(0.14, 1.0, 0.3))
    assert "at or below its published error with 30 and 50 points, the one as published" in said
    assert "on these spirals, with no number of points; ahead of the RNN the first is with every number" in said
    said = shown.lead(rows(0.2, 0.1, 0.1))
    assert "at or below its published error with no number of points" in said
    assert "with every number of points; ahead of the RNN the first is with no number of points" in said


def test_a_flow_that_leaves_the_encoder_costs():
    mean = torch.tensor([[[1.0, 2.0]]])
    log_sd = torch.tensor([[[0.0, math.log(0.5)]]])
    normal = torch.distributions.Normal(mean, log_sd.exp())
    for z in (mean, mean + 3, mean - 0.1):
        expected = -(normal.log_prob(z) + 0.5 * math.log(2 * math.pi)).sum()
        torch.testing.assert_close(spirals_models._meets(z, mean, log_sd), expected)


def test_z_is_pulled_to_where_spirals_begin():
    begun = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    z = torch.tensor([[0.3, 0.4], [40.0, 30.0]], requires_grad=True)
    told = spirals_models._stays(z, begun, torch.tensor(0.5))
    kernels = [[(1 + d / 0.5) ** -2 for d in each] for each in ((0.25, 3.7**2 + 0.16), (2500.0, 36.0**2 + 900.0))]
    assert told.item() == pytest.approx(-sum(math.log(sum(each)) for each in kernels) / 2, rel=1e-5)
    (pull,) = torch.autograd.grad(told, z)
    assert bool((pull > 0).all())  # downhill is to (0, 0) and (4, 0), from far away too


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
