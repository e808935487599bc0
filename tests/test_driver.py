"""What the experiments share: pieces that are done once and kept whole, and what many seeds say together."""

import dataclasses
import json
import math
import statistics

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from odenets.experiments.driver import (
    Quantity,
    Trained,
    collect,
    groups,
    histories,
    interval,
    listed,
    mean_text,
    means,
    means_table,
    numbers_of,
    only_kept,
    plus_minus,
    rows_table,
    seeds_of,
    spread,
    values_of,
)
from odenets.train.history import EpochRecord, History


class Pieces:
    """Pieces of work that say when they are done; the one named `stops` raises that error."""

    def __init__(self, *names, **stops):
        self.done, self.names, self.stops = [], names, stops

    def __call__(self, folder):
        return collect(
            {name: lambda name=name: self.work(name) for name in self.names}, folder, progress=False, label=""
        )

    def work(self, name):
        if name in self.stops:
            raise self.stops[name]
        self.done.append(name)
        return {"name": name, "number": len(self.done)}


def kept(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "pieces").iterdir()}


# -- pieces


def test_every_piece_runs_once_in_order_and_is_there_the_next_time(tmp_path):
    pieces = Pieces("b", "a", "c")
    rows = pieces(tmp_path)
    assert rows == [{"name": name, "number": i} for i, name in enumerate("bac", 1)]
    before = kept(tmp_path)
    assert set(before) == {"a.json", "b.json", "c.json"}
    assert pieces(tmp_path) == rows
    assert pieces.done == ["b", "a", "c"]
    assert kept(tmp_path) == before


def test_a_new_piece_is_done_beside_those_that_are_there(tmp_path):
    Pieces("a")(tmp_path)
    more = Pieces("a", "b")
    assert [row["name"] for row in more(tmp_path)] == ["a", "b"]
    assert more.done == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("It diverged.")])
def test_a_stopped_run_goes_on_with_the_finished_pieces_untouched(tmp_path, error):
    with pytest.raises(type(error)):
        Pieces("a", "b", "c", b=error)(tmp_path)
    before = kept(tmp_path)
    assert set(before) == {"a.json"}
    again = Pieces("a", "b", "c")
    assert [row["name"] for row in again(tmp_path)] == ["a", "b", "c"]
    assert again.done == ["b", "c"]
    assert kept(tmp_path)["a.json"] == before["a.json"]


def test_a_row_that_cannot_be_written_leaves_no_part_of_it(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        collect({"a": lambda: {"fine": 1, "not": object()}}, tmp_path, progress=False, label="")
    assert kept(tmp_path) == {}


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / ".a.json.0123.tmp").write_text('{"name": "a", "num')
    assert Pieces("a")(tmp_path) == [{"name": "a", "number": 1}]
    assert set(kept(tmp_path)) == {"a.json"}


def test_the_row_is_what_the_file_says_also_the_first_time(tmp_path):
    """Tensors, arrays and tuples become lists, and no number is lost on the way, whether it is one or not."""
    row = {
        "tensor": torch.tensor([[1.5, math.nan]], requires_grad=True),
        "scalar": torch.tensor(2),
        "array": np.array([1.0, math.inf]),
        "numpy": np.float64(0.1),
        "tuple": (1, (2.0, None)),
        "nan": math.nan,
        "minus": -math.inf,
        "text": "ν ≤ 1",
        "deep": {"list": [torch.ones(2)]},
        "exact": 0.1 + 0.2,
    }
    found, again = (collect({"a": lambda: row}, tmp_path, progress=False, label="")[0] for _ in range(2))
    np.testing.assert_equal(again, found)
    expected = {"tensor": [[1.5, math.nan]], "scalar": 2, "array": [1.0, math.inf], "numpy": 0.1}
    expected |= {"tuple": [1, [2.0, None]], "nan": math.nan, "minus": -math.inf, "text": "ν ≤ 1"}
    expected |= {"deep": {"list": [[1.0, 1.0]]}, "exact": 0.30000000000000004}
    np.testing.assert_equal(found, expected)
    assert isinstance(found["scalar"], int)


@pytest.mark.parametrize("name", ["a/b", "a b", "", ".hidden", "σ", "-a", "a\nb"])
def test_a_name_that_is_no_file_name_is_refused_before_any_work(tmp_path, name):
    pieces = Pieces("a", name)
    with pytest.raises(ValueError, match=r"`pieces` has the name .* write it in letters, digits"):
        pieces(tmp_path)
    assert pieces.done == []


def test_names_that_are_one_file_on_some_systems_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`pieces` has the names 'net-a' and 'net-A', which may be one file"):
        Pieces("net-a", "net-A")(tmp_path)


def test_results_of_kept_rows_alone(tmp_path):
    rows = Pieces("a", "b")(tmp_path)
    again, more = Pieces("a", "b"), Pieces("a", "c", "b")
    with only_kept():
        assert again(tmp_path) == rows
        with pytest.raises(LookupError, match="1 of 3 pieces are not there: c"):
            more(tmp_path)
    assert again.done == more.done == []
    assert more(tmp_path)[1] == {"name": "c", "number": 1}  # afterwards as always


def test_summary_rows_have_no_lists():
    assert numbers_of([{"a": 1, "b": [1], "c": "x", "d": {"e": 1}, "f": None}]) == [{"a": 1, "c": "x", "f": None}]


# -- trainings


def test_the_histories_of_a_network_are_those_of_all_its_seeds():
    def trained(name, seed):
        record = EpochRecord(name, seed, 1, 0.5, 0.25, None, None, None, 1.0, 10)
        return Trained.of(nn.Linear(1, 1), {"network": name, "seed": seed}, History((record,)))

    found = histories([trained("a", 0), trained("b", 0), trained("a", 1)])
    assert [(record["seed"], record["test_loss"]) for record in found["a"]] == [(0, 0.25), (1, 0.25)]
    assert list(found) == ["a", "b"]


def test_the_seeds_of_a_config_begin_with_its_first():
    @dataclasses.dataclass
    class Config:
        seed: int = 3
        seeds: int = 2

    assert list(seeds_of(Config())) == [3, 4]


# -- many seeds


def test_groups_keep_the_order_in_which_they_come_first():
    rows = [{"a": "y", "n": 1}, {"a": "x", "n": 2}, {"a": "y", "n": 3}, {"n": 4}]
    found = groups(rows, ["a"])
    assert [(names, [row["n"] for row in mine]) for names, mine in found.items()] == [
        (("y",), [1, 3]),
        (("x",), [2]),
        ((None,), [4]),
    ]
    assert list(groups(rows, ())) == [()]


def test_values_are_those_that_there_are():
    assert values_of([{"a": 1.0}, {}, {"a": None}, {"a": 0.0}], "a") == [1.0, 0.0]


def test_spread_is_that_of_statistics():
    values = [3.0, 1.0, 8.0, 2.0]
    assert spread(values) == {"mean": 3.5, "sd": statistics.stdev(values), "median": 2.5, "low": 1.0, "high": 8.0}
    assert spread([]) is None
    alone = spread([2.0])
    assert alone is not None
    assert (alone["mean"], alone["low"]) == (2.0, 2.0)
    assert math.isnan(alone["sd"])


def test_a_failed_seed_shows_in_the_mean():
    assert mean_text([1.0, math.nan]) == "nan"
    assert mean_text([1.0, math.inf]) == "inf"
    assert mean_text([-math.inf, math.inf]) == "nan"


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ([], {}, None),
        ([0.5], {}, "0.500"),
        ([0.5, 1.5], {}, "1.000 ± 0.707"),
        ([0.5, 1.5], {"digits": 1, "scale": 100.0}, "100.0 ± 70.7"),
        ([2e-5], {"digits": 1, "scientific": True}, "2.0e-05"),
    ],
)
def test_a_mean_as_text(values, options, text):
    assert mean_text(values, **options) == text


def test_a_mean_without_deviation_stands_alone():
    assert plus_minus(0.5, None) == plus_minus(0.5, math.nan) == "0.500"
    assert plus_minus(0.5, 0.25, 2, 100) == "50.00 ± 25.00"


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_a_t_test(confidence):
    values = [0.1, 0.3, -0.2, 0.4]
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert interval(values, confidence) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_failed_seed_leaves_no_interval(lost):
    assert all(map(math.isnan, interval([1.0, 2.0, lost])))


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values):
    assert interval(values) == (None, None)


ROWS = [
    {"network": "a", "depth": 2, "seed": 0, "loss": 1.0, "nfe": 10},
    {"network": "a", "depth": 2, "seed": 1, "loss": 3.0, "nfe": 20},
    {"network": "b", "depth": 4, "seed": 0, "loss": 5.0, "nfe": None},
    {"network": "b", "depth": 4, "seed": 1, "loss": 5.0},
]
LOSS, NFE, LACKING = Quantity("loss", "loss", 1), Quantity("nfe", "evaluations", 0), Quantity("gain", "gain")


def test_means_of_each_group():
    a, b = means(ROWS, ["network"], [LOSS, NFE])
    assert (a["network"], a["seeds"], a["loss"]["mean"], a["nfe"]["high"]) == ("a", 2, 2.0, 20)
    assert (b["loss"]["sd"], b["nfe"]) == (0.0, None)


def test_a_table_of_several_seeds():
    table = means_table(
        "T", ROWS, {"network": "network", "depth": "layers"}, [LOSS, NFE, LACKING], note="Lower is better."
    )
    assert table.columns == ("network", "layers", "loss", "evaluations")  # nobody has a gain
    assert table.rows == (("a", 2, "2.0 ± 1.4", "15 ± 7"), ("b", 4, "5.0 ± 0.0", None))
    assert table.note == "Mean ± standard deviation over 2 seeds. Lower is better."


def test_a_table_of_one_seed_has_no_deviations():
    table = means_table("T", [row for row in ROWS if row["seed"] == 0], {"network": ""}, [LOSS, NFE])
    assert table.rows == (("a", "1.0", "10"), ("b", "5.0", None))
    assert table.note == "One seed."


def test_rows_without_seeds_are_not_said_to_be_of_one():
    rows = [{"network": "a", "loss": 1.0}, {"network": "b", "loss": 2.0, "seed": None}]
    assert means_table("T", rows, {"network": ""}, [LOSS]).note == ""
    assert means_table("T", rows, {"network": ""}, [LOSS], note="Exact.").note == "Exact."
    assert [line["seeds"] for line in means(rows, ["network"], [LOSS])] == [0, 0]


def test_a_table_with_numbers_of_others():
    published = {("a",): {"paper": 0.9}, ("c",): {"elsewhere": 2.0}}
    table = means_table("T", ROWS, {"network": ""}, [LOSS], published=published)
    assert table.columns == ("", "loss", "paper", "elsewhere")
    assert table.rows == (("a", "2.0 ± 1.4", 0.9, None), ("b", "5.0 ± 0.0", None, None))


def test_a_table_writes_a_number_that_names_a_row_as_text():
    assert means_table("T", ROWS, {"depth": "layers"}, [LOSS]).rows[0][0] == "2"


# -- plain rows


def test_rows_as_they_are_and_as_they_are_to_be_written():
    table = rows_table(
        "T", ROWS[1:], {"": "network", "loss": "loss:.2f", "evaluations": "nfe", "gain": "gain"}, "Note."
    )
    assert table.columns == ("", "loss", "evaluations", "gain")
    assert table.rows == (("a", "3.00", 20, None), ("b", "5.00", None, None), ("b", "5.00", None, None))
    assert table.note == "Note."


def test_columns_that_no_row_fills_can_be_left_out():
    columns = {"": "network", "evaluations": "nfe", "gain": "gain:.2f"}
    assert rows_table("T", ROWS, columns, empty=False).columns == ("", "evaluations")
    assert rows_table("T", ROWS[2:], columns, empty=False).columns == ("",)


def test_parts_of_a_sentence():
    assert [listed(parts) for parts in ((), "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]
    assert listed([], "nobody") == "nobody"


def test_pieces_are_plain_json(tmp_path):
    Pieces("a")(tmp_path)
    assert json.loads((tmp_path / "pieces" / "a.json").read_text()) == {"name": "a", "number": 1}
