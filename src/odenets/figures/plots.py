"""Figures of any quantity over any other: lines with bands, points in a plane, maps of a plane.

Use them where no other figure of `odenets.figures` is made for the purpose.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from odenets.extra import experiments_extra
from odenets.figures.look import (
    BAND,
    FIELD,
    INK,
    MUTED,
    NETWORKS,
    OTHERS,
    PALETTE,
    PANEL,
    PAPER,
    SINGLE,
    STYLE,
    Look,
    Values,
    as_array,
    check_lengths,
    draw_line,
    make_logarithmic,
    one_panel,
)

with experiments_extra("`odenets.figures`"):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Log = Literal["", "x", "y", "xy"]

_INSIDE = 4  # lines for whose legend there is room beside them
_MORE = (
    Look(PALETTE["target"].light, "-", "P"),
    Look(PALETTE["data"].light, (0, (3, 1, 1, 1)), "X"),
    Look(PALETTE["ink"].light, (0, (1, 1)), "*"),
)


class Line(NamedTuple):
    """One line of a figure: `x` and `y` are (n,); `low` and `high`, (n,), make a band around it."""

    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None


def series_looks(names: list[str]) -> dict[str, Look]:
    """A look for each of up to eight things: fixed for "ODE-Net" and "ResNet", in order for all others.

    Raises `ValueError` for more than nobody could tell apart.
    """
    others = [name for name in names if name not in NETWORKS]
    spare = (*OTHERS, *_MORE, *(look for name, look in NETWORKS.items() if name not in names))
    if len(others) > len(spare):
        raise ValueError(f"`lines` has {len(names)} lines, at most {len(spare)} can be told apart: use more panels")
    looks = NETWORKS | dict(zip(others, spare))
    return {name: looks[name] for name in names}


@rc_context(STYLE)
def lines(
    lines: Mapping[str, Line], x_label: str, y_label: str, *, log: Log = "", marked: bool = False, level: str = ""
) -> Figure:
    """Lines with a legend, and a marker at every point where `marked`.

    `log` names the logarithmic axes; points that are not above zero are left out there. `level` is the name of one of
    the lines that is only a reference (a bound, a slope): it is drawn thin and in ink. Raises `ValueError` where
    lengths differ, and for more than eight lines.
    """
    figure, axes = one_panel(x_label, y_label)
    _draw_lines(axes, lines, series_looks([name for name in lines if name != level]), log, marked, level)
    if len(lines) > _INSIDE:
        figure.legend(loc="outside upper center", ncols=_columns(list(lines)), columnspacing=1.2)
    else:
        axes.legend()
    return figure


_LETTERS, _HANDLE = 72, 7  # of the legend's size in a figure's width, and what stands before a name


def _columns(names: list[str]) -> int:
    """Columns of a legend above the axes: three, or as many as their longest names leave room for."""
    for columns in (3, 2):
        widths = [max(map(len, part)) for part in np.array_split(np.array(names, object), columns) if len(part)]
        if sum(widths) + _HANDLE * columns <= _LETTERS:
            return columns
    return 1


@rc_context(STYLE)
def line_panels(
    panels: Mapping[str, Mapping[str, Line]],
    x_label: str,
    y_label: str,
    *,
    log: Log = "",
    marked: bool = False,
    level: str = "",
    share_y: bool = True,
) -> Figure:
    """`lines`, a panel for each title below each other; a name has one look in all of them.

    The legend stands above, once, where all panels have the same names.
    """
    figure = Figure(figsize=(SINGLE[0], 1.0 + PANEL * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, sharey=share_y, squeeze=False)[:, 0]
    looks = series_looks([name for name in dict.fromkeys(n for p in panels.values() for n in p) if name != level])
    for axes, (title, content) in zip(rows, panels.items()):
        axes.set(title=title, ylabel=y_label)
        _draw_lines(axes, content, looks, log, marked, level)
    if len({tuple(content) for content in panels.values()}) == 1:  # above all, where it hides no line
        handles, names = rows[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize="small")
    else:
        for axes in rows:
            axes.legend(fontsize="small")
    rows[-1].set_xlabel(x_label)
    return figure


@rc_context(STYLE)
def plane(
    groups: Mapping[str, Values],
    x_label: str = "x₁",
    y_label: str = "x₂",
    *,
    paths: Values | None = None,
    arrows: tuple[Values, Values] | None = None,
    size: float = 12.0,
) -> Figure:
    """Points of a plane in groups, (n, 2) each, with equal scales on both axes.

    `paths`, (T, n, 2), are thin lines that points have moved on; `arrows` are places and directions, (m, 2) each.
    Raises `ValueError` for other shapes.
    """
    figure, axes = one_panel(x_label, y_label)
    figure.set_size_inches(SINGLE[0], SINGLE[0] * 0.8)
    if arrows is not None:
        at, by = (_shaped(f"arrows[{i}]", part, ("m", 2)) for i, part in enumerate(arrows))
        check_lengths("arrows[1]", by, "arrows[0]", at)
        axes.quiver(*at.T, *by.T, color=FIELD, width=0.004)
    for path in () if paths is None else np.moveaxis(_shaped("paths", paths, ("T", "n", 2)), 1, 0):
        axes.plot(*path.T, color=FIELD, linewidth=0.8, zorder=0.9)  # under the points
    for (name, places), look in zip(groups.items(), series_looks(list(groups)).values()):
        x = _shaped(f"groups[{name!r}]", places, ("n", 2))
        axes.scatter(*x.T, s=size, color=look.colour, marker=look.marker, label=name, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    if len(groups) > 1:  # above the axes: points may be everywhere in them
        figure.legend(loc="outside upper center", ncols=3, markerscale=1.5, handletextpad=0.2, columnspacing=1.2)
    return figure


def _shaped(name: str, values: Values, shape: tuple[str | int, ...]) -> np.ndarray:
    """The values as an array of that shape, in which a letter stands for any number."""
    numbers = as_array(values)
    if numbers.ndim != len(shape) or any(n != want for n, want in zip(numbers.shape, shape) if isinstance(want, int)):
        written = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        raise ValueError(f"`{name}` has shape {numbers.shape}, expected {written}")
    return numbers


@rc_context(STYLE)
def maps(values: Mapping[str, Values], extent: tuple[float, float, float, float], x_label: str, y_label: str) -> Figure:
    """Grey maps of quantities over a plane, dark where they are large, one panel each with a scale of its own.

    Each is (rows, columns), the first row at the bottom; `extent` is (left, right, bottom, top).
    Raises `ValueError` for other shapes.
    """
    figure = Figure(figsize=(SINGLE[0], 0.4 + 1.6 * PANEL * len(values)), layout="constrained")
    for axes, (title, value) in zip(figure.subplots(len(values), 1, squeeze=False)[:, 0], values.items()):
        grid = _shaped(f"values[{title!r}]", value, ("rows", "columns"))
        drawn = axes.imshow(grid, extent=extent, origin="lower", cmap="Greys", aspect="equal")
        figure.colorbar(drawn, ax=axes)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.grid(False)
    return figure


@rc_context(STYLE)
def graph(nodes: Mapping[str, tuple[float, float]], arrows: Sequence[tuple[str, str]]) -> Figure:
    """Named boxes at places and arrows between them. Raises `ValueError` for an arrow of no box."""
    lost = sorted({name for arrow in arrows for name in arrow} - set(nodes))
    if lost:
        raise ValueError(f"`arrows` names {lost}, but `nodes` has {list(nodes)}: give each a place in `nodes`")
    wide, high = (max(place[i] for place in nodes.values()) - min(place[i] for place in nodes.values()) for i in (0, 1))
    figure = Figure(figsize=(SINGLE[0], SINGLE[0] * (high + 0.8) / (wide + 0.8)), layout="constrained")
    axes = figure.subplots()
    for start, end in arrows:
        style = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 22, "shrinkB": 22}
        axes.annotate("", nodes[end], nodes[start], arrowprops=style)
    for name, place in nodes.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": PAPER, "edgecolor": INK}
        axes.text(*place, name, ha="center", va="center", bbox=box)
    x, y = zip(*nodes.values())
    axes.set(xlim=(min(x) - 0.4, max(x) + 0.4), ylim=(min(y) - 0.4, max(y) + 0.4))
    axes.set_axis_off()
    return figure


def _draw_lines(
    axes: Axes, lines: Mapping[str, Line], looks: Mapping[str, Look], log: Log, marked: bool, level: str
) -> None:
    reference = Look(INK, (0, (6, 2)), "")
    for name, line in lines.items():
        x, y, *band = _numbers(name, line)
        # Matplotlib would draw what is not above zero at the lower edge, as if it were a number. A band may end there.
        x, y = (np.where(v > 0, v, np.nan) if axis in log else v for axis, v in (("x", x), ("y", y)))
        look = reference if name == level else looks[name]
        thin = {"linewidth": 1.0} if name == level else {}
        if marked and name != level:
            axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=look.marker, markersize=5, label=name)
        else:
            draw_line(axes, x, y, look, label=name, **thin)
        if band:
            axes.fill_between(x, band[0], band[1], color=look.colour, **BAND)
    for which in log:
        make_logarithmic(axes, which)  # type: ignore[arg-type]


def _numbers(name: str, line: Line) -> list[np.ndarray]:
    """The numbers of `x` and `y`, and of `low` and `high` where the line has both: (n,) each."""
    keys = ("x", "y") if line.low is None or line.high is None else line._fields
    numbers = [_shaped(f"lines[{name!r}].{key}", getattr(line, key), ("n",)).astype(float) for key in keys]
    for key, part in zip(keys, numbers):
        check_lengths(f"lines[{name!r}].{key}", part, "x", numbers[0])
    return numbers
