"""The ECG experiment: its statistics against independent computations, and a whole small run on synthetic beats."""

import json
import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from typer.testing import CliRunner

from odenets import cli
from odenets.data import ecg as data_module
from odenets.data.ecg import ECGData, load_ecg
from odenets.data.synthetic import make_synthetic
from odenets.experiments import ecg, ecg_page, ecg_tables
from odenets.experiments.driver import Trained, interval
from odenets.experiments.ecg import MATCHED, ODENET, RESNET, Config, measure
from odenets.experiments.ecg_summary import COMPARISON, class_means, differences, seconds_until, summarise

QUANTITIES = ("test_loss", "accuracy", "macro_f1")


def run_row(network, seed, losses=(0.3, 0.2), seconds=(1.0, 2.0), split="random", **changes):
    row = {"network": network, "seed": seed, "split": split, "parameters": 100, "nfe": None, "seconds_per_epoch": 1.5}
    row |= {"test_loss": losses[-1], "test_losses": list(losses), "seconds": list(seconds)}
    row |= {"accuracy": 0.9, "macro_f1": 0.8, "sensitivity": [0.5] * 5, "precision": [0.25] * 5}
    row |= {"confusion": [[5, 0], [1, 4]]}
    return row | changes


def baseline(accuracy, network="nearest neighbour", split="random"):
    return {"network": network, "split": split, "accuracy": accuracy, "macro_f1": accuracy}


def random_rows(seeds=6, split="random"):
    rng = np.random.default_rng(0)
    names = [(seed, name) for seed in range(seeds) for name in (RESNET, ODENET, MATCHED)]
    drawn = rng.normal(0.9, 0.01, (len(names), 3)).tolist()
    return [
        run_row(name, seed, split=split, **dict(zip(QUANTITIES, values))) for (seed, name), values in zip(names, drawn)
    ]


def column(rows, network, key):
    return [row[key] for row in rows if row["network"] == network]


# -- measures of one network


def test_measures_of_a_hand_made_confusion_matrix():
    #                 predicted N  S  V  F  Q
    confusion = np.array([[6, 1, 1, 0, 0], [2, 2, 0, 0, 0], [1, 0, 4, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    pairs = [(t, p) for t in range(5) for p in range(5) for _ in range(confusion[t, p])]
    truth, predicted = np.array(pairs).T
    found = measure(torch.from_numpy(truth), predicted)
    assert found["confusion"] == confusion.tolist()
    assert found["accuracy"] == pytest.approx(13 / 20)
    assert found["sensitivity"] == pytest.approx([6 / 8, 2 / 4, 4 / 5, 0, 1])
    assert found["precision"] == pytest.approx([6 / 10, 2 / 3, 4 / 6, 0, 1])  # none is called F: 0
    assert found["macro_f1"] == pytest.approx(np.mean([12 / 18, 4 / 7, 8 / 11, 0, 1]))


def test_a_class_that_is_absent_counts_as_zero():
    found = measure(torch.tensor([0, 0, 1]), np.array([0, 0, 1]))
    assert found["sensitivity"] == [1, 1, 0, 0, 0]
    assert found["macro_f1"] == pytest.approx(2 / 5)


def test_baselines_are_always_n_and_the_class_of_the_nearest_training_beat():
    data = load_small("random")
    always, neighbour = ecg.baselines(data, Config())
    truth = data.test.y.numpy()
    distances = torch.cdist(data.test.x.double(), data.train.x.double())
    nearest = data.train.y[distances.argmin(1)].numpy()
    assert always["accuracy"] == pytest.approx((truth == 0).mean())
    assert neighbour["accuracy"] == pytest.approx((truth == nearest).mean())
    assert (always["network"], neighbour["network"]) == ("always N", "nearest neighbour")
    assert [row["network"] for row in ecg.baselines(data, Config(baselines=False))] == ["always N"]


@pytest.mark.parametrize(
    ("losses", "seconds", "goal", "expected"),
    [
        ([3.0, 2.0, 1.0], [1.0, 10.0, 100.0], 2.0, 11.0),
        ([3.0, 2.0, 1.0], [1.0, 10.0, 100.0], 3.5, 1.0),
        ([3.0, 0.5, 1.0], [1.0, 10.0, 100.0], 1.0, 11.0),  # the first time, though it rises again
        ([3.0, 2.0, 1.0], [1.0, 10.0, 100.0], 0.9, None),
    ],
)
def test_seconds_until_a_loss(losses, seconds, goal, expected):
    assert seconds_until({"test_losses": losses, "seconds": seconds}, goal) == expected


# -- statistics over seeds


def test_the_summary_is_mean_and_standard_deviation():
    rows = random_rows()
    for found in summarise(rows, synthetic=False):
        for key in QUANTITIES:
            values = column(rows, found["network"], key)
            assert found[key] == pytest.approx(np.mean(values))
            assert found[f"{key}_sd"] == pytest.approx(np.std(values, ddof=1))
        assert found["seeds"] == 6
    assert summarise(rows[:1], synthetic=False)[0]["accuracy_sd"] is None


def test_the_time_to_the_resnets_loss_is_paired_by_seed():
    rows = [
        run_row(RESNET, 0, losses=(0.5, 0.4), seconds=(1.0, 1.0)),
        run_row(RESNET, 1, losses=(0.2, 0.1), seconds=(1.0, 1.0)),
        run_row(ODENET, 0, losses=(0.4, 0.3), seconds=(3.0, 3.0)),  # there after one epoch
        run_row(ODENET, 1, losses=(0.4, 0.3), seconds=(3.0, 3.0)),  # never there
    ]
    resnet, odenet = summarise(rows, synthetic=False)
    assert (resnet["seconds_to_resnet"], resnet["reached"]) == (2.0, 2)
    assert (odenet["seconds_to_resnet"], odenet["reached"]) == (3.0, 1)
    alone = summarise(rows[2:], synthetic=False)[0]
    assert (alone["seconds_to_resnet"], alone["reached"]) == (None, 0)


def test_evaluations_of_f_are_averaged_where_there_are_any():
    rows = [run_row(RESNET, 0), run_row(ODENET, 0, nfe=20.0), run_row(ODENET, 1, nfe=21.0)]
    assert [found["nfe"] for found in summarise(rows, synthetic=False)] == [None, 20.5]


@pytest.mark.parametrize(
    ("split", "synthetic", "expected"),
    [("random", False, [0.10, 0.09, None]), ("random", True, [None] * 3), ("inter-patient", False, [None] * 3)],
)
def test_the_documents_numbers_stand_only_beside_what_they_are_of(split, synthetic, expected):
    found = summarise(random_rows(2, split), synthetic)
    assert [row["test_loss_document"] for row in found] == expected
    columns = ecg_tables.main_table(found, []).columns
    for name in ("document: cross entropy", "document: accuracy %"):
        assert (name in columns) == any(expected)
    lead = ecg_page.lead(random_rows(2, split), [baseline(0.5, split=split)], synthetic)
    assert ("0.10 (ResNet)" in lead) == any(expected)
    assert ("synthetic heartbeats" in lead) == synthetic


def test_intervals_are_those_of_a_paired_t_test():
    rows = random_rows()
    for found in differences(rows):
        ours, theirs = (column(rows, name, found["quantity"]) for name in (found["network"], RESNET))
        expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
        assert found["mean"] == pytest.approx(np.mean(ours) - np.mean(theirs))
        assert found["seeds"] == list(range(6))
    assert {(d["network"], d["quantity"]) for d in differences(rows)} == {
        (name, key) for name in (ODENET, MATCHED) for key in QUANTITIES
    }


def test_another_confidence_gives_the_interval_of_that():
    values = [0.1, 0.3, -0.2, 0.4]
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.8)
    assert interval(values, 0.8) == pytest.approx(tuple(expected))
    assert interval(values[:1]) == (None, None)


def test_differences_pair_the_seeds_that_both_have_whatever_their_order():
    rows = [run_row(RESNET, seed, accuracy=0.5 + seed / 10) for seed in (0, 1, 2)]
    rows += [run_row(ODENET, seed, accuracy=0.6 + seed / 10) for seed in (3, 2, 1)]
    (found,) = [d for d in differences(rows) if d["quantity"] == "accuracy"]
    assert found["seeds"] == [1, 2]
    assert found["values"] == pytest.approx([0.1, 0.1])


def test_the_splits_are_not_mixed():
    rows = [run_row(RESNET, 0), run_row(ODENET, 0, split="inter-patient")]
    assert differences(rows) == []


@pytest.mark.parametrize(
    ("quantity", "low", "high", "better"),
    [
        ("test_loss", 0.1, 0.2, RESNET),  # a higher loss is worse
        ("test_loss", -0.2, -0.1, ODENET),
        ("accuracy", 0.1, 0.2, ODENET),
        ("macro_f1", -0.2, -0.1, RESNET),
        ("accuracy", -0.1, 0.2, "not settled"),
        ("accuracy", 0.0, 0.2, "not settled"),
        ("accuracy", None, None, "not settled"),
    ],
)
def test_verdicts(quantity, low, high, better):
    difference = {"network": ODENET, "quantity": quantity, "mean": 0.0, "low": low, "high": high}
    difference |= {"collapsed": [], "without_collapsed": None}
    assert COMPARISON.table([difference]).rows[0][2] == better


def test_a_collapsed_network_is_named_and_its_seed_also_left_out():
    """One number far from all others must not hide what the rest say."""
    rows = random_rows(seeds=6)
    lost = next(row for row in rows if (row["network"], row["seed"]) == (RESNET, 2))
    lost |= {"confusion": [[5, 0], [5, 0]], "accuracy": 0.1}
    found = {d["quantity"]: d for d in differences(rows) if d["network"] == ODENET}["accuracy"]
    rest = [value for value, seed in zip(found["values"], found["seeds"]) if seed != 2]
    assert found["collapsed"] == [2]
    assert found["without_collapsed"]["mean"] == pytest.approx(np.mean(rest))
    assert (found["without_collapsed"]["low"], found["without_collapsed"]["high"]) == pytest.approx(interval(rest))
    assert [row["collapsed"] for row in summarise(rows, synthetic=False)] == [[2], [], []]
    assert (
        "ResNet, seeds [2]: calls every beat the same."
        in ecg_tables.main_table(summarise(rows, synthetic=False), []).note
    )
    assert "the same without seeds [2]" in [row[0] for row in COMPARISON.table([found]).rows]


def test_class_means_are_means_over_the_seeds_and_the_baseline_is_itself():
    rows = [run_row(RESNET, seed, sensitivity=[seed, 0, 0, 0, 1]) for seed in (0, 1)]
    base = [run_row("always N", 0, sensitivity=[1, 0, 0, 0, 0], precision=[0.8, 0, 0, 0, 0])]
    found = {(m["network"], m["quantity"]): m["values"] for m in class_means(rows, base)}
    assert found == {
        (RESNET, "sensitivity"): [0.5, 0, 0, 0, 1],
        (RESNET, "precision"): [0.25] * 5,
        ("always N", "sensitivity"): [1, 0, 0, 0, 0],
        ("always N", "precision"): [0.8, 0, 0, 0, 0],
    }


def test_the_main_table_has_the_baselines_below_the_networks():
    base = [{"network": "always N", "accuracy": 0.82, "macro_f1": 0.18}]
    table = ecg_tables.main_table(summarise([run_row(ODENET, 0, accuracy=0.975)], synthetic=False), base)
    found = ("cross entropy", "accuracy %", "macro-F1")
    assert table.columns == ("", *found, "document: cross entropy", "document: accuracy %", "parameters")
    assert table.rows == (
        (ODENET, "0.200", "97.50", "0.800", 0.09, 97.5, 100),
        ("always N", None, "82.00", "0.180", None, None, None),
    )
    assert "“Always N” calls every beat normal." in table.note
    assert "neighbour" not in table.note
    found, neighbour = summarise([run_row(ODENET, 0)], synthetic=False), {**base[0], "network": ecg.NEIGHBOUR}
    both = ecg_tables.main_table(found, [*base, neighbour])
    assert "“Nearest neighbour” takes the class of the nearest training beat." in both.note
    many = ecg_tables.main_table(
        summarise([run_row(ODENET, seed, accuracy=0.9 + seed / 10) for seed in (0, 1)], True), []
    )
    assert many.rows[0][2] == "95.00 ± 7.07"


# -- words


@pytest.mark.parametrize(
    ("accuracy", "rival", "finding"),
    [
        (0.97, 0.96, "the ODE-Net is right about 97.0 % of the test beats, more than {rival} (96.0 %)"),
        (
            0.95,
            0.96,
            "no network is right about more test beats than {rival} (96.0 %); the best of them, the ODE-Net, ",
        ),
        (0.96, 0.96, "no network is right about more test beats than {rival} (96.0 %)"),
    ],
)
@pytest.mark.parametrize("name", ecg_page.IN_WORDS)
def test_the_lead_begins_with_the_best_network_beside_the_best_trivial_answer(accuracy, rival, finding, name):
    rows = [run_row(RESNET, 0, accuracy=0.9), run_row(ODENET, 0, accuracy=accuracy)]
    base = [baseline(rival, name), baseline(0.5, *(other for other in ecg_page.IN_WORDS if other != name))]
    lead = ecg_page.lead(rows, base, synthetic=False)
    assert lead.startswith(f"Random split: {finding.format(rival=ecg_page.IN_WORDS[name])}")
    assert "S. Della Bona and E. Dumez (2021), “the document”" in lead


@pytest.mark.parametrize(
    ("losses", "settled"),
    [
        ([0.5], "one seed, which settles nothing between them."),
        ([0.5, 0.51, 0.49], "means of 3 seeds, by which ODE-Net is better than ResNet."),
        ([0.5, 2.0, 0.9], "means of 3 seeds, by which no difference is settled."),
        ([2.0, 2.01, 1.99], "means of 3 seeds, by which ResNet is better than ODE-Net."),
    ],
)
def test_the_lead_says_what_the_seeds_settle(losses, settled):
    rows = [run_row(RESNET, seed, losses=(1.0,)) for seed in range(len(losses))]
    rows += [run_row(ODENET, seed, losses=(loss,)) for seed, loss in enumerate(losses)]
    assert settled in ecg_page.lead(rows, [baseline(0.5)], synthetic=False)


@pytest.fixture(scope="module")
def section_of_one_seed():
    rows = [
        run_row(name, 0, nfe=nfe, confusion=np.eye(5, dtype=int).tolist())
        for name, nfe in ((RESNET, None), (ODENET, 20.0))
    ]
    record = {"epoch": 1, "seed": 0, "train_loss": 0.3, "test_loss": 0.2, "seconds": 1.0}
    trained = [Trained(nn.Identity(), row, [record | {"nfe": row["nfe"]}]) for row in rows]
    return ecg_page.section(load_small("random"), Config(), trained, [rows[0] | {"network": ecg.ALWAYS}])


def test_one_seed_is_not_called_a_mean(section_of_one_seed):
    tables = [f"{table.title} {table.note} {table.columns}" for table in section_of_one_seed.tables]
    words = f"{' '.join(tables)} {' '.join(picture.caption for picture in section_of_one_seed.pictures)}"
    words = words.replace("Mean number of evaluations", "").replace("Macro-F1 is the mean over the classes", "")
    assert not [word for word in ("mean", "median", "deviation", "seeds", "band") if word in words.lower()]


def test_the_letters_of_the_classes_are_explained_in_the_text_and_below_the_matrices(section_of_one_seed):
    for letter, name in zip(data_module.CLASSES, data_module.CLASS_NAMES):
        assert f"{letter} {name}" in ecg_page.CLASS_TEXT
    assert ecg_page.CLASS_TEXT in section_of_one_seed.text
    (matrices,) = [picture for picture in section_of_one_seed.pictures if picture.name == "random-confusion"]
    assert ecg_page.CLASS_TEXT in matrices.caption


# -- configs and networks


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "`lr` is 0.0; it must be a positive number"),
        ({"momentum": 1.0}, "`momentum` is 1.0; it must be a number from 0 up to, but without, 1"),
        ({"atol": -1.0}, "`atol` must be a number ≥ 0, got -1.0"),
        ({"pair": "twins"}, "`pair` must be one of document, matched, both; got 'twins'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be at least 1, got 0"),
    ],
)
def test_a_config_refuses_what_cannot_be_run(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)


@pytest.mark.parametrize("name", ecg.PAIRS["both"])
def test_the_seed_decides_the_initial_weights(name):
    one, same, other = (next(ecg.network(name, Config(), seed).parameters()) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_matched_network_is_as_large_as_the_resnet():
    count = {name: sum(p.numel() for p in ecg.network(name, Config(), 0).parameters()) for name in ecg.PAIRS["both"]}
    assert count[MATCHED] == pytest.approx(count[RESNET], rel=0.02)
    assert count[ODENET] < count[RESNET] / 1.5


# -- a whole run


def load_small(split) -> ECGData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "make_synthetic", partial(make_synthetic, 400))
        return load_ecg("synthetic", split)


@pytest.fixture(scope="module")
def synthetic_run(tmp_path_factory):
    """Both splits, three networks, two seeds, one epoch, on 400 synthetic beats: the folder, and what was said."""
    folder = tmp_path_factory.mktemp("ecg") / "run"
    options = "--data synthetic --epochs 1 --seeds 2 --pair both --split both --no-baselines"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "make_synthetic", partial(make_synthetic, 400))
        command = ["run", "ecg", *options.split(), "--out", str(folder)]
        result = CliRunner().invoke(cli.app, command, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return folder, result.stdout


@pytest.fixture(scope="module")
def summary(synthetic_run):
    return json.loads((synthetic_run[0] / "summary.json").read_text())["summary"]


def test_a_run_has_every_network_seed_and_split(synthetic_run, summary):
    folder, _ = synthetic_run
    kinds = [f"{name}{suffix}" for name in ecg.FILE_NAMES.values() for suffix in ("", "-inter-patient")]
    names = {f"{kind}-seed{seed}" for kind in kinds for seed in (0, 1)}
    assert {path.stem for path in folder.glob("*.safetensors")} == names
    assert len(summary["runs"]) == 12
    assert [(row["split"], row["network"], row["seeds"]) for row in summary["table"]] == [
        (split, name, 2) for split in ("random", "inter-patient") for name in ecg.PAIRS["both"]
    ]
    assert [(row["split"], row["network"]) for row in summary["baselines"]] == [
        ("random", "always N"),
        ("inter-patient", "always N"),
    ]


def test_the_summary_of_a_run_follows_from_its_rows(summary):
    assert summary["table"] == summarise(summary["runs"], synthetic=True)
    assert summary["differences"] == differences(summary["runs"])
    assert len(summary["differences"]) == 2 * 2 * 3
    for row in summary["runs"]:
        confusion = np.array(row["confusion"])
        assert row["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
        assert row["test_loss"] == pytest.approx(row["test_losses"][-1], rel=1e-6)
        assert (row["nfe"] is None) == (row["network"] == RESNET)
        assert math.isfinite(row["train_loss"])


def test_everything_says_that_the_beats_are_synthetic(synthetic_run, summary):
    folder, said = synthetic_run
    assert said.startswith(" SYNTHETIC DATA  SYNTHETIC beats (400)")
    page = (folder / "report.html").read_text()
    assert page.count("SYNTHETIC") > 2
    assert "<h1>ECG: ODE-Net and ResNet on synthetic heartbeats</h1>" in page
    assert json.loads((folder / "summary.json").read_text())["synthetic"] is True
    assert all(row[f"{key}_document"] is None for row in summary["table"] for key in QUANTITIES)
    for text in (said, page):
        assert "The document reports" not in text
        assert "document: cross entropy" not in text


def test_the_terminal_cuts_nothing(synthetic_run):
    said = synthetic_run[1]
    assert "…" not in said
    assert max(len(line) for line in said.splitlines() if not line.startswith("Report:")) <= 80
    for text in ("cross entropy", "accuracy %", "macro-F1", "(matched)", "always N", "Random split", "Report:"):
        assert text in " ".join(said.split())


def test_figures_of_both_splits(synthetic_run):
    names = {path.stem for path in (synthetic_run[0] / "figures").glob("*.svg")}
    kinds = ("learning-curves", "time", "nfe", "seconds", "confusion", "beats")
    kinds += ("difference-odenet", "difference-odenet-matched")
    assert names == {f"{split}-{kind}" for split in ("random", "inter-patient") for kind in kinds}
