"""What every figure shares: colours, looks, style, and the way into SVG and PNG.

Colours come from `PALETTE` and mean the same thing in every figure: a network keeps its look
(`network_looks`), the target function is blue and data are purple, as in the document's figures 4, 7 and 8.
Each colour has a twin for dark pages, so a page that embeds the SVG can exchange them, as `themed_svg` does by
itself; that is why no figure may use a colour from anywhere else. What tells two things apart is never colour
alone: lines also differ in dash, points in shape.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from odenets.extra import experiments_extra

with experiments_extra("`odenets.figures`"):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

Values: TypeAlias = np.ndarray | torch.Tensor | Sequence[Any]


class Colour(NamedTuple):
    """One meaning, two inks: `light` on a white page, `dark` on a black one (both `#rrggbb`, lower case)."""

    light: str
    dark: str


class Look(NamedTuple):
    """What one network looks like in every figure: `#rrggbb`, and Matplotlib's line style and marker."""

    colour: str
    dash: Any
    marker: str


# Checked by simulating the three kinds of colour blindness: every two of the seven below "field" stay more than
# 10 apart in CIELAB, and 3 : 1 or more against their page (4.5 : 1 for text).
PALETTE = {
    "paper": Colour("#ffffff", "#15181d"),
    "ink": Colour("#24292f", "#e4e7eb"),
    "muted": Colour("#6a737d", "#9aa4b1"),
    "grid": Colour("#e2e6ea", "#2f353d"),
    "field": Colour("#b4bcc6", "#4d5763"),
    "target": Colour("#0072b2", "#58b4ea"),
    "data": Colour("#9333d6", "#b65cf5"),
    "odenet": Colour("#d1401f", "#ff7d5c"),
    "resnet": Colour("#00805f", "#35c99c"),
    "umber": Colour("#5a4012", "#e5b331"),
    "slate": Colour("#56657f", "#d3e2f5"),
    "plum": Colour("#56123a", "#a85a8c"),
}
PAPER, INK, MUTED, GRID, FIELD, TARGET, DATA = (colour.light for colour in list(PALETTE.values())[:7])
NETWORKS = {
    "ODE-Net": Look(PALETTE["odenet"].light, "-", "o"),
    "ResNet": Look(PALETTE["resnet"].light, "--", "s"),
}
OTHERS = (
    Look(PALETTE["umber"].light, "-.", "^"),
    Look(PALETTE["slate"].light, ":", "D"),
    Look(PALETTE["plum"].light, (0, (5, 1, 1, 1, 1, 1)), "v"),
)

SINGLE = (5.4, 3.5)  # inches: one panel. No figure is wider, so that a telephone shows each whole and legible
PANEL = 2.3  # inches: the height of one of several panels, which stand below each other for that reason
BAND: dict[str, Any] = {"alpha": 0.18, "linewidth": 0}  # smallest to largest of the seeds

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with Matplotlib, so a figure looks the same everywhere
    "font.size": 10.0,
    "text.color": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.h_pad": 0.08,  # inches
    "figure.constrained_layout.w_pad": 0.08,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",  # letters as outlines: the reader needs no font, and the layout cannot shift
    "svg.hashsalt": "odenets",  # the same figure gives the same file
}


def network_looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each network: fixed for "ODE-Net" and "ResNet", the next free one for any other name.

    Raises `ValueError` for more than three other names, which nobody could tell apart.
    """
    names = list(names)
    others = [name for name in names if name not in NETWORKS]
    if len(others) > len(OTHERS):
        raise ValueError(
            f"`names` has {len(others)} networks besides {' and '.join(NETWORKS)}: {others}. "
            f"At most {len(OTHERS)} can be told apart, draw the rest in a second figure"
        )
    looks = NETWORKS | dict(zip(others, OTHERS))
    return {name: looks[name] for name in names}


def to_svg(figure: Figure) -> str:
    """The figure as the text of an SVG file: letters as outlines, no date; equal figures give equal texts."""
    buffer = io.StringIO()
    with rc_context(STYLE):  # ticks are made while drawing, so they need the style again
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def themed_svg(figure: Figure) -> str:
    """`to_svg` for a page of any colour: light or dark as its reader prefers, on a background of its own."""
    light, dark = (" ".join(f"--{name}: {colour[i]};" for name, colour in PALETTE.items()) for i in (0, 1))
    theme = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return with_variables(to_svg(figure)).replace("</style>", f"{theme}</style>", 1)


def with_variables(svg: str) -> str:
    """The SVG with the name of each colour of the palette, as a variable of CSS, in the place of the colour."""
    for name, colour in PALETTE.items():
        svg = svg.replace(colour.light, f"var(--{name})")
    return svg


FORMULA_SIZE = 12.0  # points


def formula_svg(tex: str) -> str:
    """A formula as the text of an SVG file, `FORMULA_SIZE` points high letters; TeX as Matplotlib's mathtext reads it.

    Raises `ValueError` for what that cannot read.
    """
    buffer = io.BytesIO()
    with rc_context({**STYLE, "mathtext.fontset": "cm"}):
        math_to_image(f"${tex}$", buffer, FontProperties(size=FORMULA_SIZE), format="svg", color=INK)
    return buffer.getvalue().decode()


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as the bytes of a PNG file on white, `dpi` pixels an inch."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def as_array(value: Values) -> np.ndarray:
    """Any array-like as a NumPy array: tensors leave the graph and the device."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def finite_numbers(name: str, value: Values) -> np.ndarray:
    numbers = as_array(value)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(
            f"`{name}` is {numbers.tolist()}: at least one number, and only finite ones, can be averaged. "
            "Leave failed seeds out, and say in the caption how many"
        )
    return numbers


def check_lengths(name: str, value: Any, other_name: str, other: Any) -> None:
    if len(value) != len(other):
        raise ValueError(
            f"`{name}` has length {len(value)} and `{other_name}` has {len(other)}: "
            f"give one of `{name}` for each of `{other_name}`"
        )


def one_panel(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SINGLE, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def panels_below(titles: Sequence[str], x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """Panels below each other with the same axes, each with its title."""
    figure = Figure(figsize=(SINGLE[0], 0.6 + PANEL * len(titles)), layout="constrained")
    panels = list(figure.subplots(len(titles), 1, sharex=True, sharey=True, squeeze=False)[:, 0])
    for axes, title in zip(panels, titles):
        axes.set(title=title, ylabel=y_label)
    panels[-1].set_xlabel(x_label)
    return figure, panels


def whole_numbers() -> MaxNLocator:
    return MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)  # one, where there is one epoch


def make_logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis: plain numbers at 1, 2, 5 of each decade, rounder steps in less than one, powers in many."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if high > 1e4 * low:
        return  # Matplotlib's own: powers of ten
    narrow = high < 6 * low
    axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def short_number(value: float) -> str:
    """Three significant digits, and no fewer than all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def name_rows(axes: Axes, names: Sequence[str], room: float = 0.5) -> None:
    """Category names on the y axis, the first on top, without grid lines across."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 1 + room, -room)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look, **style: Any) -> None:
    """A network's line; of one point, which would be invisible, its marker."""
    marker = look.marker if np.count_nonzero(np.isfinite(y)) == 1 else None
    axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=marker, **style)
