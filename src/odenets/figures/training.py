"""The figures of trainings: learning curves, races, what the seeds say.

A `history` is a mapping from the network's name to its rows, one for each seed and epoch: `EpochRecord`s of
`odenets.train`, mappings, or a data frame, with `epoch`, `seed` (0 where there is none) and the numbers
measured, such as `train_loss`, `test_loss`, `seconds` and `nfe`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from odenets.extra import experiments_extra
from odenets.figures.look import (
    BAND,
    DATA,
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
    from matplotlib.ticker import MaxNLocator


Histories: TypeAlias = Mapping[str, Sequence[Any] | pd.DataFrame]
REPORTED: dict[str, Any] = {
    "linestyle": "none",
    "marker": "D",
    "markersize": 9,
    "color": INK,
    "fillstyle": "none",
}


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
