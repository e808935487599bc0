"""What the experiment `uniqueness` measures: Picard's iteration, Lipschitz constants, kinks, and solves that fail."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odenets.controller import Fixed
from odenets.experiments.convergence import D, Initial, at_tolerance, errors_over_steps, fitted_order
from odenets.experiments.driver import Row
from odenets.methods import METHODS
from odenets.nn.field import ACTIVATIONS, MLPField, activation
from odenets.solve import solve

# The largest slope of each activation: of GELU at √2, of SiLU where z tanh(z/2) = 2, of all others the obvious one.
SLOPES = {
    "sigmoid": 0.25,
    "tanh": 1.0,
    "relu": 1.0,
    "leaky_relu": 1.0,
    "elu": 1.0,
    "gelu": 1.1289042,
    "silu": 1.0998394,
    "softplus": 1.0,
    "identity": 1.0,
}
# How many derivatives of an activation are continuous, and so the order that an error can have across a kink.
SMOOTH = {name: {"relu": 0, "leaky_relu": 0, "elu": 1}.get(name, math.inf) for name in ACTIVATIONS}

# --- Picard's iteration ----------------------------------------------------------------------------------------------

PICARD: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float, float]] = {
    # f(t, u), its Lipschitz constant in u, u(0), T
    "u′ = u": (lambda t, u: u, 1.0, 1.0, 2.0),
    "u′ = sin 2u + cos t": (lambda t, u: torch.sin(2 * u) + torch.cos(t), 2.0, 0.0, 2.0),
}


def integration(nodes: int, end: float) -> tuple[Tensor, Tensor]:
    """Times (nodes,) from 0 to `end` and the matrix that takes a function there to its integral from 0.

    Through the interpolating polynomial at Chebyshev's points, so exact for polynomials below that degree.
    """
    angles = math.pi * torch.arange(nodes, dtype=D) / (nodes - 1)
    x, k = -torch.cos(angles), torch.arange(nodes + 1, dtype=D)
    values = torch.cos(k * torch.acos(x.clamp(-1, 1))[:, None])  # T_k(x), (nodes, nodes + 1)
    integral = torch.zeros(nodes, nodes, dtype=D)  # of T_k from −1 to x
    integral[:, 0], integral[:, 1] = values[:, 1], values[:, 2] / 4
    integral[:, 2:] = values[:, 3:] / (2 * (k[2:-1] + 1)) - values[:, 1:-2] / (2 * (k[2:-1] - 1))
    integral = (integral - integral[:1]) * end / 2
    return end * (1 + x) / 2, torch.linalg.solve(values[:, :-1].T, integral.T).T


def picard_row(name: str, iterations: int) -> Row:
    """The iterates u_{k+1} = u₀ + ∫ f(s, u_k) ds, their errors and the bound M Lᵏ Tᵏ⁺¹/(k + 1)!."""
    f, constant, start, end = PICARD[name]
    t, matrix = integration(64, end)
    exact = solve(f, torch.tensor(start, dtype=D), t, method="dopri5", rtol=1e-13, atol=1e-14).ys
    most = float(f(t, exact).abs().max())
    u, iterates, errors = torch.full_like(t, start), [], []
    for _ in range(iterations + 1):
        iterates.append(u)
        errors.append(float((u - exact).abs().max()))
        u = start + matrix @ f(t, u)
    bounds = [most * constant**k * end ** (k + 1) / math.factorial(k + 1) for k in range(iterations + 1)]
    last = {"name": name, "M": most, "L": constant, "T": end, "last": errors[-1]}
    broken = sum(e > b + 1e-11 for e, b in zip(errors, bounds))  # 1e-11: what the reference may be off
    return {**last, "broken": broken, "t": t, "exact": exact, "errors": errors, "bounds": bounds, "iterates": iterates}


# --- equations without uniqueness, and without a solution ------------------------------------------------------------

STARTS = (0.0, 1e-12, 1e-8, 1e-4, -1e-12)


@torch.no_grad()
def end_of(f: Callable[[Tensor, Tensor], Tensor], y0: float, end: float, method: str) -> tuple[float | None, Any]:
    """y(end), None where the solve failed, and the solution; 100 steps of a method that cannot adapt them."""
    how: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9} if METHODS[method].adaptive else {"controller": Fixed(steps=100)}
    found = solve(
        f, torch.tensor([y0], dtype=D), [0.0, end], method=method, on_failure="status", max_steps=5_000, **how
    )
    return None if found.failure else float(found.ys[-1]), found


def root_row(method: str, end: float) -> Row:
    """x′ = √|x| from several starts near 0: from 0 both 0 and t²/4 solve it."""
    row: dict[str, Any] = {"method": method}
    for start in STARTS:
        value, found = end_of(lambda t, x: x.abs().sqrt(), start, end, method)
        row[f"{start:g}"] = found.status.name if value is None else f"{value:.4f}"
        row[f"value {start:g}"] = value
    return row


def blowup_row(method: str, y0: float) -> Row:
    """y′ = y², which ends at 1/y0, asked for until twice that time."""
    value, found = end_of(lambda t, y: y**2, y0, 2 / y0, method)
    stopped = None if found.failure is None else found.failure.t
    return {
        "method": method,
        "y0": y0,
        "true": 1 / y0,
        "status": found.status.name,
        "t": stopped,
        "off": None if stopped is None else stopped * y0 - 1,
        "value": value,
        "nfe": found.stats.nfe,
    }


# --- Lipschitz constants of fields -----------------------------------------------------------------------------------


def field_of(name: str, seed: int, width: int = 2, hidden: int = 16, scale: float = 3.0) -> MLPField:
    """A field with one hidden layer, autonomous, float64; weights of that seed, `scale` times PyTorch's."""
    torch.manual_seed(seed)
    field = MLPField(width, (hidden,), name, time="none").double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter *= scale
    return field.requires_grad_(False)


def upper_bound(field: nn.Module, name: str) -> float:
    """The product of the spectral norms of the layers, and of the largest slope of the activation between them."""
    norms = [float(torch.linalg.matrix_norm(m.weight, 2)) for m in field.modules() if isinstance(m, nn.Linear)]
    return math.prod(norms) * SLOPES[name] ** (len(norms) - 1)


def lower_bounds(field: nn.Module, width: int, seed: int, pairs: int = 256, ascents: int = 150) -> tuple[float, float]:
    """The largest difference quotient of random pairs of points, and after moving the pairs uphill."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(pairs, width, generator=generator, dtype=D)
    apart = torch.randn(pairs, width, generator=generator, dtype=D)
    x, apart, t = x.requires_grad_(), apart.requires_grad_(), torch.zeros((), dtype=D)
    optimizer, best, first = torch.optim.Adam([x, apart], lr=0.05), 0.0, 0.0
    for step in range(ascents + 1):
        quotient = (field(t, x + apart) - field(t, x)).norm(dim=-1) / apart.norm(dim=-1)
        best = max(best, float(quotient.detach().max()))
        first = best if step == 0 else first
        optimizer.zero_grad()
        (-quotient.log().sum()).backward()
        optimizer.step()
    return first, best


def lipschitz_row(name: str, seed: int, ascents: int) -> Row:
    """Bounds of the Lipschitz constant of one field."""
    field = field_of(name, seed)
    sampled, found = lower_bounds(field, 2, seed, ascents=ascents)
    upper = upper_bound(field, name)
    return {"activation": name, "seed": seed, "sampled": sampled, "found": found, "upper": upper, "gap": found / upper}


def measured_slope(name: str) -> float:
    """The largest slope of an activation over a fine grid of [−10, 10]."""
    z = torch.linspace(-10, 10, 200_001, dtype=D).requires_grad_()
    (slope,) = torch.autograd.grad(activation(name)(z).sum(), z)
    return float(slope.abs().max())


# --- what a kink costs -----------------------------------------------------------------------------------------------

TOLERANCES = tuple(10.0**-power for power in range(3, 10))


@torch.no_grad()
def kink_row(name: str, seed: int, most: int, tightest: float) -> Row:
    """Measured orders of rk4 and dopri5, and evaluations of dopri5 over tolerances, for 64 starts in one field."""
    field = field_of(name, seed)
    generator = torch.Generator().manual_seed(seed)
    y0, end = torch.randn(64, 2, generator=generator, dtype=D), 1.0
    exact = solve(
        field, y0, [0.0, end], method="dopri5", rtol=tightest / 1000, atol=tightest / 1000, max_steps=200_000
    ).ys[-1]
    problem = Initial(field, y0, end, exact)
    row: dict[str, Any] = {"activation": name, "seed": seed, "nfes": [], "errors": []}
    for method in ("rk4", "dopri5"):
        steps, errors, _ = errors_over_steps(problem, method, most, floor=tightest / 10, first=2)
        row |= {
            method: fitted_order(steps, errors, floor=tightest / 10).order,
            f"{method} steps": steps,
            f"{method} errors": errors,
        }
    for tolerance in (value for value in TOLERANCES if value >= tightest * 0.99):
        found = at_tolerance(problem, "dopri5", tolerance, max_steps=100_000)
        row["nfes"].append(found["nfe"])
        row["errors"].append(found["error"])
    return {**row, "loose": row["nfes"][0], "middle": row["nfes"][len(row["nfes"]) // 2], "tight": row["nfes"][-1]}
