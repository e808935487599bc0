"""A pendulum of which only the angle is observed, with noise and a gap: its constants, and what it does next.

Run it:  python examples/fitting.py            (seconds; writes runs/fitting.png)
"""

from pathlib import Path

import torch
from torch import Tensor, nn

import odenets
from odenets.figures import to_png
from odenets.files import write_atomically

TRUTH, NOISE = (4.0, 0.1), 0.1


class Pendulum(nn.Module):
    """The squared frequency and the damping, by their logarithms, since both are positive."""

    def __init__(self, constants: tuple[float, float]) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(constants, dtype=torch.float64).log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        angle, speed = y.unbind(-1)
        square, damping = self.log.exp()
        return torch.stack([speed, -square * angle.sin() - damping * speed], dim=-1)


def data() -> tuple[Tensor, Tensor]:
    """Times (T,) and angles (T, 1), some of which are missing."""
    torch.manual_seed(0)
    times = torch.linspace(0.0, 8.0, 33, dtype=torch.float64)
    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        angles = odenets.solve(Pendulum(TRUTH), start, times, rtol=1e-8).ys[:, 0, :1]
    angles = angles + NOISE * torch.randn_like(angles)
    angles[12:17] = torch.nan
    return times, angles


def main() -> None:
    """Fit from constants that are wrong, print what was found, and draw it."""
    times, angles = data()
    fit = odenets.fit_trajectory(
        Pendulum((1.0, 1.0)), times, angles, observe=lambda y: y[..., :1], y0=[2.0, 0.0], progress=True
    )
    print(fit)
    print("constants", fit.model.log.exp().tolist(), "truth", TRUTH)
    mean, std = fit.predict([9.0, 10.0], std=True)
    print("angles at 9 and 10:", mean[:, 0].tolist(), "±", std[:, 0].tolist())
    path = Path("runs") / "fitting.png"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, to_png(fit.plot()))


if __name__ == "__main__":
    main()
