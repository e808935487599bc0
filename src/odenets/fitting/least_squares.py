"""Fits with few parameters: Levenberg and Marquardt's step within a trust region, by SciPy.

The sum of squares has a structure that no other optimizer uses: its second derivative is J'J to first order, so a fit
ends in ten iterations where Adam needs thousands, and J is what the standard errors are made of. J needs one solve of
1 + n + P copies of the state, which is what limits it to few parameters.

J is made by differences of solves that share their steps ("internal numerical differentiation", H. G. Bock 1981): the
copies differ by one parameter or one component of the state each, and as they are one batch, they are solved by the
same steps. So the difference is that of one smooth function, to eight digits in float64, for implicit methods too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.extra import experiments_extra
from odenets.fitting.field import Copies, Model
from odenets.fitting.given import Data, Observe
from odenets.fitting.shooting import Grid, flat_times, gaps, observed, solve_segments
from odenets.fitting.strategies import Found, StartError, Task
from odenets.fitting.told import Teller

FEW = 50  # parameters up to which it is taken
_STEP = 1e-7  # of a difference, relative
_LOOSE = 30  # evaluations on the way to the last fit


class Unknowns(NamedTuple):
    """What is fitted: the parameters, and those of the nodes (N, S, n) that `free` says, as one vector."""

    size: int  # of the parameters
    nodes: Tensor
    free: Tensor

    def vector(self, theta: Tensor) -> Tensor:
        return torch.cat([theta, self.nodes[self.free]])

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        theta, states = x.split([self.size, len(x) - self.size])
        return theta, self.nodes.masked_scatter(self.free, states)

    @property
    def columns(self) -> Tensor:
        """The place of each entry of the nodes in the vector, −1 of those that are not fitted."""
        return torch.where(self.free, self.free.flatten().cumsum(0).view(self.free.shape) - 1 + self.size, -1)


class Residuals:
    """The weighted residuals of a fit, then the gaps between segments; and their derivative.

    Args:
        copies: 1 + P of the model.
        data: What was observed.
        grid: How its times are cut into segments.
        unknowns: What is fitted.
        scale: The size of each component of the state, (n,).
        gap_weight: What a gap of each component is multiplied by, (n,).
    """

    def __init__(
        self,
        copies: Copies,
        data: Data,
        grid: Grid,
        observe: Observe | None,
        unknowns: Unknowns,
        scale: Tensor,
        gap_weight: Tensor,
        options: Mapping[str, Any],
    ) -> None:
        self.copies, self.data, self.grid, self.observe, self.unknowns = copies, data, grid, observe, unknowns
        self.scale, self.gap_weight, self.options = scale, gap_weight, options
        self.typical = copies.model.vector().abs()
        self.last: tuple[Tensor, Tensor] | None = None  # an x, and the residuals there

    def at(self, x: Tensor) -> Tensor:
        """(m + gaps,); infinite where the solve fails."""
        if self.last is None or not torch.equal(self.last[0], x):
            theta, nodes = self.unknowns.parts(x)
            self.copies.write(theta[None])
            states = self._solved(nodes[None])
            lost = states is None
            out = (
                torch.full((self._length(),), torch.inf, dtype=x.dtype) if lost else self._stacked(states, nodes[None])
            )
            self.last = x.clone(), out.flatten()
        return self.last[1]

    def largest_gap(self, x: Tensor) -> float:
        """The largest gap between segments, relative to the scale of its component."""
        missed = self.at(x)[int(self.data.seen.sum()) :].view(-1, len(self.scale))
        return float((missed / self.gap_weight / self.scale).abs().amax()) if len(missed) else 0.0

    def derivative(self, x: Tensor) -> Tensor:
        """(m + gaps, unknowns)."""
        theta, nodes = self.unknowns.parts(x)
        n, size = nodes.shape[-1], self.unknowns.size
        by = _STEP * torch.maximum(theta.abs(), 0.01 * self.typical)
        by = by.where(by > 0, _STEP)
        self.copies.write(torch.cat([theta[None], theta + by.diag()]))
        by_state = _STEP * torch.maximum(nodes.abs(), self.scale)
        some = self.unknowns.free.flatten(0, 1).any(0)  # components that are fitted anywhere, c of the n
        moved = nodes + torch.eye(n, dtype=x.dtype)[some, None, None, :] * by_state  # (c, N, S, n)
        start = torch.cat([nodes[None], moved, nodes.expand(size, *nodes.shape)])
        states = self._solved(start, 1 + len(moved))
        if states is None:
            raise FloatingPointError("the solve failed beside a point where it did not")
        out = self._stacked(states, start)
        by_nodes, by_theta = (out[1:] - out[0]).T.split([len(moved), size], 1)  # (m + gaps, c) and (m + gaps, P)
        jacobian = x.new_zeros(len(by_theta), len(x))
        jacobian[:, :size] = by_theta / by
        difference = x.new_zeros(len(jacobian), n)
        difference[:, some] = by_nodes
        self._put_nodes(jacobian, difference, by_state)
        return jacobian

    def _put_nodes(self, jacobian: Tensor, difference: Tensor, by: Tensor) -> None:
        """The columns of the nodes: a residual depends on the start of its own segment alone, a gap on that of the next
        one too.

        Args:
            difference: What the residuals and gaps of the n copies differ by, (m + gaps, n).
            by: What the nodes of the copies differ by, (N, S, n).
        """
        columns, m = self.unknowns.columns, int(self.data.seen.sum())
        trajectory, time, _ = self.data.seen.nonzero(as_tuple=True)
        segment = self.grid.segment[time]
        if self.grid.segments > 1:
            row, before, component = torch.ones_like(columns[:, :-1]).nonzero(as_tuple=True)
            gap = m + torch.arange(len(row))
            weight = self.gap_weight[component]
            jacobian[gap, columns[row, before + 1, component]] = -weight
            difference[gap, component] += weight * by[row, before + 1, component]  # the copy's next node moved too
            trajectory, segment = torch.cat([trajectory, row]), torch.cat([segment, before])
        own, by = columns[trajectory, segment], by[trajectory, segment]  # (m + gaps, n)
        rows, component = (own >= 0).nonzero(as_tuple=True)
        jacobian[rows, own[rows, component]] = (difference / by)[rows, component]

    def _solved(self, start: Tensor, first: int = 1) -> Tensor | None:
        """States of (copies, N, S, n): the `first` ones by the first model, each other by its own."""
        n, fields = start.shape[-1], self.copies.fields

        def field(t: Tensor, y: Tensor) -> Tensor:
            out = torch.empty_like(y)
            parts = [y[:first], *y[first:]]
            for i, (part, own) in enumerate(zip(parts, fields)):
                value = own(flat_times(t, part), part.reshape(-1, n)).reshape(part.shape)
                if i == 0:
                    out[:first] = value
                else:
                    out[first + i - 1] = value
            return out

        with torch.no_grad():
            return solve_segments(field, start, self.grid, self.options)

    def _stacked(self, states: Tensor, nodes: Tensor) -> Tensor:
        """Residuals and gaps of each copy, (copies, m + gaps)."""
        seen = self.data.seen
        with torch.no_grad():
            found = observed(states, self.grid, self.observe)
        residuals = ((found - self.data.values) * self.data.weights)[:, seen]
        parts = [residuals]
        if self.grid.segments > 1:
            parts.append((gaps(states, nodes) * self.gap_weight).flatten(1))
        return torch.cat(parts, 1)

    def _length(self) -> int:
        rows, segments, n = self.unknowns.nodes.shape
        return int(self.data.seen.sum()) + rows * (segments - 1) * n


def minimise(residuals: Any, x: Tensor, most: int, tell: Teller, stage: str, loose: bool = False) -> Tensor:
    """The x of least squares, from a start whose residuals are finite.

    Args:
        residuals: An object with `at` and `derivative`.
        most: The most evaluations of the residuals.
        loose: Whether an x near it will do.
    """
    with experiments_extra("`fit_trajectory`"):
        from scipy.optimize import least_squares  # noqa: PLC0415 — slow to import, and of an extra

    count = 0

    def at(z: Any) -> Any:
        nonlocal count
        out = residuals.at(torch.from_numpy(z))
        if count == 0:
            tell(stage, 0, float(out.square().mean()))
        count += 1
        return out.numpy()

    def derivative(z: Any) -> Any:
        return residuals.derivative(torch.from_numpy(z)).numpy()

    def iterated(intermediate_result: Any) -> None:
        tell(stage, intermediate_result.nit, 2 * intermediate_result.cost / len(intermediate_result.fun))

    enough = 1e-4 if loose else 1e-8
    options: Any = {"jac": derivative, "callback": iterated, "ftol": enough, "xtol": enough, "gtol": None}
    found = least_squares(at, x.numpy(), x_scale="jac", max_nfev=most, **options)
    return torch.from_numpy(found.x)


class Matching:
    """The residuals of collocation: f(t, y) less the slope, at states and slopes that are given (Q, n)."""

    def __init__(self, copies: Copies, times: Tensor, states: Tensor, slopes: Tensor, weights: Tensor) -> None:
        self.copies, self.times, self.states, self.slopes, self.weights = copies, times, states, slopes, weights
        self.typical = copies.model.vector().abs()

    def at(self, x: Tensor) -> Tensor:
        self.copies.write(x[None])
        out = self._of(self.copies.fields[0])
        return out if out.isfinite().all() else torch.full_like(out, torch.inf)

    def derivative(self, x: Tensor) -> Tensor:
        by = _STEP * torch.maximum(x.abs(), 0.01 * self.typical)
        by = by.where(by > 0, _STEP)
        self.copies.write(torch.cat([x[None], x + by.diag()]))
        first, *others = (self._of(field) for field in self.copies.fields)
        return torch.stack([(other - first) / step for other, step in zip(others, by)], 1)

    def _of(self, field: Any) -> Tensor:
        with torch.no_grad():
            return ((field(self.times, self.states) - self.slopes) * self.weights).flatten()


class LeastSquares:
    """The `Stage` of few parameters."""

    most = 400.0  # unknowns: a dense derivative has a column for each
    penalties = (1.0, 1e2, 1e4, 1e6, 1e8)  # the last make what a plain fit would, all segments side by side

    def __init__(self, model: Model) -> None:
        self.copies = model.copies(1 + model.size)

    def residuals(self, task: Task, nodes: Tensor, penalty: float = 0.0) -> Residuals:
        """Of the task, with these nodes to begin with."""
        free = torch.ones_like(nodes, dtype=torch.bool)
        free[:, 0] = task.free
        unknowns = Unknowns(task.model.size, nodes, free)
        grid = Grid.of(task.data.times, nodes.shape[1])
        weight = penalty**0.5 * task.gap_weight
        return Residuals(self.copies, task.data, grid, task.observe, unknowns, task.scale, weight, task.options)

    def fit(self, task: Task, name: str, theta: Tensor, nodes: Tensor, penalty: float, loose: bool) -> Found:
        """Fit parameters and nodes.

        Raises:
            StartError: If the solve fails at the start.
        """
        residuals = self.residuals(task, nodes, penalty)
        x = residuals.unknowns.vector(theta)
        if not residuals.at(x).isfinite().all():
            raise StartError(name)
        x = minimise(residuals, x, min(task.iterations, _LOOSE) if loose else task.iterations, task.tell, name, loose)
        return Found(*residuals.unknowns.parts(x), residuals.largest_gap(x))

    def match(self, task: Task, theta: Tensor, times: Tensor, states: Tensor, slopes: Tensor) -> Tensor:
        """Fit f(t, y) to slopes, each component by its size."""
        weights = 1 / slopes.square().mean(0).sqrt().clamp(min=1e-300)
        matching = Matching(self.copies, times, states, slopes, weights)
        if not matching.at(theta).isfinite().all():
            return theta
        return minimise(matching, theta, task.iterations, task.tell, "collocation", True)
