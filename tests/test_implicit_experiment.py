"""The experiment with implicit layers: its closed forms, its networks, and what is made of the numbers."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from odenets.experiments import equilibrium, implicit
from odenets.experiments.equilibrium import BOUND, BOUNDED, EQUILIBRIUM, EXPLICIT, Network, Plan
from odenets.experiments.implicit import PROBLEMS, SMALL, Config

PLAN = Plan(width=6, epochs=1, method="anderson", tol=1e-6)


@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_the_closed_forms_solve_their_equations(number):
    g, exact, x, _ = list(PROBLEMS.values())[number]
    assert g(x, exact(x)).abs().max() < 1e-12


@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_newton_solves_all_of_them(number):
    row = implicit.closed_form("newton", number)
    assert row["solution"] < 1e-14
    assert row["gradient"] < 1e-14


def test_a_method_that_fails_says_so():
    row = implicit.closed_form("anderson", 0)
    assert "solution" not in row
    assert "the iteration runs away" in row["failed"]


def network(layers, bounded=False):
    torch.manual_seed(0)
    return Network(PLAN, layers, bounded)


def test_the_twins_have_equal_parameters_and_weights():
    for one, other in zip(network(0).parameters(), network(8, bounded=True).parameters()):
        assert torch.equal(one, other)


def test_the_equilibrium_is_what_many_layers_end_in():
    images = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    deep, implicit_net = network(200), network(0)
    outs = [net(images) for net in (implicit_net, deep)]
    torch.testing.assert_close(*outs, rtol=1e-3, atol=1e-4)
    for out in outs:
        out.square().sum().backward()
    for one, other in zip(implicit_net.parameters(), deep.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-3)


def test_a_bounded_cell_is_a_contraction():
    cell = network(0, bounded=True).cell
    small = cell.weight()
    assert torch.equal(small, cell.linear.weight)  # the bound is above its norm
    cell.linear.weight.data.mul_(50)
    assert torch.linalg.matrix_norm(cell.weight(), 2).item() == pytest.approx(BOUND)


def test_memory_is_that_of_the_tensors():
    images = torch.ones(3, 64)
    one, two = (equilibrium.kept_bytes(network(k), images) for k in (1, 2))
    assert two - one == 3 * 6 * 4  # a layer keeps what tanh returned, which is also the next one's input
    kept = equilibrium.memory(PLAN, 0)
    assert len({size for _, size in kept["implicit"]}) == 1
    assert kept["implicit"][-1][0] > kept["implicit"][0][0]


def test_a_training_that_is_lost_is_a_row(monkeypatch):
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda w, **_: nn.init.normal_(w, std=3.0))
    row = equilibrium.trained(EQUILIBRIUM, 0, PLAN, 0)
    assert (row["lost"], row["lost_in"], row["lost_at"]) == (1.0, 1, None)
    assert "was not solved" in row["failed"]
    assert "accuracy" not in row


def test_the_digits_are_divided_by_the_seed():
    images, labels, test, truth = equilibrium.digits(0, equilibrium.QUARTER)
    assert (images.shape, test.shape, len(labels), len(truth)) == ((1348, 64), (449, 64), 1348, 449)
    assert (images.min(), images.max()) == (-1, 1)
    assert not torch.equal(truth, equilibrium.digits(1, equilibrium.QUARTER)[3])


def test_the_small_form_runs_and_goes_on(tmp_path, monkeypatch):
    config = Config(**SMALL)
    first = implicit.run(config, tmp_path, progress=False)
    monkeypatch.setattr(implicit, "trained", lambda *_: pytest.fail("trained again"))
    again = implicit.run(config, tmp_path, resume=True, progress=False)
    assert again.summary == first.summary
    names = {row["network"] for row in first.summary["table"]}
    assert {EQUILIBRIUM, BOUNDED, EXPLICIT.format(1), "logistic regression"} <= names
    right = {row["network"]: row["accuracy"] for row in first.summary["table"]}
    assert 0.93 < right["logistic regression"] < 1
    assert right[BOUNDED] > 0.3  # a tenth is chance
    assert "does not depend on the iterations" in first.lead
    assert "1 of 9 do not (anderson for y + y³ = x)" in first.lead
    assert [picture.name for picture in first.pictures()] == ["accuracy", "memory"]


def rows(accuracies, name, **more):
    return [
        {"seed": i, "network": name, "lost": 0.0, "seconds": 1.0, "accuracy": a} | more
        for i, a in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    ("mine", "twin", "words"),
    [
        ([0.9, 0.91, 0.92], [0.97, 0.98, 0.99], "worse (-7.0 to -7.0 points"),
        ([0.99, 0.99, 0.99], [0.97, 0.98, 0.96], "not to be told from it (-0.5 to 4.5 points"),
    ],
)
def test_words_are_those_of_the_interval(mine, twin, words):
    said = implicit._equilibrium(
        rows(mine, EQUILIBRIUM), rows([0.97, 0.98, 0.99 if mine[0] < 0.95 else 0.96], "twin"), "x"
    )
    assert words in said


def test_lost_trainings_are_counted():
    lost = [{"seed": 3, "network": EQUILIBRIUM, "lost": 1.0, "lost_in": 4, "lost_at": 0.9, "failed": "…"}]
    twin = rows([0.9] * 4, "twin")
    assert implicit._equilibrium(lost, twin, "x") == (
        "A deep equilibrium network with x is lost in 1 of 1 trainings, first in epoch 4, since nothing is found."
    )
    said = implicit._equilibrium([*rows([0.8, 0.9], EQUILIBRIUM), *lost], twin, "x")
    assert "in 1 of 3 trainings, first in epoch 4, since nothing is found, and otherwise is right for 85.0%" in said


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "euler"}, "`method` must be one of newton, anderson, broyden; got 'euler'"),
        ({"tol": 0.0}, "`tol` must be between 0 and 1, got 0.0"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
    ],
)
def test_a_config_refuses_what_cannot_be_run(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(Config(), **wrong)
