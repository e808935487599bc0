"""Points of a plane with a known density: moons, circles, checkerboard, each about as wide as [−4, 4]."""

import math

import torch
from torch import Tensor

from odenets.extra import experiments_extra

DATA = {
    "moons": "Two half circles of radius 2 that interlock, with normal noise of 0.2 (make_moons of scikit-learn).",
    "circles": "Circles of radius 3 and 1.5, with normal noise of 0.24 (make_circles of scikit-learn).",
    "checkerboard": "Eight of the sixteen squares of side 2, each point of them as likely as any other.",
}
_NOISE = {"moons": 0.1, "circles": 0.08}  # before scaling
_SCALE = {"moons": 2.0, "circles": 3.0}
_CENTRE = torch.tensor([1.0, 0.5], dtype=torch.float64)  # of the scaled moons


def draw(name: str, seed: int, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points to train on (points, 2), to validate on (a quarter of them), and to test on (as many), in float64."""
    quarter = points // 4
    sizes = (points, quarter, points)
    every = _points(name, seed, sum(sizes))
    train, validation, test = every.split(sizes)
    return train, validation, test


def _points(name: str, seed: int, count: int) -> Tensor:
    if name == "checkerboard":
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        column = torch.randint(4, (count,), generator=generator)
        row = 2 * torch.randint(2, (count,), generator=generator) + column % 2
        return 2 * (torch.stack([column, row], 1) + x) - 4
    with experiments_extra("the experiment density"):
        from sklearn.datasets import make_circles, make_moons  # noqa: PLC0415 — seconds to import

    if name == "moons":
        x, _ = make_moons(count, noise=_NOISE[name], random_state=seed)
        return _SCALE[name] * torch.from_numpy(x) - _CENTRE
    x, _ = make_circles(count, noise=_NOISE[name], factor=0.5, random_state=seed)
    return _SCALE[name] * torch.from_numpy(x)


def true_log_density(name: str, x: Tensor) -> Tensor:
    """The logarithm of the density that the points are drawn from, at places (n, 2) → (n,).

    That of the curves with noise is an integral along them, taken as a mean over many angles.
    """
    if name == "checkerboard":
        cell = torch.floor((x + 4) / 2).long()
        dark = ((cell >= 0) & (cell < 4)).all(1) & ((cell[:, 0] + cell[:, 1]) % 2 == 0)
        return torch.where(dark, -math.log(32.0), -math.inf).to(x.dtype)
    on = _curve(name).to(x.dtype)
    noise = _NOISE[name] * _SCALE[name]
    near = torch.cat([torch.logsumexp(-torch.cdist(part, on).square() / (2 * noise**2), 1) for part in x.split(500)])
    return near - math.log(2 * math.pi * noise**2 * len(on))


def _curve(name: str) -> Tensor:
    """Places along the curves without noise, as dense everywhere."""
    if name == "circles":
        angle = torch.linspace(0, 2 * math.pi, 801, dtype=torch.float64)[:-1]
        unit = torch.stack([angle.cos(), angle.sin()], 1)
        return _SCALE[name] * torch.cat([unit, 0.5 * unit])
    angle = (torch.arange(800, dtype=torch.float64) + 0.5) * math.pi / 800
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    return _SCALE[name] * torch.cat([upper, lower]) - _CENTRE
