"""The study over seeds: shares of the seeds, merged, are one run of all of them."""

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from odenets.experiments import cubic, ecg

PATH = Path(__file__).parent.parent / "benchmarks" / "study.py"
SPEC = importlib.util.spec_from_file_location("study", PATH)
assert SPEC is not None
assert SPEC.loader is not None
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)


def cubic_run(settings, network, seed):
    error = 1 / (3 + seed) + len(network) + len(settings)
    errors = {"in_sample": error / 3, "out_of_sample": error, "extrapolation": error * 7}
    return {"network": network, "settings": settings, "seed": seed, "seconds": error, "parameters": 61, **errors}


def cubic_summary(seeds):
    rows = [cubic_run(s, n, seed) for s in cubic.SETTINGS for seed in seeds for n in cubic.NAMES.values()]
    return {"source": "Ten points.", "versions": {"torch": "2"}, "summary": {"runs": rows}}


def ecg_measures(seed):
    value = 1 / (3 + seed)
    per_class = {key: [value / (1 + c) for c in range(5)] for key in ("sensitivity", "precision")}
    return {"accuracy": 1 - value, "macro_f1": 1 - value**0.5, **per_class}


def ecg_run(split, network, seed):
    loss = len(split) / (3 + seed) / (len(network) + seed % 3)
    cost = {"seconds": [0.5, 0.7], "seconds_per_epoch": 0.6, "nfe": None if network == ecg.RESNET else 20.0 + loss}
    losses = {"test_loss": loss, "test_losses": [2 * loss, loss], "confusion": [[5, 0], [1, 4]]}
    names = {"split": split, "network": network, "seed": seed, "parameters": 100}
    return {**names, **losses, **cost, **ecg_measures(seed)}


def ecg_summary(seeds, neighbour=True, synthetic=False):
    splits = ("random", "inter-patient")
    rows = [ecg_run(split, name, seed) for split in splits for seed in seeds for name in ecg.PAIRS["both"]]
    names = (ecg.ALWAYS, ecg.NEIGHBOUR) if neighbour else (ecg.ALWAYS,)
    baselines = [{"split": split, "network": name, **ecg_measures(9)} for split in splits for name in names]
    summary = {"runs": rows, "baselines": baselines}
    return {"source": "Beats.", "versions": {"torch": "2"}, "synthetic": synthetic, "summary": summary}


def test_cubic_shares_merge_to_the_statistics_of_all_seeds():
    merged = study.merge("cubic", [cubic_summary(range(2)), cubic_summary(range(2, 5))])
    whole = cubic_summary(range(5))
    assert merged["table"] == cubic.summarise(whole["summary"]["runs"])
    assert {row["seeds"] for row in merged["table"]} == {5}
    assert (merged["source"], merged["versions"]) == ("Ten points.", {"torch": "2"})
    assert [row["seed"] for row in merged["runs"]] == sorted(row["seed"] for row in whole["summary"]["runs"])


def test_ecg_shares_merge_to_the_statistics_of_all_seeds():
    merged = study.merge("ecg", [ecg_summary(range(2)), ecg_summary(range(2, 5), neighbour=False)])
    whole = ecg_summary(range(5))["summary"]
    assert unordered(merged["table"]) == unordered(ecg.summarise(whole["runs"], synthetic=False))
    assert unordered(merged["differences"]) == unordered(ecg.differences(whole["runs"]))
    assert unordered(merged["classes"]) == unordered(ecg.class_means(whole["runs"], whole["baselines"]))
    assert merged["baselines"] == whole["baselines"]
    assert {row["seeds"] for row in merged["table"]} == {5}
    assert {len(difference["values"]) for difference in merged["differences"]} == {5}
    assert not any("seconds" in row for row in merged["runs"])


def unordered(rows):
    return sorted(rows, key=lambda row: (row["split"], row["network"], row.get("quantity", "")))


def test_the_documents_numbers_do_not_stand_beside_synthetic_beats():
    def documented(synthetic):
        table = study.merge("ecg", [ecg_summary(range(2), synthetic=synthetic)])["table"]
        return [row["test_loss_document"] for row in table if row["split"] == "random"]

    assert documented(False) == [0.10, 0.09, None]
    assert documented(True) == [None, None, None]


class Share:
    """Stands for the process of a share: it has written its summary, and ends with `code`."""

    def __init__(self, code=0):
        self.code = code

    def wait(self):
        return self.code


@pytest.fixture
def started(monkeypatch):
    """The shares that a study starts: their seeds and extra options."""
    started = []

    def run_share(name, seeds, folder, extra):
        started.append((seeds, extra))
        folder.mkdir(parents=True)
        summary = cubic_summary(seeds) if name == "cubic" else ecg_summary(seeds, neighbour=not extra)
        (folder / "summary.json").write_text(json.dumps(summary))
        return Share()

    monkeypatch.setattr(study, "run_share", run_share)
    return started


def call(*arguments):
    return CliRunner().invoke(study.app, [str(a) for a in arguments])


def test_a_study_divides_the_seeds_and_writes_one_result(tmp_path, started):
    out = tmp_path / "results" / "ecg.json"
    result = call("ecg", "--seeds", 5, "--jobs", 2, "--work", tmp_path / "work", "--out", out)
    assert result.exit_code == 0, result.output
    # The nearest neighbour has no seed: one share measures it.
    assert started == [(range(2), ()), (range(2, 5), ("--no-baselines",))]
    expected = study.merge("ecg", [ecg_summary(range(2)), ecg_summary(range(2, 5), neighbour=False)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(expected))


def test_no_process_is_without_a_seed(tmp_path, started):
    result = call("cubic", "--seeds", 1, "--jobs", 3, "--work", tmp_path / "work", "--out", tmp_path / "cubic.json")
    assert result.exit_code == 0, result.output
    assert [seeds for seeds, _ in started] == [range(1)]


def test_a_share_is_the_command_of_its_seeds_and_goes_on_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(study.subprocess, "Popen", list)
    _, *command = study.run_share("ecg", range(2, 5), tmp_path, ("--no-baselines",))
    options = "--data mitdb --split both --pair both --no-baselines --quiet --out"
    assert command == ["-m", "odenets", "run", "ecg", *options.split(), str(tmp_path), "--seed", "2", "--seeds", "3"]
    (tmp_path / "config.json").write_text("{}")
    assert study.run_share("ecg", range(2, 5), tmp_path, ())[-1] == "--resume"


def test_a_failed_share_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    codes = iter([0, 1])
    monkeypatch.setattr(study, "run_share", lambda *task: Share(next(codes)))
    result = call("cubic", "--seeds", 4, "--work", tmp_path / "work", "--out", tmp_path / "cubic.json")
    assert "the processes of seeds [range(2, 4)] failed; run the same command again to go on" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_experiment_is_refused():
    result = call("pde")
    assert result.exit_code == 2
    assert "`experiment` must be one of cubic, ecg, ecg-time, ecg-fast, ecg-rk4; got 'pde'" in " ".join(
        result.output.replace("│", " ").split()
    )
