"""A one-dimensional flow cannot cross itself; with one extra dimension it can.

Run it:  python examples/crossing.py            (a few seconds; writes docs/figures/crossing.svg)
Both blocks are trained to exchange the points −1 and 1.
"""

from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from odenets import solve
from odenets.figures import PALETTE, STYLE, themed_svg
from odenets.files import write_atomically
from odenets.nn import MLPField, ODEBlock

POINTS = torch.tensor([[-1.0], [1.0]])


def train(augment: int, steps: int = 200) -> ODEBlock:
    """A block trained to map −1 to 1 and 1 to −1."""
    torch.manual_seed(0)
    block = ODEBlock(MLPField(1 + augment, (16,)), augment=augment, rtol=1e-4)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (block(POINTS)[:, :1] + POINTS).square().mean().backward()
        optimizer.step()
    return block


def trajectories(block: ODEBlock) -> tuple[Tensor, Tensor]:
    """Times (61,) and the first component of the state over time, (61, 2)."""
    t = torch.linspace(0, 1, 61)
    with torch.no_grad():
        z0 = torch.nn.functional.pad(POINTS, (0, block.augment))
        return t, solve(block.field, z0, t, rtol=1e-6).ys[..., 0]


@rc_context(STYLE)
def draw() -> Figure:
    """Both flows, side by side."""
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, augment, title in zip(panels, (0, 1), ("one dimension", "augment=1"), strict=True):
        t, z = trajectories(train(augment))
        for sample, (name, colour) in enumerate((("from −1", "odenet"), ("from 1", "target"))):
            axes.plot(t, z[:, sample], color=PALETTE[colour].light, label=name)
        axes.set(title=title, xlabel="t")
    panels[0].set_ylabel("z(t), first component")
    panels[0].legend()
    return figure


if __name__ == "__main__":
    out = Path(__file__).parent.parent / "docs" / "figures" / "crossing.svg"
    write_atomically(out, themed_svg(draw()))
    print(f"wrote {out}")
