"""The training loop against plain PyTorch loops, against itself after every kind of stop, and its refusals."""

import copy
import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from odenets import SolveError
from odenets.files import read_directory, whole, write_directory
from odenets.nn import GapGRU, MLPField, ODEBlock
from odenets.series import from_arrays
from odenets.train import (
    CheckpointError,
    EpochRecord,
    History,
    Interrupted,
    NonFiniteLoss,
    RunFolderError,
    TrainConfig,
    accuracy,
    display,
    epoch_order,
    evaluate,
    fit,
    read_metrics,
)
from odenets.train.batches import shares
from odenets.train.checkpoint import Label
from odenets.train.display import Display
from train_script import CONFIG, ODE, SEVERAL, STEPS, Hook, data, example, network, odenet

LOSS = nn.CrossEntropyLoss()
SCRIPT = Path(__file__).with_name("train_script.py")
TRAIN, TEST = data(), data(20, 1)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(net: nn.Module, config: TrainConfig = CONFIG, folder=None, loss=LOSS, **options) -> History:
    options = {"name": "net", "progress": False, "train": TRAIN, "test": TEST} | options
    return fit(net, loss, config=config, folder=folder, **options)


def plain_loop(net: nn.Module, config: TrainConfig, optimizer: torch.optim.Optimizer, size: int) -> None:
    """The same training in the plainest PyTorch."""
    x, y = TRAIN
    for epoch in range(config.epochs):
        for rows in epoch_order(len(x), config.seed, epoch).split(size):
            optimizer.zero_grad()
            LOSS(net(x[rows]), y[rows]).backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
            optimizer.step()


def assert_same(net: nn.Module, other: nn.Module, **tolerance) -> None:
    weights = other.state_dict()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_same_bits(net: nn.Module, other: nn.Module) -> None:
    assert_same(net, other, rtol=0, atol=0)


def without_time(records) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in records]


class Crash(Exception):
    """Stands for anything that ends a training in the middle."""


def crash_at(step: int):
    def action(passes: int) -> None:
        if passes == step:
            raise Crash

    return action


def crashed(folder: Path, step: int = 9, config: TrainConfig = CONFIG, **options) -> Path:
    """A folder with a training that crashed in its forward pass `step`."""
    with pytest.raises(Crash):
        train(network(crash_at(step)), config, folder, **options)
    return folder


def checkpoint_of(folder: Path, label: str = "net-seed0") -> Path:
    (path,) = (folder / "checkpoints" / label).iterdir()
    return path


# -- what fit does


def test_a_training_learns_and_tells(tmp_path):
    net = network(dropout=0.0)
    config = replace(CONFIG, epochs=30, lr=0.2)
    seen = []
    history = train(net, config, tmp_path, on_epoch=seen.append)
    assert history.records == tuple(seen) == tuple(read_metrics(tmp_path))
    assert [record.epoch for record in seen] == list(range(1, 31))
    assert history.final.train_loss < history.records[0].train_loss / 2
    assert {record.samples for record in seen} == {47}
    assert all(record.seconds > 0 for record in seen)
    assert history.best.test_accuracy == max(history.column("test_accuracy"))
    loss, outputs = evaluate(net, LOSS, *TEST)
    assert history.final.test_loss == pytest.approx(loss, rel=1e-12)
    assert history.final.test_accuracy == accuracy(outputs, TEST[1])
    assert not net.training


def test_the_final_weights_are_a_safetensors_file(tmp_path):
    net = network()
    train(net, folder=tmp_path)
    other = network()
    other.load_state_dict(load_file(tmp_path / "net-seed0.safetensors"))
    assert_same_bits(net, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl", "net-seed0.safetensors"]


class Tied(nn.Module):
    """One matrix used twice under two names, and stored transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.first.weight = self.second.weight = nn.Parameter(torch.eye(3).T)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()))


def test_tied_and_transposed_weights_are_saved_and_resumed(tmp_path):
    net, again = Tied(), Tied()
    train(net, folder=tmp_path)
    train(again, folder=tmp_path, resume=True)
    assert_same_bits(net, again)
    saved = load_file(tmp_path / "net-seed0.safetensors")
    assert torch.equal(saved["first.weight"], saved["second.weight"])


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (replace(CONFIG, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=0.01)),
        (replace(CONFIG, clip_norm=0.1), lambda p: torch.optim.SGD(p, 0.05, 0.9)),
        (
            replace(CONFIG, optimizer="adam", momentum=0.0, weight_decay=0.01),
            lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01),
        ),
        (
            replace(CONFIG, optimizer="adamw", momentum=0.0, weight_decay=0.01),
            lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01),
        ),
    ],
    ids=["sgd", "clipped", "adam", "adamw"],
)
def test_the_weights_are_those_of_a_plain_loop(config, make):
    net, plain = network(dropout=0.0), network(dropout=0.0)
    train(net, config)
    plain_loop(plain, config, make(plain.parameters()), config.batch_size)
    assert_same(net, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("batch", "accumulate"), [(5, 2), (2, 5), (7, 4), (20, 3)])
def test_accumulated_batches_are_one_larger_batch(batch, accumulate):
    net, plain = network(dropout=0.0), network(dropout=0.0)
    config = replace(CONFIG, batch_size=batch, accumulate=accumulate)
    train(net, config)
    plain_loop(plain, config, torch.optim.SGD(plain.parameters(), 0.05, 0.9), batch * accumulate)
    assert_same(net, plain, rtol=1e-10, atol=1e-12)


def test_a_training_is_a_function_of_its_arguments_and_leaves_the_callers_random_numbers():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    net, again, other = network(), network(), network()
    train(net)
    assert torch.equal(torch.rand(3), expected)
    train(again)
    train(other, replace(CONFIG, seed=1))
    assert_same_bits(net, again)
    assert not torch.equal(net[1].weight, other[1].weight)


def test_the_loop_reads_nothing_from_the_device_in_a_step():
    def reads(samples: int) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            train(network(dropout=0.0), replace(CONFIG, epochs=1, clip_norm=1.0), train=data(samples))
        return sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense")

    assert reads(400) == reads(20)


def test_regression_has_no_accuracy():
    net = nn.Linear(3, 1).double()
    target = TRAIN[0].sum(1, keepdim=True)
    history = train(net, loss=nn.MSELoss(), train=(TRAIN[0], target), test=(TRAIN[0], target))
    assert history.final.test_accuracy is None
    assert history.best.test_loss == min(history.column("test_loss"))


@dataclass
class Effort:
    nfe: int
    nfe_backward: int | None


class CountingLayer(nn.Module):
    """Stands for an ODE layer: evaluations 10, 11, 12, ... in training."""

    def __init__(self):
        super().__init__()
        self.stats: Effort | None = None
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.stats = Effort(10 + self.passes, None if self.passes == 0 else 7)
            self.passes += 1
        return x


def test_evaluations_of_f_are_means_over_the_batches_and_sums_over_the_layers(tmp_path):
    net = nn.Sequential(CountingLayer(), network(), CountingLayer())
    history = train(net, replace(CONFIG, epochs=2), tmp_path)
    assert history.column("nfe") == [24.0, 34.0]
    assert history.column("nfe_backward") == [2 * 7 * 4 / 5, 14.0]


def test_a_network_without_ode_layers_has_no_evaluations_of_f():
    net = nn.Sequential(network())
    net.stats = "not an effort"  # of another library
    assert train(net).column("nfe") == [None] * 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_bf16_runs_the_forward_pass_in_bf16_and_keeps_the_weights(optimizer):
    seen = []
    net = network(dropout=0.0).float()
    net[1].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    points = [(x.float(), y) for x, y in (TRAIN, TEST)]
    config = replace(CONFIG, precision="bf16", optimizer=optimizer, momentum=0.0)
    history = train(net, config, train=points[0], test=points[1])
    assert set(seen) == {torch.bfloat16}
    assert history.final.train_loss < history.records[0].train_loss
    assert net[1].weight.dtype == torch.float32
    assert net(points[0][0]).dtype == torch.float32  # the network is as it was: no autocast of its own
    seen.clear()
    train(net, replace(config, precision="no"), train=points[0], test=points[1])  # in the same process
    assert set(seen) == {torch.float32}


def test_an_accelerator_of_the_caller_keeps_its_state():
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    train(network())
    assert mine.mixed_precision == "bf16"
    assert mine.gradient_accumulation_steps == 3
    mine.state._reset_state(reset_partial_state=True)
    mine.gradient_state._reset_state()


def test_the_environment_does_not_change_the_accumulation(monkeypatch):
    net, other = network(), network()
    train(net)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(other)
    assert_same_bits(net, other)


def test_several_networks_and_seeds_share_a_folder(tmp_path):
    train(network(), folder=tmp_path)
    train(network(), replace(CONFIG, seed=1), tmp_path)
    train(network(), folder=tmp_path, name="other")
    records = [(record.network, record.seed, record.epoch) for record in read_metrics(tmp_path)]
    assert records == [(*run, epoch) for run in [("net", 0), ("net", 1), ("other", 0)] for epoch in (1, 2, 3)]


# -- batches


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch():
    order = epoch_order(100, 0, 0)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, 0, 0))
    others = [epoch_order(100, 1, 0), epoch_order(100, 0, 1), epoch_order(100, 2**32, 0)]
    assert all(not torch.equal(order, other) for other in others)


@given(
    total=st.integers(1, 50),
    batch=st.integers(1, 12),
    accumulate=st.integers(1, 4),
    processes=st.integers(1, 5),
)
@settings(deadline=None, max_examples=200)
def test_shares_cover_each_sample_once_and_weigh_it_equally(total, batch, accumulate, processes):
    steps = -(-total // (batch * accumulate))
    counted = []
    for step in range(steps):
        every = [shares(step, total, batch, accumulate, rank, processes) for rank in range(processes)]
        assert len({len(one) for one in every}) == 1  # as many exchanges of gradients everywhere
        used = [share for one in every for share in one]
        samples = [i for share in used if share.samples for i in range(share.begin, share.end)]
        counted += samples
        for share in used:
            assert share.end > share.begin
            weight_of_one = share.weight / processes / max(1, share.samples)
            assert weight_of_one == pytest.approx(1 / len(samples) if share.samples else 0)
    assert sorted(counted) == list(range(total))


# -- evaluate


def test_evaluate_is_the_mean_over_all_samples_whatever_the_batches():
    net = network()
    whole, outputs = evaluate(net, LOSS, *TRAIN, batch_size=47)
    parts, same = evaluate(net, LOSS, *TRAIN, batch_size=10)
    assert parts == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(outputs, same)
    assert not outputs.requires_grad


def test_evaluate_leaves_each_layer_in_its_mode():
    net = network().train()
    net[2].eval()
    evaluate(net, LOSS, *TRAIN)
    assert [layer.training for layer in net] == [True, True, False, True, True, True]


def test_accuracy_is_of_classes():
    outputs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(outputs, torch.tensor([1, 0, 1, 0])) == 0.75
    assert accuracy(outputs, torch.tensor([1.0, 0.0, 1.0, 0.0])) is None
    assert accuracy(outputs[:, 0], torch.tensor([1, 0, 1, 0])) is None


# -- going on after a stop


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, optimizer="adam", momentum=0.0),
        replace(CONFIG, accumulate=2),
        replace(CONFIG, checkpoint_every=None),
    ],
    ids=["sgd", "adam", "accumulated", "each epoch"],
)
@pytest.mark.parametrize("pass_", [3, 9, 15])
def test_a_resumed_training_has_the_bits_of_an_unbroken_one(tmp_path, config, pass_):
    """Also with dropout and running means; wherever it stops; in the weights, the records and the file."""
    unbroken, resumed = network(), network()
    whole = train(unbroken, config)
    crashed(tmp_path, pass_, config)
    history = train(resumed, config, tmp_path, resume=True)
    assert_same_bits(resumed, unbroken)
    assert without_time(history.records) == without_time(whole.records)
    assert tuple(read_metrics(tmp_path)) == history.records


def test_seconds_and_evaluations_of_a_resumed_epoch_are_of_the_whole_epoch(tmp_path):
    def net(action=lambda passes: None):
        return nn.Sequential(network(action), CountingLayer())

    with pytest.raises(Crash):
        train(net(crash_at(4)), folder=tmp_path)
    before = json.loads((checkpoint_of(tmp_path) / "checkpoint.json").read_text())["position"]
    assert (before["step"], before["nfe"], before["samples"]) == (2, 21, 20)
    history = train(net(), folder=tmp_path, resume=True)
    assert history.records[0].nfe == (10 + 11 + 10 + 11 + 12) / 5  # the new layer counts from 10 again
    assert history.records[0].seconds > before["seconds"]


def test_a_finished_training_resumes_to_its_history_and_weights(tmp_path):
    net, again = network(), network(crash_at(1))
    history = train(net, folder=tmp_path)
    (tmp_path / "net-seed0.safetensors").unlink()  # as if killed just before
    assert train(again, folder=tmp_path, resume=True) == history
    assert_same_bits(net, again)
    assert (tmp_path / "net-seed0.safetensors").exists()


def test_a_finished_training_may_go_on_longer(tmp_path):
    long, short = network(), network()
    train(long, replace(CONFIG, epochs=5))
    train(short, folder=tmp_path)
    train(short, replace(CONFIG, epochs=5, checkpoint_every=None), tmp_path, resume=True)
    assert_same_bits(long, short)


# -- an end once the test loss falls no more

WAITING = replace(CONFIG, epochs=40, lr=0.5, patience=3)


def test_with_patience_a_training_ends_with_its_best_weights(tmp_path):
    net = network(dropout=0.0)
    history = train(net, WAITING, tmp_path)
    losses = history.column("test_loss")
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3 < 40
    assert evaluate(net, LOSS, *TEST)[0] == pytest.approx(min(losses), rel=1e-6)
    saved, other = network(dropout=0.0), network(dropout=0.0)
    saved.load_state_dict(load_file(tmp_path / "net-seed0.safetensors"))
    train(other, replace(WAITING, patience=None, epochs=best + 1))
    assert_same_bits(net, other)
    assert_same_bits(net, saved)


@pytest.mark.parametrize("epochs_after", [0, 2])
def test_a_stopped_training_with_patience_goes_on_to_the_same_end(tmp_path, epochs_after):
    whole_run, again = network(dropout=0.0), network(dropout=0.0)
    history = train(whole_run, WAITING)
    losses = history.column("test_loss")
    steps = (losses.index(min(losses)) + 1 + epochs_after) * 5  # of five batches each
    with pytest.raises(Crash):
        train(network(crash_at(steps + 2), dropout=0.0), WAITING, tmp_path)
    assert without_time(train(again, WAITING, tmp_path, resume=True).records) == without_time(history.records)
    assert_same_bits(whole_run, again)


def test_a_training_takes_series(tmp_path):
    times = [torch.rand(n, dtype=torch.float64).sort().values for n in (3, 1, 5, 2, 4, 4)]
    series = from_arrays(times, [torch.randn(len(t), 2) for t in times])
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    net = GapGRU(2, 2, 4)
    config = TrainConfig(epochs=30, lr=0.05, batch_size=4, optimizer="adam")
    history = train(net, config, tmp_path, train=(series, y), test=(series, y))
    assert history.final.test_loss < 0.5 * history.records[0].test_loss
    assert evaluate(net, LOSS, series, y, 2)[0] == pytest.approx(history.final.test_loss, rel=1e-5)
    with pytest.raises(ValueError, match=r"`train\[0\]` has 6 samples and `train\[1\]` 5"):
        train(net, config, train=(series, y[:5]), test=(series, y))
    with pytest.raises(ValueError, match="made for `channels=3`") as caught:
        train(GapGRU(3, 2, 4), config, train=(series, y), test=(series, y))
    assert "`train[0]` is float32, samples (5, 2)" in caught.value.__notes__[0]


def test_resume_without_a_checkpoint_starts(tmp_path):
    net, other = network(), network()
    train(net, folder=tmp_path, resume=True)
    train(other)
    assert_same_bits(net, other)


def test_lines_are_cut_back_to_the_checkpoint_and_other_lines_stay(tmp_path):
    train(network(), folder=tmp_path, name="other")
    crashed(tmp_path, step=12)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    later = lines[-1].replace('"epoch": 2', '"epoch": 3')
    path.write_text("".join([*lines, later]) + '{"network": "net", "se')  # after the checkpoint, and cut off
    train(network(), folder=tmp_path, resume=True)
    records = [(record.network, record.epoch) for record in read_metrics(tmp_path)]
    assert records == [("other", 1), ("other", 2), ("other", 3), ("net", 1), ("net", 2), ("net", 3)]


def test_one_checkpoint_is_kept_and_leftovers_go(tmp_path):
    crashed(tmp_path)
    assert checkpoint_of(tmp_path).name == "step-00000008"
    leftover = tmp_path / "checkpoints" / "net-seed0" / ".step-00000010.abc.tmp"
    leftover.mkdir()
    train(network(), folder=tmp_path, resume=True)
    assert checkpoint_of(tmp_path).name == "step-00000015"


def run_script(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_after_kill_9_in_the_middle_of_an_epoch_the_bits_are_the_same(tmp_path):
    killed = run_script("plain", tmp_path, "--kill", 9)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint_of(tmp_path).name == "step-00000008"
    net, unbroken = network(), network()
    train(net, folder=tmp_path, resume=True)
    train(unbroken)
    assert_same_bits(net, unbroken)


def test_a_signal_stops_after_the_step_with_a_checkpoint(tmp_path):
    """SIGTERM; Ctrl-C is told to the command in test_cli.py, and to a step below."""
    command = [sys.executable, str(SCRIPT), "plain", str(tmp_path), "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Stopping after this step. Once more to stop at once" in err
    said = re.match(
        r"Interrupted: Training of net-seed0 stopped after step (\d) of 5 of epoch 1; saved in (\S+)\. "
        r"To go on, repeat the call with `resume=True` \(the command with `--resume`\)\.\n",
        out,
    )
    assert said, out
    assert Path(said[2]) == checkpoint_of(tmp_path)
    net, unbroken = network(), network()
    train(net, folder=tmp_path, resume=True)
    train(unbroken)
    assert_same_bits(net, unbroken)


def interrupt_at(pass_: int, times: int = 1):
    def action(passes: int) -> None:
        if passes == pass_:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return action


@pytest.fixture
def _ctrl_c():
    """The handler of a foreground process, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("pass_", [1, 5, 15])
def test_ctrl_c_in_any_step_is_resumed(tmp_path, pass_):
    with pytest.raises(Interrupted) as stop:
        train(network(interrupt_at(pass_)), folder=tmp_path)
    assert stop.value.checkpoint == checkpoint_of(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    net, unbroken = network(), network()
    train(net, folder=tmp_path, resume=True)
    train(unbroken)
    assert_same_bits(net, unbroken)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as stop:
        train(network(interrupt_at(4, times=2)), folder=tmp_path)
    assert not isinstance(stop.value, Interrupted)
    assert checkpoint_of(tmp_path).name == "step-00000002"


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_without_a_folder_says_that_nothing_was_saved():
    with pytest.raises(Interrupted, match=r"stopped after step 4 of 5 of epoch 1. Nothing was saved: `folder` is"):
        train(network(interrupt_at(4)))


@pytest.mark.usefixtures("_ctrl_c")
def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert len(train(network(interrupt_at(4))).records) == 3


# -- several processes


def test_two_processes_train_as_one(tmp_path):
    """Whole and accumulated batches, batches of one sample, "auto" on CPUs, a stop that one process gets, ODE-Nets."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    ran = run_script("several", tmp_path, launcher=launcher)
    assert ran.returncode == 0, ran.stderr
    for rank in range(2):
        assert f"rank {rank} of 2" in ran.stdout
        assert f"rank {rank}: Training of stopped-seed0 stopped after step 16 of 47 of epoch 1; saved" in ran.stdout
    expected = {
        "whole": (SEVERAL, 47),
        "auto": (SEVERAL, 47),
        "accumulated": (replace(SEVERAL, accumulate=3), 47),
        "single": (replace(SEVERAL, batch_size=2), 5),
        "stopped": (replace(SEVERAL, batch_size=1), 47),
    }
    records = read_metrics(tmp_path)
    assert [(record.network, record.epoch) for record in records] == [(n, e) for n in expected for e in (1, 2)]
    for name, (config, samples) in expected.items():
        net, one = network(dropout=0.0), network(dropout=0.0)
        history = train(one, config, train=data(samples))
        net.load_state_dict(load_file(tmp_path / f"{name}-seed0.safetensors"))
        assert_same(net, one, rtol=1e-6, atol=1e-6)
        for two, record in zip([r for r in records if r.network == name], history.records, strict=True):
            assert two.train_loss == pytest.approx(record.train_loss, rel=1e-6)
            assert two.test_loss == pytest.approx(record.test_loss, rel=1e-6)
            assert (two.test_accuracy, two.samples) == (record.test_accuracy, samples)
    odenets = {name: after_training_an_odenet(name, tmp_path) for name in STEPS}
    assert odenets["fixed"] < 1e-12
    assert odenets["per-sample"] < 1e-12
    assert 1e-9 < odenets["shared"] < 1e-2  # each process chooses by its own samples
    lost = "`f` is or has a module whose weights FSDP gathers at each call; their gradients would be lost: shard the"
    for rank in range(2):
        assert f"rank {rank}: sharded True, {lost} module that calls the solve, such as" in ran.stdout
        (found,) = re.findall(rf"rank {rank}: example (\{{.*?\}})", ran.stdout)
        assert json.loads(found)["loss"] == pytest.approx(example()["loss"], rel=1e-4)  # in float32
        assert json.loads(found)["processes"] == 2


def after_training_an_odenet(steps: str, folder: Path) -> float:
    """The largest difference of a weight that two processes have trained from that of one, relative to the largest."""
    one = odenet(steps)
    fit(one, nn.CrossEntropyLoss(), data(), data(20, 1), ODE, progress=False)
    two = load_file(folder / "odenets" / f"{steps}-seed0.safetensors")
    apart = [float((two[name] - x).abs().max() / x.abs().max()) for name, x in one.state_dict().items()]
    return max(apart)


# -- checkpoints that are refused, one test a message


def resume(folder: Path, net: nn.Module | None = None, config: TrainConfig = CONFIG, **options) -> History:
    return train(net or network(), config, folder, resume=True, **options)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checkpoint.json"])
def test_a_file_cut_in_half_is_refused(tmp_path, name):
    path = checkpoint_of(crashed(tmp_path)) / name
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(
        CheckpointError,
        match=rf"The checkpoint is damaged: {path} is damaged: it has {size // 2} bytes, not {size}. "
        rf"Delete {path.parent.parent} to train this network from the start, or train without `resume` in another",
    ):
        resume(tmp_path)


def test_a_damaged_checkpoint_is_refused_also_where_an_older_one_is_left(tmp_path):
    path = checkpoint_of(crashed(tmp_path))
    newer = path.with_name("step-00000010")
    write_directory(newer, read_directory(path))
    (newer / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=rf"state.pt is missing. Delete {newer} to go back to step-00000008. "):
        resume(tmp_path)


def test_another_config_is_refused(tmp_path):
    crashed(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"is of another run: `config.batch_size` is 10 there and 20 here; `config.lr` is 0.05 there and 1 here",
    ):
        resume(tmp_path, config=replace(CONFIG, lr=1, batch_size=20))


def test_other_data_are_refused(tmp_path):
    crashed(tmp_path)
    with pytest.raises(CheckpointError, match=r"is of another run: `training samples` is 47 there and 48 here. Go on"):
        resume(tmp_path, train=data(48))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (network(width=9), r"`1.weight` is float64\[8, 3\] there and float64\[9, 3\] here; .* and 4 more"),
        (network().float(), r"`1.weight` is float64\[8, 3\] there and float32\[8, 3\] here; .* and 5 more"),
        (nn.Sequential(network()), r"it has no `0.1.weight`; it has no `0.1.bias`; .* and 15 more"),
    ],
    ids=["shapes", "dtypes", "names"],
)
def test_another_network_is_refused(tmp_path, net, message):
    crashed(tmp_path)
    points = [(x.to(next(net.parameters()).dtype), y) for x, y in (TRAIN, TEST)]
    with pytest.raises(CheckpointError, match=rf"is of another network: {message}. Go on with the network it had"):
        resume(tmp_path, net, train=points[0], test=points[1])


def test_fewer_epochs_than_done_are_refused(tmp_path):
    crashed(tmp_path)
    with pytest.raises(CheckpointError, match=r"is from epoch 2, but `epochs` is 1. Set `epochs` to at least 2"):
        resume(tmp_path, config=replace(CONFIG, epochs=1))


def rewrite_about(path: Path, **changes: object) -> None:
    contents = read_directory(path)
    del contents["checkpoint.json"]
    about = json.loads((path / "checkpoint.json").read_text()) | changes
    write_directory(path, {**contents, "checkpoint.json": json.dumps(about).encode()})


def test_another_number_of_processes_is_refused(tmp_path):
    rewrite_about(checkpoint_of(crashed(tmp_path)), processes=2)
    with pytest.raises(CheckpointError, match=r"is of another run: `processes` is 2 there and 1 here"):
        resume(tmp_path)


def test_another_format_is_refused(tmp_path):
    rewrite_about(checkpoint_of(crashed(tmp_path)), format=99)
    with pytest.raises(CheckpointError, match=r"was written by another version of odenets"):
        resume(tmp_path)


# -- run folders


def test_a_folder_that_cannot_be_made_fails_before_the_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"The run folder could not be written \(.*/file/run\): "):
        train(network(crash_at(1)), folder=tmp_path / "file" / "run")


@pytest.mark.parametrize("finished", [True, False])
def test_a_training_is_not_overwritten(tmp_path, finished):
    if finished:
        train(network(), folder=tmp_path)
    else:
        crashed(tmp_path)
    before = checkpoint_of(tmp_path)
    with pytest.raises(
        RunFolderError, match=r"already has net-seed0: .*/step-000000.*. Go on with it by `resume=True`"
    ):
        train(network(), folder=tmp_path)
    assert checkpoint_of(tmp_path) == before


def test_final_weights_without_a_checkpoint_are_not_overwritten(tmp_path):
    (tmp_path / "net-seed0.safetensors").touch()
    with pytest.raises(RunFolderError, match=r"whose checkpoint is gone: there is nothing to resume. Use another"):
        resume(tmp_path)


def fail_to_write(monkeypatch, part: str, after: int = 0) -> None:
    """Let the disk be full for files whose path has `part`, `after` so many of them."""
    write, seen = whole.write_synced, []

    def full(path: Path, content: bytes) -> None:
        if part in str(path):
            seen.append(path)
            if len(seen) > after:
                path.write_bytes(content[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(whole, "write_synced", full)


def test_a_full_disk_names_what_was_not_written_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_to_write(patch, "weights.safetensors", after=4)
        with pytest.raises(
            RunFolderError,
            match=r"The checkpoint of net-seed0 after step 8 could not be written \(.*/step-00000008\): "
            r"No space left on device. The checkpoint .*/step-00000006 is intact. Free some disk space",
        ):
            train(network(), folder=tmp_path)
    assert checkpoint_of(tmp_path).name == "step-00000006"
    net, unbroken = network(), network()
    history = resume(tmp_path, net)
    train(unbroken)
    assert_same_bits(net, unbroken)
    assert tuple(read_metrics(tmp_path)) == history.records


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(tmp_path, monkeypatch):
    fail_to_write(monkeypatch, "state.pt")
    with pytest.raises(RunFolderError, match=r"after step 2 could not be written .* There is no earlier checkpoint"):
        train(network(), folder=tmp_path)


def test_a_full_disk_at_a_line_leaves_whole_lines(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), (tmp_path / "metrics.jsonl").stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    crashed(tmp_path, step=9)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunFolderError, match=r"Epoch 2 of net-seed0 could not be written \(.*metrics.jsonl\): No space"
    ):
        resume(tmp_path)
    assert [record.epoch for record in read_metrics(tmp_path)] == [1]


def test_a_full_disk_at_the_end_says_where_the_weights_are(tmp_path, monkeypatch):
    fail_to_write(monkeypatch, "net-seed0.safetensors")
    with pytest.raises(
        RunFolderError,
        match=r"The final weights of net-seed0 could not be written .* They are also in .*/step-00000015. Free",
    ):
        train(network(), folder=tmp_path)


def test_a_damaged_line_of_metrics_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}}\n")
    with pytest.raises(RunFolderError, match=r"metrics.jsonl is damaged: a line is not JSON .* Delete that line"):
        train(network(), folder=tmp_path)


# -- losses that are not finite


class Poison(nn.Module):
    """Multiplies by NaN in one training pass."""

    def __init__(self, pass_: int, value: float = float("nan")):
        super().__init__()
        self.hook, self.factor = Hook(self._action), 1.0
        self.pass_, self.value = pass_, value

    def _action(self, passes: int) -> None:
        self.factor = self.value if passes == self.pass_ else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.hook(x) * self.factor


def test_a_loss_that_is_not_finite_is_named_with_epoch_and_step(tmp_path):
    net = nn.Sequential(network(), Poison(9))
    with pytest.raises(
        NonFiniteLoss,
        match=r"The training loss became nan at step 4 of 5 of epoch 2 \(net-seed0\). Lower `lr` \(it is 0.05\), "
        r"or set `clip_norm`, for example to 1.0. The last good checkpoint is .*/step-00000008.",
    ):
        train(net, folder=tmp_path)
    saved = load_file(checkpoint_of(tmp_path) / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_loss_that_is_not_finite_is_found_without_a_folder():
    with pytest.raises(NonFiniteLoss, match=r"at step 4 of 5 of epoch 2 .* or lower `clip_norm`.$"):
        train(nn.Sequential(network(), Poison(9)), replace(CONFIG, clip_norm=1.0))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    def spoil(passes: int) -> None:
        if passes == 4:
            net[1].bias.register_hook(lambda gradient: gradient * float("inf"))

    net = network(spoil)
    with pytest.raises(NonFiniteLoss, match=r"A weight became NaN or infinite at step 4, counted from the first"):
        train(net, folder=tmp_path)
    assert checkpoint_of(tmp_path).name == "step-00000002"


def test_a_test_loss_that_is_not_finite_is_named():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else x * float("inf")

    with pytest.raises(NonFiniteLoss, match=r"The test loss became (nan|inf) after epoch 1 \(net-seed0\)"):
        train(nn.Sequential(network(), Broken()))


# -- what is shown


def test_a_line_an_epoch_where_there_is_no_terminal(capsys):
    train(nn.Sequential(network(), CountingLayer()), progress=True)
    lines = capsys.readouterr().err.splitlines()
    number = r"\d+(\.\d+)?"
    assert len(lines) == 3
    for epoch, line in enumerate(lines, 1):
        pattern = f"net-seed0 epoch {epoch}/3: train loss {number}, test loss {number}, accuracy {number}, nfe {number}"
        assert re.fullmatch(f"{pattern}, {number} s", line), line


def test_nothing_is_shown_without_progress(capsys):
    train(network())
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(display, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=120))
    monkeypatch.setattr("odenets.train.trainer._BAR_SECONDS", 0.0)
    train(nn.Sequential(network(), CountingLayer()), progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"epoch 2/3  loss 0\.\d+  nfe 1\d\.\d", shown)
    assert re.search(r"\d:\d\d:\d\d", shown)


# -- arguments that are refused, one test a message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "`epochs` is 0; it must be a whole number from 1."),
        ("patience", 0, "`patience` is 0; it must be a whole number of epochs from 1, or None: train all of them."),
        ("epochs", True, "`epochs` is True; it must be a whole number from 1."),
        ("batch_size", 2.5, "`batch_size` is 2.5; it must be a whole number from 1."),
        ("accumulate", 0, "`accumulate` is 0; it must be a whole number from 1."),
        ("seed", -1, "`seed` is -1; it must be a whole number from 0."),
        ("lr", 0.0, "`lr` is 0.0; it must be a positive number, such as 0.1."),
        ("lr", "0.1", "`lr` is '0.1'; it must be a positive number, such as 0.1."),
        ("lr", float("nan"), "`lr` is nan; it must be a positive number, such as 0.1."),
        ("momentum", 1.0, "`momentum` is 1.0; it must be a number from 0 up to, but without, 1."),
        ("weight_decay", -0.1, "`weight_decay` is -0.1; it must be 0 or a positive number."),
        ("clip_norm", 0, "`clip_norm` is 0; it must be a positive number, or None: no limit."),
        ("optimizer", "lion", "`optimizer` is 'lion'; it must be one of 'sgd', 'adam', 'adamw'."),
        ("device", "tpu", "`device` is 'tpu'; it must be one of 'auto', 'cpu', 'cuda', 'mps'."),
        ("precision", "fp8", "`precision` is 'fp8'; it must be one of 'no', 'bf16', 'fp16'."),
        ("checkpoint_every", 0, "`checkpoint_every` is 0; it must be a whole number of steps from 1, or None"),
    ],
)
def test_a_config_checks_itself(field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(CONFIG, **{field: value})


def test_a_momentum_that_would_be_ignored_is_refused():
    with pytest.raises(ValueError, match=r"`momentum` is 0.9, but `optimizer` 'adam' would ignore it. Leave it at 0"):
        TrainConfig(epochs=1, lr=0.1, optimizer="adam", momentum=0.9)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"`device` is 'cuda', which is not available here. Use 'cpu', or 'auto'"):
        train(network(), replace(CONFIG, device="cuda"))


def test_mps_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"`device` is 'mps', which works with one process only. Use 'cpu'"):
        train(network(), replace(CONFIG, device="mps"))


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match=r"`precision` is 'fp16', which the CPU has no autocast for. Use 'bf16' or"):
        train(network().float(), replace(CONFIG, precision="fp16"))


def test_a_precision_that_would_be_ignored_is_refused():
    with pytest.raises(ValueError, match=r"`precision` is 'bf16', but `network` has float64 weights, which autocast"):
        train(network(), replace(CONFIG, precision="bf16"))


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"`network` has no parameter that requires a gradient"):
        train(nn.Linear(3, 2).requires_grad_(False))


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "ö"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValueError, match=r"`name` is .*; it names files, so it must be letters, digits and"):
        train(network(), name=name)


def test_resume_without_a_folder_is_refused():
    with pytest.raises(ValueError, match=r"`resume` is True, but `folder` is None. Give the folder of the run"):
        train(network(), resume=True)


@pytest.mark.parametrize("which", ["train", "test"])
def test_unequal_data_are_refused(which):
    with pytest.raises(ValueError, match=rf"`{which}\[0\]` has 47 samples and `{which}\[1\]` 46; they must have as"):
        train(network(), **{which: (TRAIN[0], TRAIN[1][:-1])})


def test_no_data_are_refused():
    with pytest.raises(ValueError, match=r"`test\[0\]` has no samples; give at least one"):
        train(network(), test=(TRAIN[0][:0], TRAIN[1][:0]))


def test_data_that_are_no_tensors_are_refused():
    with pytest.raises(TypeError, match=r"`train\[0\]` is a ndarray; it must be a tensor: `torch.as_tensor`"):
        train(network(), train=(TRAIN[0].numpy(), TRAIN[1]))


X, Y = TRAIN
TINY = TensorDataset(X, Y)


@pytest.mark.parametrize("which", ["train", "test"])
@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (None, r"` is a NoneType; it must be a pair \(x, y\) of tensors"),
        (X, r"` is a Tensor; it must be a pair"),
        ((X, Y, Y), r"` is a tuple of 3; it must be a pair"),
        (DataLoader(TINY, 10), r"` is a DataLoader; .* Write `tuple\(map\(torch.cat, zip\(\*loader\)\)\)`"),
        (
            TINY,
            r"` is a TensorDataset; .* Write `dataset.tensors` of a `TensorDataset`, and `torch.utils.data.default_co",
        ),
        ((X, None), r"\[1\]` is a NoneType; it must be a tensor"),
        ((X, Y[0]), r"\[1\]` is a single number; it must have an axis of samples first"),
        ((X.clone().requires_grad_(), Y), r"\[0\]` requires grad, which nothing here would use. Give `.detach\(\)`"),
        ((X, Y + 1), r"\[1\]` holds the class 2 in sample \d+, but the network has 2 outputs, for the classes 0 to 1"),
        ((X, Y.int()), r"\[1\]` is int32; classes must be int64: `.long\(\)`"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_name_before_a_step(which, pair, message):
    net = network()
    before = copy.deepcopy(net)
    with pytest.raises((TypeError, ValueError), match=rf"^`{which}{message}"):
        train(net, **{which: pair})
    assert all(map(torch.equal, net.parameters(), before.parameters()))


def test_what_the_refusals_say_to_write_works():
    ours, theirs = network(), network()
    train(theirs)
    train(ours, train=tuple(map(torch.cat, zip(*DataLoader(TINY, 10)))), test=(*TEST,))
    assert_same_bits(ours, theirs)
    assert torch.equal(default_collate([*Subset(TINY, range(3))])[0], X[:3])


def test_classes_that_the_loss_ignores_are_no_fault():
    ignored = torch.where(torch.arange(len(Y)) % 2 == 0, Y, -100)
    train(network(), train=(X, ignored))


def regressor() -> nn.Module:
    return nn.Linear(3, 1).double()


BROADCASTS = [
    nn.functional.mse_loss,
    nn.L1Loss(),
    lambda outputs, y: ((outputs - y) ** 2).mean(),
]


@pytest.mark.parametrize("loss", BROADCASTS, ids=["mse_loss", "L1Loss", "by hand"])
def test_a_loss_that_compares_every_output_with_every_target_is_refused(loss):
    y = X[:, 0]  # (N,), beside outputs (N, 1)
    with pytest.raises(
        ValueError, match=r"`train\[1\]` has shape \(10,\) and the outputs .* \(10, 1\), so `loss` comp"
    ):
        train(regressor(), loss=loss, train=(X, y), test=(X, y))
    ours = regressor()
    before = copy.deepcopy(ours)
    with pytest.raises(ValueError, match=r"`test\[1\]` has shape \(10,\) and the outputs .* \(10, 1\), so `loss` comp"):
        train(ours, loss=loss, train=(X, y[:, None]), test=(X, y))
    assert_same_bits(ours, before)
    with pytest.raises(ValueError, match=r"`y` has shape \(47,\) .* Give both one shape: `y\[:, None\]`"):
        evaluate(regressor(), loss, X, y)
    with pytest.raises(ValueError, match=r"`y` has shape \(47, 1\) .* Give both one shape: `y.squeeze\(1\)`"):
        evaluate(nn.Sequential(regressor(), nn.Flatten(0)), loss, X, y[:, None])
    train(regressor(), loss=loss, train=(X, y[:, None]), test=(X, y[:, None]))


def test_a_loss_that_brings_the_shapes_together_by_itself_is_taken():
    def loss(outputs, y):
        return nn.functional.mse_loss(outputs.squeeze(1), y)

    train(regressor(), loss=loss, train=(X, X[:, 0]), test=(X, X[:, 0]))
    x = X.clone()
    x[:] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"`train\[0\]` holds NaN or infinity in 47 of 47 samples"):
        train(regressor(), loss=loss, train=(x, X[:, 0]), test=(X, X[:, 0]))


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ((X[:, :2], Y), r"`train\[0\]` is float64, samples \(2,\); `train\[1\]` is int64, samples \(\)"),
        ((X.float(), Y), r"The network's weights are float64: give data of that dtype, `.to\(torch.float64\)`"),
    ],
)
def test_an_error_in_the_first_epoch_has_a_note_on_the_data(data, note):
    for which in ("train", "test"):
        with pytest.raises((RuntimeError, ValueError)) as failed:
            train(network(), **{which: data})
        assert re.search(note.replace("train", which, 2), "".join(failed.value.__notes__))


@pytest.mark.parametrize(("which", "value"), [("train", float("nan")), ("train", float("inf")), ("test", float("nan"))])
def test_data_that_are_not_finite_are_named_where_the_loss_is_not(which, value):
    x = X.clone()
    x[7, 1] = value
    with pytest.raises(NonFiniteLoss, match=rf"`{which}\[0\]` holds NaN or infinity in 1 of 47 samples, the first in "):
        train(network(), **{which: (x, Y)})


def test_data_that_are_not_finite_are_named_where_a_solve_fails():
    x = X.clone()
    x[0, 0] = float("nan")
    net = nn.Sequential(ODEBlock(MLPField(3, (4,))), nn.Linear(3, 2)).double()
    with pytest.raises(SolveError) as failed:
        train(net, train=(x, Y))
    assert "`train[0]` holds NaN or infinity in 1 of 47 samples" in "".join(failed.value.__notes__)


def test_a_loss_that_is_no_mean_is_refused():
    with pytest.raises(ValueError, match=r"`loss` returned shape \(10,\); it must return the mean over the samples"):
        train(network(), loss=nn.CrossEntropyLoss(reduction="none"))


def test_an_empty_evaluation_batch_is_refused():
    with pytest.raises(ValueError, match=r"`batch_size` is 0; it must be a whole number from 1"):
        evaluate(network(), LOSS, *TEST, batch_size=0)


def test_a_quiet_display_can_be_moved_before_the_first_epoch_ends():
    """A first step that compiles may take longer than the display waits between two looks."""
    display = Display(False, Label("quiet", 0), epochs=2)
    with display:
        display.start(10, 0)
        display.move(3, 1.5, None)
