"""The five paths through the same values.

Run it:  python examples/paths.py            (a second; writes docs/figures/paths.svg)
"""

from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from odenets import path
from odenets.figures import PALETTE, STYLE, themed_svg
from odenets.files import write_atomically

T = torch.tensor([0.0, 1.0, 1.5, 3.0, 4.0], dtype=torch.float64)
U = torch.tensor([[0.2], [1.0], [-0.4], [0.5], [0.1]], dtype=torch.float64)
KINDS = (path.Constant, path.Linear, path.Rectilinear, path.CubicHermite, path.NaturalCubic)


@rc_context(STYLE)
def draw() -> Figure:
    """A panel for each path; the last channel is that of u."""
    figure = Figure(figsize=(7.5, 1.9), layout="constrained")
    t = torch.linspace(0, 4, 801, dtype=torch.float64)
    for axes, kind in zip(figure.subplots(1, 5, sharey=True), KINDS, strict=True):
        axes.plot(t, kind(T, U)(t)[:, -1], color=PALETTE["odenet"].light)
        axes.plot(T, U, "o", markersize=3, color=PALETTE["target"].light)
        axes.set(title=kind.__name__, xlabel="t", xticks=[0, 2, 4])
    return figure


if __name__ == "__main__":
    out = Path(__file__).parent.parent / "docs" / "figures" / "paths.svg"
    write_atomically(out, themed_svg(draw()))
    print(f"wrote {out}")
