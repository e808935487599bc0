"""One training step of the ECG ODE-Net in eager mode, beside torchdiffeq: same network, method, tolerance, batch.

Run it:  python benchmarks/training_step.py            (about a minute; writes results/training_step.json)
Each round times every contestant once, in turn, so that a change of the machine's speed hits all alike; the table
shows medians over the rounds, and ratios of medians. Errors are relative to a solve at 1e-10 in float64.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchdiffeq
import typer
from torch import Tensor, nn

import odenets
from odenets.experiments.result import versions
from odenets.files import write_atomically
from odenets.nn import twins

RESULTS = Path(__file__).parent.parent / "results" / "training_step.json"
TOLERANCE = 1e-3
TIMES = (0.0, 1.0)

Forward = Callable[[nn.Module, Tensor], Tensor]  # field, state -> state at t = 1


def ours(adjoint: Any, method: str = "dopri5", tolerance: float = TOLERANCE) -> Forward:
    """A solve by odenets."""
    controller = odenets.PID(rtol=tolerance, atol=tolerance)

    def forward(field: nn.Module, z: Tensor) -> Tensor:
        return odenets.solve(field, z, TIMES, method=method, controller=controller, adjoint=adjoint).ys[-1]

    return forward


def theirs(odeint: Callable[..., Any]) -> Forward:
    """A solve by torchdiffeq."""
    t = torch.tensor(TIMES)

    def forward(field: nn.Module, z: Tensor) -> Tensor:
        return odeint(field, z, t, method="dopri5", rtol=TOLERANCE, atol=TOLERANCE)[-1]

    return forward


CONTESTANTS: dict[str, Forward] = {
    "odenets Checkpointed": ours(odenets.Checkpointed()),
    "odenets Direct": ours(odenets.Direct()),
    "odenets Backsolve": ours(odenets.Backsolve()),
    "torchdiffeq odeint_adjoint": theirs(torchdiffeq.odeint_adjoint),
    "torchdiffeq odeint": theirs(torchdiffeq.odeint),
}


class Step:
    """A training step: forward, loss, backward, SGD; with the counts of f."""

    def __init__(self, network: nn.Module, forward: Forward | None) -> None:
        self.network = copy.deepcopy(network)
        self.forward = forward
        self.nfe = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        network: Any = self.network
        if self.forward is None:
            return nn.functional.cross_entropy(network(x), y)
        z = self.forward(network.block.field, network.head(x))
        return nn.functional.cross_entropy(network.tail(z), y)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        self.network.zero_grad()
        self.loss(x, y).backward()
        return torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None]).double()

    def count(self, x: Tensor, y: Tensor) -> tuple[int, int]:
        """Evaluations of f, forward and backward."""
        counts = [0]
        network: Any = self.network
        handle = network.block.field.register_forward_hook(lambda *_: counts.__setitem__(0, counts[0] + 1))
        loss = self.loss(x, y)
        forward = counts[0]
        loss.backward()
        handle.remove()
        return forward, counts[0] - forward

    def seconds(self, x: Tensor, y: Tensor) -> float:
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0)  # the same work each time
        started = time.perf_counter()
        optimizer.zero_grad()
        self.loss(x, y).backward()
        optimizer.step()
        return time.perf_counter() - started


def main(rounds: int = 60, threads: int = 1, out: Path = RESULTS) -> None:
    """Measure, print the table, write the JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pair = twins(187, 5, verbose=False)
    x, y = torch.rand(128, 187), torch.randint(0, 5, (128,))
    steps = {name: Step(pair.odenet, forward) for name, forward in CONTESTANTS.items()}
    resnet = Step(pair.resnet, None)
    exact = Step(pair.odenet.double(), ours(odenets.Direct(), tolerance=1e-10)).gradient(x.double(), y)
    seconds: dict[str, list[float]] = {name: [] for name in (*steps, "ResNet twin")}
    for _ in range(rounds + 5):
        for name, step in (*steps.items(), ("ResNet twin", resnet)):
            seconds[name].append(step.seconds(x, y))
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"contestant": name, "ms": 1e3 * statistics.median(values[5:])}
        if name in steps:
            gradient = steps[name].gradient(x, y)
            row["gradient_error"] = float((gradient - exact).norm() / exact.norm())
            row["nfe"], row["nfe_backward"] = steps[name].count(x, y)
        rows.append(row)
    report = {
        "what": "one training step of the ECG ODE-Net, eager, batch 128, width 64, dopri5, rtol = atol = 1e-3, float32",
        "rounds": rounds,
        "rows": rows,
        "versions": {**versions(), "torchdiffeq": torchdiffeq.__version__},
    }
    out.parent.mkdir(exist_ok=True)
    write_atomically(out, json.dumps(report, indent=1) + "\n")
    for row in rows:
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else str(value) for key, value in row.items()))


if __name__ == "__main__":
    typer.run(main)
