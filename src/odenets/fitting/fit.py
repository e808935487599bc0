"""`fit_trajectory`: the parameters of an ODE from observed trajectories."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odenets.arguments import count, number, shown
from odenets.controller import Controller
from odenets.fitting.descent import Descent
from odenets.fitting.field import Model, check_rows
from odenets.fitting.given import Data, Observe, read_data, read_start
from odenets.fitting.least_squares import FEW, LeastSquares
from odenets.fitting.result import TrajectoryFit, fitted_by_descent, fitted_by_least_squares
from odenets.fitting.shooting import check_observed
from odenets.fitting.strategies import STRATEGIES, Stage, StartError, Task, states_at
from odenets.fitting.told import Teller
from odenets.methods import Method
from odenets.solve import controller_of, solve

OPTIMISERS = ("auto", "least_squares", "adam")


def fit_trajectory(
    model: Any,
    times: Any,
    values: Any,
    *,
    parameters: Mapping[str, Any] | None = None,
    y0: Any = None,
    fit_y0: Any = True,
    observe: Observe | None = None,
    sigma: Any = None,
    strategy: str = "auto",
    optimiser: str = "auto",
    segments: int | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
    method: str | Method = "tsit5",
    rtol: float | None = None,
    atol: Any = None,
    controller: Controller | None = None,
    max_steps: int = 4096,
    progress: Any = False,
) -> TrajectoryFit:
    """Fit the parameters of dy/dt = f(t, y) to trajectories that were observed with noise and gaps.

    When to use: for an ODE with a few unknown constants, one with a network among its terms, or a network alone, and
    series of its state. When not: for data that no solution of the model explains (a hidden input, noise in the
    dynamics), where the best trajectory is no good one.

    Nothing in it is random: the same call gives the same fit, on the CPU. `model` is left as it was.

    Args:
        model: A module f(t, y), or a function f(t, y, **parameters). It gets y of shape (batch, n) and t of shape () or
            (batch, 1), as `solve(..., per_sample=True)` passes them, and makes each row from its own. All parameters
            that require grad are fitted; where one must be positive, let it be the logarithm.
        times: T times, increasing, in any unit; the first is that of the initial states.
        values: What was observed, (T, d), or (N, T, d) of N trajectories with one set of parameters and initial states
            of their own. NaN where nothing was: gaps, irregular series, shorter trajectories.
        parameters: The first values of a function's parameters, name → number or tensor.
        y0: The initial states, (n,) or (N, n): fixed, or where to begin. None reads them off the data.
        fit_y0: Whether they are fitted; or n of such, one a component.
        observe: What is observed of states, (..., n) to (..., d); None where all of the state is. It has no parameters.
        sigma: The standard deviation of the noise, a number or what broadcasts against (N, T, d); None for one that is
            the same for all values, and estimated.
        strategy: How a minimum is found that a plain fit from a poor start misses: "plain" (none), "growing" (the first
            times, then more of them), "multiple_shooting" (segments whose gaps are closed), "collocation" (slopes of
            the smoothed data first), or "auto": collocation where all of the state is observed, then multiple shooting
            (not with implicit methods). All end with a plain fit.
        optimiser: "least_squares" (Levenberg–Marquardt, by SciPy, in float64), "adam" (Adam, then L-BFGS), or "auto":
            the former for at most 50 numbers in the parameters.
        segments: How many of multiple shooting; None for one every four times.
        iterations: The most of each fit; None for 100 of least squares, 400 of Adam.
        learning_rate: Adam's; None for 0.01.
        method, rtol, atol, controller, max_steps: Options of `solve`. `rtol` is 1e-6 by default, 1e-4 for Adam; `atol`
            a hundredth of that, of the size of each component.
        progress: True writes a line to standard error, where that is a terminal; or a function of a `FitAdvance`.

    Returns:
        A `TrajectoryFit`: the fitted model, its standard errors, predictions.

    Raises:
        TypeError, ValueError: If an argument is not as described; the text says what would be.
        RuntimeError: If no fit can begin, since the solve fails with the first parameters.
        MissingExtra: If SciPy is not there, for least squares.
    """
    for name, value, allowed in (("strategy", strategy, STRATEGIES), ("optimiser", optimiser, OPTIMISERS)):
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {shown(value)}")
    if observe is not None and not callable(observe):
        raise TypeError(f"`observe` must be a function of states (..., n), got {shown(observe)}")
    if strategy == "collocation" and observe is not None:
        raise ValueError('`strategy` "collocation" needs all of the state, not what `observe` makes of it: take "auto"')
    tell, own, data = Teller(progress), Model(model, parameters), read_data(times, values, sigma)
    start, free = read_start(y0, fit_y0, data, observe)
    if segments is not None and strategy not in ("auto", "multiple_shooting"):
        raise TypeError(f'`segments` would be ignored: `strategy` {strategy!r} has none, take "multiple_shooting"')
    few = own.size <= FEW if optimiser == "auto" else optimiser == "least_squares"
    if few and learning_rate is not None:
        raise TypeError('`learning_rate` would be ignored: it is Adam\'s, pass `optimiser="adam"` or leave it out')
    rtol = (1e-6 if few else 1e-4) if rtol is None and controller is None else rtol
    scale = _scale(data, start, observe)
    if controller is None and atol is None:
        atol = 0.01 * number("rtol", rtol, "a number ≥ 0", lambda x: 0 <= x < math.inf) * scale
        atol = atol if few else atol.to(own.dtype)
    task = Task(
        model=own,
        data=data,
        observe=observe,
        start=torch.zeros(len(data.values), len(free), dtype=torch.float64) if start is None else start,
        free=free,
        scale=scale,
        options={"method": method, "controller": controller_of(controller, rtol, atol), "max_steps": max_steps},
        iterations=(100 if few else 400) if iterations is None else count("iterations", iterations),
        segments=None if segments is None else _segments(segments, len(data.times)),
        tell=tell,
    )
    if start is None:
        first = torch.tensor(data.times[:1], dtype=torch.float64)
        task.start[:] = states_at(task, first, task.start)[:, 0]
    stage = LeastSquares(own) if few else Descent(_rate(learning_rate))
    _check_start(task, stage)
    try:
        theta, nodes = _fitted(task, stage, strategy)
    finally:
        tell.close()
    if isinstance(stage, LeastSquares):
        return fitted_by_least_squares(task, stage, theta, nodes, strategy)
    return fitted_by_descent(task, stage, theta, nodes, strategy)


def _rate(given: Any) -> float:
    return number("learning_rate", 1e-2 if given is None else given, "above 0", lambda x: x > 0)


def _segments(segments: Any, times: int) -> int:
    if count("segments", segments) >= times:
        raise ValueError(f"`segments` must be less than the {times} times, got {segments}: each begins at one")
    return count("segments", segments)


def _scale(data: Data, start: Tensor | None, observe: Observe | None) -> Tensor:
    """The size of each component of the state."""
    if observe is None:
        return data.scale
    size = torch.as_tensor(start).abs().amax(0)
    return size.where(size > 0, 1.0)


def _fitted(task: Task, stage: Stage, strategy: str) -> tuple[Tensor, Tensor]:
    """The strategy, and a plain fit from where it ends."""
    try:
        theta, y0 = STRATEGIES[strategy](task, stage, task.model.vector(), task.start)
        found = stage.fit(task, "plain", theta, y0[:, None], 0.0, False)
    except StartError as error:
        way = 'nearer parameters, or `strategy="auto"`' if strategy in ("plain", "growing") else "nearer parameters"
        raise RuntimeError(
            f'the fit could not begin ("{error}"): the solve fails with the parameters it starts from, grows without '
            f"bound or needs more than `max_steps`. Start from {way}; for a stiff model pass `method='trbdf2'`"
        ) from None
    return found.theta, found.nodes


def _check_start(task: Task, stage: Stage) -> None:
    """Refuse a model or an `observe` that is not as it must be, before anything is fitted."""
    data, y0 = task.data, task.start[:1]
    field = task.model.at(task.model.vector(), torch.float64)
    check_rows(field, (data.times[0], data.times[-1]), torch.cat([y0, y0 + 0.01 * task.scale]))
    dtype = torch.float64 if isinstance(stage, LeastSquares) else task.model.dtype
    ends, options = (data.times[0], data.times[-1]), {**task.options, "max_steps": 1, "on_failure": "status"}
    with torch.no_grad():  # one step, for what `solve` says of its options, the field and the times
        solve(task.model.at(task.model.vector(), dtype), y0.to(dtype), ends, **options)
    if task.observe is not None:
        shape = (len(data.values), len(data.times))
        with torch.no_grad():
            check_observed(task.observe(task.start[:, None].expand(*shape, -1)), data)
