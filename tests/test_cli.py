"""The command line: what it tells, what it leaves behind, what it refuses, and that a stopped run loses nothing."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import odenets
from odenets import cli, figures
from odenets.experiments import EXPERIMENTS, Experiment, cubic
from odenets.experiments.option import option
from odenets.experiments.result import Picture, Result, Section, Table
from odenets.files import lock_folder
from odenets.methods import ANY_SYSTEM
from odenets.terminal import show_table
from odenets.train import NonFiniteLoss

RUN = ("run", "cubic", "--settings", "chosen", "--epochs", "5")
PROGRAM = (sys.executable, "-m", "odenets")
NETWORKS = ("resnet-chosen-seed0", "odenet-chosen-seed0")


def call(*arguments, columns=80):
    """The command in this process."""
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


def refusal(*arguments):
    """The line on standard error with which the command ends with code 1, after those on its progress."""
    result = call(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.stdout == ""
    *progress, line = result.stderr.splitlines()
    assert all(re.match(r"odenets run [\w-]+, into |\S+-seed\d+ epoch ", earlier) for earlier in progress)
    assert line.startswith("odenets: ")
    return line.removeprefix("odenets: ")


def words(text):
    """Text without the frames around it and the line breaks in it."""
    return " ".join(re.sub(r"[─-╿]", " ", text).split())


def weights(folder):
    return {path.stem: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing stopped, and what the command said."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = call(*RUN, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


# -- what it tells


def test_list_names_every_experiment_and_method():
    result = call("list")
    assert result.exit_code == 0
    for name in (*EXPERIMENTS, "all", *ANY_SYSTEM):
        assert re.search(rf"│ {name} +│", result.stdout)
    for listed in EXPERIMENTS.values():
        assert listed.summary in words(result.stdout)
    assert "…" not in result.stdout


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_help_shows_every_field_with_its_sentence_and_default(experiment):
    text = call("run", experiment.name, "--help", columns=300).stdout  # an option a line
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│ --")}
    for field in dataclasses.fields(experiment.config):
        line = lines[f"--{field.name.replace('_', '-')}"]
        assert field.metadata["help"] in line
        choices = field.metadata["choices"]
        assert all(choice in line for choice in choices) or (len(choices) > 8 and "`odenets list`" in line)
        default = field.default
        if isinstance(default, bool):
            default = field.name if default else f"no-{field.name}"
        assert ("[default:" not in line) if default is None else (f"[default: {default}]" in line)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_cuts_nothing_in_80_columns(name):
    assert "…" not in call("run", name, "--help").stdout


def test_version():
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"odenets {odenets.__version__}\n")


# -- what a run leaves behind


def test_a_run_leaves_its_files(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    kept = {"checkpoints", "config.json", "figures", "metrics.jsonl", "report.html", "summary.json"}
    assert names == kept | {f"{name}.safetensors" for name in NETWORKS}
    config = json.loads((folder / "config.json").read_text())
    assert config == {"experiment": "cubic", **dataclasses.asdict(cubic.Config(settings="chosen", epochs=5))}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = {"network", "seed", "epoch", "train_loss", "test_loss", "test_accuracy", "nfe", "seconds"}
    assert all(keys <= record.keys() for record in records)
    epochs = [(record["network"], record["epoch"]) for record in records]
    assert epochs == [(name, epoch) for name in ("resnet-chosen", "odenet-chosen") for epoch in range(1, 6)]
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".svg", ".png"}
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["network"] for row in summary["summary"]["table"]] == ["ResNet", "ODE-Net"]
    assert summary["config"]["epochs"] == 5


def test_a_run_says_what_came_out_and_where(finished):
    folder, result = finished
    assert f"Report: {folder / 'report.html'}" in result.stdout
    table = json.loads((folder / "summary.json").read_text())["summary"]["table"]
    for row in table:
        (line,) = [line.split() for line in result.stdout.splitlines() if re.match(rf"{row['network']} +\d", line)]
        assert int(line[-1]) == row["parameters"]
        assert float(line[2]) == pytest.approx(row["out_of_sample"], rel=1e-3)
    first, *progress = result.stderr.splitlines()
    assert first == f"odenets run cubic, into {folder}"
    assert [" epoch " in line for line in progress] == 10 * [True] + 2 * [False]
    assert progress[-2:] == ["Drawing the figures …", "Writing the report …"]


def test_nothing_is_cut_in_80_columns(finished):
    lines = finished[1].stdout.splitlines()
    assert not any("…" in line for line in lines)
    assert max(len(line) for line in lines if not line.startswith("Report:")) <= 80
    assert all(word in words(finished[1].stdout) for word in ("network", "parameters", "in-sample", "seconds"))


def shown(table, width):
    console = Console(file=io.StringIO(), width=width)
    show_table(console, table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


WIDE = Table("T", ("", "parameters", "cross entropy"), (("ODE-Net (matched)", 45637, "0.09 ± 0.01"), ("b", None, None)))


def test_a_table_that_fits_stands_upright():
    assert shown(WIDE, 80) == [
        "                                     cross",
        "                   parameters      entropy",
        "──────────────────────────────────────────",
        "ODE-Net (matched)      45,637  0.09 ± 0.01",
        "b                           –            –",
    ]


def test_names_are_broken_between_words():
    assert shown(WIDE, 34) == [
        "                             cross",
        "           parameters      entropy",
        "──────────────────────────────────",
        "ODE-Net        45,637  0.09 ± 0.01",
        "(matched)",
        "b                   –            –",
    ]


@pytest.mark.parametrize("width", [33, 27, 10])
def test_a_table_that_does_not_fit_lies_on_its_side_and_is_never_cut(width):
    lines = shown(WIDE, width)
    for text in ("(matched)", "0.09 ± 0.01", "parameters", "45,637", "cross"):
        assert any(text in line for line in lines)
    assert not any("…" in line for line in lines)
    assert any(re.match(r"parameters +45,637 +–", line) for line in lines)


# -- what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "ecg", "--data", "nope"), "`data` must be one of auto, mitdb, kaggle, synthetic; got 'nope'"),
        (
            ("run", "cubic", "--method", "rk4"),
            "`method` 'rk4' cannot adapt its steps: give their size, `dt`, for example 0.1",
        ),
        (("run", "cubic", "--seeds", "0"), "`seeds` must be at least 1, got 0"),
        (("run", "ecg", "--lr", "0"), "`lr` is 0.0; it must be a positive number, such as 0.1."),
        (("run", "cubic", "--rtol", "-1"), "`rtol` must be a number ≥ 0, got -1.0"),
        (("run", "nothing"), f"`experiment` must be one of {', '.join([*EXPERIMENTS, 'all'])}; got 'nothing'"),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_made(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert refusal(*arguments) == message
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused():
    result = call("run", "cubic", "--lr", "1")
    assert result.exit_code == 2
    assert "No such option: --lr" in result.stderr


def test_the_folder_of_another_experiment_is_refused(finished):
    folder, _ = finished
    message = refusal("run", "ecg", "--data", "synthetic", "--out", folder)
    assert message.startswith(f"The run folder {folder} belongs to a run with another config: ")
    assert "`experiment` is 'cubic' there and 'ecg' here" in message


def test_the_same_folder_again_needs_resume(finished):
    folder, _ = finished
    assert refusal(*RUN, "--out", folder) == (
        f"The run folder {folder} already holds this run. Go on with it by `resume=True` (`--resume`), use another "
        "folder, or delete this one."
    )


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_another_architecture_is_refused(finished, resume):
    message = refusal(*RUN, "--width", 30, "--out", finished[0], *resume)
    assert "`width` is 20 there and 30 here" in message
    assert (finished[0] / "config.json").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(*RUN, "--out", tmp_path / "file" / "run")
    assert message.startswith(f"The run folder could not be written ({tmp_path / 'file' / 'run'}): Not a directory.")
    assert message.endswith("A part of that path is a file: use another folder.")


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not empty and is no run folder" in refusal(*RUN, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused_with_its_holder_and_left_alone(copy):
    leftover = copy / "checkpoints" / "odenet-chosen-seed0" / ".step-00000001.1.tmp"
    leftover.mkdir()  # which another process is writing
    with lock_folder(copy), ThreadPoolExecutor() as threads:
        message = threads.submit(refusal, *RUN, "--out", copy, "--resume").result()
    assert message.startswith(f"The run folder {copy} is in use by process {os.getpid()} on ")
    assert leftover.exists()


def test_half_a_checkpoint_is_refused(copy):
    (path,) = copy.glob("checkpoints/odenet-chosen-seed0/*/state.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    message = refusal(*RUN, "--out", copy, "--resume")
    assert f"{path} is damaged: it has {len(whole) // 2} bytes, not {len(whole)}" in message
    assert "Delete" in message


# -- runs that fail


def test_a_loss_that_is_not_finite_is_one_line_and_leaves_the_folder_free(tmp_path):
    message = refusal(*RUN, "--noise", "1e30", "--out", tmp_path)
    assert message.startswith("The training loss became inf at step 1 of 50 of epoch 1 (resnet-chosen-seed0).")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_after_a_checkpoint_keeps_it(tmp_path, monkeypatch):
    def train_one(kind, setting, config, seed, folder, resume, progress):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "state.pt").write_text("")
        raise NonFiniteLoss("The training loss became nan at step 9.")

    monkeypatch.setattr(cubic, "train_one", train_one)
    assert refusal(*RUN, "--out", tmp_path) == "The training loss became nan at step 9."
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "config.json"}


def test_a_solve_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cubic, "solver_options", lambda config: {"method": config.method, "max_steps": 1})
    message = refusal("run", "cubic", "--epochs", 1, "--out", tmp_path)
    assert message.startswith("MAX_STEPS at t = 0")
    assert "raise `max_steps`" in message


def test_a_bug_is_not_hidden(tmp_path, monkeypatch):
    def train_one(*arguments):
        raise TypeError("a bug")

    monkeypatch.setattr(cubic, "train_one", train_one)
    result = call(*RUN, "--out", tmp_path)
    assert isinstance(result.exception, TypeError)
    assert result.stderr == f"odenets run cubic, into {tmp_path}\n"


# -- the small form


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_help_says_what_the_small_form_is(experiment):
    assert experiment.small
    assert experiment.config(**experiment.small) != experiment.config()
    said = words(call("run", experiment.name, "--help", columns=300).stdout)
    for name, value in experiment.small.items():
        flag = name.replace("_", "-")
        assert (f"--{flag} {value}" if not isinstance(value, bool) else f"--{'' if value else 'no-'}{flag}") in said


@pytest.fixture
def tried(monkeypatch):
    """The configs that the command asks the cubic experiment to run; it fails, so that nothing is drawn."""
    configs = []

    def run(config, folder, *, resume, progress):
        configs.append(config)
        raise ValueError("tried")

    monkeypatch.setitem(EXPERIMENTS, "cubic", dataclasses.replace(EXPERIMENTS["cubic"], run=run))
    app = cli.typer.Typer()
    app.command("cubic")(cli._command(EXPERIMENTS["cubic"]))
    app.command("other")(cli.list_experiments)
    monkeypatch.setattr(cli, "app", app)
    return configs


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ((), {"settings": "chosen", "epochs": 4}),
        (("--epochs", "7"), {"settings": "chosen", "epochs": 7}),
        (("--settings", "both"), {"settings": "both", "epochs": 4}),  # the default, but given
        (("--noise", "2"), {"settings": "chosen", "epochs": 4, "noise": 2.0}),
    ],
)
def test_small_is_in_place_of_the_defaults_and_not_of_what_is_given(tmp_path, tried, options, changes):
    assert call("cubic", "--small", *options, "--quiet", "--out", tmp_path).stderr == "odenets: tried\n"
    assert tried == [cubic.Config(**changes)]


def test_the_small_form_has_a_folder_of_its_own(tmp_path, monkeypatch, tried):
    monkeypatch.chdir(tmp_path)
    assert "into runs/cubic-small\n" in call("cubic", "--small").stderr
    assert "into runs/cubic\n" in call("cubic").stderr
    assert tried == [cubic.Config(**cubic.SMALL), cubic.Config()]


def test_what_a_resumed_run_may_have_otherwise_is_said_by_its_experiment(tmp_path, finished):
    message = refusal(*RUN, "--noise", 2, "--out", finished[0], "--resume")
    assert "`noise` is 1.0 there and 2.0 here" in message
    assert EXPERIMENTS["cubic"].may_change == ("epochs",)
    assert EXPERIMENTS["ecg"].may_change == ("epochs", "checkpoint_every", "data_dir")


# -- all experiments


@dataclasses.dataclass(frozen=True)
class Options:
    """Config of an experiment that does nothing."""

    size: int = option(9, "Size.")


def experiment(name, sections=1, **changes):
    """An experiment that has one table and one picture in each section, and counts its runs in its folder."""

    def run(config, folder, *, resume, progress):
        made = [
            Section(
                f"Section {number}",
                "",
                (Table("Numbers", ("", "size"), (("a", config.size),)), Table("More", ("", "b"), ())),
                (Picture(f"line-{number}", "A line", "What one sees.", figures.bars({"a": [1.0]}, "s")),),
            )
            for number in range(sections)
        ]
        runs = folder / "runs.txt"
        runs.write_text((runs.read_text() if runs.exists() else "") + f"{resume} ")
        parts = {"lead": f"What {name} found.", "config": dataclasses.asdict(config), "source": f"Data of {name}."}
        parts |= {"title": f"Title of {name}", "synthetic": False, "summary": {"size": config.size}, **changes}
        return Result(experiment=name, sections=tuple(made), **parts)

    return Experiment(name, f"Summary of {name}.", Options, run, {"size": 2})


def failing(name, error):
    def run(config, folder, *, resume, progress):
        raise error

    return dataclasses.replace(experiment(name), run=run)


@pytest.fixture
def registered(monkeypatch):
    """Put these in the place of the experiments."""

    def register(*experiments):
        for name in [*EXPERIMENTS]:
            monkeypatch.delitem(EXPERIMENTS, name)
        for one in experiments:
            monkeypatch.setitem(EXPERIMENTS, one.name, one)

    return register


def test_all_runs_every_small_form_in_a_folder_each_and_makes_one_report(tmp_path, registered):
    registered(experiment("one"), experiment("two", sections=2))
    result = call("run", "all", "--out", tmp_path / "all")
    assert result.exit_code == 0, result.output
    for name in ("one", "two"):
        assert json.loads((tmp_path / "all" / name / "summary.json").read_text())["config"] == {"size": 2}
    page = (tmp_path / "all" / "report.html").read_text()
    for text in ("2 of 2 experiments ran", "Title of one", "What two found.", "Data of one.", "two/report.html"):
        assert text in page
    assert "More" not in page
    assert "Section 1: Numbers" in page
    assert {path.stem for path in (tmp_path / "all" / "figures").glob("*.svg")} == {
        "one-line-0",
        "two-line-0",
        "two-line-1",
    }
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["summary"] == {"one": {"size": 2}, "two": {"size": 2}}
    assert summary["config"] == {"one": {"size": 2}, "two": {"size": 2}}
    running = [line for line in result.stderr.splitlines() if line.startswith("odenets run all")]
    assert running == [
        f"odenets run all, {place} of 2: {name}, into {tmp_path / 'all' / name}"
        for place, name in ((1, "one"), (2, "two"))
    ]
    assert f"Report: {tmp_path / 'all' / 'report.html'}" in result.stdout


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NonFiniteLoss("The loss became nan."), "The loss became nan."),
        (TypeError("a bug"), "TypeError: a bug"),
    ],
)
def test_a_failing_experiment_does_not_lose_the_others(tmp_path, registered, error, reason):
    registered(experiment("one"), failing("two", error), experiment("three"))
    result = call("run", "all", "--quiet", "--out", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"odenets: two failed: {reason}\n")
    assert ("Traceback" in result.stderr) == isinstance(error, TypeError)
    page = (tmp_path / "report.html").read_text()
    for text in ("2 of 3 experiments ran", "and two failed", f"This experiment failed: {reason}", "Title of three"):
        assert text in page
    assert json.loads((tmp_path / "summary.json").read_text())["summary"]["two"] == {"failed": reason}
    assert (tmp_path / "three" / "report.html").exists()


def test_all_goes_on_with_what_is_there_and_with_what_is_not(tmp_path, registered):
    registered(experiment("one"), failing("two", KeyboardInterrupt()), experiment("three"))
    stopped = call("run", "all", "--quiet", "--out", tmp_path)
    assert stopped.exit_code == 130
    assert "To go on: " in stopped.stderr
    assert not (tmp_path / "three").exists()
    registered(experiment("one"), experiment("two"), experiment("three"))
    assert refusal("run", "all", "--quiet", "--out", tmp_path).startswith(f"The run folder {tmp_path} already holds")
    result = call("run", "all", "--quiet", "--resume", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    runs = {name: (tmp_path / name / "runs.txt").read_text().split() for name in ("one", "two", "three")}
    assert runs == {"one": ["False", "True"], "two": ["True"], "three": ["False"]}


def test_all_calls_synthetic_data_so_where_they_are(tmp_path, registered):
    registered(experiment("one"), experiment("two", synthetic=True))
    call("run", "all", "--quiet", "--out", tmp_path / "mixed")
    page = words(re.sub("<[^>]+>", " ", (tmp_path / "mixed" / "report.html").read_text()))
    assert page.count("Synthetic data. What two found.") == 1
    assert page.count("Synthetic data. Numbers") == 1
    assert page.count("Synthetic data. What one sees.") == 1
    assert "Synthetic data. Every number" not in page
    registered(experiment("two", synthetic=True))
    call("run", "all", "--quiet", "--out", tmp_path / "made-up")
    assert "Every number and figure on this page comes from generated data" in (
        (tmp_path / "made-up" / "report.html").read_text()
    )


@pytest.mark.slow
def test_all_of_the_experiments(tmp_path):
    result = call("run", "all", "--quiet", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"{len(EXPERIMENTS)} of {len(EXPERIMENTS)} experiments ran" in result.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())["summary"]
    for name in EXPERIMENTS:
        assert (tmp_path / name / "report.html").exists()
        assert json.loads((tmp_path / name / "summary.json").read_text())["summary"] == summary[name]


# -- runs that are stopped


def start(folder, *options):
    """The command as a process of its own in `folder`."""
    return subprocess.Popen((*PROGRAM, *RUN, *options), cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def _ctrl_c():
    """The handling that a foreground process passes on, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_for(process, line):
    assert process.stderr is not None
    seen = []
    while not (seen and seen[-1].startswith(line)):
        seen.append(process.stderr.readline())
        assert seen[-1], f"it ended with {process.wait()}:\n{''.join(seen)}"


def assert_same_run(folder, finished):
    assert weights(folder) == weights(finished[0])
    same = ("network", "epoch", "train_loss", "test_loss", "nfe", "samples")
    ours, theirs = (
        [[json.loads(line)[key] for key in same] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (folder, finished[0])
    )
    assert ours == theirs


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_same_bits(tmp_path, finished):
    out = tmp_path / "a folder"  # the printed command must quote it
    with start(tmp_path, "--out", out.name) as process:
        wait_for(process, "odenet-chosen-seed0 epoch 1/5")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert re.search(r"Training of odenet-chosen-seed0 stopped after (step \d+ of 50 of )?epoch \d", said)
    assert list((out / "checkpoints" / "odenet-chosen-seed0").glob("step-*"))
    assert not (out / "odenet-chosen-seed0.safetensors").exists()
    command = said.splitlines()[-1].removeprefix("To go on: ")
    assert command.endswith("run cubic --settings chosen --epochs 5 --out 'a folder' --resume")
    again = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert_same_run(out, finished)


def test_after_kill_9_resume_gives_the_same_bits(tmp_path, finished):
    with start(tmp_path, "--out", "run") as process:
        wait_for(process, "odenet-chosen-seed0 epoch 1/5")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "odenet-chosen-seed0.safetensors").exists()
    result = call(*RUN, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.stderr
    assert_same_run(tmp_path / "run", finished)


def test_ctrl_c_outside_of_the_training_says_how_to_go_on_too(tmp_path, monkeypatch):
    def flow(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cubic, "learned_flow", flow)
    monkeypatch.setattr(sys, "argv", ["/nowhere/odenets", "run", "cubic", "--resume"])
    result = call("run", "cubic", "--settings", "chosen", "--epochs", 1, "--quiet", "--out", tmp_path)
    assert result.exit_code == 130
    assert result.stderr == "\nTo go on: /nowhere/odenets run cubic --resume\n"


@pytest.mark.parametrize(
    ("program", "named"),
    [
        ("{bin}/odenets", "odenets"),  # as the shell found it
        ("./.venv/bin/odenets", "./.venv/bin/odenets"),
        ("/lib/odenets/__main__.py", f"{sys.executable} -m odenets"),
    ],
)
def test_the_command_to_go_on_calls_the_program_as_it_was_called(tmp_path, monkeypatch, program, named):
    (tmp_path / "odenets").write_text("#!/bin/sh\n")
    (tmp_path / "odenets").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "argv", [program.format(bin=tmp_path), "run", "ecg", "--data-dir", "my data"])
    assert cli._command_to_go_on() == f"{named} run ecg --data-dir 'my data' --resume"
