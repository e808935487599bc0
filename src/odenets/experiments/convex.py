"""What the experiment `descent` goes down, and what it measures there.

Convex functions of real data and of one number, and a function of the plane with two minima.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from odenets.experiments.driver import Row
from odenets.extra import experiments_extra
from odenets.solve import solve

D = torch.float64
DISTANCES = tuple(m * 10.0**power for power in range(-2, 4) for m in (1, 2, 5))  # of the start from the minimum
SIZES = (0.0, 0.02, 0.1, 0.2, 0.3)  # step sizes where there are two minima; 0 stands for the flow
READINGS = {"of_gradient": "∇f is L-Lipschitz", "of_function": "f is L-Lipschitz"}
BOUNDS = {2: "‖x₀ − x*‖²/(2ηk)", 1: "‖x₀ − x*‖/(2ηk)"}  # the exponent of the distance; the document prints 1


class Problem(NamedTuple):
    """A convex function of a vector x, (n,), with a minimum; float64."""

    gap: Callable[[Tensor], Tensor]  # f(x) − f(x*), ()
    gradient: Callable[[Tensor], Tensor]
    best: Tensor  # x*, (n,): of more than one, the nearest to zero
    constant: float  # L of the gradient
    curvature: Tensor  # the Hessian at x*, (n, n)


def table_of(name: str) -> tuple[Tensor, Tensor]:
    """A data set that comes with scikit-learn: standardised columns and one of ones (n, d + 1), and its target (n,)."""
    with experiments_extra("the experiment descent"):
        from sklearn import datasets  # noqa: PLC0415 — seconds to import

    data = getattr(datasets, f"load_{name}")()
    x, y = torch.tensor(data.data, dtype=D), torch.tensor(data.target, dtype=D)
    spread = x.std(0, correction=0)
    x = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
    return torch.cat([x, torch.ones(len(x), 1, dtype=D)], 1), y


def least_squares(a: Tensor, b: Tensor) -> Problem:
    """f(x) = ‖Ax − b‖²/(2n). The gap is taken from x − x*, so that it keeps its digits down to nothing."""
    hessian = a.T @ a / len(a)
    best = torch.linalg.pinv(a) @ b
    constant = float(torch.linalg.eigvalsh(hessian)[-1])
    gap = lambda x: ((x - best) @ hessian @ (x - best)) / 2  # noqa: E731
    return Problem(gap, lambda x: hessian @ (x - best), best, constant, hessian)


def logistic(a: Tensor, signs: Tensor) -> Problem:
    """f(x) = mean of log(1 + exp(−s Ax)) for signs s of ±1; the minimum by Newton's method, L = σmax²/(4n)."""
    rows = a * signs[:, None]
    value = lambda x: -logsigmoid(rows @ x).mean()  # noqa: E731
    gradient = lambda x: -(rows.T @ torch.sigmoid(-rows @ x)) / len(rows)  # noqa: E731
    best = torch.zeros(a.shape[1], dtype=D)

    def hessian(x: Tensor) -> Tensor:
        p = torch.sigmoid(rows @ x)
        return (rows.T * (p * (1 - p))) @ rows / len(rows)

    for _ in range(30):
        best = best - torch.linalg.solve(hessian(best), gradient(best))
    constant = float(torch.linalg.eigvalsh(a.T @ a)[-1]) / (4 * len(a))
    return Problem(lambda x: value(x) - value(best), gradient, best, constant, hessian(best))


@functools.cache
def problem(name: str) -> Problem:
    """One of `PROBLEMS`."""
    data, kind = PROBLEMS[name]
    a, y = table_of(data)
    if kind == "logistic":
        # Ten of the 30 columns: a plane separates the classes in all of them, and then no x is the minimum.
        return logistic(torch.cat([a[:, :10], a[:, -1:]], 1), 2 * y - 1)
    return least_squares(a, y if data == "diabetes" else 1 - 2 * (y % 2))


PROBLEMS = {
    "diabetes, least squares": ("diabetes", "squares"),
    "digits (even or odd), least squares": ("digits", "squares"),
    "breast cancer, logistic regression": ("breast_cancer", "logistic"),
}


EPSILON = 0.01


class Scalar(NamedTuple):
    """A convex function of a number with its minimum, 0, at 0, and the Lipschitz constants of f′ and of f."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    of_gradient: float
    of_function: float


SCALARS = {
    "x²/2": Scalar(lambda x: x**2 / 2, lambda x: x, 1.0, math.inf),
    "Huber's function": Scalar(
        lambda x: torch.where(x.abs() <= 1, x**2 / 2, x.abs() - 0.5), lambda x: x.clamp(-1, 1), 1.0, 1.0
    ),
    "log cosh x": Scalar(lambda x: x.abs() + softplus(-2 * x.abs()) - math.log(2), torch.tanh, 1.0, 1.0),
    f"√(x² + {EPSILON}²)": Scalar(
        lambda x: x**2 / ((x**2 + EPSILON**2).sqrt() + EPSILON),
        lambda x: x / (x**2 + EPSILON**2).sqrt(),
        1 / EPSILON,
        1.0,
    ),
}


def hills(x: Tensor) -> Tensor:
    """(x² − 1)²/2 + 0.2 x + (y − sin 2x)²/2 of points (…, 2): a lower minimum on the left and one on the right."""
    a, b = x.unbind(-1)
    return (a**2 - 1) ** 2 / 2 + 0.2 * a + (b - torch.sin(2 * a)) ** 2 / 2


def hills_slope(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    across = b - torch.sin(2 * a)
    return torch.stack([2 * a * (a**2 - 1) + 0.2 - 2 * torch.cos(2 * a) * across, across], -1)


# --- what is measured on them -----------------------------------------------------------------------------------------


def descend(
    gradient: Callable[[Tensor], Tensor], gap: Callable[[Tensor], Tensor], x: Tensor, eta: Any, steps: int
) -> Tensor:
    """f(x_k) − f(x*) for k = 0 … steps, (steps + 1, …), where x_{k+1} = x_k − η ∇f(x_k).

    Ends early where that of one x is above 1e6 times the first.
    """
    gaps = [gap(x)]
    for _ in range(steps):
        x = x - eta * gradient(x)
        gaps.append(gap(x))
        if gaps[-1].dim() == 0 and not gaps[-1] < 1e6 * gaps[0]:
            break
    return torch.stack(gaps)


def rises(gaps: Tensor, size: float) -> int:
    """How many steps go up by more than rounding, where values of f are of that size."""
    return int((gaps[1:] > gaps[:-1] + 1e-14 * size).sum())


def descent_row(name: str, rate: float, steps: int) -> Row:
    """One descent from 0."""
    p = problem(name)
    eta, start = rate / p.constant, torch.zeros_like(p.best)
    gaps = descend(p.gradient, p.gap, start, eta, steps)
    k, distance = torch.arange(1, len(gaps)), float(p.best.norm())
    size = float(gaps[0]) if PROBLEMS[name][1] == "squares" else math.log(2)
    # Below 1e-12 of the first gap the curves only show rounding.
    shown = sorted({round(10 ** (i / 16)) for i in range(1 + int(16 * math.log10(len(gaps) - 1)))})
    return {
        "problem": name,
        "rate": rate,
        "L": p.constant,
        "smallest": float(torch.linalg.eigvalsh(p.curvature).clamp(min=0)[0]),
        "largest": float(torch.linalg.eigvalsh(p.curvature)[-1]),
        "distance": distance,
        "steps": len(gaps) - 1,
        "start_gap": float(gaps[0]),
        "last_gap": float(gaps[-1]),
        "rises": rises(gaps, size),
        "growth": float(gaps[-1] / gaps[-2]) if rate > 2 else None,
        "of_bound": float((gaps[1:] * 2 * eta * k).max() / distance**2),
        "of_printed": float((gaps[1:] * 2 * eta * k).max() / distance),
        "k": shown,
        "gap": torch.where(gaps[shown] > 1e-12 * gaps[0], gaps[shown], math.nan),
    }


def edge_row(name: str, steps: int) -> Row:
    """The largest step size, in units of 1/L, with which no value rises; by bisection."""
    p, low, high = problem(name), 1.0, 64.0
    size = float(p.gap(torch.zeros_like(p.best)))
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        falls = rises(descend(p.gradient, p.gap, torch.zeros_like(p.best), middle / p.constant, steps), size) == 0
        low, high = (middle, high) if falls else (low, middle)
    return {"problem": name, "edge": low, "local": 2 * p.constant / float(torch.linalg.eigvalsh(p.curvature)[-1])}


# --- which statement is true -----------------------------------------------------------------------------------------


def trials(name: str, reading: str, steps: int) -> Row:
    """Descents on one function from every distance with four rates η ≤ 1/L, and both bounds tried on each."""
    f = SCALARS[name]
    constant = getattr(f, reading)
    x0 = torch.tensor(DISTANCES, dtype=D)[:, None]
    eta = torch.tensor([0.1, 0.25, 0.5, 1.0], dtype=D) / constant  # (4,): the gaps are (steps + 1, distances, 4)
    gaps = descend(f.slope, f.value, x0.expand(-1, 4), eta, steps)[1:]
    k = torch.arange(1, steps + 1)[:, None, None]
    row: dict[str, Any] = {"function": name, "reading": reading, "L": constant, "trials": x0.numel() * 4}
    for power in BOUNDS:
        bound = x0**power / (2 * eta * k)
        broken = gaps > bound * (1 + 1e-12)
        row |= {f"broken_{power}": int(broken.any(0).sum()), f"ratio_{power}": float((gaps / bound).max())}
        row[f"by_distance_{power}"] = (gaps / bound).amax((0, 2))
        if broken.any():  # the first step at which it breaks, from the nearest start, with the largest rate
            i, j, m = min(broken.nonzero().tolist(), key=lambda at: (at[0], at[1], -at[2]))
            numbers = (float(x0[j]), float(eta[m]), i + 1, float(gaps[i, j, m]), float(bound[i, j, m]))
            row[f"example_{power}"] = dict(zip(("x0", "eta", "k", "gap", "bound"), numbers))
    return row


def verdicts(tried: Sequence[Row]) -> list[dict[str, Any]]:
    """Each of the four statements: how many trials broke it, by how much, and the first example."""
    found = []
    for reading, power in itertools.product(READINGS, BOUNDS):
        mine = [row for row in tried if row["reading"] == reading]
        examples = [{"function": r["function"], **r[f"example_{power}"]} for r in mine if f"example_{power}" in r]
        found.append(
            {
                "reading": READINGS[reading],
                "bound": BOUNDS[power],
                "trials": sum(row["trials"] for row in mine),
                "broken": sum(row[f"broken_{power}"] for row in mine),
                "ratio": max(row[f"ratio_{power}"] for row in mine),
                "example": min(examples, key=lambda e: (e["k"], e["x0"]), default=None),
            }
        )
    return found


# --- two minima ------------------------------------------------------------------------------------------------------


def valley_starts(side: int) -> Tensor:
    """A grid of starts, (side², 2)."""
    line = torch.linspace(-2, 2, side, dtype=D)
    return torch.cartesian_prod(line, line)


def valleys(eta: float, side: int) -> Row:
    """Where the starts of a grid go, with a step size, or along the gradient flow x′ = −∇f(x) where that is 0."""
    x0 = valley_starts(side)
    flow = solve(lambda t, x: -hills_slope(x), x0, [0.0, 40.0], rtol=1e-8, atol=1e-10).ys[-1]
    x, path, up = x0, [x0], torch.zeros(len(x0), dtype=torch.bool)
    for _ in range(round(40 / eta) if eta else 0):
        x = x - eta * hills_slope(x)
        up |= hills(x) > hills(path[-1]) + 1e-12
        path.append(x)
    ends = path[-1] if eta else flow
    there = hills_slope(ends).norm(dim=-1) < 1e-3  # at a point where the gradient is (all but) zero
    left, flows_left = there & (ends[:, 0] < 0), flow[:, 0] < 0
    return {
        "eta": eta,
        "name": f"{eta:g}" if eta else "flow",
        "left": float(left.double().mean()),
        "right": float((there & ~left).double().mean()),
        "nowhere": float((~there).double().mean()),
        "other": float((~there | (left != flows_left)).double().mean()),
        "up": float(up.double().mean()) if eta else None,
        "low_left": float(hills(ends[left][0])) if left.any() else None,
        "low_right": float(hills(ends[there & ~left][0])) if (there & ~left).any() else None,
        "goes_left": left.int(),
        "arrives": there.int(),
        "paths": torch.stack(path[:400:2])[:, 7::97] if 0 < eta < 0.1 else None,  # later ones leap everywhere
    }
