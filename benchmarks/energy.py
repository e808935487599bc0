"""How far the energy of a planet goes astray over 1e5 steps: splitting methods beside rk4, at equally many evaluations.

Run it:  python benchmarks/energy.py   (minutes; writes results/energy.json, of which docs/figures/energy.svg is made)
"""

import json
import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from odenets import METHODS, Fixed, solve
from odenets.experiments.result import versions
from odenets.files import write_atomically

EVALUATIONS = 1200  # of f in an orbit
ORBITS = 167  # so that the leapfrog, of two evaluations a step, makes 1e5 steps
STEPS = {name: EVALUATIONS // each for name, each in (("leapfrog", 2), ("blanes_moan4", 12), ("rk4", 4))}  # an orbit
START = (0.4, 0.0, 0.0, 2.0)  # eccentricity 0.6, major axis 2, so a period of 2π


def planet(t: Tensor, y: Tensor) -> Tensor:
    """dq/dt = p, dp/dt = −q / |q|³."""
    q, p = y[:2], y[2:]
    return torch.cat([p, q / -(q.dot(q) ** 1.5)])


def energy(y: Tensor) -> Tensor:
    """Of states (..., 4)."""
    q, p = y.chunk(2, dim=-1)
    return p.square().sum(-1) / 2 - 1 / q.norm(dim=-1)


@torch.no_grad()
def errors(method: str, orbits: int) -> list[float]:
    """The largest relative error of the energy in each orbit, over the ends of all steps."""
    steps = STEPS[method]
    y0 = torch.tensor(START, dtype=torch.float64)
    t = torch.arange(orbits * steps + 1, dtype=torch.float64) * (2 * math.pi / steps)
    found = solve(planet, y0, t, method=method, controller=Fixed(steps=orbits * steps), max_steps=10**6)
    every = energy(found.ys)
    off = ((every - every[0]) / every[0]).abs()
    return off[1:].reshape(orbits, steps).max(dim=1).values.tolist()


def main(out: Annotated[Path, typer.Option(help="The file.")] = Path("results/energy.json")) -> None:
    """Solve by each method and write the errors."""
    rows = {
        name: {"order": METHODS[name].order, "steps": STEPS[name], "errors": errors(name, ORBITS)} for name in STEPS
    }
    result = {"versions": versions(), "evaluations": EVALUATIONS, "orbits": ORBITS, "methods": rows}
    write_atomically(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
