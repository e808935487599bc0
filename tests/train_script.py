"""Small trainings that the tests of `odenets.train` run in processes of their own, to kill and to connect them.

python train_script.py plain FOLDER [--kill STEP] [--wait]
torchrun ... train_script.py several FOLDER
"""

import argparse
import json
import os
import runpy
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from odenets import Fixed, LostGradientError
from odenets.nn import MLPField, ODENet
from odenets.train import Interrupted, TrainConfig, evaluate, fit

CONFIG = TrainConfig(
    epochs=3, lr=0.05, momentum=0.9, batch_size=10, device="cpu", checkpoint_every=2
)  # 5 steps an epoch
SEVERAL = TrainConfig(epochs=2, lr=0.05, momentum=0.9, batch_size=7, device="cpu", clip_norm=1.0)


ODE = TrainConfig(epochs=1, lr=0.05, batch_size=16, device="cpu")
STEPS = {
    "fixed": {"method": "rk4", "controller": Fixed(steps=2)},
    "per-sample": {"per_sample": True, "rtol": 1e-2, "atol": 1e-2},
    "shared": {"rtol": 1e-2, "atol": 1e-2},
}
EXAMPLE = Path(__file__).parent.parent / "examples" / "processes.py"


def data(samples: int = 47, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points (samples, 3), in float64, and two classes; 47 leave a smaller last batch of any size."""
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long()


class Hook(nn.Module):
    """Calls `action(forward passes in training so far)` and passes its input on."""

    def __init__(self, action=lambda passes: None):
        super().__init__()
        self.action, self.passes = action, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
            self.action(self.passes)
        return x


def network(action=lambda passes: None, dropout: float = 0.2, width: int = 8) -> nn.Sequential:
    """A small classifier with dropout and running means, always with the same first weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Linear(3, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 2)]
        if dropout:
            layers.insert(1, nn.BatchNorm1d(width))
        return nn.Sequential(Hook(action), *layers).double()


def odenet(steps: str) -> nn.Module:
    """A small ODE-Net, always with the same first weights, whose samples differ in speed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = ODENet(nn.Linear(3, 4), MLPField(4, 8), nn.Linear(4, 2), **STEPS[steps]).double()
        net.head.weight.data *= 5
        return net


def example() -> dict[str, float]:
    """What the example prints, made small."""
    return runpy.run_path(str(EXAMPLE))["train"](samples=60, epochs=2)


def sharded() -> str:
    """Whether an ODE layer that FSDP shards has the gradients of a whole one, and what a sharded field says."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 — seconds, for the processes that need it

    x, nets = data(6)[0], [odenet("fixed") for _ in range(3)]
    fully_shard(nets[1].block)
    fully_shard(nets[2].block.field)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nobody writes into it here
    for net in nets[:2]:
        net(x).square().mean().backward()
    bars = [[p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in n.parameters()] for n in nets]
    same = all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*bars[:2]))
    try:
        nets[2](x)
    except LostGradientError as error:
        return f"{same}, {error}"
    return f"{same}, nothing"


def plain(folder: Path, kill: int | None, wait: bool) -> None:
    """One process: killed (SIGKILL) in its forward pass `kill`, or slow enough to be told to stop."""

    def action(passes: int) -> None:
        if passes == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if wait and passes == 3:
            print("running", flush=True)
        if wait and passes >= 3:
            time.sleep(0.2)

    fit(network(action), nn.CrossEntropyLoss(), data(), data(20, 1), CONFIG, folder, "net")


def several(folder: Path) -> None:
    """Some processes: whole batches, accumulated ones, batches smaller than their number, and a stop."""
    loss, test = nn.CrossEntropyLoss(), data(20, 1)

    def train(name: str, config: TrainConfig, samples: int = 47, action=lambda passes: None, resume=False):
        net = network(action, dropout=0.0)
        return fit(net, loss, data(samples), test, config, folder, name, resume=resume, progress=False)

    train("whole", SEVERAL)
    train("auto", replace(SEVERAL, device="auto"))
    train("accumulated", replace(SEVERAL, accumulate=3))
    train("single", replace(SEVERAL, batch_size=2), samples=5)
    long = replace(SEVERAL, batch_size=1)

    def stop_second(passes: int) -> None:
        if passes == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train("stopped", long, action=stop_second)
    except Interrupted as stop:
        print(f"rank {os.environ['RANK']}: {stop}", flush=True)
    train("stopped", long, resume=True)
    for steps in STEPS:
        fit(odenet(steps), loss, data(), test, ODE, folder / "odenets", steps, progress=False)
    print(f"rank {os.environ['RANK']}: example {json.dumps(example())}", flush=True)
    print(f"rank {os.environ['RANK']}: sharded {sharded()}", flush=True)
    value, _ = evaluate(network(dropout=0.0), loss, *test)
    print(f"rank {os.environ['RANK']} of {torch.distributed.get_world_size()}: {value:.3f}", flush=True)


def main() -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    # A test run in the background inherits an ignored SIGINT, and would pass it on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["plain", "several"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", type=int)
    parser.add_argument("--wait", action="store_true")
    args = parser.parse_args()
    if args.what == "several":
        several(args.folder)
        return
    try:
        plain(args.folder, args.kill, args.wait)
    except Interrupted as stop:
        print(f"Interrupted: {stop}")
        sys.exit(130)


if __name__ == "__main__":
    main()
