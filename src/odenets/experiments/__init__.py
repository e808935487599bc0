"""The experiments, one file each: a `Config` and `run(config, folder) -> Result`. This is their registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from odenets.extra import experiments_extra

with experiments_extra("`odenets.experiments`"):
    from odenets.experiments import (
        cubic,
        density,
        depth,
        descent,
        ecg,
        fitting,
        gaps,
        implicit,
        interpolation,
        memory,
        order,
        physionet,
        robustness,
        spheres,
        spirals,
        tolerance,
        uniqueness,
    )
    from odenets.experiments.result import Result


@dataclass(frozen=True)
class Experiment:
    """What the command line knows of an experiment."""

    name: str
    summary: str
    config: type
    run: Callable[..., Result]
    small: Mapping[str, Any]  # options of the form that takes seconds
    may_change: tuple[str, ...] = ()  # options that a resumed run may have otherwise


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "cubic",
            "Regression of x³ + 0.1x from ten noisy points: ResNet and ODE-Net (sections 2.6 and 4.4).",
            cubic.Config,
            cubic.run,
            cubic.SMALL,
            may_change=("epochs",),
        ),
        Experiment(
            "density",
            "Densities of points in a plane by continuous normalising flows, beside mixtures of Gaussians ([2]).",
            density.Config,
            density.run,
            density.SMALL,
        ),
        Experiment(
            "depth",
            "Vanishing and exploding gradients by depth: plain network, ResNet, ODE-Net (sections 2.5 and 2.6).",
            depth.Config,
            depth.run,
            depth.SMALL,
        ),
        Experiment(
            "descent",
            "Gradient descent on convex functions of real data, and on one with two minima (section 2.4, theorem 2).",
            descent.Config,
            descent.run,
            descent.SMALL,
        ),
        Experiment(
            "ecg",
            "Heartbeats of the MIT-BIH database in five classes: ResNet and ODE-Net (section 5).",
            ecg.Config,
            ecg.run,
            ecg.SMALL,
            may_change=("epochs", "checkpoint_every", "data_dir"),
        ),
        Experiment(
            "fitting",
            "Constants of ODEs from noisy series with gaps: which way of fitting finds them from a poor start.",
            fitting.Config,
            fitting.run,
            fitting.SMALL,
        ),
        Experiment(
            "gaps",
            "Series with more and more rows missing: GRU with and without the gaps, ODE-RNN, neural CDE (section 6).",
            gaps.Config,
            gaps.run,
            gaps.SMALL,
            may_change=("seeds",),
        ),
        Experiment(
            "implicit",
            "Implicit layers: closed forms, and a deep equilibrium network beside its explicit twin (section 2.7).",
            implicit.Config,
            implicit.run,
            implicit.SMALL,
        ),
        Experiment(
            "interpolation",
            "Intensive-care stays of which 5 to 90 % of the rows are shown: latent ODEs fill in the others.",
            interpolation.Config,
            interpolation.run,
            interpolation.SMALL,
            may_change=("seeds", "data_dir"),
        ),
        Experiment(
            "memory",
            "Memory against evaluations of f for every adjoint, and states solved backward (section 6).",
            memory.Config,
            memory.run,
            memory.SMALL,
        ),
        Experiment(
            "order",
            "Order and work of every method, and ODE-Nets trained with each, linear multistep too (3.3 to 4.1).",
            order.Config,
            order.run,
            order.SMALL,
        ),
        Experiment(
            "physionet",
            "Irregular time series: deaths in intensive care, by GRU, GRU-D, ODE-RNN and trees (section 6).",
            physionet.Config,
            physionet.run,
            physionet.SMALL,
            may_change=("data_dir", "mtan"),
        ),
        Experiment(
            "robustness",
            "A convolutional ODE-Net and a CNN of equal size under noise and attacks (section 6, its source 10).",
            robustness.Config,
            robustness.run,
            robustness.SMALL,
            may_change=("data_dir",),
        ),
        Experiment(
            "spheres",
            "What a flow cannot do: nested spheres and the line turned around; plain, augmented, ResNet.",
            spheres.Config,
            spheres.run,
            spheres.SMALL,
        ),
        Experiment(
            "spirals",
            "Spirals seen at random times and predicted behind them: latent ODE and RNN (Chen et al. 2018, 5.1).",
            spirals.Config,
            spirals.run,
            spirals.SMALL,
            may_change=("seeds",),
        ),
        Experiment(
            "tolerance",
            "What solver, tolerance and regularisers of an ODE-Net cost and change: digits or heartbeats (section 6).",
            tolerance.Config,
            tolerance.run,
            tolerance.SMALL,
        ),
        Experiment(
            "uniqueness",
            "Picard's iteration, Lipschitz constants, and every activation in a vector field (sections 3.2, 4.2, 6).",
            uniqueness.Config,
            uniqueness.run,
            uniqueness.SMALL,
        ),
    )
}
