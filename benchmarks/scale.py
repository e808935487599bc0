"""How the cost of a training step grows: with steps, batch, width, layers, outputs, short solves, and processes.

Run it:  python benchmarks/scale.py       (under six minutes on two cores; writes results/scale.json)
A training step is forward, loss and backward. Times are the least processor times of some turns; all ways have one turn
after the other, on one core with one thread. "f alone" is as many evaluations of f, forward and backward, without a
solver: `STAGES` in a row, as a step makes them. A law is `fixed + unit · n`, with the least relative errors; an
exponent is the slope of log time over log n in the upper half of the values.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torchdiffeq
import typer
from torch import Tensor

import odenets
from measure import ONE_THREAD, in_fresh_process, least, use_one_core
from odenets.experiments.result import versions
from odenets.files import write_atomically
from odenets.nn import MLPField

ROOT = Path(__file__).parent.parent
STAGES = 4  # evaluations of f in a step of rk4
TURNS, SECONDS = 40, 2.0  # calls of each way, at most, and for how long
AXES: dict[str, tuple[int, ...]] = {
    "steps": (1, 4, 16, 64, 256, 1024),
    "batch": (2, 8, 32, 128, 512, 2048, 8192),
    "width": (2, 8, 32, 128, 512, 1024),
    "layers": (1, 2, 4, 8, 16, 32, 64),
    "outputs": (1, 4, 16, 64, 256, 1024),
    "solves": (1, 4, 16, 64, 256),
}
WAYS: dict[str, dict[str, Any]] = {
    "Checkpointed": {},
    "Checkpointed(activations=0)": {"adjoint": odenets.Checkpointed(activations=0)},
    "Direct": {"adjoint": odenets.Direct()},
    "compiled": {"compile": True},
}
PEERS: dict[str, Callable[..., Any]] = {
    "torchdiffeq odeint_adjoint": torchdiffeq.odeint_adjoint,
    "torchdiffeq odeint": torchdiffeq.odeint,
}
ALONG = {  # others along all axes
    "compiled": ("steps", "batch", "outputs", "solves"),  # where little is compiled anew
    "Checkpointed(activations=0)": ("steps",),
}
BESIDE_PEERS = ("steps", "batch", "width")
FEW, MANY = 4, 36  # steps, between which the cost of one more is taken
KINDS: dict[str, dict[str, Any]] = {
    "rk4, fixed steps": {"method": "rk4"},
    "rk4, fixed steps, compiled": {"method": "rk4", "compile": True},
    "tsit5, adaptive": {},
    "tsit5, adaptive, compiled": {"compile": True},
    "tsit5, adaptive, per sample": {"per_sample": True},
    "tsit5, adaptive, Direct": {"adjoint": odenets.Direct()},
}


PARTS = ("processes", *AXES, "step")


@dataclass(frozen=True)
class Case:
    """What is trained: as many solves of [0, 1] one after the other, each with so many steps of rk4."""

    steps: int = 8
    batch: int = 128
    width: int = 64
    layers: int = 1
    outputs: int = 1
    solves: int = 1

    def field(self) -> MLPField:
        torch.manual_seed(0)
        return MLPField(self.width, (self.width,) * (self.layers - 1), "relu", "add")

    @property
    def times(self) -> list[float]:
        return torch.linspace(0.0, 1.0, self.outputs + 1, dtype=torch.float64).tolist()


USUAL = Case()
ONE_STEP = dataclasses.replace(USUAL, steps=1)  # of each of many solves
Solve = Callable[[Tensor], Tensor]  # y0 -> the states at the times


@dataclass
class Training:
    """Training steps of one case, each a function without arguments."""

    case: Case

    def __post_init__(self) -> None:
        self.field = self.case.field()
        self.y0 = torch.randn(self.case.batch, self.case.width, requires_grad=True)
        self.wanted = [self.y0, *self.field.parameters()]

    def step(self, solve: Solve) -> Callable[[], None]:
        def run() -> None:
            ys = solve(self.y0)
            for _ in range(self.case.solves - 1):
                ys = solve(ys[-1])
            torch.autograd.grad(ys.square().mean(), self.wanted)

        return run

    def ours(self, **options: Any) -> Solve:
        how = {"method": "rk4", "controller": odenets.Fixed(steps=self.case.steps), **options}
        return lambda y0: odenets.solve(self.field, y0, self.case.times, **how).ys

    def theirs(self, odeint: Callable[..., Any]) -> Solve:
        times = torch.tensor(self.case.times)
        how = {"method": "rk4", "options": {"step_size": 1 / self.case.steps}}
        return lambda y0: odeint(self.field, y0, times, **how)

    def counts(self, **options: Any) -> tuple[int, int]:
        """Evaluations of f, forward and again in the backward pass."""
        how = {"method": "rk4", "controller": odenets.Fixed(steps=self.case.steps), **options}
        solution = odenets.solve(self.field, self.y0, self.case.times, **how)
        torch.autograd.grad(solution.ys.square().mean(), self.wanted)
        stats = solution.stats
        return self.case.solves * stats.nfe, self.case.solves * (stats.nfe_backward or 0)

    def evaluations(self, count: int) -> Callable[[], None]:
        """So many evaluations of f and their pullback, some in a row."""
        rows, rest = divmod(count, STAGES)
        t, cotangent = torch.tensor(0.5), torch.ones_like(self.y0)

        def run() -> None:
            for row in [STAGES] * rows + [rest] * (rest > 0):
                y = self.y0
                for _ in range(row):
                    y = self.field(t, y)
                torch.autograd.grad(y, self.wanted, cotangent)

        return run

    def again(self, count: int) -> Callable[[], None]:
        """So many evaluations of f alone."""
        t = torch.tensor(0.5)

        @torch.no_grad()
        def run() -> None:
            for _ in range(count):
                self.field(t, self.y0)

        return run


def point(axis: str, value: int) -> dict[str, float]:
    """Milliseconds of a training step in every way, and of f alone: once, and as often as the default evaluates it."""
    case = dataclasses.replace(ONE_STEP if axis == "solves" else USUAL, **{axis: value})
    training = Training(case)
    ways = {name: how for name, how in WAYS.items() if axis in ALONG.get(name, AXES)}
    steps = {name: training.step(training.ours(**how)) for name, how in ways.items()}
    if axis in BESIDE_PEERS:
        steps |= {name: training.step(training.theirs(odeint)) for name, odeint in PEERS.items()}
    nfe, more = training.counts()
    steps |= {"f": training.evaluations(nfe), "f again": training.again(more)}
    ms = least(steps, TURNS, SECONDS)
    print(axis, value, {name: round(x, 2) for name, x in ms.items()}, flush=True)
    return ms


def curve(axis: str) -> dict[str, Any]:
    """An axis: the milliseconds at each value, and the laws of them."""
    torch.set_num_threads(1)
    values = AXES[axis]
    rows = [point(axis, value) for value in values]
    ms = {name: [row[name] for row in rows] for name in rows[0]}
    again = ms.pop("f again")
    laws = {}
    for name, found in ms.items():
        alone = [f + (more if name == "Checkpointed" else 0.0) for f, more in zip(ms["f"], again)]
        laws[name] = law(axis, values, found)
        if name in ("Checkpointed", "Direct", "compiled"):
            laws[name] |= dominated(values, found, alone)
    return {"values": values, "ms": ms, "f_again_ms": again, "laws": laws}


def sizes(axis: str, values: Sequence[int]) -> np.ndarray:
    """What a cost should be proportional to: of a width its square, since so many weights f has."""
    return np.array(values, dtype=float) ** (2 if axis == "width" else 1)


def law(axis: str, values: Sequence[int], ms: Sequence[float]) -> dict[str, float]:
    """The exponent in the upper half, and the fixed cost and that of a unit, in microseconds."""
    n, us = sizes(axis, values), 1e3 * np.array(ms)
    upper = len(n) // 2
    exponent = np.polyfit(np.log(n[upper:]), np.log(us[upper:]), 1)[0]
    fixed, unit = np.linalg.lstsq(np.stack([1 / us, n / us], 1), np.ones(len(n)), rcond=None)[0]
    return {"exponent": float(exponent), "fixed_us": float(fixed), "unit_us": float(unit)}


def dominated(values: Sequence[int], ms: Sequence[float], alone: Sequence[float]) -> dict[str, Any]:
    """The share of the solver at the last value, and from which value on it is below a half and a tenth."""
    shares = [1 - f / all_ for f, all_ in zip(alone, ms)]
    return {"share": shares, "half": _from(values, shares, 0.5), "tenth": _from(values, shares, 0.1)}


def _from(values: Sequence[int], shares: Sequence[float], bound: float) -> float | None:
    """The value from which on the shares stay below the bound, between two of them on a logarithmic scale."""
    above = [i for i, share in enumerate(shares) if share >= bound]
    if not above:
        return float(values[0])
    if (i := above[-1]) == len(values) - 1:
        return None
    part = (shares[i] - bound) / (shares[i] - shares[i + 1])
    return math.exp((1 - part) * math.log(values[i]) + part * math.log(values[i + 1]))


def one_more_step() -> dict[str, dict[str, float]]:
    """Microseconds of one more step of every kind, and of f alone, once: forward and backward."""
    torch.set_num_threads(1)
    training = Training(USUAL)
    steps: dict[tuple[str, int], Callable[[], None]] = {}
    counts: dict[str, float] = {}
    for name, options in KINDS.items():
        found = []
        for n in (FEW, MANY):
            controller = odenets.Fixed(steps=n) if "method" in options else odenets.PID(dt0=1 / n, dt_max=1 / n)
            how = {"method": "tsit5", "controller": controller, **options}
            steps[name, n] = training.step(training.ours(**how))
            found.append(training.counts(**how)[0])
        counts[name] = (found[1] - found[0]) / (MANY - FEW)
    alone = training.evaluations(STAGES)
    us = {key: 1e3 * x for key, x in least({**steps, ("f", 0): alone}, TURNS, 10 * SECONDS).items()}
    out = {}
    for name, nfe in counts.items():
        step, field = (us[name, MANY] - us[name, FEW]) / (MANY - FEW), nfe * us["f", 0] / STAGES
        out[name] = {"us": step, "nfe": nfe, "f_us": field, "overhead_us": (step - field) / nfe}
    return out


def processes() -> dict[str, Any]:
    """The training of examples/processes.py by one process and by two."""
    return {str(n): _processes(n) for n in (1, 2)}


def _processes(count: int) -> dict[str, Any]:
    command = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    script = ROOT / "examples" / "processes.py"
    environment = {**os.environ, **ONE_THREAD}
    ran = subprocess.run([sys.executable, *command, str(script)], env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def main(only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Measure two processes, every axis, and one more step, and write results/scale.json; or some, the others stay."""
    wanted = only or PARTS
    if unknown := set(wanted) - set(PARTS):
        raise typer.BadParameter(f"`--only` must be one of {', '.join(PARTS)}; got {sorted(unknown)[0]!r}")
    path = ROOT / "results" / "scale.json"
    report: dict[str, Any] = json.loads(path.read_text()) if only and path.exists() else {"axes": {}}
    if "processes" in wanted:
        report["processes"] = processes()  # before this process, and those that it starts, stay on one core
    use_one_core()
    for axis in AXES:
        if axis in wanted:
            report["axes"][axis] = in_fresh_process(curve, axis)
            print(axis, {way: round(law["exponent"], 2) for way, law in report["axes"][axis]["laws"].items()})
    if "step" in wanted:
        report["step"] = {"few": FEW, "many": MANY, "kinds": in_fresh_process(one_more_step)}
    report["axes"] = {axis: report["axes"][axis] for axis in AXES if axis in report["axes"]}
    result = {
        **report,
        "usual": dataclasses.asdict(USUAL),
        "versions": {**versions(), "torchdiffeq": version("torchdiffeq")},
    }
    write_atomically(path, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
