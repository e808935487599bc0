"""How many evaluations of f one-step and multistep methods take to the same error: counts alone, no times."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import ode, solve_ivp

import odenets

TOLERANCES = tuple(10.0**-power for power in range(3, 14))
ERRORS = (1e-4, 1e-6, 1e-8, 1e-10)
OURS = ("adams", "tsit5", "dopri5", "dopri8")
Right = Callable[[Any, Any, Callable[[Sequence[Any]], Any]], Any]  # f(t, y, stack)


def predators(t: Any, u: Any, stack: Callable[[Sequence[Any]], Any]) -> Any:
    """Lotka and Volterra's: sharp peaks."""
    return stack([1.5 * u[0] - u[0] * u[1], -3 * u[1] + u[0] * u[1]])


def planet(t: Any, u: Any, stack: Callable[[Sequence[Any]], Any]) -> Any:
    """An orbit of eccentricity 0.6."""
    x, y, vx, vy = u
    cubed = (x * x + y * y) ** 1.5
    return stack([vx, vy, -x / cubed, -y / cubed])


def pendulum(t: Any, u: Any, stack: Callable[[Sequence[Any]], Any]) -> Any:
    """Damped, and driven: smooth, and never at rest."""
    sin = torch.sin if isinstance(u, torch.Tensor) else np.sin
    return stack([u[1], 0.5 * math.cos(float(t)) - 0.1 * u[1] - sin(u[0])])


PROBLEMS: dict[str, tuple[Right, list[float], float]] = {
    "pendulum": (pendulum, [1.0, 0.0], 20.0),
    "predators": (predators, [10.0, 5.0], 10.0),
    "planet": (planet, [0.4, 0.0, 0.0, 2.0], 20.0),
}


def evaluations() -> dict[str, Any]:
    """For each problem and contestant the evaluations of f that lead to each of `ERRORS`."""
    return {
        "errors": list(ERRORS),
        "evaluations": {name: {who: at_errors(name, who) for who in (*OURS, "VODE")} for name in PROBLEMS},
    }


def at_errors(problem: str, who: str) -> list[float | None]:
    """How many evaluations lead to each error: between two tolerances a power law."""
    f, y0, end = PROBLEMS[problem]
    exact = solve_ivp(f, (0, end), y0, "DOP853", rtol=3e-14, atol=1e-16, args=(np.array,)).y[:, -1]
    found = []  # (evaluations, error), the error falling
    for tolerance in TOLERANCES:
        y, nfe = vode(f, y0, end, tolerance) if who == "VODE" else ours(f, y0, end, tolerance, who)
        error = float(np.linalg.norm(y - exact) / np.linalg.norm(exact))
        if not found or error < found[-1][1]:
            found.append((nfe, error))
    return [_between(found, error) for error in ERRORS]


def _between(found: Sequence[tuple[int, float]], error: float) -> float | None:
    for (n0, e0), (n1, e1) in itertools.pairwise(found):
        if e0 >= error > e1:
            share = math.log(e0 / error) / math.log(e0 / e1)
            return round(math.exp((1 - share) * math.log(n0) + share * math.log(n1)))
    return None


def ours(f: Right, y0: list[float], end: float, tolerance: float, method: str) -> tuple[np.ndarray, int]:
    start = torch.tensor(y0, dtype=torch.float64)
    options: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance, "max_steps": 100_000}
    sol = odenets.solve(f, start, (0.0, end), args=(torch.stack,), **options)
    return sol.ys[-1].numpy(), sol.stats.nfe


def vode(f: Right, y0: list[float], end: float, tolerance: float) -> tuple[np.ndarray, int]:
    count = 0

    def counted(t: float, y: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return f(t, y, np.array)

    solver = ode(counted).set_integrator("vode", method="adams", rtol=tolerance, atol=tolerance, nsteps=100_000)
    solver.set_initial_value(y0, 0.0)
    return solver.integrate(end), count
