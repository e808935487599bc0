"""The flow that an ODE-Net of one number has learned, as a figure."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from odenets.nn.block import ODEBlock
from odenets.solve import solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learned_flow(block: nn.Module, start: float, height: float) -> "Figure":
    """Trajectories from 15 points of [−start, start], before the vector field on [−height, height].

    Raises:
        TypeError: If `block` is no `ODEBlock`, such as a ResNet, which has no flow.
    """
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    if not isinstance(block, ODEBlock):
        raise TypeError(f"`block` must be an ODEBlock, got {type(block).__name__}")
    t, starts = torch.linspace(0, 1, 61), torch.linspace(-start, start, 15)[:, None]
    z, at = torch.linspace(-height, height, 17), torch.linspace(0, 1, 13)
    with torch.no_grad():
        paths = solve(block.field, starts, t, rtol=1e-6, atol=1e-6).ys[..., 0]
        slopes = torch.stack([block.field(time, z[:, None])[:, 0] for time in at], 1)
    return figures.flow(t, paths, figures.Slopes(at, z, slopes))
