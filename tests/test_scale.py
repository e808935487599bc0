"""The laws of the benchmark of scale, and what the page says of its results."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULT = json.loads((ROOT / "results" / "scale.json").read_text())


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("scale")
    for name in ("scale", "measure"):
        del sys.modules[name]


def test_a_law_is_found_again(scale):
    values = (1, 4, 16, 64, 256)
    found = scale.law("steps", values, [0.5 + 0.25 * n for n in values])
    assert found["fixed_us"] == pytest.approx(500)
    assert found["unit_us"] == pytest.approx(250)
    assert scale.law("steps", values, [n**1.5 for n in values])["exponent"] == pytest.approx(1.5)
    assert scale.law("width", values, [n**2 for n in values])["exponent"] == pytest.approx(1.0)  # of the weights


def test_from_where_f_has_most_of_the_time(scale):
    values = (1, 10, 100)
    found = scale.dominated(values, [10.0, 10.0, 10.0], [1.0, 4.0, 8.0])
    assert found["share"] == pytest.approx([0.9, 0.6, 0.2])
    assert found["half"] == pytest.approx(10**1.25)  # a quarter of the way from 0.6 to 0.2
    assert found["tenth"] is None
    assert scale.dominated(values, [10.0] * 3, [9.5] * 3)["tenth"] == 1.0


def test_a_training_step_is_measured_as_it_is(scale, monkeypatch):
    """What each way does, with its evaluations of f counted."""
    case = scale.Case(steps=3, batch=2, width=4, outputs=2, solves=2)
    training = scale.Training(case)
    calls = []
    training.field.register_forward_hook(lambda *_: calls.append(1))
    training.step(training.ours())()
    nfe, again = training.counts()
    assert len(calls) == 1.5 * (nfe + again)  # two solves, and that of `counts`
    calls.clear()
    training.evaluations(6)()
    training.again(5)()
    assert len(calls) == 11


def test_the_page_says_what_was_measured():
    for axis, curve in RESULT["axes"].items():
        for way, law in curve["laws"].items():
            changes = (axis, way) == ("steps", "Checkpointed")  # from steps that are kept to those that are not
            assert law["exponent"] < (1.5 if changes else 1.15), (axis, way)
    one, two = (RESULT["processes"][count] for count in ("1", "2"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)  # in float32, after 128 steps
    assert one["processor_seconds"] / two["processor_seconds"] > 1.5
    kinds = RESULT["step"]["kinds"]
    for kind in ("rk4, fixed steps", "tsit5, adaptive"):
        assert kinds[f"{kind}, compiled"]["us"] < kinds[f"{kind}, compiled"]["f_us"] < kinds[kind]["us"]
    assert all(row["nfe"] == (4 if kind.startswith("rk4") else 6) for kind, row in kinds.items())
