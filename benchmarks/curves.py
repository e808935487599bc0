"""How memory grows with the steps. The field is that of `ecg`, the method rk4. (How time grows: `scale`.)"""

import ctypes
import gc
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

import odenets
from contestants_torch import Solve, Solver, Step, diffeq, ours
from odenets.nn import MLPField
from works import Network, Work

STEPS = (1, 4, 16, 64, 256, 1024)
USUAL = {"steps": 8, "batch": 128, "width": 64}

Contestants = dict[str, Callable[[int], Solver]]  # number of steps -> solver


def fixed(**options: Any) -> Callable[[int], Solver]:
    return lambda steps: ours(method="rk4", controller=odenets.Fixed(steps=steps), **options)


def fixed_diffeq(odeint: Callable[..., Any]) -> Callable[[int], Solver]:
    return lambda steps: diffeq(odeint, method="rk4", options={"step_size": 1 / steps})


def residual_network(work: Work, field: nn.Module, layers: int) -> Solve:
    """As many residual layers as there are steps, with the weights of one, so that only what is kept grows."""

    def solve(y0: Tensor) -> tuple[Tensor, None]:
        y, t = y0, torch.tensor(0.0)
        for _ in range(layers):
            y = y + field(t, y) / layers
        return y[None], None

    return solve


ALL: Contestants = {
    "odenets Checkpointed": fixed(adjoint=odenets.Checkpointed()),
    "odenets Direct": fixed(adjoint=odenets.Direct()),
    "odenets Checkpointed, compiled": fixed(adjoint=odenets.Checkpointed(), compile=True),
    "torchdiffeq odeint_adjoint": fixed_diffeq(torchdiffeq.odeint_adjoint),
    "torchdiffeq odeint": fixed_diffeq(torchdiffeq.odeint),
    "odenets Checkpointed(memory=10)": fixed(adjoint=odenets.Checkpointed(memory=10)),
    "odenets Interpolated": fixed(adjoint=odenets.Interpolated()),
    "odenets Backsolve": fixed(adjoint=odenets.Backsolve()),
    "odenets Reversible": fixed(adjoint=odenets.Reversible()),
    "ResNet of as many layers": lambda layers: lambda work, field: residual_network(work, field, layers),
}


def field_work(batch: int, width: int, hidden: Sequence[int] = ()) -> Work:
    torch.manual_seed(0)
    x = torch.randn(batch, width)
    return Work(
        name="field",
        what="the field of ecg alone, mean square of the end state",
        network=Network(MLPField(width, hidden, "relu", "add")),
        x=x,
        target=torch.zeros_like(x),
        loss=nn.functional.mse_loss,
        times=(0.0, 1.0),
        rtol=0.0,
        atol=0.0,
        max_steps=0,
    )


def memory(name: str) -> list[int]:
    """Bytes at the peak of one training step beyond those before it, for each number of steps; Linux only."""
    work = field_work(USUAL["batch"], USUAL["width"])
    Step(work, ALL[name](1))()  # what is loaded or compiled once is not meant
    return [peak(Step(work, ALL[name](steps))) for steps in STEPS]


def peak(step: Step) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process keeps would hide what is allocated in it
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def resident(entry: str) -> int:
    found = re.search(rf"^{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {entry}")
    return 1024 * int(found[1])
