"""The spheres experiment: what is in the plane, networks of equal size, the bound of the line, and what is said."""

import json
import math

import pytest
import torch

from odenets.experiments import nested, spheres
from odenets.experiments.spheres import Config
from odenets.nn import count_parameters

TINY = Config(seeds=2, epochs=2, points=60, batch=30, iterations=3, hidden=4)


def test_a_third_of_the_points_lies_in_the_ball_and_none_between():
    x, labels = nested.ball_and_shell(3000, torch.Generator().manual_seed(0))
    radius = x.norm(dim=1)
    assert (labels == 0).sum() == 1000
    assert radius[labels == 0].max() <= 0.5
    assert 1 <= radius[labels == 1].min() < 1.01
    assert 1.49 < radius[labels == 1].max() <= 1.5
    assert (radius[labels == 0] < 0.25).double().mean().item() == pytest.approx(0.25, abs=0.05)  # dense as an area
    assert x.mean(0).abs().max() < 0.05


@pytest.mark.parametrize("width", [1, 2])
def test_the_networks_are_as_large_as_one_another(width):
    sizes = [count_parameters(nested.body(name, width, Config())) for name in nested.NETWORKS]
    assert max(sizes) < 1.06 * min(sizes)
    plain, augmented, resnet = (nested.body(name, width, Config()) for name in nested.NETWORKS)
    x = torch.randn(5, width)
    assert plain(x).shape == (5, width)
    assert augmented(x).shape == (5, width + 1)
    assert resnet(x).shape == (5, width)


def test_the_bound_is_that_of_the_best_increasing_map():
    assert spheres.bound_of_the_line() == pytest.approx(sum((i / 20) ** 2 for i in range(-20, 21)) / 41)
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    for slope in (0.0, 0.1, 1.0):
        assert (slope * x + x).square().mean() >= spheres.bound_of_the_line() - 1e-12


def test_a_flow_of_the_line_stays_above_the_bound_and_an_augmented_one_does_not():
    config = Config(iterations=40, hidden=16)
    plain, augmented, resnet = (spheres.line_row(name, config, 0) for name in nested.NETWORKS)
    assert plain["error"] == pytest.approx(spheres.bound_of_the_line(), abs=0.05)
    assert plain["error"] > spheres.bound_of_the_line() - 1e-3
    assert max(augmented["error"], resnet["error"]) < 0.1
    paths = torch.as_tensor(plain["paths"])[..., 0]
    assert (paths.diff(dim=1) > -1e-4).all()  # in order at all times
    assert resnet["nfe"] is None
    assert "nfes" not in resnet
    assert len(torch.as_tensor(resnet["paths"])) == nested.BLOCKS + 1


def test_paths_end_where_the_network_says():
    x = torch.randn(4, 2)
    for name in nested.NETWORKS:
        network = nested.body(name, 2, Config(rtol=1e-5, atol=1e-5))
        torch.testing.assert_close(nested.paths(network, x)[-1], network(x), rtol=1e-3, atol=1e-3)


def test_a_training_tells_the_ball_from_the_shell():
    row = spheres.spheres_row(nested.RESNET, Config(points=300, epochs=30, batch=30, lr=0.01), 0)
    assert row["accuracy"] > 0.9
    assert len(row["losses"]) == 30
    assert row["losses"][-1] < row["losses"][0]


def test_a_run_goes_on_from_its_pieces_and_says_what_it_found(tmp_path, monkeypatch):
    result = spheres.run(TINY, tmp_path, progress=False)
    assert len(list((tmp_path / "pieces").iterdir())) == 2 * 2 * 3
    monkeypatch.setattr(spheres, "train", lambda *_: pytest.fail("made again"))
    again = spheres.run(TINY, tmp_path, progress=False, resume=True)
    assert json.dumps(again.summary) == json.dumps(result.summary)
    runs = result.summary["runs"]
    for name in nested.NETWORKS:
        mine = [run["accuracy"] for run in runs if run["problem"] == "spheres" and run["network"] == name]
        assert f"the {name} {sum(mine) / 2:.3f}" in result.lead
    assert "no ODE-Net got below it" in result.lead
    assert f"{spheres.bound_of_the_line():.4f}" in result.lead
    first, second = result.sections
    assert ("always the shell", pytest.approx(2 / 3, abs=1e-3)) == (
        first.tables[0].rows[-1][0],
        float(first.tables[0].rows[-1][1]),
    )
    assert first.tables[0].columns[-2:] == ("published accuracy", "published evaluations")
    assert {p.name for p in first.pictures} >= {"spheres-ode-net", "spheres-augmented-ode-net", "spheres-nfes"}
    assert {p.name for p in second.pictures} == {"line-maps", "line-ode-net", "line-augmented-ode-net", "line-resnet"}


def test_a_training_that_fails_is_shown(tmp_path, monkeypatch):
    made = nested._made

    def broken(name, width, hidden, config):
        network = made(name, width, hidden, config)
        if name == nested.PLAIN:
            torch.nn.init.constant_(network.field.layers[0].weight, math.nan)
        return network

    monkeypatch.setattr(nested, "_made", broken)
    result = spheres.run(TINY, tmp_path, progress=False)
    assert sum("failed" in run for run in result.summary["runs"]) == 4
    assert "4 of the trainings failed: NON_FINITE" in result.lead
    assert "the ODE-Net" not in result.lead.partition("4 of")[0].replace("so the ODE-Net can", "")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points": 3}, "`points` must be at least 30, got 3"),
        ({"augment": 0}, "`augment` must be at least 1, got 0"),
        ({"activation": "step"}, "`activation` must be one of .*; got 'step'"),
        ({"method": "euler"}, "`method` 'euler' cannot adapt its steps"),
    ],
)
def test_a_config_refuses_what_cannot_be_run(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)
