"""`diagnose`: what a trained ODE layer is like to solve, whether it is an ODE at all, and what to do about it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odenets.arguments import count
from odenets.methods import find
from odenets.solution import Solution, SolveError
from odenets.solve import solve
from odenets.tuning.diagnosis import Change, Diagnosis, Point
from odenets.tuning.measure import (
    Layer,
    OtherSolver,
    another,
    difference,
    finer,
    flat,
    left_as_it_was,
    method_text,
    steps_text,
    value_of,
)
from odenets.tuning.spectrum import DENSE, Jacobian, Spectrum, spectrum

_NOT_OWN = ("adjoint", "compile", "per_sample", "on_failure", "args")  # options of which a plain solve knows nothing


@torch.inference_mode(False)  # which has no derivatives
def diagnose(block: nn.Module, batch: Tensor | tuple[Any, ...], *, points: int = 9, verbose: bool = True) -> Diagnosis:
    """Say what a trained ODE layer is like: how stiff, how well resolved, reversible or not; and what to do.

    When to use: once a layer is trained; when it becomes slow, when a solve fails, before taking an adjoint that solves
    the state backward, and before the layer is solved by anything but the solver it was trained with. When not: to
    choose settings (`odenets.tune`), or to compare adjoints (`odenets.check_gradient`).

    An ODE-Net that was trained with few steps may be a residual network in disguise: it has learnt what the steps do,
    and not what the ODE does. It is taken for an ODE where a finer solver and a method of another order change the
    output by at most 1 %.

    The module is left as it was: weights, gradients, buffers, attributes, options and random numbers.

    Args:
        block: An `ODEBlock`, or a module that contains exactly one, which is called once for an output.
        batch: The input of the module: a tensor, or a tuple of its arguments.
        points: The number of times at which the field is looked at.
        verbose: Whether to print the table.

    Returns:
        A `Diagnosis`. A solve that fails is diagnosed up to where it fails.

    Raises:
        ValueError, TypeError: If an argument is not as described.

    Source: Ott, Katiyar, Hennig and Tiemann, "ResNet after all? Neural ODEs and their numerical solution", ICLR 2021.
    """
    count("points", points, least=2)
    layer = Layer(block, batch, "diagnose")
    with torch.no_grad(), left_as_it_was(layer) as state:
        found = _diagnose(layer, state.rewind, points)
    if verbose:
        print(found)
    return found


def _diagnose(layer: Layer, rewind: Callable[[], None], points: int) -> Diagnosis:
    block = layer.block
    options = {**block.solve_options, "on_failure": "raise", "compile": False}
    out, x = _first_run(layer, options)
    nfe, accepted, rejected = _counts(block.stats if out.failure is None else out.failure.stats)
    way = _Way(block, options, block.augmented(x))
    changes = [Change(text, math.nan, "the solve fails") for text in ("a finer solver", "another method")]
    if out.failure is None:
        changes = [_change(layer, rewind, out, other) for other in (finer(options, x.dtype), another(options))]
    return Diagnosis(
        layer=way.text,
        points=tuple(way.points(points)),
        steps=tuple(way.steps),
        estimate=way.estimate,
        nfe=nfe,
        accepted=accepted,
        rejected=rejected,
        interval=abs(way.times[-1] - way.times[0]),
        explicit=not find(value_of(options, "method")).iterates,
        finer=changes[0],
        other=changes[1],
        reconstruction=way.reconstruction(),
        failure=way.solution.failure if out.failure is None else out.failure.failure,
    )


class _Output(NamedTuple):
    values: Tensor | None
    failure: SolveError | None = None


def _first_run(layer: Layer, options: dict[str, Any]) -> tuple[_Output, Tensor]:
    """The module's output, and the input that its layer got at its first call."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.extend(x.detach().clone() for x in (*args, *kwargs.values()) if isinstance(x, Tensor))

    handle = layer.block.register_forward_pre_hook(look, with_kwargs=True)
    try:
        out = _Output(_values(layer.run(options)))
    except SolveError as error:
        out = _Output(None, error)
    finally:
        handle.remove()
    return out, seen[0]


def _values(output: Any) -> Tensor:
    tensors = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
    if not tensors:
        raise ValueError(f"`block` must return a tensor, returned {type(output).__name__}")
    return flat(tensors)


def _counts(stats: Any) -> tuple[int, int, int]:
    accepted, rejected = (int(torch.as_tensor(x).max()) for x in (stats.accepted, stats.rejected))
    return stats.nfe, accepted, rejected


class _Way:
    """The trajectories: solved with dense output and one step size for all, as far as they go."""

    def __init__(self, block: Any, options: dict[str, Any], y0: Tensor) -> None:
        self.field, self.args, self.y0 = block.field, options.get("args", ()), y0
        self.per_sample = bool(options.get("per_sample"))
        self.times = [float(t.detach() if isinstance(t, Tensor) else t) for t in block.t]
        self.options = {name: value for name, value in options.items() if name not in _NOT_OWN}
        self.solution = self._solve(y0, self.times, dense=True)
        output: Any = self.solution.interpolant
        self.steps: list[tuple[float, float]] = []
        self.end = self.times[0]
        for t, dt in zip(output.steps.t, output.steps.dt) if output else ():
            self.steps.append((output.sign * (output.origin + t), dt))
            self.end = output.sign * (output.origin + t + dt)
        self.estimate = "the whole Jacobian of each sample"
        sizes = " × ".join(str(n) for n in y0.shape)
        self.text = (
            f"{method_text(options)}, {steps_text(options)}, from t = {self.times[0]:g} to {self.times[-1]:g}; "
            f"state {sizes}, {str(y0.dtype).removeprefix('torch.')}"
        )

    def f(self, t: Any, y: Tensor) -> Tensor:
        if self.per_sample:  # where f is made for a time for each sample
            t = torch.as_tensor(t).expand(len(y)).reshape(-1, *(1,) * (y.dim() - 1))
        return self.field(t, y, *self.args)

    def _solve(self, y0: Tensor, times: Sequence[float], dense: bool = False) -> Solution:
        return solve(self.f, y0, times, dense=dense, on_failure="status", **self.options)

    def points(self, number: int) -> Iterator[Point]:
        if not self.steps:
            return
        for i in range(number):
            t = self.times[0] + (self.end - self.times[0]) * i / (number - 1)
            yield Point(t, self._step_at(t), *self._spectrum(t))

    def _step_at(self, t: float) -> float:
        way = 1 if self.end >= self.times[0] else -1
        return next((size for start, size in reversed(self.steps) if way * (t - start) >= 0), self.steps[0][1])

    def _spectrum(self, t: float) -> Spectrum:
        y = self.solution(t)
        jacobian = Jacobian(self.f, torch.as_tensor(t, dtype=y.real.dtype, device=y.device), y)
        if jacobian.size > DENSE:
            self.estimate = "Lanczos' method; decay: a bound by the symmetric part"
        return spectrum(jacobian)

    def reconstruction(self) -> float:
        if self.solution.failure is not None:
            return math.nan
        back = self._solve(self.solution.ys[-1], [self.times[-1], self.times[0]])
        return difference(flat([self.y0]), flat([back.ys[-1]])) if back.failure is None else math.inf


def _change(layer: Layer, rewind: Callable[[], None], out: _Output, other: OtherSolver) -> Change:
    if other.options is None or out.values is None:
        return Change(other.text, math.nan, "not known for this controller")
    rewind()
    try:
        return Change(other.text, difference(out.values, _values(layer.run(other.options))))
    except SolveError as error:
        return Change(other.text, math.nan, f"{error.status.name} at t = {error.t:.3g}")
