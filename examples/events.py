"""A ball that bounces: one solve with an event that changes the state.

Run it:  python examples/events.py            (a second; writes docs/figures/events.svg)
"""

from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

import odenets
from odenets.figures import PALETTE, STYLE, themed_svg
from odenets.files import write_atomically

G, BOUNCE = 9.81, 0.8  # m/s², and what is left of the speed


def ball(t: Tensor, y: Tensor) -> Tensor:
    """y is the height and the speed."""
    return torch.stack([y[1], torch.full_like(y[1], -G)])


def bounced(t: Tensor, y: Tensor) -> Tensor:
    """The state after the ball has hit the floor."""
    return torch.stack([torch.zeros_like(y[0]), -BOUNCE * y[1]])


@rc_context(STYLE)
def draw() -> Figure:
    """The height over time, with each contact, from two heights."""
    figure = Figure(figsize=(7.5, 2.4), layout="constrained")
    axes = figure.add_subplot(xlabel="t in s", ylabel="height in m")
    floor = odenets.Event(lambda t, y: y[0], direction=-1, jump=bounced)
    t = torch.linspace(0, 8, 801, dtype=torch.float64)
    for height, look in ((10.0, "odenet"), (5.0, "target")):
        start = torch.tensor([height, 0.0], dtype=torch.float64)
        solution = odenets.solve(ball, start, t, event=floor)
        axes.plot(t, solution.ys[:, 0], color=PALETTE[look].light, label=f"from {height:g} m")
        contacts = solution.events[0]
        axes.plot(contacts.t, contacts.y[:, 0], "o", markersize=4, color=PALETTE[look].light)
    figure.legend(loc="outside right center")
    return figure


if __name__ == "__main__":
    out = Path(__file__).parent.parent / "docs" / "figures" / "events.svg"
    write_atomically(out, themed_svg(draw()))
    print(f"wrote {out}")
