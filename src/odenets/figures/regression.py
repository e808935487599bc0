"""The figures of a regression: fits and their errors, and how a network moves its states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from odenets.extra import experiments_extra
from odenets.figures.look import (
    BAND,
    DATA,
    FIELD,
    SINGLE,
    STYLE,
    TARGET,
    Values,
    as_array,
    check_lengths,
    network_looks,
    one_panel,
    panels_below,
)

with experiments_extra("`odenets.figures`"):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHANNELS = 8  # panels that still fit on a page


@dataclass(frozen=True)
class Slopes:
    """A vector field dz/dt = f(t, z) of a one-dimensional state, sampled on a grid.

    `t` is (m,), `z` is (k,), `dz` is (k, m) with `dz[i, j] = f(t[j], z[i])`. Raises `ValueError` where the
    shapes do not fit.
    """

    t: Values
    z: Values
    dz: Values

    def __post_init__(self):
        expected, got = (len(self.z), len(self.t)), as_array(self.dz).shape
        if got != expected:
            raise ValueError(
                f"`dz` has shape {got}, expected (len(z), len(t)) = {expected}: "
                "evaluate the field at every pair, with one row for each `z`"
            )


@rc_context(STYLE)
def regression_fit(
    x: Values, target: Values, curves: Mapping[str, Values], points_x: Values, points_y: Values
) -> Figure:
    """Training points, target function and what the networks made of them (the document's figures 4, 7, 8).

    `x` and `target` are (n,). `curves` maps a network's name to (n,), or to (seeds, n): then the median is
    drawn with a band from the smallest to the largest. `points_x` and `points_y` are the training data, (m,).
    Raises `ValueError` where lengths differ.
    """
    figure, axes = one_panel("x", "y")
    _draw_fit(axes, x, target, curves, points_x, points_y)
    axes.legend()
    return figure


@rc_context(STYLE)
def regression_comparison(
    x: Values, target: Values, curves: Mapping[str, Values], points_x: Values, points_y: Values
) -> Figure:
    """`regression_fit` with the errors (network − target) below, on the same x axis.

    Use it to compare networks (the document's figure 8): where two fits lie on the target, only the lower
    panel shows which is nearer.
    """
    figure = Figure(figsize=(SINGLE[0], 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_fit(upper, x, target, curves, points_x, points_y)
    upper.set_ylabel("y")
    upper.legend()
    lower.axhline(0.0, color=TARGET)
    errors = {name: as_array(y) - as_array(target) for name, y in curves.items()}
    _draw_curves(lower, as_array(x), errors)
    lower.set(xlabel="x", ylabel="network − target")
    return figure


@rc_context(STYLE)
def flow(
    t: Values,
    trajectories: Values,
    slopes: Slopes | None = None,
    network: str = "ODE-Net",
    label: str = "hidden state z",
) -> Figure:
    """How a network moves its states from input to output: one line an input, a dot where it starts.

    `t` is (T,) and `trajectories` (T, n) for a one-dimensional state, or (T, n, d): then there is a panel for
    each component, so choose few. `slopes` puts the direction field behind the lines and needs a
    one-dimensional state. Raises `ValueError` for other shapes.
    """
    times, paths = as_array(t), as_array(trajectories)
    if paths.ndim not in (2, 3) or len(paths) != len(times):
        raise ValueError(
            f"`trajectories` has shape {paths.shape} and `t` {times.shape}: "
            "expected (T, n) or (T, n, d) for `t` of (T,)"
        )
    components = paths.reshape(*paths.shape[:2], -1)  # (T, n, d)
    if slopes is not None and components.shape[-1] != 1:
        raise ValueError(
            f"`slopes` were given for a state of {components.shape[-1]} components: "
            "a direction field can be drawn for one component only, leave `slopes` out"
        )
    if components.shape[-1] == 1:
        figure, axes = one_panel("time t", label)
        panels = [axes]
    else:
        figure, panels = panels_below([f"component {i + 1}" for i in range(components.shape[-1])], "time t", label)
    for axes, component in zip(panels, np.moveaxis(components, -1, 0)):
        _draw_flow(axes, times, component, slopes, network_looks([network])[network].colour)
    return figure


@rc_context(STYLE)
def forecast(times: Values, values: Values, at: Values, mean: Values, band: Values, channels: Sequence[str]) -> Figure:
    """What was observed of a series, dots, and what is forecast of it, a line in a band: a panel a channel, of eight.

    `times` is (L,) and `values` (L, C), NaN where nothing was observed; `at` is (K,), `mean` and `band`, half of the
    band's height, are (K, C). Raises `ValueError` where lengths differ.
    """
    times, values, at, mean, band = map(as_array, (times, values, at, mean, band))
    check_lengths("values", values, "times", times)
    check_lengths("mean", mean, "at", at)
    shown = channels[:_CHANNELS]
    figure = Figure(figsize=(SINGLE[0], 0.8 + 1.4 * len(shown)), layout="constrained")
    look = network_looks(["ODE-Net"])["ODE-Net"]
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for c, (axes, name) in enumerate(zip(panels, shown)):
        axes.plot(times, values[:, c], linestyle="none", marker="o", markersize=4, color=DATA, label="observed")
        axes.plot(at, mean[:, c], color=look.colour, linestyle=look.dash, label="forecast")
        axes.fill_between(at, mean[:, c] - band[:, c], mean[:, c] + band[:, c], color=look.colour, **BAND)
        axes.set_ylabel(name)
    panels[-1].set_xlabel("time")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize="small")
    return figure


def _draw_fit(axes: Axes, x, target, curves: Mapping[str, Values], points_x, points_y) -> None:
    x, target, points_x, points_y = map(as_array, (x, target, points_x, points_y))
    check_lengths("target", target, "x", x)
    check_lengths("points_y", points_y, "points_x", points_x)
    axes.plot(points_x, points_y, linestyle="none", marker="o", color=DATA, label="training points", zorder=4)
    axes.plot(x, target, color=TARGET, linewidth=2.6, label="target function")
    _draw_curves(axes, x, curves)


def _draw_curves(axes: Axes, x: np.ndarray, curves: Mapping[str, Values]) -> None:
    """Each network's curve, (n,) or the median and the band of (seeds, n)."""
    for name, look in network_looks(curves).items():
        seeds = np.atleast_2d(as_array(curves[name]))
        check_lengths(name, seeds.T, "x", x)
        axes.plot(x, np.median(seeds, axis=0), color=look.colour, linestyle=look.dash, label=name, zorder=3)
        if len(seeds) > 1:
            axes.fill_between(x, seeds.min(axis=0), seeds.max(axis=0), color=look.colour, **BAND)


def _draw_flow(axes: Axes, times: np.ndarray, paths: np.ndarray, slopes: Slopes | None, colour: str) -> None:
    if slopes is not None:
        axes.grid(False)
        _draw_slopes(axes, slopes)
    axes.plot(times, paths, color=colour, linewidth=1.2, alpha=0.8)
    start = np.full(paths.shape[1], times[0])
    axes.plot(start, paths[0], linestyle="none", marker="o", markersize=4, color=DATA, clip_on=False, zorder=4)


def _draw_slopes(axes: Axes, slopes: Slopes) -> None:
    """Unit arrows in the direction (1, dz/dt) of the axes: the lines must run along them."""
    t, z, dz = as_array(slopes.t), as_array(slopes.z), as_array(slopes.dz)
    length = np.hypot(1.0, dz)
    arrow = {"angles": "xy", "pivot": "mid", "width": 0.003, "scale": 1.1 * len(t)}
    axes.quiver(t, z, 1 / length, dz / length, color=FIELD, **arrow)
