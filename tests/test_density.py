"""The density experiment: its points and their true densities, its rows, and what is said of them."""

import json
import math

import pytest
import torch

from odenets.experiments import density, planes
from odenets.experiments.density import Config

TINY = Config(**{**density.SMALL, "iterations": 3, "points": 80, "batch": 20, "width": 4, "depth": 1})


@pytest.mark.parametrize("name", planes.DATA)
def test_the_true_density_is_that_of_the_points(name):
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    step = (axis[1] - axis[0]).item()
    places = torch.cartesian_prod(axis, axis) + 1e-9
    mass = planes.true_log_density(name, places).exp() * step**2
    assert mass.sum().item() == pytest.approx(1, abs=0.02 if name == "checkerboard" else 1e-6)
    points, _, _ = planes.draw(name, 0, 20000)
    for half in (lambda x: x[:, 0] > 1, lambda x: x[:, 1] < -0.5, lambda x: x.norm(dim=1) < 1.7):
        assert half(points).double().mean().item() == pytest.approx(mass[half(places)].sum().item(), abs=0.02)


def test_points_come_in_three_parts_decided_by_the_seed():
    train, validation, test = planes.draw("checkerboard", 1, 40)
    assert (len(train), len(validation), len(test)) == (40, 10, 40)
    assert torch.equal(train, planes.draw("checkerboard", 1, 40)[0])
    assert not torch.equal(train, planes.draw("checkerboard", 2, 40)[0])
    assert not torch.equal(train, test)
    assert torch.isfinite(planes.true_log_density("checkerboard", train)).all()


def test_what_is_known_is_measured_exactly():
    assert density.known_row("checkerboard", density.TRUTH, 0, 400, False)["nll"] == pytest.approx(math.log(32))
    row = density.known_row("circles", density.GAUSSIAN, 0, 4000, True)
    variance = (3**2 + 1.5**2) / 4 + 0.24**2  # of each coordinate
    assert row["nll"] == pytest.approx(math.log(2 * math.pi * variance) + 1, abs=0.02)
    assert row["mass"] == pytest.approx(1, abs=0.05)


def test_the_mixture_is_chosen_by_validation_and_beats_one_gaussian():
    row = density.mixture_row("moons", 0, 400, False)
    assert row["components"] in density.COMPONENTS[2:]
    truth, one = (density.known_row("moons", m, 0, 400, False)["nll"] for m in (density.TRUTH, density.GAUSSIAN))
    assert truth < row["nll"] < one


def test_a_flow_comes_nearer_and_its_density_integrates_to_one():
    config = Config(**{**density.SMALL, "iterations": 30, "lr": 0.03, "width": 8, "depth": 2})
    row = density.flow_row("moons", "exact", 0, config, True)
    assert row["losses"][-1] < row["losses"][0] - 0.2
    assert row["mass"] == pytest.approx(1, abs=0.02)
    assert row["nll"] > density.known_row("moons", density.TRUTH, 0, 400, False)["nll"]
    assert row["iterations"] == [20, 30]
    paths = row["paths"]
    assert torch.as_tensor(paths).shape == (31, 60, 2)
    assert torch.as_tensor(row["samples"]).shape == (600, 2)


def test_a_run_goes_on_from_its_pieces_and_says_who_is_nearest(tmp_path, monkeypatch):
    result = density.run(TINY, tmp_path, progress=False)
    kept = sorted(path.stem for path in (tmp_path / "pieces").iterdir())
    assert kept == ["moons-exact-0", "moons-hutchinson-0", "moons-known0-0", "moons-known1-0", "moons-mixture-0"]
    monkeypatch.setattr(density, "flow_row", lambda *_: pytest.fail("made again"))
    again = density.run(TINY, tmp_path, progress=False, resume=True)
    assert json.dumps(again.summary) == json.dumps(result.summary)
    assert [section.title for section in result.sections] == ["How well, and at what cost", "Moons"]
    nll = {row["model"]: row["nll"] for row in result.summary["runs"]}
    nearest = min((m for m in nll if m != density.TRUTH), key=nll.__getitem__)
    excess = nll[nearest] - nll[density.TRUTH]
    assert f"the {nearest} is nearest to the truth, with an excess of {excess:.3f} nats" in result.lead
    names = {picture.name for picture in result.pictures()}
    assert names == {"training", "evaluations", "moons-maps", "moons-samples", "moons-paths"}


def test_a_training_that_fails_is_shown(tmp_path, monkeypatch):
    def fails(flow, *_):
        with torch.no_grad():
            flow.field.layers[0].linear.weight.fill_(math.nan)
        flow.log_prob(torch.zeros(1, 2))

    monkeypatch.setattr(density, "_train", fails)
    result = density.run(Config(**{**vars(TINY), "trace": "exact"}), tmp_path, progress=False)
    (failed,) = (row for row in result.summary["runs"] if "failed" in row)
    assert "nll" not in failed
    assert f"1 of the trainings failed: {failed['failed']}" in result.lead
    assert "flow" not in result.lead.partition("The excess")[0].partition("1 of the trainings")[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": "rings"}, "`data` must be one of moons, circles, checkerboard, all; got 'rings'"),
        ({"trace": "none"}, "`trace` must be one of exact, hutchinson, both; got 'none'"),
        ({"points": 10}, "`points` must be at least 40, got 10"),
        ({"iterations": 0}, "`iterations` must be at least 1, got 0"),
    ],
)
def test_a_config_refuses_what_cannot_be_run(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)
