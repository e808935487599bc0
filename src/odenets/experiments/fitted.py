"""What the experiment `fitting` fits: four systems, their data and poor starts, and one fit as a row."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odenets.data.systems import predators
from odenets.experiments.driver import Row
from odenets.fitting import fit_trajectory
from odenets.nn.field import MLPField
from odenets.solve import solve

D = torch.float64
PUBLISHED = "segments of 3 times"  # of DiffEqFlux's example
NOISE_FOUND = 1.3  # times the noise of the data, which the residuals of a fit that is right may have


class Rates(nn.Module):
    """A system dy/dt = f(y, p) by the logarithms of its constants p, which are positive."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor], constants: Tensor) -> None:
        super().__init__()
        self.f, self.log = f, nn.Parameter(constants.log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(y, self.log.exp())


class CubedField(nn.Module):
    """DiffEqFlux's network: y³, 16 neurons, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLPField(2, hidden=(16,), time="none")

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(t, y**3)


def pendulum(y: Tensor, p: Tensor) -> Tensor:
    """A damped pendulum."""
    angle, speed = y.unbind(-1)
    return torch.stack([speed, -p[0] * angle.sin() - p[1] * speed], -1)


def robertson(y: Tensor, p: Tensor) -> Tensor:
    """Robertson's reactions, with rates from 0.04 to 3e7."""
    a, b, c = y.unbind(-1)
    slow, fast, back = p[0] * a, p[1] * b * b, p[2] * b * c
    return torch.stack([back - slow, slow - fast - back, fast], -1)


def spiral(y: Tensor, p: Tensor) -> Tensor:
    """The spiral of cubes of DiffEqFlux's and torchdiffeq's examples."""
    return (y**3) @ p.view(2, 2)


@dataclass(frozen=True)
class Problem:
    """A system and its data: the constants, the initial state, the times, and the noise of each column."""

    f: Callable[[Tensor, Tensor], Tensor]
    constants: tuple[float, ...]
    y0: tuple[float, ...]
    times: Tensor
    noise: tuple[float, ...]
    spread: float = 0.7  # of the logarithms of the constants at a start
    gaps: float = 0.0  # share of the times, and again of the values, that are missing
    options: Mapping[str, Any] = field(default_factory=dict)
    strategies: tuple[str, ...] = ("plain", "growing", "multiple_shooting", "collocation", "auto", PUBLISHED)
    starts: int | None = None  # None for as many as the config says


_STIFF = {"method": "trbdf2", "rtol": 1e-3, "fit_y0": False}
PROBLEMS = {
    "decay": Problem(
        lambda y, p: -p[0] * y,
        (0.5,),
        (2.0,),
        torch.linspace(0, 4, 13, dtype=D),
        (0.05,),
        strategies=("plain", "auto"),
    ),
    "predators": Problem(
        predators,
        (1.5, 1.0, 3.0, 1.0),
        (1.0, 1.0),
        torch.linspace(0, 10, 51, dtype=D),
        (0.2, 0.2),
        gaps=0.1,
        options={"rtol": 1e-5},
    ),
    "pendulum": Problem(
        pendulum,
        (4.0, 0.1),
        (2.0, 0.0),
        torch.linspace(0, 10, 41, dtype=D),
        (0.1,),
        options={"observe": lambda y: y[..., :1], "y0": (2.0, 0.0), "rtol": 1e-5},
        strategies=("plain", "growing", "multiple_shooting", "auto", PUBLISHED),
    ),
    "robertson": Problem(
        robertson,
        (0.04, 3e7, 1e4),
        (1.0, 0.0, 0.0),
        torch.cat([torch.zeros(1, dtype=D), torch.logspace(-5, 3, 33, dtype=D)]),
        (0.01, 1e-6, 0.01),
        spread=1.0,
        options=_STIFF | {"y0": (1.0, 0.0, 0.0), "sigma": (0.01, 1e-6, 0.01)},
        strategies=("plain", "auto"),
        starts=1,
    ),
    "network": Problem(
        spiral,
        (-0.1, 2.0, -2.0, -0.1),
        (2.0, 0.0),
        torch.linspace(0, 5, 30, dtype=D),
        (0.0, 0.0),
        options={"y0": (2.0, 0.0), "fit_y0": False, "rtol": 1e-3},
        starts=1,
    ),
}


def data_of(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Times and noisy values with gaps."""
    generator = torch.Generator().manual_seed(seed)
    times = problem.times
    kept = torch.rand(len(times), generator=generator) >= problem.gaps
    kept[[0, -1]] = True
    times = times[kept]
    p, y0 = torch.tensor(problem.constants, dtype=D), torch.tensor([problem.y0], dtype=D)
    method = "trbdf2" if problem.options.get("method") else "tsit5"
    atol = torch.tensor(problem.noise, dtype=D) * 1e-5 if method == "trbdf2" else 1e-9
    fine: dict[str, Any] = {"method": method, "rtol": 1e-6 if method == "trbdf2" else 1e-9, "atol": atol}
    with torch.no_grad():
        states = solve(lambda t, y: problem.f(y, p), y0, times, **fine).ys[:, 0]
    values = states[:, : len(problem.noise)]
    values = values + torch.tensor(problem.noise, dtype=D) * torch.randn(values.shape, generator=generator, dtype=D)
    missing = torch.rand(values.shape, generator=generator) < problem.gaps
    return times, values.masked_fill(missing, math.nan)


def start_of(problem: Problem, name: str, seed: int, start: int) -> nn.Module:
    """The model to begin with: constants that are off by a factor, or a network's first weights."""
    if name == "network":
        torch.manual_seed(1000 * seed + start)
        return CubedField()
    generator = torch.Generator().manual_seed(1000 * seed + start + 1)
    off = problem.spread * torch.randn(len(problem.constants), generator=generator, dtype=D)
    middle = torch.tensor(problem.constants, dtype=D) if name == "robertson" else torch.ones(len(off), dtype=D)
    return Rates(problem.f, middle * off.exp())


def fit_row(name: str, strategy: str, seed: int, start: int, iterations: int) -> Row:
    """One fit: whether it has found the solution, how far its constants are off in standard errors, and the seconds."""
    problem = PROBLEMS[name]
    times, values = data_of(problem, seed)
    if name == "network":
        values = values.float()
    row: dict[str, Any] = {"problem": name, "strategy": strategy, "seed": seed, "start": start}
    how: dict[str, Any] = {"strategy": strategy}
    if strategy == PUBLISHED:
        how = {"strategy": "multiple_shooting", "segments": (len(times) - 1) // 2}
    options: dict[str, Any] = {"iterations": iterations * (2 if name == "network" else 1), **problem.options, **how}
    begin = time.process_time()
    try:
        fit = fit_trajectory(start_of(problem, name, seed, start), times, values, **options)
    except RuntimeError as error:  # the solve fails where the fit begins
        return row | {"seconds": time.process_time() - begin, "found": 0.0, "failed": str(error)}
    row["seconds"] = time.process_time() - begin
    drawn = {}
    if start == 0:
        at = problem.times if name == "robertson" else torch.linspace(float(times[0]), float(times[-1]), 101, dtype=D)
        drawn = {"t": at, "y": fit.predict(at)[:, 0]}
        drawn |= {"t_seen": times, "seen": values[:, 0].nan_to_num(0.0)} if strategy == "plain" else {}
    if fit.standard_errors is None:
        rms = fit.loss**0.5
        return row | drawn | {"noise": rms, "found": float(rms < 0.05)}
    known = 1.0 if "sigma" in problem.options else problem.noise[0]
    off = (fit.parameters["log"] - torch.tensor(problem.constants, dtype=D).log()) / fit.standard_errors["log"]
    worst = float(off.abs().max())
    ratio = fit.noise / known
    found = float(ratio < NOISE_FOUND)
    inside = {"within": float(worst <= 3), "worst": worst} if found else {}
    constants = fit.parameters["log"].exp().tolist()
    return row | drawn | inside | {"noise": ratio, "found": found, "constants": constants}
