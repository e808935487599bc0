"""What a fit returns: the fitted model, how sure its parameters are, and what it predicts."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odenets.arguments import given_times
from odenets.extra import experiments_extra
from odenets.fitting.given import Data
from odenets.fitting.least_squares import LeastSquares
from odenets.fitting.shooting import Grid, observed
from odenets.fitting.strategies import Stage, Task
from odenets.fitting.told import FitAdvance
from odenets.solution import Solution
from odenets.solve import solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class TrajectoryFit:
    """A fit of an ODE to trajectories.

    Attributes:
        model: The fitted model, f(t, y): a copy of the module, or the function with its parameters.
        parameters: The fitted parameters, name → tensor.
        y0: The initial states, (n,), or (N, n) of N trajectories.
        loss: The mean of the squared residuals over sigma.
        noise: The standard deviation of the residuals for the degrees of freedom that the fit leaves: an estimate of
            the noise, or where `sigma` was given one over it, about 1 where that was right. NaN where none are left.
        residuals: What was observed less what the fit says, like `values`; NaN where nothing was observed.
        standard_errors: Those of the parameters, name → tensor, by the covariance of Gauss and Newton, noise² (J'J)⁻¹
            with the `sigma` that was given or that is estimated. Infinite for a parameter that the data do not
            determine. None where Adam has fitted: J'J of a network is singular, and its parameters mean nothing.
        y0_standard_errors: Those of `y0`, zero for what was fixed; None where Adam has fitted.
        covariance: (P + F, P + F), of all parameters in order, then of the initial states that were fitted.
        history: What was told after each iteration: stage, iteration, loss.
        strategy: The strategy that was taken.
    """

    model: Any
    parameters: Mapping[str, Tensor]
    y0: Tensor
    loss: float
    noise: float
    residuals: Tensor
    standard_errors: Mapping[str, Tensor] | None
    y0_standard_errors: Tensor | None
    covariance: Tensor | None
    history: tuple[FitAdvance, ...]
    strategy: str
    _task: Task = field(repr=False)
    _stage: Stage = field(repr=False)
    _theta: Tensor = field(repr=False)
    _nodes: Tensor = field(repr=False)

    @cached_property
    def solution(self) -> Solution:
        """The `Solution` at the times of the data, with dense output: states (T, N, n), one batch of N trajectories."""
        data = self._task.data
        with torch.no_grad():
            return solve(self.model, self._y0, data.times, dense=True, **self._task.options)

    @property
    def _y0(self) -> Tensor:
        return self._nodes[:, 0].to(self._task.model.dtype)

    def predict(self, times: Any, *, std: bool = False) -> Any:
        """What would be observed, (T, d) or (N, T, d).

        Args:
            times: Times in any order, none before the first of the data; those behind the last are a forecast.
            std: Whether to return its standard deviation, too: of the prediction, by the covariance to first order,
                without the noise of an observation.

        Returns:
            The prediction, or both.

        Raises:
            ValueError: For a time before the first one.
            TypeError: For `std` where there is no covariance.
            SolveError: Where the solve fails behind the data.
        """
        given = given_times(times)
        wanted = [float(t) for t in (given.tolist() if isinstance(given, Tensor) else given)]
        first = self._task.data.times[0]
        early = next((t for t in wanted if not t >= first), None)
        if early is not None:
            raise ValueError(f"`times` must not be before the first of the data, {first!r}, got {early!r}")
        if std and self.covariance is None:
            raise TypeError("`std` needs a covariance, which there is of least squares alone: leave it out")
        ordered = sorted({first, *wanted})
        place = torch.tensor([ordered.index(t) for t in wanted])
        with torch.no_grad():
            states = solve(self.model, self._y0, ordered, **self._task.options).ys.movedim(0, 1)[:, place]
            mean = states if self._task.observe is None else self._task.observe(states)
        if not std:
            return self._shaped(mean)
        spread = self._spread(ordered, mean.shape[-1])[:, place]
        return self._shaped(mean), self._shaped(spread.to(mean.dtype))

    def _spread(self, times: list[float], columns: int) -> Tensor:
        shape = (len(self._nodes), len(times), columns)
        if len(times) == 1:
            return self._spread([times[0], times[0] + 1e-9 * max(1.0, abs(times[0]))], columns)[:, :1]
        ones = torch.ones(shape, dtype=torch.float64)
        data = Data(times, torch.zeros_like(ones), ones.bool(), ones, True, False)
        task = replace(self._task, data=data)
        jacobian = _jacobian(task, self._stage, self._theta, self._nodes)
        variance = ((jacobian @ torch.as_tensor(self.covariance)) * jacobian).sum(1)
        return variance.clamp(min=0).sqrt().view(shape)

    def _shaped(self, x: Tensor) -> Tensor:
        return x[0] if self._task.data.single else x

    def plot(self, *, std: bool = True) -> "Figure":
        """A panel for each column: what was observed, the fit, and as a band two standard deviations of the prediction.

        Args:
            std: Whether to draw the band, where there is a covariance; of many trajectories it takes its time.

        Raises:
            MissingExtra: If Matplotlib is not there.
        """
        with experiments_extra("`plot`"):
            from matplotlib.figure import Figure  # noqa: PLC0415 — slow to import, and of an extra

        data = self._task.data
        times = torch.linspace(data.times[0], data.times[-1], 200, dtype=torch.float64)
        found = self.predict(times, std=std and self.covariance is not None)
        mean, spread = found if isinstance(found, tuple) else (found, None)
        columns = data.values.shape[2]
        figure = Figure(figsize=(7, 1 + 2 * columns), layout="constrained")
        panels = figure.subplots(columns, 1, sharex=True, squeeze=False)[:, 0]
        for j, i in itertools.product(range(columns), range(len(data.values))):
            colour, seen = f"C{i % 10}", data.seen[i, :, j]
            y = self._rows(mean)[i, :, j]
            panels[j].plot(torch.tensor(data.times)[seen], data.values[i, seen, j], "o", ms=3, color=colour)
            panels[j].plot(times, y, color=colour)
            if spread is not None:
                half = 2 * self._rows(spread)[i, :, j]
                panels[j].fill_between(times, y - half, y + half, color=colour, alpha=0.2, linewidth=0)
            panels[j].set_ylabel(f"column {j}")
        panels[-1].set_xlabel("time")
        return figure

    def _rows(self, x: Tensor) -> Tensor:
        return x[None] if self._task.data.single else x

    def __str__(self) -> str:
        lines = [f"{self.strategy}: loss {self.loss:.6g}, noise {self.noise:.4g}"]
        if self.standard_errors is None:
            total = sum(value.numel() for value in self.parameters.values())
            return f"{lines[0]}; {total} parameters, without standard errors: J'J of a network is singular"
        for name, value in self.parameters.items():
            pairs = zip(value.flatten().tolist(), self.standard_errors[name].flatten().tolist())
            lines.append(f"  {name}: {', '.join(f'{x:.6g} ± {error:.2g}' for x, error in pairs)}")
        return "\n".join(lines)


def _jacobian(task: Task, stage: Stage, theta: Tensor, nodes: Tensor) -> Tensor:
    if not isinstance(stage, LeastSquares):
        raise TypeError("there is no derivative of the residuals where Adam has fitted")
    residuals = stage.residuals(task, nodes)
    return residuals.derivative(residuals.unknowns.vector(theta))


def covariance_of(jacobian: Tensor) -> Tensor:
    """(J'J)⁻¹; infinite variances, and NaN covariances, of what J does not determine."""
    size = jacobian.norm(dim=0)
    alive = size > 0
    out = torch.full((len(size), len(size)), math.nan, dtype=jacobian.dtype)
    out.diagonal().fill_(math.inf)
    scaled = jacobian[:, alive] / size[alive]
    if scaled.shape[1] == 0:
        return out
    _, values, vectors = torch.linalg.svd(scaled, full_matrices=False)
    missing = scaled.shape[1] - len(values)  # more unknowns than residuals
    if missing:
        return out
    null = values <= _RANK * values[0]
    lost = (vectors[null].abs() > _PART).any(0)
    inner = (vectors[~null].T / values[~null].square()) @ vectors[~null]
    inner = inner / size[alive] / size[alive][:, None]
    inner[lost], inner[:, lost] = math.nan, math.nan
    inner.diagonal()[lost] = math.inf
    places = alive.nonzero()[:, 0]
    out[places[:, None], places] = inner
    return out


_RANK = 1e-6  # of the largest singular value, below which a direction changes nothing: the differences have 7 digits
_PART = 1e-3  # of a parameter in such a direction, above which it is not determined


def _common(task: Task, theta: Tensor, nodes: Tensor, strategy: str) -> dict[str, Any]:
    """What every fit has."""
    model, data = task.model, task.data
    fitted = model.at(theta)
    y0 = nodes[:, 0].to(model.dtype)
    with torch.no_grad():
        states = solve(fitted, y0, data.times, **task.options).ys[:, :, None]  # (T, N, 1, n): one segment
    seen = observed(states, Grid.of(data.times, 1), task.observe).double()
    difference = (data.values - seen).where(data.seen, math.nan)
    weighted = ((data.values - seen) * data.weights)[data.seen]
    free = theta.numel() + int(task.free.sum()) * len(nodes)
    left = len(weighted) - free
    return {
        "model": fitted,
        "parameters": {name: value.to(model.dtype) for name, value in model.named(theta).items()},
        "y0": y0[0] if data.single else y0,
        "loss": float(weighted.square().mean()),
        "noise": float((weighted.square().sum() / left).sqrt()) if left > 0 else math.nan,
        "residuals": difference[0] if data.single else difference,
        "history": tuple(task.tell.history),
        "strategy": strategy,
        "_task": task,
        "_theta": theta,
        "_nodes": nodes,
    }


def fitted_by_least_squares(
    task: Task, stage: LeastSquares, theta: Tensor, nodes: Tensor, strategy: str
) -> TrajectoryFit:
    """The fit, with its covariance."""
    common = _common(task, theta, nodes, strategy)
    covariance = covariance_of(_jacobian(task, stage, theta, nodes))
    if not task.data.known:
        covariance = covariance * common["noise"] ** 2
    errors = covariance.diagonal().sqrt()
    of_states = torch.zeros_like(nodes[:, 0]).masked_scatter(task.free.expand(len(nodes), -1), errors[len(theta) :])
    return TrajectoryFit(
        **common,
        standard_errors=task.model.named(errors[: len(theta)]),
        y0_standard_errors=of_states[0] if task.data.single else of_states,
        covariance=covariance,
        _stage=stage,
    )


def fitted_by_descent(task: Task, stage: Stage, theta: Tensor, nodes: Tensor, strategy: str) -> TrajectoryFit:
    """The fit, without one."""
    common = _common(task, theta, nodes, strategy)
    return TrajectoryFit(**common, standard_errors=None, y0_standard_errors=None, covariance=None, _stage=stage)
