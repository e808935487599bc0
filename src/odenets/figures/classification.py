"""The figures of a classification: confusion matrices, and examples of heartbeats."""

import textwrap
from collections.abc import Mapping, Sequence

from odenets.extra import experiments_extra
from odenets.figures.look import (
    DATA,
    GRID,
    INK,
    MUTED,
    SINGLE,
    STYLE,
    TARGET,
    Values,
    as_array,
    check_lengths,
)

with experiments_extra("`odenets.figures`"):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle


BEAT_RATE = 120.0  # samples a second in the heartbeat set: every third of the 360 Hz originals


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
