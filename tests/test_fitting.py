"""`fit_trajectory`: closed forms, its derivative, gaps, units, what is not determined, and what it refuses."""

import math
import sys

import pytest
import torch
from torch import nn

import odenets
from odenets import fit_trajectory
from odenets.fitting.field import Model
from odenets.fitting.given import read_data
from odenets.fitting.least_squares import LeastSquares
from odenets.fitting.result import covariance_of
from odenets.fitting.shooting import Grid
from odenets.fitting.smooth import smooth
from odenets.fitting.strategies import STRATEGIES, Task
from odenets.fitting.told import Teller

D = torch.float64


def decay(t, y, k):
    return -k * y


def noisy_decay(k=0.7, a=2.0, count=15, noise=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 4, count, dtype=D)
    return t, a * torch.exp(-k * t)[:, None] + noise * torch.randn(count, 1, generator=generator, dtype=D)


def analytic(t, k, a):
    """d(a exp(-k t)) by k and a, (T, 2)."""
    return torch.stack([-a * t * torch.exp(-k * t), torch.exp(-k * t)], 1)


class Pendulum(nn.Module):
    """The square of the frequency and the damping, by their logarithms."""

    def __init__(self, frequency=4.0, damping=0.1, dtype=D):
        super().__init__()
        self.log = nn.Parameter(torch.tensor([frequency, damping], dtype=dtype).log())

    def forward(self, t, y):
        angle, speed = y.unbind(-1)
        square, damping = self.log.exp()
        return torch.stack([speed, -square * angle.sin() - damping * speed], -1)


def swings(end=3.0, count=16, noise=0.02):
    t = torch.linspace(0, end, count, dtype=D)
    with torch.no_grad():
        y = odenets.solve(Pendulum(), torch.tensor([[1.0, 0.0]], dtype=D), t, rtol=1e-9, atol=1e-9).ys[:, 0]
    return t, y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=D)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_decay_is_fitted_with_the_standard_errors_of_its_closed_form(strategy):
    t, values = noisy_decay()
    fit = fit_trajectory(decay, t, values, parameters={"k": 0.1}, strategy=strategy)
    k, a = float(fit.parameters["k"]), float(fit.y0)
    j = analytic(t, k, a)
    residuals = values[:, 0] - a * torch.exp(-k * t)
    assert (j.T @ residuals).abs().max() < 1e-5  # the minimum
    torch.testing.assert_close(fit.residuals[:, 0], residuals, rtol=0, atol=1e-5)
    noise = float((residuals.square().sum() / 13).sqrt())
    assert fit.noise == pytest.approx(noise, rel=1e-4)
    covariance = noise**2 * torch.linalg.inv(j.T @ j)
    torch.testing.assert_close(fit.covariance, covariance, rtol=1e-3, atol=0)
    errors = torch.stack([fit.standard_errors["k"], fit.y0_standard_errors[0]])
    torch.testing.assert_close(errors, covariance.diagonal().sqrt(), rtol=1e-3, atol=0)
    assert fit.history[-1].stage == "plain"
    later = torch.tensor([6.0, 0.0, 1.5], dtype=D)
    mean, spread = fit.predict(later, std=True)
    torch.testing.assert_close(mean[:, 0], a * torch.exp(-k * later), rtol=1e-4, atol=1e-6)
    j = analytic(later, k, a)
    torch.testing.assert_close(spread[:, 0], (j @ covariance * j).sum(1).sqrt(), rtol=1e-3, atol=1e-8)


def test_a_sigma_that_is_given_is_taken_as_it_is_and_weighs():
    t, values = noisy_decay()
    sigma = torch.linspace(0.02, 0.2, 15, dtype=D)[:, None]
    fit = fit_trajectory(decay, t, values, parameters={"k": 1.0}, sigma=sigma)
    k, a = float(fit.parameters["k"]), float(fit.y0)
    j = analytic(t, k, a) / sigma
    assert (j.T @ ((values - a * torch.exp(-k * t)[:, None]) / sigma)).abs().max() < 1e-3
    torch.testing.assert_close(fit.covariance, torch.linalg.inv(j.T @ j), rtol=1e-3, atol=0)


def test_an_initial_state_that_is_fixed_stays_and_has_no_error():
    t, values = noisy_decay()
    fit = fit_trajectory(decay, t, values, parameters={"k": 0.1}, y0=torch.tensor([1.9], dtype=D), fit_y0=False)
    assert fit.y0.tolist() == [1.9]
    assert fit.y0_standard_errors.tolist() == [0.0]
    assert fit.covariance.shape == (1, 1)


@pytest.mark.parametrize("segments", [1, 4])
def test_the_derivative_is_that_of_the_residuals(segments):
    t, values = swings(end=2.0, count=9)
    values = torch.stack([values, values.flip(0)])
    values[0, 3, 1] = values[1, 5:] = math.nan
    data, model = read_data(t, values, 0.1), Model(Pendulum(3.0, 0.2), None)
    free, start = torch.tensor([True, False]), values[:, 0].clone()
    options = {"controller": odenets.PID(rtol=1e-6, atol=1e-8), "method": "tsit5"}
    task = Task(model, data, None, start, free, data.scale, options, 1, None, Teller(False))
    nodes = start[:, None] + 0.1 * torch.randn(2, segments, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    residuals = LeastSquares(model).residuals(task, nodes, 9.0)
    x = residuals.unknowns.vector(model.vector())
    assert len(x) == 2 + 2 + 2 * (segments - 1) * 2
    step = 1e-5 * torch.eye(len(x), dtype=D)
    central = torch.stack([(residuals.at(x + e) - residuals.at(x - e)) / 2e-5 for e in step], 1)
    torch.testing.assert_close(residuals.derivative(x), central, rtol=1e-4, atol=1e-4)
    assert len(central) == int(data.seen.sum()) + 2 * (segments - 1) * 2


def test_segments_begin_at_times_and_share_their_ends():
    grid = Grid.of([5.0, 6.0, 7.0, 9.0, 11.0], 2)
    assert grid.starts.tolist() == [5.0, 7.0]
    assert grid.lengths.tolist() == [2.0, 4.0]
    assert grid.outputs == [0.0, 0.5, 1.0]
    assert grid.segment.tolist() == [0, 0, 1, 1, 1]
    assert grid.output.tolist() == [0, 1, 0, 1, 2]


def test_multiple_shooting_ends_continuous_where_a_plain_fit_does():
    t, values = swings(end=2.0)
    model, fine = Pendulum(3.5, 0.2), {"rtol": 1e-5}
    before = model.log.detach().clone()
    told = []
    shooting = fit_trajectory(model, t, values, strategy="multiple_shooting", progress=told.append, **fine)
    assert torch.equal(model.log, before)  # the caller's model is left as it was
    assert tuple(told) == shooting.history
    stages = list(dict.fromkeys(one.stage for one in told))
    assert stages[0] == "multiple shooting, gaps × 1"
    assert stages[-1] == "plain"
    shot = [one.loss for one in told if one.stage != "plain"][-1]
    count = values.numel() + 3 * 2  # gaps count among the residuals of a stage
    assert shot * count == pytest.approx(shooting.loss * values.numel(), rel=1e-4)  # nothing is left for gaps
    plain = fit_trajectory(Pendulum(3.9, 0.1), t, values, strategy="plain", **fine)
    torch.testing.assert_close(shooting.model.log, plain.model.log, rtol=1e-4, atol=1e-5)
    off = (shooting.model.log - Pendulum().log) / shooting.standard_errors["log"]
    assert off.abs().max() < 3


def test_gaps_and_trajectories_of_other_lengths_are_one_fit_of_what_is_there():
    t, first = noisy_decay(a=2.0)
    _, second = noisy_decay(a=-1.0, seed=1)
    both = torch.stack([first, second])
    both[0, [3, 4]] = both[1, 9:] = math.nan
    fit = fit_trajectory(decay, t, both, parameters={"k": 0.2}, strategy="plain")
    k, (a, b) = float(fit.parameters["k"]), fit.y0[:, 0].tolist()
    j = torch.zeros(2, 15, 3, dtype=D)
    j[0, :, [0, 1]], j[1, :, [0, 2]] = analytic(t, k, a), analytic(t, k, b)
    seen = ~both[..., 0].isnan()
    j, residuals = j[seen], fit.residuals[..., 0][seen]
    assert (j.T @ residuals).abs().max() < 1e-5
    torch.testing.assert_close(fit.covariance, fit.noise**2 * torch.linalg.inv(j.T @ j), rtol=1e-3, atol=1e-12)
    assert torch.equal(fit.residuals.isnan(), both.isnan())
    assert fit.predict([0.0, 9.0]).shape == (2, 2, 1)
    assert fit.solution.ys.shape == (15, 2, 1)


def test_times_far_from_zero_and_in_small_units_change_nothing():
    t, values = noisy_decay()
    how = {"strategy": "multiple_shooting", "rtol": 1e-5}
    here = fit_trajectory(decay, t, values, parameters={"k": 0.5}, **how)
    there = fit_trajectory(decay, 1e9 + t, values, parameters={"k": 0.5}, **how)
    small = fit_trajectory(decay, 1e-9 * t, 1e9 * values, parameters={"k": 5e8}, **how)
    torch.testing.assert_close(there.parameters["k"], here.parameters["k"], rtol=1e-5, atol=0)
    torch.testing.assert_close(small.parameters["k"], 1e9 * here.parameters["k"], rtol=1e-4, atol=0)
    torch.testing.assert_close(small.standard_errors["k"], 1e9 * here.standard_errors["k"], rtol=1e-3, atol=0)


def test_a_model_in_float32_is_fitted_in_float64_and_comes_back_in_its_own():
    t, values = noisy_decay()
    given = {"k": torch.tensor(0.5)}
    single = fit_trajectory(decay, t.float(), values.float(), parameters=given, strategy="plain")
    double = fit_trajectory(decay, t, values, parameters={"k": 0.5}, strategy="plain")
    assert single.parameters["k"].dtype == single.y0.dtype == single.predict([0.5]).dtype == torch.float32
    torch.testing.assert_close(single.parameters["k"].double(), double.parameters["k"], rtol=0, atol=1e-5)
    torch.testing.assert_close(single.covariance, double.covariance, rtol=1e-2, atol=1e-8)


def test_what_the_data_do_not_determine_has_an_infinite_error():
    t, values = noisy_decay()
    fit = fit_trajectory(
        lambda t, y, k, idle, a, b: -k * y + 0 * idle + a * b * t,
        t,
        values,
        parameters={"k": 0.7, "idle": 3.0, "a": 0.1, "b": 0.1},
        strategy="plain",
        rtol=1e-4,
    )
    assert {name: math.isinf(e) for name, e in fit.standard_errors.items()} == {
        "k": False,
        "idle": True,
        "a": True,
        "b": True,
    }
    assert "  a: " in str(fit)
    assert "± inf" in str(fit)


def test_the_covariance_of_more_unknowns_than_residuals_is_infinite():
    assert covariance_of(torch.eye(2, 3, dtype=D)).diagonal().tolist() == [1.0, 1.0, math.inf]
    assert covariance_of(torch.ones(1, 3, dtype=D)).diagonal().isinf().all()


@pytest.mark.slow
def test_a_state_that_is_observed_in_part_is_found_whole():
    t, values = swings(count=12)
    fit = fit_trajectory(Pendulum(3.0, 0.2), t, values[:, :1], observe=lambda y: y[..., :1], y0=[0.9, 0.0], rtol=1e-4)
    assert ((fit.model.log - Pendulum().log) / fit.standard_errors["log"]).abs().max() < 3
    assert ((fit.y0 - torch.tensor([1.0, 0.0])) / fit.y0_standard_errors).abs().max() < 3
    assert fit.predict([0.0]).shape == (1, 1)


def test_an_implicit_method_fits_a_stiff_model():
    def stiff(t, y, log):  # falls onto a slow decay, 1 / 1e4 behind it
        fast, slow = y.unbind(-1)
        return torch.stack([1e4 * (slow - fast), -log.exp() * slow], -1)

    t, values = noisy_decay(count=6)
    values, start = torch.cat([values, values], 1), torch.tensor([0.0, 2.0], dtype=D)
    options = {"y0": start, "fit_y0": False, "method": "trbdf2", "rtol": 1e-3, "iterations": 6}
    fit = fit_trajectory(stiff, t[1:], values[1:], parameters={"log": -1.0}, **options | {"y0": values[1]})
    assert fit.strategy == "auto"
    assert abs(fit.parameters["log"] - math.log(0.7)) < 3 * fit.standard_errors["log"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = odenets.nn.MLPField(1, hidden=(20,), time="none")

    def forward(self, t, y):
        return self.net(t, y)


@pytest.mark.parametrize(
    "strategy",
    ["collocation", *(pytest.param(s, marks=pytest.mark.slow) for s in ("plain", "growing", "multiple_shooting"))],
)
def test_a_network_is_fitted_by_adam_and_says_that_it_has_no_errors(strategy):
    t, values = noisy_decay(count=8, noise=0.0)
    fit = fit_trajectory(Net(), t, values.float(), strategy=strategy, iterations=12, optimiser="adam", rtol=1e-2)
    assert fit.loss < 0.3 * float(values.square().mean())
    assert fit.standard_errors is fit.covariance is fit.y0_standard_errors is None
    assert "without standard errors: J'J of a network is singular" in str(fit)
    assert fit.y0.dtype == torch.float32
    with pytest.raises(TypeError, match="`std` needs a covariance"):
        fit.predict([1.0], std=True)


def test_a_plot_has_a_panel_for_each_column():
    t, values = noisy_decay(count=6)
    values = torch.cat([values, 2 * values], 1)
    figure = fit_trajectory(decay, t, values, parameters={"k": 0.7}, strategy="plain", rtol=1e-3).plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["column 0", "column 1"]
    assert all(len(axes.collections) == 1 for axes in figure.axes)  # the bands


def test_smoothing_keeps_a_quadratic_and_leaves_gaps_out():
    t = torch.tensor([0.0, 0.3, 0.4, 1.0, 1.1, 1.9, 2.5, 4.0], dtype=D)
    values = (1 + 2 * t - t**2).view(1, -1, 1).repeat(2, 1, 1)
    seen = torch.ones_like(values, dtype=torch.bool)
    values[1, 3], seen[1, 3] = 77.0, False
    at = torch.tensor([0.0, 0.7, 3.0], dtype=D)
    smoothed, slopes = smooth(t, values, seen, at)
    torch.testing.assert_close(smoothed[..., 0], (1 + 2 * at - at**2).expand(2, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(slopes[..., 0], (2 - 2 * at).expand(2, -1), rtol=0, atol=1e-5)
    few, flat = smooth(t[:2], values[:1, :2], seen[:1, :2], at)
    assert few[0, :, 0].tolist() == pytest.approx([float(values[0, :2].mean())] * 3)
    assert not flat.any()


def test_smoothing_takes_noise_away():
    t = torch.linspace(0, 6, 60, dtype=D)
    noise = 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=D)
    seen = torch.ones(1, 60, 1, dtype=torch.bool)
    smoothed, slopes = smooth(t, (t.sin() + noise).view(1, -1, 1), seen, t)
    assert (smoothed[0, :, 0] - t.sin()).square().mean().sqrt() < 0.06
    assert (slopes[0, 5:-5, 0] - t.cos()[5:-5]).abs().max() < 0.3


def test_progress_writes_a_line_where_there_is_a_terminal(monkeypatch, capsys):
    t, values = noisy_decay(count=5)
    fit_trajectory(decay, t, values, parameters={"k": 0.6}, strategy="plain", progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit_trajectory(decay, t, values, parameters={"k": 0.6}, strategy="plain", progress=True)
    assert "plain, iteration 0, loss" in capsys.readouterr().err


T, V = noisy_decay(count=6)
K = {"parameters": {"k": 0.5}}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((decay, [0, 1, 1, 2, 3, 4], V), K, r"`times` must increase; times\[1\] = 1.0 is followed by 1.0"),
        ((decay, [0.0], V[:1]), K, "`times` must be at least 2, got 1"),
        ((decay, [0, math.inf], V[:2]), K, "`times` must be finite, got inf"),
        ((decay, T, V[:5]), K, r"`values` must have a row for each of the 6 `times`, got shape \(5, 1\)"),
        ((decay, T, V[:, 0]), K, r"`values` must have the shape \(T, d\), or \(N, T, d\)"),
        ((decay, T, V * math.nan), K, "`values` has no number in column 0: leave it out"),
        ((decay, T, torch.stack([V, V * math.nan])), K, "`values` has no number in trajectory 1"),
        ((decay, T, V / 0), K, "`values` must be finite, or NaN"),
        ((decay, T, V.to(torch.complex128)), K, "`values` must be real numbers"),
        ((decay, T, "values"), K, "`values` must be numbers, got 'values'"),
        ((decay, T, V), {}, "`parameters` must be given where `model` is a function"),
        ((decay, T, V), {"parameters": {"k": math.nan}}, r"`parameters\['k'\]` must be finite"),
        ((Pendulum(), T, V), K, "`parameters` would be ignored beside a module"),
        ((Pendulum, T, V), {}, "got the class Pendulum"),
        ((3, T, V), K, "`model` must be a module or a function"),
        ((Pendulum().requires_grad_(False), T, V), {}, "its parameters log do not require grad"),
        ((nn.Identity(), T, V), {}, "it has no parameters"),
        ((decay, T, V), K | {"sigma": 0.0}, "`sigma` must be above 0"),
        ((decay, T, V), K | {"sigma": torch.ones(3)}, r"`sigma` must be a number, or .* got shape \(3,\)"),
        ((decay, T, V), K | {"y0": [1.0, 2.0]}, r"`y0` must have the shape \(n,\) or \(N, n\) with N = 1 and n = 1"),
        ((decay, T, V), K | {"y0": [math.nan]}, "`y0` must be finite"),
        ((decay, T, V), K | {"fit_y0": False}, "`y0` must be given where `fit_y0` is not True"),
        ((decay, T, V), K | {"y0": [1.0], "fit_y0": [True, False]}, "`fit_y0` must be True, False, or 1 of them"),
        ((decay, T, V), K | {"observe": torch.sin}, "`y0` must be given beside `observe`"),
        ((decay, T, V), K | {"observe": lambda y: y[..., 0], "y0": [1.0]}, r"`observe` must make \(\.\.\., 1\) of"),
        ((decay, T, V), K | {"observe": 3, "y0": [1.0]}, "`observe` must be a function of states"),
        ((decay, T, V), K | {"observe": torch.sin, "y0": [1.0], "strategy": "collocation"}, "needs all of the state"),
        ((decay, T, V), K | {"strategy": "fast"}, "`strategy` must be one of auto, plain, growing"),
        ((decay, T, V), K | {"optimiser": "sgd"}, "`optimiser` must be one of auto, least_squares, adam"),
        ((decay, T, V), K | {"segments": 2, "strategy": "plain"}, "`segments` would be ignored"),
        ((decay, T, V), K | {"learning_rate": 0.1}, "`learning_rate` would be ignored"),
        ((decay, T, V), K | {"learning_rate": 0, "optimiser": "adam"}, "`learning_rate` must be above 0, got 0"),
        ((decay, T, V), K | {"segments": 6}, "`segments` must be less than the 6 times, got 6"),
        ((decay, T, V), K | {"iterations": 0}, "`iterations` must be an integer ≥ 1, got 0"),
        ((decay, T, V), K | {"progress": 3}, "`progress` must be True, False or a function of a `FitAdvance`"),
        ((decay, T, V), K | {"rtol": 1e-3, "controller": odenets.PID()}, "`rtol` would be ignored beside `controller`"),
        ((lambda t, y, k: k * y.sum(0, keepdim=True), T, V), K, r"`model` must be f\(t, y\) with y of shape"),
        ((lambda t, y, k: k * y[0] * y, T, V), K, "Its rows alone are others than in a batch"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit_trajectory(*arguments, **options)


def test_a_fit_that_cannot_begin_says_so():
    t, values = noisy_decay(count=6)
    with pytest.raises(
        RuntimeError, match=r'the fit could not begin.*Start from nearer parameters, or `strategy="auto"`'
    ):
        fit_trajectory(lambda t, y, k: k * y**3, t, values, parameters={"k": 50.0}, strategy="plain")


def test_predictions_before_the_data_are_refused():
    t, values = noisy_decay(count=5)
    fit = fit_trajectory(decay, t, values, parameters={"k": 0.6}, strategy="plain")
    with pytest.raises(ValueError, match=r"`times` must not be before the first of the data, 0\.0, got -1\.0"):
        fit.predict([-1.0])
