"""Series of systems whose equations and constants are known, seen at irregular times, with noise and missing values."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from odenets.arguments import count as whole
from odenets.arguments import number
from odenets.series import Series
from odenets.solve import solve

OSCILLATOR = ("omega", "gamma", "amplitude", "phase")
PREDATORS = ("alpha", "beta", "gamma", "delta", "prey", "predators")
_BEGIN = (1.5, 1.0, 3.0, 1.0, 1.0, 1.0)  # the middle of each of these


def oscillators(
    count: int = 1000, seed: int = 0, *, rows: int = 40, length: float = 10.0, noise: float = 0.1, missing: float = 0.2
) -> tuple[Series, Tensor]:
    """Damped oscillators: dx/dt = −γ x − ω y, dy/dt = ω x − γ y, so (x, y) = a e^(−γt) (cos, sin)(ωt + φ).

    When to use: to see what a model makes of gaps where the answer is known. ω, in radians a unit of time, is uniform
    on 1 … 4, γ on 0.05 … 0.25, a on 0.5 … 1.5 and φ on 0 … 2π.

    Args:
        count: How many.
        seed: Of all of it: equal seeds make equal series.
        rows: The most rows of a series; each has from half of them on, equally likely.
        length: The first row is at time 0 with all values, the others at random times up to this one.
        noise: The standard deviation of the noise, in the unit of x and y.
        missing: The probability of a value to be missing, from 0 up to, but without, 1; rows without a value are left
            out.

    Returns:
        Series of the channels x and y, and what is true of each, (count, 4): ω, γ, a and φ, named by `OSCILLATOR`.

    Raises:
        TypeError, ValueError: An argument that is none.
    """
    _check(noise, missing)
    generator, times, lengths = _times(count, seed, rows, length)
    lowest, highest = torch.tensor([[1.0, 0.05, 0.5, 0.0], [4.0, 0.25, 1.5, 2 * math.pi]])
    truth = lowest + (highest - lowest) * torch.rand(len(times), 4, generator=generator)
    omega, gamma, amplitude, phase = truth.double().T[..., None]
    states = amplitude[..., None] * oscillation(times, omega, gamma, phase)
    values = states + noise * torch.randn(states.shape, generator=generator)
    return _seen(times, values, lengths, missing, ("x", "y"), generator), truth


def lotka_volterra(
    count: int = 1000, seed: int = 0, *, rows: int = 40, length: float = 10.0, noise: float = 0.1, missing: float = 0.2
) -> tuple[Series, Tensor]:
    """Predators and prey: dx/dt = α x − β x y, dy/dt = δ x y − γ y, from x(0) and y(0).

    When to use: as `oscillators`, for a motion that is not linear and turns around at another speed in each series. The
    logarithms of α, β, γ, δ, x(0) and y(0) are normal with a deviation of 0.2 around those of 1.5, 1, 3, 1, 1 and 1:
    periods of about 3. Each is solved to 1e-6 by `odenets.solve`, at times of its own.

    Args:
        count, seed, rows, length, missing: As for `oscillators`.
        noise: The standard deviation of the noise of the logarithm of a population: 0.1 is about a tenth.

    Returns:
        Series of the channels prey and predators, and what is true of each, (count, 6): α, β, γ, δ, x(0) and y(0),
        named by `PREDATORS`.

    Raises:
        TypeError, ValueError: An argument that is none.
    """
    _check(noise, missing)
    generator, times, lengths = _times(count, seed, rows, length)
    truth = torch.tensor(_BEGIN) * torch.exp(0.2 * torch.randn(len(times), len(_BEGIN), generator=generator))
    constants, begin = truth.double().split([4, 2], dim=1)
    with torch.no_grad():
        states = solve(_field(constants), begin, times, per_sample=True, rtol=1e-6, atol=1e-8).ys.movedim(0, 1)
    values = states * torch.exp(noise * torch.randn(states.shape, generator=generator))
    return _seen(times, values, lengths, missing, ("prey", "predators"), generator), truth


def oscillation(times: Tensor, omega: Tensor, gamma: Tensor, phase: Tensor) -> Tensor:
    """(..., 2), e^(−γt) (cos, sin)(ωt + φ), all of shapes that broadcast."""
    angle = omega * times + phase
    return torch.exp(-gamma * times)[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)


def predators(y: Tensor, p: Tensor) -> Tensor:
    """Lotka and Volterra's equations: the change of prey and predators, (..., 2), by α, β, γ, δ, (..., 4)."""
    x, z = y.unbind(-1)
    alpha, beta, gamma, delta = p.unbind(-1)
    return torch.stack([alpha * x - beta * x * z, delta * x * z - gamma * z], -1)


def _field(constants: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: predators(y, constants)


def _check(noise: float, missing: float) -> None:
    number("noise", noise, "a number ≥ 0", lambda x: 0 <= x < math.inf)
    number("missing", missing, "from 0 up to, but without, 1", lambda x: 0 <= x < 1)


def _times(count: int, seed: int, rows: int, length: float) -> tuple[torch.Generator, Tensor, Tensor]:
    """The generator; times (count, rows) that repeat the last one behind a series' end; and lengths."""
    count, rows = whole("count", count), whole("rows", rows)
    length = number("length", length, "a positive number", lambda x: 0 < x < math.inf)
    generator = torch.Generator().manual_seed(whole("seed", seed, least=0))
    lengths = torch.randint((rows + 1) // 2, rows + 1, (count,), generator=generator)
    drawn = length * torch.rand(count, rows, generator=generator, dtype=torch.float64)
    drawn[:, 0] = 0.0
    inside = torch.arange(rows) < lengths[:, None]
    ordered = drawn.where(inside, torch.inf).sort(1).values
    last = drawn.where(inside, 0.0).amax(1, keepdim=True)
    return generator, ordered.where(inside, last), lengths


def _seen(
    times: Tensor,
    values: Tensor,
    lengths: Tensor,
    missing: float,
    channels: tuple[str, ...],
    generator: torch.Generator,
) -> Series:
    """What is seen of the values, in float32."""
    gone = torch.rand(values.shape, generator=generator) < missing
    gone[:, 0] = False
    series = Series(times, values.float().masked_fill(gone, math.nan), lengths, None, channels)
    series = replace(series, values=series.values.where(series.rows[..., None], math.nan))
    return series.kept(series.mask.any(2), "a value")
