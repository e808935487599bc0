"""The figures of trainings: fits, learning curves, races, confusion matrices, heartbeats.

A `history` is a mapping from the network's name to its rows, one for each seed and epoch: `EpochRecord`s of
`odenets.train`, mappings, or a data frame, with `epoch`, `seed` (0 where there is none) and the numbers
measured, such as `train_loss`, `test_loss`, `seconds` and `nfe`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from odenets.extra import experiments_extra
from odenets.figures.look import (
    BAND,
    DATA,
    FIELD,
    GRID,
    INK,
    MUTED,
    PAPER,
    SINGLE,
    STYLE,
    TARGET,
    Look,
    Values,
    as_array,
    check_lengths,
    draw_line,
    finite_numbers,
    make_logarithmic,
    name_rows,
    network_looks,
    one_panel,
    panels_below,
    short_number,
    whole_numbers,
)

with experiments_extra("`odenets.figures`"):
    import numpy as np
    import pandas as pd
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

Histories: TypeAlias = Mapping[str, Sequence[Any] | pd.DataFrame]
REPORTED: dict[str, Any] = {
    "linestyle": "none",
    "marker": "D",
    "markersize": 9,
    "color": INK,
    "fillstyle": "none",
}
BEAT_RATE = 120.0  # samples a second in the heartbeat set: every third of the 360 Hz originals


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
def learning_curves(
    history: Histories,
    train: str = "train_loss",
    test: str = "test_loss",
    label: str = "loss",
) -> Figure:
    """Training and test loss over the epochs, one panel a network (the document's figures 9 and 10).

    All panels have the same axes, the losses on a logarithmic one: what happens after the first epochs would be flat on
    any other. Of several seeds the mean is drawn with a band from the smallest to the largest; the mean ends where a
    seed has no number. `train` and `test` are the rows' keys, `label` says what the loss is. Raises `ValueError` for a
    history without them.
    """
    figure, panels = panels_below(list(history), "epoch", label)
    for axes, (network, look) in zip(panels, network_looks(history).items()):
        _draw_band(axes, _over_epochs(history, network, train), look._replace(dash="--", marker="x"), "train")
        _draw_band(axes, _over_epochs(history, network, test), look._replace(dash="-"), "test")
        axes.xaxis.set_major_locator(whole_numbers())
        axes.legend()
    make_logarithmic(panels[0], "y")
    return figure


@rc_context(STYLE)
def metric_over_epochs(history: Histories, metric: str, label: str) -> Figure:
    """One quantity of every network over the epochs, such as the number of evaluations of f.

    Of several seeds the mean is drawn with a band from the smallest to the largest. `metric` is the rows'
    key, `label` the y axis with its unit. A network whose rows have `None` there is left out. Raises
    `ValueError` for a history without the key.
    """
    figure, axes = one_panel("epoch", label)
    for network, look in network_looks(history).items():
        seeds = _over_epochs(history, network, metric)
        if seeds.notna().any(axis=None):
            _draw_band(axes, seeds, look, network)
    axes.set(ylim=(0, None))  # so that a change of a hundredth does not look like one
    axes.xaxis.set_major_locator(whole_numbers())
    axes.legend()
    return figure


@rc_context(STYLE)
def bars(values: Mapping[str, Values], label: str) -> Figure:
    """One bar a network: the mean of its values, and a whisker from the smallest to the largest.

    `values` maps a network's name to (n,), for example one number a seed, none of them negative; `label`
    names the quantity and its unit. Raises `ValueError` for a network without numbers or with NaN or infinite
    ones.
    """
    figure = Figure(figsize=(SINGLE[0], 0.9 + 0.55 * len(values)), layout="constrained")
    axes = figure.subplots()
    for row, (network, look) in enumerate(network_looks(values).items()):
        numbers = finite_numbers(f"values[{network!r}]", values[network])
        mean, low, high = numbers.mean(), numbers.min(), numbers.max()
        axes.barh(row, mean, height=0.6, color=look.colour, alpha=0.75)
        if len(numbers) > 1:
            axes.plot([low, high], [row, row], color=INK, linewidth=1.4, marker="|", markersize=9)
        axes.annotate(short_number(mean), (high, row), (8, 0), textcoords="offset points", va="center")
    name_rows(axes, list(values))
    longest = max(as_array(numbers).max() for numbers in values.values())
    axes.set(xlabel=label, xlim=(0, 1.2 * longest or 1.0))  # with room for the numbers
    return figure


def seconds_per_epoch(history: Histories, seconds: str = "seconds") -> Figure:
    """Seconds an epoch takes for each network: one number a seed, the median of its epochs, drawn by `bars`.

    The median, because a first epoch also pays for compiling and loading. `seconds` is the rows' key.
    """
    medians = {name: _over_epochs(history, name, seconds).median().to_numpy() for name in history}
    return bars(medians, "seconds an epoch")


@rc_context(STYLE)
def confusion(matrices: Mapping[str, Values], classes: Sequence[str]) -> Figure:
    """Confusion matrices, one panel a network: a cell has its share of the row (shade, %) and its count.

    All panels have one hue and one scale of shades, so that equal shades are equal shares. `matrices` maps a
    network's name to counts (k, k) with `[true, predicted]`, `classes` are k names. A true class without any
    example shows dashes. Raises `ValueError` for another shape, or shares instead of counts.
    """
    size = 0.9 + (0.6 + 0.5 * len(classes)) * len(matrices)
    figure = Figure(figsize=(SINGLE[0], size), layout="constrained")
    panels = figure.subplots(len(matrices), 1, sharex=True, squeeze=False)[:, 0]
    for axes, network in zip(panels, matrices):
        _draw_confusion(axes, as_array(matrices[network]), classes)
        axes.set(title=network, ylabel="true class")
    panels[-1].set_xlabel("predicted class")
    return figure


@rc_context(STYLE)
def loss_over_time(
    history: Histories,
    reference: str = "ResNet",
    loss: str = "test_loss",
    seconds: str = "seconds",
    label: str = "test loss",
) -> Figure:
    """Loss, on a logarithmic axis, against the seconds spent training, and when a network reaches the reference's last.

    A row's `seconds` are those of its own epoch; they are summed here. Thin lines are seeds, thick ones their
    mean in both directions. The horizontal line is the mean last loss of `reference`; a dot marks where
    another network's mean first gets there. Raises `ValueError` if `reference` is not in the history, or a
    key is not.
    """
    if reference not in history:
        raise ValueError(f"`reference` is {reference!r}, but the history has {list(history)}: name one of these")
    figure, axes = one_panel("training time in seconds", label)
    level = _over_epochs(history, reference, loss).mean(axis=1, skipna=False).iloc[-1]
    looks = network_looks(history)
    name = f"{reference}, last: {short_number(level)}"
    axes.axhline(level, color=looks[reference].colour, linewidth=1.0, linestyle=":", label=name)
    for network, look in looks.items():
        times = _over_epochs(history, network, seconds).cumsum()
        losses = _over_epochs(history, network, loss)
        _draw_race(axes, times, losses, look, network)
        if network != reference:
            mean = losses.mean(axis=1, skipna=False).to_numpy()
            _mark_arrival(axes, times.mean(axis=1).to_numpy(), mean, level, look.colour)
    make_logarithmic(axes, "y")
    axes.set(xlim=(0, None))
    axes.legend()
    return figure


@rc_context(STYLE)
def seed_differences(
    differences: Values,
    interval: tuple[float, float],
    label: str = "test loss, ODE-Net − ResNet",
    seeds: Sequence[Any] | None = None,
    confidence: str = "95 %",
) -> Figure:
    """Paired differences, one a seed, with their mean and its confidence interval.

    An interval over zero settles nothing. `differences` is (n,), `interval` (low, high), `seeds` the names of
    the rows (0, 1, … if left out); `label` says what was taken from what. Raises `ValueError` for an interval
    the wrong way round, another number of seeds, and NaN or infinite differences.
    """
    numbers, (low, high) = finite_numbers("differences", differences), interval
    if not low <= high:
        raise ValueError(f"`interval` is ({low}, {high}): give (low, high) with low ≤ high")
    names = [f"seed {seed}" for seed in (range(len(numbers)) if seeds is None else seeds)]
    check_lengths("seeds", names, "differences", numbers)
    figure = Figure(figsize=(SINGLE[0], 1.3 + 0.27 * (len(numbers) + 1)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.0, color=MUTED, linewidth=1.2)
    axes.axvspan(low, high, color=TARGET, alpha=0.10, linewidth=0)
    axes.plot(numbers, range(len(numbers)), linestyle="none", marker="o", color=DATA)
    axes.plot([low, high], [len(numbers)] * 2, color=TARGET, linewidth=2.4, marker="|", markersize=9)
    axes.plot(numbers.mean(), len(numbers), marker="D", color=TARGET)
    name_rows(axes, [*names, f"mean, {confidence} interval"])
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    return figure


@rc_context(STYLE)
def beats(x: Values, y: Values, classes: Sequence[str], examples: int = 3, rate: float = BEAT_RATE) -> Figure:
    """The first examples of every class of heartbeat: a row a class, time in seconds.

    `x` is (n, 187) with values from 0 to 1, `y` (n,) holds the number of the class, `rate` is in samples a
    second. A class with fewer examples leaves its panels empty. Raises `ValueError` where `x` and `y` differ
    in length.
    """
    signals, labels = as_array(x), as_array(y)
    check_lengths("y", labels, "x", signals)
    seconds = np.arange(signals.shape[1]) / rate
    figure = Figure(figsize=(SINGLE[0], 1.0 + 0.95 * len(classes)), layout="constrained")
    grid = figure.subplots(len(classes), examples, sharex=True, sharey=True, squeeze=False)
    for number, (name, row) in enumerate(zip(classes, grid)):
        _draw_beats(row, seconds, signals[labels == number][:examples])
        row[0].set_title(name)
    for axes in grid[-1]:
        axes.set_xlabel("seconds")
    figure.supylabel("amplitude (each beat scaled to 0–1)", fontsize=10)
    return figure


@rc_context(STYLE)
def errors_by_seed(
    values: Mapping[str, Values],
    label: str = "out-of-sample error (mean square)",
    reported: Mapping[str, float] | None = None,
) -> Figure:
    """One point a seed for each network, with the median of several as a bar, on a logarithmic axis.

    It shows how much one run can say. `values` maps a network's name to (seeds,). `reported` adds what a
    publication printed, for example the document's 4.673 and 7.72, as a hollow diamond. Raises `ValueError` for a
    reported network that has no values, a network without numbers, and NaN or infinite ones.
    """
    unknown = [name for name in reported or {} if name not in values]
    if unknown:
        raise ValueError(f"`reported` names {unknown}, but `values` has {list(values)}: give numbers for these only")
    figure = Figure(figsize=(SINGLE[0], 1.3 + 0.75 * len(values)), layout="constrained")
    axes = figure.subplots()
    for row, (network, look) in enumerate(network_looks(values).items()):
        _draw_strip(axes, row, finite_numbers(f"values[{network!r}]", values[network]), look)
    for name, number in (reported or {}).items():
        axes.plot(number, list(values).index(name), **REPORTED)
    name_rows(axes, list(values), room=0.65)
    axes.set_xlabel(label)
    make_logarithmic(axes, "x")
    if reported:
        diamond = Line2D([], [], **REPORTED)
        figure.legend([diamond], ["printed by Della Bona and Dumez (2021)"], loc="outside upper right")
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


def _over_epochs(history: Histories, network: str, key: str) -> pd.DataFrame:
    """One quantity of one network: a row an epoch, a column a seed, NaN where a seed has no number."""
    rows = pd.DataFrame(history[network])
    lacking = {"epoch", key} - set(rows.columns)
    if lacking:
        raise ValueError(
            f"`history` of {network!r} lacks {sorted(lacking)}, its rows have {list(rows.columns)}: "
            "add it, or name another key"
        )
    table = rows.assign(seed=rows.get("seed", 0)).pivot(index="epoch", columns="seed", values=key)
    return table.astype(float)  # `None` becomes NaN


def _draw_band(axes: Axes, seeds: pd.DataFrame, look: Look, name: str) -> None:
    """Mean of the seeds (only where all of them have a number) and their range."""
    epochs = seeds.index.to_numpy()
    draw_line(axes, epochs, seeds.mean(axis=1, skipna=False).to_numpy(), look, label=name)
    if seeds.shape[1] > 1:
        axes.fill_between(epochs, seeds.min(axis=1), seeds.max(axis=1), color=look.colour, **BAND)


def _draw_race(axes: Axes, times: pd.DataFrame, losses: pd.DataFrame, look: Look, name: str) -> None:
    for seed in losses if losses.shape[1] > 1 else ():
        thin = {"linewidth": 0.8, "alpha": 0.35}
        draw_line(axes, times[seed].to_numpy(), losses[seed].to_numpy(), look._replace(dash="-"), **thin)
    mean = losses.mean(axis=1, skipna=False).to_numpy()
    draw_line(axes, times.mean(axis=1).to_numpy(), mean, look, label=name)


def _mark_arrival(axes: Axes, times: np.ndarray, losses: np.ndarray, level: float, colour: str) -> None:
    """A dot and the seconds where the loss first is at the level; nothing if it never is."""
    there = np.flatnonzero(losses <= level)
    if not len(there):
        return
    point = (float(times[there[0]]), float(losses[there[0]]))
    axes.plot(*point, marker="o", markersize=7, color=colour, markeredgecolor=PAPER, zorder=5)
    axes.annotate(f"{short_number(point[0])} s", point, (3, 8), textcoords="offset points", color=colour)


def _draw_confusion(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Shaded squares rather than an image: their colour follows the page from light to dark."""
    expected = (len(classes), len(classes))
    if counts.shape != expected:
        raise ValueError(
            f"`matrices` has one of shape {counts.shape}, expected {expected}: "
            f"one row and one column for each of the {len(classes)} `classes`"
        )
    if (counts != np.floor(counts)).any():
        raise ValueError(f"`matrices` holds {counts.max()}: give counts, their shares are worked out here")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(expected, np.nan), where=totals > 0)
    for (true, predicted), share in np.ndenumerate(shares):
        count = int(counts[true, predicted])
        shade = {"color": TARGET, "alpha": 0.6 * np.nan_to_num(share), "linewidth": 0}
        axes.add_patch(Rectangle((predicted - 0.5, true - 0.5), 1, 1, **shade))
        text = {"ha": "center", "va": "center", "fontsize": 9, "color": INK if count else MUTED}
        axes.text(predicted, true, _cell(share, count), **text)
    wrapped = [textwrap.fill(name, 18) for name in classes]
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 2 else {}
    axes.set_xticks(range(len(classes)), wrapped, fontsize=9, **turned)
    axes.set_yticks(range(len(classes)), wrapped, fontsize=9)
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set(visible=True, color=GRID)


def _cell(share: float, count: int) -> str:
    if np.isnan(share):
        return "–"
    return f"{100 * share:.1f} %\n{count:,}" if count else "0"


def _draw_beats(row: Sequence[Axes], seconds: np.ndarray, signals: np.ndarray) -> None:
    """One beat a panel; the panels of a row that stay empty say so."""
    for axes, signal in zip(row, signals):
        axes.plot(seconds, signal, color=DATA, linewidth=1.2)
    for axes in row[len(signals) :]:
        axes.text(0.5, 0.5, "no example", transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _spread(count: int) -> np.ndarray:
    """Small offsets across a row, so that equal values do not hide each other; the same each time."""
    return 0.16 * np.sin(2.4 * np.arange(count))


def _draw_strip(axes: Axes, row: int, numbers: np.ndarray, look: Look) -> None:
    dots = {"linestyle": "none", "marker": look.marker, "color": look.colour, "alpha": 0.7}
    axes.plot(numbers, row + _spread(len(numbers)), **dots)
    if len(numbers) == 1:
        return
    median = float(np.median(numbers))
    axes.plot([median] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=2.4)
    above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"median {short_number(median)}", (median, row - 0.3), **above)
