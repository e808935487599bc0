"""The figures, by what is in their artists: data, labels, colours."""

import re
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.quiver import Quiver

from odenets import figures
from odenets.figures import DATA, NETWORKS, PALETTE, STYLE, TARGET, Slopes

RESNET, ODENET = NETWORKS["ResNet"], NETWORKS["ODE-Net"]
X = np.linspace(-1.0, 1.0, 5)
CUBIC = X**3 + 0.1 * X
POINTS = ([-0.5, 0.5], [0.2, -0.2])
CLASSES = ("normal", "fusion")
COUNTS = [[9, 1], [0, 0]]


def rows(scale, seeds=(0, 1), epochs=(1, 2, 3), **more):
    """Losses that halve each epoch, doubled for the second seed."""
    return [
        {
            "seed": seed,
            "epoch": epoch,
            "train_loss": scale * (seed + 1) / 2**epoch,
            "test_loss": scale * (seed + 1) / 2**epoch + 0.1,
            "seconds": 2.0 if epoch > 1 else 10.0,
            "nfe": 10 * epoch,
        }
        | more
        for seed in seeds
        for epoch in epochs
    ]


HISTORY = {"ResNet": rows(4.0, nfe=None), "ODE-Net": rows(2.0)}

ALL = {
    "regression_fit": lambda: figures.regression_fit(X, CUBIC, {"ResNet": CUBIC}, *POINTS),
    "regression_comparison": lambda: figures.regression_comparison(
        X, CUBIC, {"ResNet": [CUBIC, CUBIC + 1], "ODE-Net": CUBIC}, *POINTS
    ),
    "flow": lambda: figures.flow([0.0, 1.0], np.ones((2, 3)), Slopes([0.0, 1.0], X, np.ones((5, 2)))),
    "forecast": lambda: figures.forecast([0.0, 1.0], [[1.0], [2.0]], X, X[:, None], np.ones((5, 1)), ["a"]),
    "learning_curves": lambda: figures.learning_curves(HISTORY),
    "metric_over_epochs": lambda: figures.metric_over_epochs(HISTORY, "nfe", "evaluations"),
    "seconds_per_epoch": lambda: figures.seconds_per_epoch(HISTORY),
    "confusion": lambda: figures.confusion({"ResNet": COUNTS, "other": COUNTS}, CLASSES),
    "loss_over_time": lambda: figures.loss_over_time(HISTORY),
    "seed_differences": lambda: figures.seed_differences([-0.1, 0.2], (-0.2, 0.3)),
    "beats": lambda: figures.beats(np.zeros((3, 187)), [0, 0, 1], CLASSES),
    "errors_by_seed": lambda: figures.errors_by_seed({"ResNet": [1.0, 2.0]}, reported={"ResNet": 4.673}),
}


def lines(axes):
    """Label → (x, y, line) of the labelled lines."""
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), line) for line in named}


def bands(axes):
    """Lower and upper edge of each band, as (lowest, highest)."""
    shapes = [shape for shape in axes.collections if isinstance(shape, FillBetweenPolyCollection)]
    boxes = [shape.get_paths()[0].vertices[:, 1] for shape in shapes]
    return [(box.min(), box.max()) for box in boxes]


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", ALL)
def test_drawn_without_warning_in_palette_colours_only_and_the_same_each_time(name):
    figure = ALL[name]()
    svg = figures.to_svg(figure)
    used = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert used <= {colour.light for colour in PALETTE.values()}
    assert figures.to_svg(ALL[name]()) == svg
    assert figures.to_png(figure, dpi=30).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ALL)
def test_no_figure_is_too_wide_for_a_telephone(name):
    assert ALL[name]().get_size_inches()[0] <= figures.SINGLE[0]


@pytest.mark.parametrize("name", ALL)
def test_every_axis_in_use_has_a_label(name):
    figure = ALL[name]()
    named_rows = any(re.search("[a-z]", text.get_text()) for text in figure.axes[0].get_yticklabels())
    assert any(panel.get_xlabel() for panel in figure.axes)
    assert named_rows or figure.get_supylabel() or any(panel.get_ylabel() for panel in figure.axes)


def test_palette_has_readable_contrast_on_both_pages():
    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one, other):
        dim, bright = sorted((luminance(one), luminance(other)))
        return (bright + 0.05) / (dim + 0.05)

    for name in PALETTE.keys() - {"paper", "grid", "field"}:  # WCAG: 3 for shapes, 4.5 for text
        least = 4.5 if name in ("ink", "muted") else 3.0
        assert contrast(PALETTE[name].light, PALETTE["paper"].light) > least
        assert contrast(PALETTE[name].dark, PALETTE["paper"].dark) > least


def test_networks_keep_their_look():
    looks = figures.network_looks(["other", "ODE-Net", "another", "ResNet"])
    assert looks["ODE-Net"] == ODENET
    assert looks["ResNet"] == RESNET
    assert len({look.colour for look in looks.values()}) == 4
    assert len({str(look.dash) for look in looks.values()}) == 4
    assert len({look.marker for look in looks.values()}) == 4


def test_too_many_networks():
    with pytest.raises(ValueError, match=r"`names` has 4 networks besides ODE-Net and ResNet.*second figure"):
        figures.network_looks("abcd")


def test_regression_fit_draws_points_target_and_network():
    drawn = lines(figures.regression_fit(X, CUBIC, {"ODE-Net": torch.ones(5, requires_grad=True)}, *POINTS).axes[0])
    assert list(drawn) == ["training points", "target function", "ODE-Net"]
    np.testing.assert_array_equal(drawn["training points"][:2], POINTS)
    np.testing.assert_array_equal(drawn["target function"][:2], [X, CUBIC])
    np.testing.assert_array_equal(drawn["ODE-Net"][1], np.ones(5))
    assert [line.get_color() for _, _, line in drawn.values()] == [DATA, TARGET, ODENET.colour]


def test_regression_fit_draws_median_and_range_of_seeds():
    seeds = np.stack([CUBIC, CUBIC + 1, CUBIC + 5])
    (axes,) = figures.regression_fit(X, CUBIC, {"ResNet": seeds}, *POINTS).axes
    np.testing.assert_allclose(lines(axes)["ResNet"][1], CUBIC + 1)
    assert bands(axes) == [(CUBIC.min(), CUBIC.max() + 5)]


def test_regression_comparison_draws_the_errors_below():
    upper, lower = figures.regression_comparison(X, CUBIC, {"ResNet": CUBIC + 0.5, "ODE-Net": CUBIC}, *POINTS).axes
    np.testing.assert_allclose(lines(upper)["ResNet"][1], CUBIC + 0.5)
    np.testing.assert_allclose(lines(lower)["ResNet"][1], 0.5)
    np.testing.assert_allclose(lines(lower)["ODE-Net"][1], 0.0)
    assert lower.get_ylabel() == "network − target"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, CUBIC[1:], {}, *POINTS), "`target` has length 4 and `x` has 5: give one of `target` for each of `x`"),
        ((X, CUBIC, {}, [0.0], [1.0, 2.0]), "`points_y` has length 2 and `points_x` has 1"),
        ((X, CUBIC, {"ResNet": [1.0]}, *POINTS), "`ResNet` has length 1 and `x` has 5"),
    ],
)
def test_regression_fit_refuses_other_lengths(arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.regression_fit(*arguments)


def test_flow_draws_each_trajectory_its_start_and_the_direction_field():
    t, paths = np.array([0.0, 0.5, 1.0]), np.array([[0.0, 1.0], [0.5, 1.5], [2.0, 3.0]])
    slopes = Slopes(t, [0.0, 3.0], [[0.0, 1.0, 2.0], [0.0, -1.0, -2.0]])
    (axes,) = figures.flow(t, paths, slopes).axes
    first, second, starts = axes.get_lines()
    np.testing.assert_array_equal(first.get_xydata(), np.stack([t, paths[:, 0]], 1))
    np.testing.assert_array_equal(second.get_ydata(), paths[:, 1])
    np.testing.assert_array_equal(starts.get_xydata(), [[0.0, 0.0], [0.0, 1.0]])
    (arrows,) = [shape for shape in axes.collections if isinstance(shape, Quiver)]
    np.testing.assert_allclose(arrows.V / arrows.U, np.ravel(slopes.dz))
    np.testing.assert_allclose(np.hypot(arrows.U, arrows.V), 1.0)
    assert first.get_color() == ODENET.colour
    assert axes.get_xlabel() == "time t"


def test_flow_of_several_components_has_a_panel_each():
    paths = torch.arange(12.0).reshape(2, 3, 2)
    panels = figures.flow([0.0, 1.0], paths, network="ResNet").axes
    assert [panel.get_title(loc="left") for panel in panels] == ["component 1", "component 2"]
    np.testing.assert_array_equal(panels[1].get_lines()[0].get_ydata(), paths[:, 0, 1])
    assert panels[0].get_lines()[0].get_color() == RESNET.colour


def test_flow_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"`trajectories` has shape \(3, 2\) and `t` \(2,\): expected \(T, n\)"):
        figures.flow([0.0, 1.0], np.zeros((3, 2)))


def test_flow_refuses_slopes_of_several_components():
    slopes = Slopes([0.0], [0.0], [[1.0]])
    with pytest.raises(ValueError, match=r"`slopes` were given for a state of 2 components.*leave `slopes` out"):
        figures.flow([0.0, 1.0], np.zeros((2, 3, 2)), slopes)


def test_slopes_refuse_another_shape():
    with pytest.raises(ValueError, match=r"`dz` has shape \(1, 2\), expected \(len\(z\), len\(t\)\) = \(2, 1\)"):
        Slopes([0.0], [0.0, 1.0], [[1.0, 2.0]])


def test_learning_curves_draw_mean_and_range_on_one_axis():
    resnet, odenet = figures.learning_curves(HISTORY, label="cross entropy (nats)").axes
    assert [panel.get_title(loc="left") for panel in (resnet, odenet)] == ["ResNet", "ODE-Net"]
    epochs, train, line = lines(resnet)["train"]
    np.testing.assert_array_equal(epochs, [1, 2, 3])
    np.testing.assert_allclose(train, [3.0, 1.5, 0.75])  # mean of the seeds 2, 1, 0.5 and 4, 2, 1
    np.testing.assert_allclose(lines(resnet)["test"][1], [3.1, 1.6, 0.85])
    np.testing.assert_allclose(bands(resnet), [(0.5, 4.0), (0.6, 4.1)])
    assert line.get_color() == RESNET.colour
    assert resnet.get_ylim() == odenet.get_ylim()
    assert resnet.get_yscale() == "log"
    assert resnet.get_ylabel() == "cross entropy (nats)"


def test_learning_curves_of_one_seed_have_no_band_and_one_epoch_a_point():
    (axes,) = figures.learning_curves({"ResNet": rows(1.0, seeds=[0], epochs=[1])}).axes
    assert bands(axes) == []
    assert lines(axes)["test"][2].get_marker() == RESNET.marker
    assert lines(axes)["train"][2].get_marker() not in ("None", RESNET.marker)


def test_every_line_of_one_epoch_is_a_point():
    history = {"ResNet": rows(2.0, epochs=[1]), "ODE-Net": rows(1.0, epochs=[1])}
    for figure in (
        figures.learning_curves(history),
        figures.metric_over_epochs(history, "test_loss", "loss"),
        figures.loss_over_time(history),
    ):
        for axes in figure.axes:
            drawn = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
            assert drawn
            assert "None" not in [line.get_marker() for line in drawn]


@pytest.mark.parametrize("last", [1, 2, 3, 7])
def test_epochs_are_whole_numbers(last):
    history = {"ODE-Net": rows(1.0, epochs=range(1, last + 1))}
    for figure in (figures.learning_curves(history), figures.metric_over_epochs(history, "nfe", "evaluations")):
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert shown
        assert all(tick == round(tick) for tick in shown)


@pytest.mark.parametrize("factor", [1.0, 1.001, 1.1, 3.0, 100.0, 1e6])
def test_a_logarithmic_axis_has_two_numbers_at_least(factor):
    losses = [{"epoch": i, "train_loss": 0.07 * factor**i, "test_loss": 0.07} for i in (0, 1)]
    (axes,) = figures.learning_curves({"ResNet": losses}).axes
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


def test_mean_ends_where_a_seed_ends():
    short = rows(1.0, seeds=[0]) + rows(1.0, seeds=[1], epochs=[1, 2])
    (axes,) = figures.learning_curves({"ResNet": short}).axes
    np.testing.assert_allclose(lines(axes)["train"][1], [0.75, 0.375, np.nan])


def test_rows_may_be_records_or_a_data_frame():
    @dataclass(frozen=True)
    class Record:
        seed: int
        epoch: int
        nfe: float | None

    records = [Record(0, 1, 8.0), Record(0, 2, None), Record(1, 1, 10.0), Record(1, 2, 12.0)]
    for given in (records, pd.DataFrame(records), [{"epoch": 1, "nfe": 9}, {"epoch": 2, "nfe": None}]):
        (axes,) = figures.metric_over_epochs({"ODE-Net": given}, "nfe", "evaluations").axes
        np.testing.assert_allclose(lines(axes)["ODE-Net"][1], [9.0, np.nan])


def test_history_without_a_key():
    with pytest.raises(ValueError, match=r"`history` of 'ResNet' lacks \['loss'\], its rows have .*'train_loss'"):
        figures.learning_curves(HISTORY, train="loss")


def test_metric_leaves_out_networks_without_it():
    (axes,) = figures.metric_over_epochs(HISTORY, "nfe", "evaluations of f").axes
    assert list(lines(axes)) == ["ODE-Net"]
    np.testing.assert_allclose(lines(axes)["ODE-Net"][1], [10, 20, 30])
    assert axes.get_ylabel() == "evaluations of f"


def test_bars_draw_mean_and_range():
    (axes,) = figures.bars({"ResNet": [1.0, 2.0, 6.0], "ODE-Net": [4.0]}, "seconds").axes
    assert [bar.get_width() for bar in axes.patches] == [3.0, 4.0]
    (whisker,) = axes.get_lines()
    np.testing.assert_array_equal(whisker.get_xdata(), [1.0, 6.0])
    assert texts(axes) == ["3.00", "4.00"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ResNet", "ODE-Net"]


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_bars_refuse_what_has_no_mean(values):
    with pytest.raises(ValueError, match=r"`values\['ResNet'\]` is \[.*Leave failed seeds out"):
        figures.bars({"ResNet": values}, "seconds")


def test_seconds_per_epoch_are_medians_so_that_the_first_epoch_does_not_count():
    (axes,) = figures.seconds_per_epoch(HISTORY).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 2.0]


def test_confusion_draws_shares_and_counts():
    matrices = {"ResNet": COUNTS, "ODE-Net": torch.tensor([[1500, 500], [0, 4]])}
    resnet, odenet = figures.confusion(matrices, CLASSES).axes
    assert texts(resnet) == ["90.0 %\n9", "10.0 %\n1", "–", "–"]
    assert texts(odenet) == ["75.0 %\n1,500", "25.0 %\n500", "0", "100.0 %\n4"]
    shades = [[shade.get_alpha() for shade in panel.patches] for panel in (resnet, odenet)]
    np.testing.assert_allclose(np.divide(shades, shades[1][3]), [[0.9, 0.1, 0.0, 0.0], [0.75, 0.25, 0.0, 1.0]])
    assert len({shade.get_facecolor()[:3] for panel in (resnet, odenet) for shade in panel.patches}) == 1
    assert resnet.get_ylim() == (1.5, -0.5)  # true classes from top to bottom
    assert (odenet.get_xlabel(), resnet.get_ylabel()) == ("predicted class", "true class")
    assert [label.get_text() for label in odenet.get_xticklabels()] == list(CLASSES)


def test_confusion_refuses_another_shape():
    with pytest.raises(ValueError, match=r"`matrices` has one of shape \(2, 2\), expected \(3, 3\)"):
        figures.confusion({"ResNet": COUNTS}, ("a", "b", "c"))


def test_confusion_refuses_shares():
    with pytest.raises(ValueError, match=r"`matrices` holds 0\.9: give counts"):
        figures.confusion({"ResNet": [[0.9, 0.1], [0.5, 0.5]]}, CLASSES)


def test_loss_over_time_sums_seconds_and_marks_the_arrival():
    history = {"ResNet": rows(2.0, seeds=[0]), "ODE-Net": rows(1.0, seeds=[0])}
    (axes,) = figures.loss_over_time(history).axes
    drawn = lines(axes)
    level = 2.0 / 8 + 0.1
    np.testing.assert_allclose(drawn[f"ResNet, last: {level:.3f}"][1], level)
    np.testing.assert_allclose(drawn["ODE-Net"][:2], [[10.0, 12.0, 14.0], [0.6, 0.35, 0.225]])
    assert texts(axes) == ["12.0 s"]
    assert (axes.get_xlim()[0], axes.get_yscale()) == (0.0, "log")


def test_loss_over_time_marks_nothing_where_nothing_arrives():
    (axes,) = figures.loss_over_time({"ResNet": rows(1.0), "ODE-Net": rows(9.0)}).axes
    assert texts(axes) == []


def test_loss_over_time_needs_its_reference():
    with pytest.raises(ValueError, match=r"`reference` is 'resnet', but the history has \['ResNet', 'ODE-Net'\]"):
        figures.loss_over_time(HISTORY, reference="resnet")


def test_seed_differences_draw_points_zero_mean_and_interval():
    (axes,) = figures.seed_differences([-0.3, 0.1], (-0.4, 0.2), seeds=[7, 8], label="difference").axes
    zero, points, interval, mean = axes.get_lines()
    assert list(zero.get_xdata()) == [0.0, 0.0]
    np.testing.assert_array_equal(points.get_xydata(), [[-0.3, 0], [0.1, 1]])
    np.testing.assert_array_equal(interval.get_xdata(), [-0.4, 0.2])
    np.testing.assert_allclose(mean.get_xdata(), [-0.1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["seed 7", "seed 8", "mean, 95 % interval"]
    assert axes.get_xlabel() == "difference"


def test_seed_differences_refuse_an_interval_the_wrong_way_round():
    with pytest.raises(ValueError, match=r"`interval` is \(1, 0\): give \(low, high\)"):
        figures.seed_differences([0.0], (1, 0))


def test_seed_differences_refuse_another_number_of_seeds():
    with pytest.raises(ValueError, match="`seeds` has length 1 and `differences` has 2"):
        figures.seed_differences([0.0, 1.0], (0, 1), seeds=[3])


def test_beats_draw_the_first_of_each_class_in_seconds():
    x = np.arange(4 * 187).reshape(4, 187) / 748
    grid = figures.beats(x, [1, 0, 1, 1], CLASSES, examples=2).axes
    assert [panel.get_title(loc="left") for panel in grid] == ["normal", "", "fusion", ""]
    (line,) = grid[2].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), x[0])
    np.testing.assert_allclose(np.asarray(line.get_xdata())[-1], 186 / 120)
    np.testing.assert_array_equal(grid[3].get_lines()[0].get_ydata(), x[2])
    assert texts(grid[1]) == ["no example"]
    assert grid[2].get_xlabel() == "seconds"


def test_beats_refuse_another_number_of_labels():
    with pytest.raises(ValueError, match="`y` has length 1 and `x` has 2"):
        figures.beats(np.zeros((2, 187)), [0], CLASSES)


def test_errors_by_seed_draw_points_median_of_several_and_what_was_reported():
    figure = figures.errors_by_seed({"ResNet": [1.0, 9.0, 2.0], "ODE-Net": [5.0]}, reported={"ODE-Net": 7.72})
    (axes,) = figure.axes
    points, median, _, reported = axes.get_lines()
    np.testing.assert_array_equal(points.get_xdata(), [1.0, 9.0, 2.0])
    assert np.abs(points.get_ydata()).max() < 0.3
    np.testing.assert_array_equal(median.get_xdata(), [2.0, 2.0])
    np.testing.assert_array_equal(reported.get_xydata(), [[7.72, 1]])
    assert texts(axes) == ["median 2.00"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["printed by Della Bona and Dumez (2021)"]


def test_errors_by_seed_refuse_a_report_without_values():
    with pytest.raises(ValueError, match=r"`reported` names \['ODE-Net'\], but `values` has \['ResNet'\]"):
        figures.errors_by_seed({"ResNet": [1.0]}, reported={"ODE-Net": 7.72})


def test_figures_leave_matplotlib_as_it_was():
    before = {key: matplotlib.rcParams[key] for key in STYLE}
    figures.to_png(ALL["flow"](), dpi=30)
    assert {key: matplotlib.rcParams[key] for key in STYLE} == before
