"""Figures of any quantities, by what is in their artists: data, labels, colours; and the shapes they refuse."""

import re

import numpy as np
import pytest
import torch
from matplotlib.collections import FillBetweenPolyCollection, PathCollection
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation

from odenets import figures
from odenets.figures import NETWORKS, PALETTE, SINGLE, Line

X = [1.0, 2.0, 4.0]
DISC = np.stack([np.cos(np.arange(6.0)), np.sin(np.arange(6.0))], 1)
GRID = np.arange(6.0).reshape(2, 3)
EXTENT = (-1.0, 1.0, 0.0, 2.0)

ALL = {
    "lines": lambda: figures.lines(
        {"ODE-Net": Line(X, X, [0.5, 1, 3], [2, 3, 5]), "bound": Line([1, 4], [4, 4])}, "x", "y", level="bound"
    ),
    "line_panels": lambda: figures.line_panels(
        {"above": {"a": Line(X, X)}, "below": {"a": Line(X, X), "b": Line([3], [2])}}, "x", "y", marked=True
    ),
    "plane": lambda: figures.plane(
        {"inside": DISC / 2, "outside": DISC}, paths=np.stack([DISC, DISC / 2]), arrows=(DISC, DISC)
    ),
    "maps": lambda: figures.maps({"density": GRID, "error": GRID}, EXTENT, "x₁", "x₂"),
    "graph": lambda: figures.graph({"x": (0, 0), "f": (1, 0), "loss": (1, 1)}, [("x", "f"), ("f", "loss")]),
}


def lines(axes):
    """Label → (x, y, line) of the labelled lines."""
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), line) for line in named}


def band(axes):
    (shape,) = [shape for shape in axes.collections if isinstance(shape, FillBetweenPolyCollection)]
    return shape.get_paths()[0].vertices


@pytest.mark.parametrize("name", ALL)
def test_drawn_without_warning_in_palette_colours_only_and_the_same_each_time(name):
    figure = ALL[name]()
    svg = figures.to_svg(figure)
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {colour.light for colour in PALETTE.values()}
    assert ("<image" in svg) == (name == "maps")  # the one with colours that are no text: greys
    assert figures.to_svg(ALL[name]()) == svg
    assert figures.to_png(figure, dpi=30).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ALL)
def test_no_figure_is_too_wide_for_a_telephone(name):
    assert ALL[name]().get_size_inches()[0] <= SINGLE[0]


@pytest.mark.parametrize("name", ALL)
def test_every_axis_in_use_has_a_label(name):
    panels = [axes for axes in ALL[name]().axes if axes.axison and axes.get_label() != "<colorbar>"]
    assert bool(panels) == (name != "graph")
    assert all(axes.get_ylabel() for axes in panels)
    assert not panels or panels[-1].get_xlabel()


# -- looks


def test_networks_keep_their_look_and_others_differ_in_colour_dash_and_marker():
    looks = figures.series_looks(["a", "ODE-Net", *"bcdefg"])
    assert looks["ODE-Net"] == NETWORKS["ODE-Net"]
    assert len(looks) == 8
    for part in ("colour", "marker"):
        assert len({getattr(look, part) for look in looks.values()}) == 8
    assert len({str(look.dash) for look in looks.values()}) >= 7  # the look of the absent network may share a dash


def test_more_lines_than_anybody_could_tell_apart_are_refused():
    with pytest.raises(ValueError, match="`lines` has 9 lines, at most 8 can be told apart: use more panels"):
        figures.series_looks([*"abcdefghi"])


# -- lines


def test_lines_draw_their_numbers_and_band_in_their_look():
    (axes,) = figures.lines({"ODE-Net": Line(torch.tensor(X), X, [0, 1, 3], [2, 3, 5])}, "time", "error").axes
    x, y, line = lines(axes)["ODE-Net"]
    np.testing.assert_array_equal([x, y], [X, X])
    assert line.get_color() == NETWORKS["ODE-Net"].colour
    assert (band(axes)[:, 1].min(), band(axes)[:, 1].max()) == (0, 5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time", "error")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ODE-Net"]


def test_a_level_is_thin_and_in_ink_and_takes_no_look_from_the_others():
    given = {"bound": Line(X, X), "a": Line(X, X)}
    drawn = lines(figures.lines(given, "x", "y", level="bound", marked=True).axes[0])
    assert drawn["bound"][2].get_color() == PALETTE["ink"].light
    assert drawn["bound"][2].get_linewidth() < drawn["a"][2].get_linewidth()
    assert drawn["bound"][2].get_marker() in ("", "None")
    alone = lines(figures.lines({"a": Line(X, X)}, "x", "y", marked=True).axes[0])["a"][2]
    assert drawn["a"][2].get_color() == alone.get_color()
    assert drawn["a"][2].get_marker() == alone.get_marker() != "None"


@pytest.mark.parametrize(("log", "scales"), [("", ("linear",) * 2), ("x", ("log", "linear")), ("xy", ("log",) * 2)])
def test_the_named_axes_are_logarithmic(log, scales):
    (axes,) = figures.lines({"a": Line(X, X)}, "x", "y", log=log).axes
    assert (axes.get_xscale(), axes.get_yscale()) == scales


def test_a_logarithmic_axis_leaves_out_what_is_not_above_zero():
    given = Line([0.0, 1.0, 2.0, 3.0], [1.0, 0.0, -1.0, 2.0], [0.0, 0.1, 0.1, 1.0], [1.0, 1.0, 1.0, 3.0])
    (axes,) = figures.lines({"a": given}, "x", "y", log="xy").axes
    np.testing.assert_array_equal(lines(axes)["a"][0], [np.nan, 1, 2, 3])
    np.testing.assert_array_equal(lines(axes)["a"][1], [1, np.nan, np.nan, 2])
    (linear,) = figures.lines({"a": given}, "x", "y").axes
    np.testing.assert_array_equal(lines(linear)["a"][1], given.y)


def test_one_point_is_a_marker():
    (axes,) = figures.lines({"a": Line([1.0], [2.0])}, "x", "y").axes
    assert lines(axes)["a"][2].get_marker() != "None"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (Line(X, [1.0]), r"`lines\['a'\].y` has length 1 and `x` has 3"),
        (Line(X, X, [0.0], X), r"`lines\['a'\].low` has length 1 and `x` has 3"),
        (Line(X, X, X, [0.0]), r"`lines\['a'\].high` has length 1 and `x` has 3"),
        (Line(X, np.ones((3, 2))), r"`lines\['a'\].y` has shape \(3, 2\), expected \(n,\)"),
        (Line(3.0, X), r"`lines\['a'\].x` has shape \(\), expected \(n,\)"),
    ],
)
def test_lines_of_other_shapes_are_refused(line, message):
    with pytest.raises(ValueError, match=message):
        figures.lines({"a": line}, "x", "y")
    with pytest.raises(ValueError, match=message):
        figures.line_panels({"above": {"a": line}}, "x", "y")


# -- panels of lines


def test_a_name_has_one_look_in_all_panels():
    panels = {"above": {"a": Line(X, X), "b": Line(X, X)}, "below": {"b": Line(X, X), "bound": Line(X, X)}}
    above, below = figures.line_panels(panels, "time", "error", level="bound", log="y").axes
    assert [axes.get_title(loc="left") for axes in (above, below)] == ["above", "below"]
    assert lines(above)["b"][2].get_color() == lines(below)["b"][2].get_color() != lines(above)["a"][2].get_color()
    assert lines(below)["bound"][2].get_color() == PALETTE["ink"].light
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == ("error", "error", "time")
    assert {above.get_yscale(), below.get_yscale()} == {"log"}


@pytest.mark.parametrize("share", [True, False])
def test_panels_have_one_scale_or_their_own(share):
    panels = {"above": {"a": Line(X, X)}, "below": {"a": Line(X, np.multiply(X, 100))}}
    above, below = figures.line_panels(panels, "x", "y", share_y=share).axes
    assert (above.get_ylim() == below.get_ylim()) == share


# -- the plane


def test_plane_draws_groups_paths_and_arrows():
    paths = np.stack([DISC, DISC / 2, DISC / 4])
    groups = {"inside": torch.tensor(DISC / 2), "outside": DISC}
    figure = figures.plane(groups, "p", "q", paths=paths, arrows=(DISC, 2 * DISC))
    (axes,) = figure.axes
    inside, outside = [shape for shape in axes.collections if isinstance(shape, PathCollection)]
    np.testing.assert_allclose(inside.get_offsets(), DISC / 2)
    np.testing.assert_allclose(outside.get_offsets(), DISC)
    assert not np.array_equal(inside.get_facecolor(), outside.get_facecolor())
    assert len(axes.get_lines()) == 6
    np.testing.assert_allclose(axes.get_lines()[1].get_xydata(), paths[:, 1])
    (arrows,) = [shape for shape in axes.collections if isinstance(shape, Quiver)]
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), 2 * DISC)
    assert axes.get_aspect() == 1.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("p", "q")
    (legend,) = [*figure.legends, *filter(None, [axes.get_legend()])]
    assert [text.get_text() for text in legend.get_texts()] == ["inside", "outside"]


def test_one_group_needs_no_legend():
    figure = figures.plane({"all": DISC})
    assert not figure.legends
    assert figure.axes[0].get_legend() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"a": [1.0, 2.0]}}, r"`groups\['a'\]` has shape \(2,\), expected \(n, 2\)"),
        ({"groups": {"a": np.ones((4, 3))}}, r"`groups\['a'\]` has shape \(4, 3\), expected \(n, 2\)"),
        ({"paths": DISC}, r"`paths` has shape \(6, 2\), expected \(T, n, 2\)"),
        ({"paths": np.ones((2, 3, 1))}, r"`paths` has shape \(2, 3, 1\), expected \(T, n, 2\)"),
        ({"arrows": (DISC, np.ones(6))}, r"`arrows\[1\]` has shape \(6,\), expected \(m, 2\)"),
        ({"arrows": (DISC, DISC[:2])}, r"`arrows\[1\]` has length 2 and `arrows\[0\]` has 6"),
    ],
)
def test_a_plane_of_other_shapes_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.plane(**{"groups": {"a": DISC}, **arguments})


# -- maps


def test_maps_are_grey_with_the_first_row_at_the_bottom_and_a_scale_each():
    figure = figures.maps({"one": GRID, "ten": torch.tensor(10 * GRID)}, EXTENT, "x₁", "x₂")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["one", "ten"]
    assert len(figure.axes) == 4
    for axes, factor in zip(panels, (1, 10)):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), factor * GRID)
        assert (image.origin, tuple(image.get_extent())) == ("lower", EXTENT)
        assert image.get_clim() == (0.0, 5.0 * factor)
        colours = image.cmap(np.linspace(0, 1, 7))[:, :3]
        np.testing.assert_array_equal(colours, colours[:, :1].repeat(3, 1))
        assert (np.diff(colours[:, 0]) < 0).all()  # dark where it is large


def test_maps_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"`values\['one'\]` has shape \(6,\), expected \(rows, columns\)"):
        figures.maps({"one": GRID.ravel()}, EXTENT, "x₁", "x₂")


# -- graphs


def test_a_graph_has_a_box_for_each_name_and_an_arrow_from_start_to_end():
    (axes,) = figures.graph({"x": (0, 0), "f": (2, 1)}, [("x", "f")]).axes
    boxes = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
    assert boxes == {"x": (0, 0), "f": (2, 1)}
    (arrow,) = [text for text in axes.texts if isinstance(text, Annotation)]
    assert (arrow.xyann, arrow.xy) == ((0, 0), (2, 1))
    assert not axes.axison


def test_an_arrow_of_no_box_is_refused():
    with pytest.raises(ValueError, match=r"`arrows` names \['y'\], but `nodes` has \['x'\]"):
        figures.graph({"x": (0, 0)}, [("x", "y")])


@pytest.mark.parametrize(
    "names",
    [
        "abcde",
        ["Direct", "Checkpointed", "Checkpointed, 10 states", "Interpolated", "Backsolve", "Reversible", "ResNet"],
        ["normal", "premature ventricular contraction", "supraventricular premature", "fusion of both kinds", "paced"],
        [*(f"∇f is L-Lipschitz, ‖x₀ − x*‖²/(2ηk), {i}" for i in range(4)), "broken above"],
    ],
)
def test_a_legend_above_the_axes_is_as_wide_as_the_figure_at_most(names):
    figure = figures.lines({name: Line(X, X) for name in names}, "x", "y")
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
