"""One training of an ODE-Net by as many processes as are started, one thread each: the result is that of one process.

Run it:  torchrun --standalone --nproc-per-node 2 examples/processes.py       (half a minute)
         python examples/processes.py                                         (the same by one process)
Each batch of 512 is divided among the processes. What is printed: how many there are, the loss, which is the same to
rounding, and of the fastest epoch but the first the seconds that went by and those of the processor, in the first
process.
"""

import itertools
import json
import os
import time

import torch
from torch import Tensor, nn

import odenets
from odenets.nn import MLPField, ODENet
from odenets.train import EpochRecord, History, TrainConfig, fit

BATCH, WIDTH, EPOCHS = 512, 128, 8
# Steps that no other sample has a part in: of fixed size here; adaptive ones would need `per_sample=True`.
STEPS = {"method": "rk4", "controller": odenets.Fixed(steps=4)}


def data(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (samples, 8), and how far they are from the origin."""
    x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
    return x, x.norm(dim=1, keepdim=True)


def train(samples: int, epochs: int) -> dict[str, float]:
    """Train, and say what came of it."""
    torch.manual_seed(0)  # the same first weights in every process
    network = ODENet(nn.Linear(8, WIDTH), MLPField(WIDTH, (WIDTH,)), nn.Linear(WIDTH, 1), **STEPS)
    config = TrainConfig(epochs=epochs, lr=0.01, optimizer="adam", batch_size=BATCH, device="cpu")
    clocks: list[tuple[float, float]] = []

    def note(record: EpochRecord) -> None:
        clocks.append((time.perf_counter(), time.process_time()))

    history: History = fit(
        network, nn.MSELoss(), data(samples, 0), data(BATCH, 1), config, progress=False, on_epoch=note
    )
    weights = sum(p.numel() for p in network.parameters())
    found = {"processes": int(os.environ.get("WORLD_SIZE", "1")), "loss": history.final.test_loss, "weights": weights}
    if clocks:  # in the first process
        epochs_took = [(b - a, q - p) for (a, p), (b, q) in itertools.pairwise(clocks)]
        found |= {name: min(took) for name, took in zip(("seconds", "processor_seconds"), zip(*epochs_took))}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = train(samples=16 * BATCH, epochs=EPOCHS)
    if "seconds" in found:
        print(json.dumps(found))
