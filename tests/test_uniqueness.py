"""The uniqueness experiment: its bounds on fields whose constants are known, its failures, and a whole small run."""

import math

import pytest
import torch
from torch import nn

from odenets.experiments import lipschitz, uniqueness
from odenets.experiments.lipschitz import SLOPES, blowup_row, integration, lower_bounds, measured_slope, upper_bound
from odenets.experiments.uniqueness import Config, best_of, run
from odenets.nn.field import ACTIVATIONS, MLPField

D = torch.float64


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uniqueness")
    return folder, run(Config(**uniqueness.SMALL), folder, progress=False)


def test_the_small_form_runs_and_says_what_it_found(small):
    _, result = small
    assert {row["activation"] for row in result.summary["table"]} == {"tanh", "relu", "elu"}
    assert "tanh is the best in " in result.lead
    assert {picture.name for picture in result.pictures()} >= {"picard", "kink-order-smooth", "kink-work-kinked"}
    constants = [row for row in result.summary["runs"] if "upper" in row]
    assert all(row["sampled"] <= row["found"] <= row["upper"] for row in constants)


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    for name in ("kink_row", "trained_row", "root_row"):
        monkeypatch.setattr(uniqueness, name, lambda *_: pytest.fail("made again"))
    again = run(Config(**uniqueness.SMALL), folder, resume=True, progress=False)
    assert str(again.summary) == str(first.summary)


def test_integration_is_exact_for_polynomials():
    t, matrix = integration(12, 3.0)
    assert t[0] == 0
    assert t[-1] == pytest.approx(3.0)
    for power in range(11):
        assert torch.allclose(matrix @ t**power, t ** (power + 1) / (power + 1), rtol=1e-11, atol=1e-10)


def test_picards_iterates_of_the_exponential_are_its_taylor_polynomials():
    row = lipschitz.picard_row("u′ = u", 8)
    for k, iterate in enumerate(row["iterates"]):
        assert torch.allclose(
            iterate, torch.stack([row["t"] ** j / math.factorial(j) for j in range(k + 1)]).sum(0), atol=1e-12
        )
    assert row["M"] == pytest.approx(math.exp(2), rel=1e-9)
    assert row["bounds"][3] == pytest.approx(math.exp(2) * 2**4 / 24)
    assert row["broken"] == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_largest_slopes_are_those_of_the_activations(name):
    assert measured_slope(name) == pytest.approx(SLOPES[name], abs=1e-4)
    assert measured_slope(name) <= SLOPES[name]


def test_bounds_meet_where_the_constant_is_known():
    field = MLPField(2, (2,), "identity", time="none").double().requires_grad_(False)
    first, second = (layer for layer in field.modules() if isinstance(layer, nn.Linear))
    first.weight.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    second.weight.copy_(torch.diag(torch.tensor([2.0, 5.0])))
    assert upper_bound(field, "identity") == pytest.approx(15)  # the product; of the linear map it is 6
    sampled, found = lower_bounds(field, 2, 0, pairs=32, ascents=100)
    assert sampled <= found <= 6 + 1e-12
    assert found == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize("y0", [1.0, 100.0])
def test_a_blow_up_is_found_where_it_is(y0):
    row = blowup_row("tsit5", y0)
    assert row["status"] == "DIVERGED"
    assert row["t"] == pytest.approx(1 / y0, rel=1e-4)


def test_two_solutions_from_nearly_the_same_start():
    row = lipschitz.root_row("dopri5", 3.0)
    assert row["value 0"] == 0
    assert row["value 1e-12"] == pytest.approx(2.25, rel=1e-3)


def test_a_kink_takes_the_order():
    relu, tanh = (lipschitz.kink_row(name, 0, 64, 1e-7) for name in ("relu", "tanh"))
    assert tanh["rk4"] > 3.5
    assert relu["rk4"] < 3


def test_the_best_is_that_of_the_best_mean():
    rows = [
        {"activation": "tanh", "accuracy": 0.9, "nfe": 20, "gradient": 1e-3},
        {"activation": "relu", "accuracy": 0.95, "nfe": 40, "gradient": 1e-2},
        {"activation": "identity", "accuracy": 1.0, "nfe": 1, "gradient": 0.0},
        {"activation": "elu", "accuracy": None, "nfe": None, "gradient": None},
    ]
    assert best_of(rows) == {"accuracy": "relu", "nfe": "tanh", "gradient": "tanh"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seeds": 0}, "`seeds`"), ({"rtol": 0.0}, "`rtol` must be above 0"), ({"activations": "some"}, "all, few")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
