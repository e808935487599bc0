"""Measured orders and work: a problem with a closed form, errors over steps and tolerances, fitted slopes."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets import torchdiffeq
from odenets.controller import Fixed
from odenets.experiments.driver import Row
from odenets.methods import METHODS
from odenets.solution import SolveError
from odenets.solve import solve

D = torch.float64
FLOOR = 1e-12  # of the error, relative: below a few thousand roundings of float64 a slope is that of noise
ADAMS = ("explicit_adams", "implicit_adams")
ONE_STEP = {name: method for name, method in METHODS.items() if not (method.remembers or method.halves)}  # for any f
NOMINAL = {**{name: method.order for name, method in ONE_STEP.items()}, "explicit_adams": 4, "implicit_adams": 5}

Field = Callable[[Tensor, Tensor], Tensor]


class Initial(NamedTuple):
    """A Cauchy problem with its solution at the end."""

    f: Field
    y0: Tensor
    end: float
    exact: Tensor


def swings(end: float = 2.0, phases: int = 12) -> Initial:
    """u = √(2 + sin(t + p)), v = √(3 + cos(2t + p)) for evenly spread phases p, as a nonlinear problem, y (phases, 2).

    u′ = −2g + h/2 + cos(t + p)/2u and v′ = g/2 − h − sin(2t + p)/v, where g = (u² − 2 − sin(t + p))/2u and
    h = (v² − 3 − cos(2t + p))/2v vanish along the solution; made after Kværnø (2003). Of one phase alone the error may
    change its sign at some step size, and no slope can be read off there.
    """
    p = 2 * math.pi * torch.arange(phases, dtype=D) / phases

    def f(t: Tensor, y: Tensor) -> Tensor:
        u, v = y.unbind(-1)
        g = (u**2 - 2 - torch.sin(t + p)) / (2 * u)
        h = (v**2 - 3 - torch.cos(2 * t + p)) / (2 * v)
        return torch.stack([-2 * g + h / 2 + torch.cos(t + p) / (2 * u), g / 2 - h - torch.sin(2 * t + p) / v], -1)

    def solution(t: float) -> Tensor:
        return torch.stack([(2 + torch.sin(t + p)).sqrt(), (3 + torch.cos(2 * t + p)).sqrt()], -1)

    return Initial(f, solution(0.0), end, solution(end))


def relative_error(y: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the solution."""
    return float((y - exact).norm() / exact.norm())


class Counted:
    """f, and how often it was evaluated."""

    def __init__(self, f: Field) -> None:
        self.f, self.nfe = f, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.f(t, y)


@torch.no_grad()
def with_steps(problem: Initial, method: str, steps: int, **options: Any) -> tuple[Tensor, int]:
    """The state at the end after so many equal steps, and the evaluations of f; Adams methods too."""
    f = Counted(problem.f)
    if method in ADAMS:
        t = torch.tensor([0.0, problem.end], dtype=D)
        given = {"step_size": problem.end / steps, **options}
        with warnings.catch_warnings():  # a corrector that has not converged says so: the error shows it
            warnings.simplefilter("ignore")
            y = torchdiffeq.odeint(f, problem.y0, t, method=method, rtol=1e-12, atol=1e-13, options=given)
        return y[-1], f.nfe
    y = solve(f, problem.y0, [0.0, problem.end], method=method, controller=Fixed(steps=steps)).ys[-1]
    return y, f.nfe


def errors_over_steps(
    problem: Initial, method: str, most: int, floor: float = FLOOR, first: int = 4, **options: Any
) -> tuple[list[int], list[float], list[int]]:
    """Steps (each √2 times those before, up to `most`), errors at the end, evaluations; ends below a tenth of `floor`.

    A count with which the solve fails (an implicit step too large for its equations) is left out.
    """
    found: list[tuple[int, float, int]] = []
    for steps in dict.fromkeys(round(first * 2 ** (i / 2)) for i in range(40)):
        if steps > most or (found and found[-1][1] < floor / 10):
            break
        try:
            y, nfe = with_steps(problem, method, steps, **options)
        except SolveError:
            continue
        found.append((steps, relative_error(y, problem.exact), nfe))
    steps_, errors, nfes = zip(*found)
    return list(steps_), list(errors), list(nfes)


class Fit(NamedTuple):
    """A slope and the steps between which it was fitted."""

    order: float
    low: int
    high: int


def fitted_order(steps: Sequence[int], errors: Sequence[float], floor: float = FLOOR, points: int = 5) -> Fit:
    """The order by least squares over the finest `points` whose error is above `floor`.

    Finer ones are rounding; coarser ones are left to the terms of higher order.
    """
    last = next((i for i, error in enumerate(errors) if not error > floor), len(errors))
    used = slice(max(0, last - points), last)
    n, e = steps[used], errors[used]
    if len(n) < 2:
        return Fit(math.nan, steps[0], steps[-1])
    x, y = torch.tensor(n, dtype=D).log(), torch.tensor(e, dtype=D).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return Fit(-float(slope), n[0], n[-1])


@torch.no_grad()
def at_tolerance(problem: Initial, method: str, tolerance: float, max_steps: int = 20_000) -> dict[str, Any]:
    """What an adaptive solve costs and how far it is off, rtol = atol; its status where it fails."""
    options: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance, "max_steps": max_steps}
    found = solve(problem.f, problem.y0, [0.0, problem.end], on_failure="status", **options)
    error = None if found.failure else relative_error(found.ys[-1], problem.exact)
    return {"nfe": found.stats.nfe, "error": error, "status": found.status.name, "rejected": int(found.stats.rejected)}


def implicit(method: str) -> bool:
    """Whether it solves equations for its stages."""
    return method in METHODS and METHODS[method].iterates


# --- rows of the experiment `order` -----------------------------------------------------------------------------------


def order_row(method: str, most: int) -> Row:
    """Errors over steps and the slope; of Adams methods, four derivatives at a time."""
    options = {"max_order": 5, **({"max_iters": 30} if method == "implicit_adams" else {})} if method in ADAMS else {}
    steps, errors, nfes = errors_over_steps(swings(), method, most, **options)
    fit = fitted_order(steps, errors)
    fitted = {
        "measured": fit.order,
        "low": fit.low,
        "high": fit.high,
        "off": fit.order - NOMINAL[method],
        "stages": nfes[-1] / steps[-1],
    }
    return {"method": method, "order": NOMINAL[method], **fitted, "steps": steps, "errors": errors, "nfes": nfes}


def work_row(method: str, tightest: int) -> Row:
    """Evaluations and errors over tolerances; once a solve has failed, tighter ones are not tried."""
    row: dict[str, Any] = {"method": method, "tolerances": [], "nfes": [], "errors": [], "failed": None, "why": None}
    for power in range(2, tightest + 1):
        found = at_tolerance(swings(), method, 10.0**-power, max_steps=5_000)
        if found["error"] is None:
            return {**row, "failed": 10.0**-power, "why": found["status"]}
        for name, value in (("tolerances", 10.0**-power), ("nfes", found["nfe"]), ("errors", found["error"])):
            row[name].append(value)
    return row


def cost_of(row: Row, error: float) -> float | None:
    """The evaluations of f that an error costs, between two tolerances on logarithmic axes; None outside of them."""
    points = list(zip(row["errors"], row["nfes"]))
    for (e0, n0), (e1, n1) in itertools.pairwise(points):
        if e0 >= error >= e1 and e0 > e1:
            share = math.log(e0 / error) / math.log(e0 / e1)
            return n0 * (n1 / n0) ** share
    return None


def taylor_row(order: int) -> Row:
    """The remainder of Taylor's formula of f(x, y) = eˣ sin y over the length of a, and its slope."""
    f = lambda x: x[0].exp() * x[1].sin()  # noqa: E731
    at, along = torch.tensor([0.3, 0.7], dtype=D), torch.tensor([0.6, 0.8], dtype=D)
    length = torch.zeros((), dtype=D, requires_grad=True)
    derivatives = [f(at + length * along)]
    for _ in range(order):
        derivatives += torch.autograd.grad(derivatives[-1], length, create_graph=True)
    terms = [derivative.item() / math.factorial(k) for k, derivative in enumerate(derivatives)]
    counts = [2**i for i in range(1, 10)]  # 1 / ‖a‖
    remainders = [abs(float(f(at + along / n) - sum(c / n**k for k, c in enumerate(terms)))) for n in counts]
    fit = fitted_order(counts, remainders, floor=1e-12)
    names = ("first", "second", "third")
    return {"order": order, "name": names[order - 1], "measured": fit.order, "counts": counts, "remainders": remainders}
