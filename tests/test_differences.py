"""Paired differences over seeds: the estimates of a paired t test, and no verdict where nothing is settled."""

import math

import numpy as np
import pytest
import scipy.stats

from odenets.experiments.differences import Comparison, Measure, estimate

PAIRS = Comparison("old", (Measure("loss", "test loss"), Measure("share", "accuracy", True)), by="method")


def rows(method, losses, **more):
    return [{"method": method, "seed": seed, "loss": loss, "share": 1 - loss, **more} for seed, loss in losses.items()]


def test_differences_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    old, new = rng.normal(0.5, 0.1, (2, 6))
    mixed = rows("new", dict(enumerate(new))) + rows("old", dict(enumerate(old)))
    loss, share = PAIRS.differences(mixed)
    expected = scipy.stats.ttest_rel(new, old).confidence_interval(0.95)
    assert (loss["low"], loss["high"]) == pytest.approx((expected.low, expected.high))
    assert loss["mean"] == pytest.approx(np.mean(new - old))
    assert share["values"] == pytest.approx(old - new)
    assert (loss["method"], loss["quantity"], loss["seeds"]) == ("new", "loss", [0, 1, 2, 3, 4, 5])
    assert (loss["collapsed"], loss["without_collapsed"]) == ([], None)


def test_only_seeds_that_both_have_are_compared():
    failed = {"method": "new", "seed": 1, "loss": None}
    given = [*rows("old", {0: 0.5, 1: 0.5, 2: 0.5}), *rows("new", {2: 0.25, 3: 0.1}), failed]
    found = PAIRS.differences(given)[:1]
    assert [(d["seeds"], d["values"], d["low"]) for d in found] == [([2], [-0.25], None)]


def test_a_measure_that_no_row_has_is_left_out():
    without = [{"method": name, "seed": 0, "loss": 1.0} for name in ("new", "old")]
    assert [d["quantity"] for d in PAIRS.differences(without)] == ["loss"]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_seed_that_diverged_leaves_nothing_settled(lost):
    (loss, _) = PAIRS.differences(rows("old", {0: 1.0, 1: 1.0}) + rows("new", {0: 0.5, 1: lost}))
    assert not math.isfinite(loss["mean"])
    assert PAIRS.verdict(loss) == "not settled"


def test_nothing_is_compared_without_the_reference_or_across_groups():
    assert PAIRS.differences(rows("new", {0: 0.5})) == []
    within = Comparison("old", PAIRS.measures, by="method", within=("data",))
    apart = rows("old", {0: 0.5}, data="a") + rows("new", {0: 0.25}, data="b")
    assert within.differences(apart) == []
    together = within.differences(apart + rows("old", {0: 0.75}, data="b"))
    assert [(d["data"], d["values"]) for d in together if d["quantity"] == "loss"] == [("b", [-0.5])]


def test_collapsed_seeds_are_also_left_out():
    losing = Comparison("old", PAIRS.measures, by="method", collapsed=lambda row: row["loss"] > 9)
    (loss, _) = losing.differences(rows("old", {0: 1.0, 1: 1.0, 2: 1.5}) + rows("new", {0: 0.5, 1: 99.0, 2: 0.5}))
    assert loss["collapsed"] == [1]
    assert loss["without_collapsed"] == estimate([-0.5, -1.0])
    assert loss["mean"] == pytest.approx((-0.5 + 98 - 1) / 3)
    assert [row[0] for row in losing.table([loss]).rows] == ["new − old", "the same without seeds [1]"]


@pytest.mark.parametrize(
    ("quantity", "low", "high", "better"),
    [
        ("loss", 0.1, 0.2, "old"),
        ("loss", -0.2, -0.1, "new"),
        ("share", 0.1, 0.2, "new"),
        ("share", -0.2, -0.1, "old"),
        ("share", -0.1, 0.2, "not settled"),
        ("loss", 0.0, 0.2, "not settled"),
        ("loss", -0.2, 0.0, "not settled"),
        ("loss", None, None, "not settled"),
        ("loss", math.nan, math.nan, "not settled"),  # a training that diverged
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(quantity, low, high, better):
    difference = {"method": "new", "quantity": quantity, "mean": 0.0, "low": low, "high": high}
    assert PAIRS.verdict(difference) == better
    if better != "not settled":
        assert {PAIRS.other(difference), better} == {"new", "old"}


def test_the_table_says_what_is_better():
    table = PAIRS.table(PAIRS.differences(rows("old", {0: 0.5, 1: 0.5}) + rows("new", {0: 0.25, 1: 0.25})), "Said so.")
    assert table.columns == ("pair", "quantity", "better", "mean", "low", "high")
    assert table.rows[0] == ("new − old", "test loss", "new", -0.25, -0.25, -0.25)
    assert table.rows[1][:3] == ("new − old", "accuracy", "new")
    assert table.note.endswith("settles nothing. Said so.")
    assert PAIRS.table([]).note.endswith("settles nothing.")
