"""Fixed steps to the last time, of which nothing is kept: a loop as one would write it by hand."""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from odenets.controller import Fixed
from odenets.engine.clock import shortened
from odenets.evaluation import FieldInPieces
from odenets.methods import ExplicitRungeKutta, Known, real_dtype
from odenets.problem import Problem
from odenets.transforms import is_recorded

_CHUNK = 256  # steps whose times are made at once


def goes_straight(problem: Problem, y0: Tensor) -> bool:
    """Whether a solve that nobody differentiates is of this kind: no outputs inside, nothing to look at on the way.

    On the CPU alone: to a device the times of a chunk would have to be copied.
    """
    return (
        isinstance(problem.controller, Fixed)
        and type(problem.method).step is ExplicitRungeKutta.step  # a method of one's own may ask for more than `Known`
        and not (torch.compiler.is_compiling() or is_recorded())
        and not (problem.has_outputs or problem.dense or problem.stops or problem.events or problem.told)
        and y0.device.type == "cpu"
        and len(problem.times) > problem.at_start
        and problem.controller.given_step(0.0, problem.times[-1]) * (problem.max_steps - 1) > problem.times[-1]
    )


def straight(problem: Problem, y0: Tensor, f0: Tensor | None) -> Tensor:
    """The state at the last time."""
    f, y = FieldInPieces(problem, problem.stats, 0.0), y0
    carry = () if f0 is None else (f0,)
    for dt, times in _steps(problem, y0):
        cast_anew()
        known: Any = Known(times)  # a Runge–Kutta step asks nothing of its time but those of its nodes
        y, carry = problem.method.step(f, known, y, dt, carry).y, ()
        problem.stats.accepted += 1
    return y


def cast_anew() -> None:
    """Let autocast cast anew what has a graph: gradients through one cast for all steps add up in half precision."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        torch.clear_autocast_cache()


def _steps(problem: Problem, y0: Tensor) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
    """The size of each step, and the times of its nodes as f gets them."""
    nodes, sizes = cast(ExplicitRungeKutta, problem.method).nodes, _sizes(problem)
    while chunk := list(itertools.islice(sizes, _CHUNK)):
        values = [[problem.origin + (t + c * dt) for c in nodes] for t, dt in chunk]
        each = iter(torch.tensor(values, dtype=real_dtype(y0)).flatten().unbind())
        for _, dt in chunk:
            yield dt, tuple(itertools.islice(each, len(nodes)))


def _sizes(problem: Problem) -> Iterator[tuple[float, float]]:
    """Where each step begins, and its size."""
    t, end, final = 0.0, problem.times[-1], False
    dt = problem.controller.given_step(t, end)
    while not final:
        final, dt = shortened(t, dt, end)
        yield t, dt
        t += dt
