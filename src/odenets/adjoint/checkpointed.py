"""Keep the accepted steps and replay them in reverse."""

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from odenets.arguments import shown
from odenets.engine.engines import Engine, Keep
from odenets.problem import Problem, Trajectory

_SMALL = 4 * 2**20  # bytes that a step of a compiled loop keeps beside its state rather than make them again


@dataclass(frozen=True)
class Checkpointed:
    """Keep the accepted steps, replay each in the backward pass (the default).

    When to use: always, unless you need second derivatives. Exact: the same gradient as `Direct`, to rounding.
    Memory: one state a step, or no more than `memory`; and the activations of one step. It does not grow with the
    evaluations of f.
    Cost: the backward pass evaluates f again, once for each stage of each accepted step, never for a rejected one;
    with `memory`, also to make the states again that were not kept: n steps cost about n r evaluations of the step
    more, where r is the least number with (k + r)! / (k! r!) ≥ n and k is half the states that may be kept.
    With `compile=True` and without `memory`, the stages of a step are kept too, and the activations of f that its
    pullback reads, where together they take no more than 4 MiB a step: then nothing is evaluated again. Stages are
    kept wherever states inside the interval are wanted. There, and with `per_sample=True`, `memory` holds pieces of
    many steps: at least one with its stages, 2 s + 6 states.
    When not: for a field that draws random numbers or changes a state of its own (dropout, a counter): its replay ends
    elsewhere, which raises a `ReplayError`; second derivatives raise.

    Args:
        memory: The most states that are kept at any time beside y0 and the outputs: a number of states, or bytes as
            text ("64 MiB", "1.5 GB"). None: as many as there are steps. About log2(number of steps) states cost
            that many times the evaluations of a forward pass; 1 is allowed, and slow.

    Raises:
        ValueError: If `memory` is not a number of states ≥ 1 or a size in bytes; in the solve, if the bytes do not
            hold one state.

    Source: checkpointing of a time-stepping loop, Griewank and Walther, *Evaluating Derivatives* (2008), chapter 12,
    with states kept at a doubling spacing while the number of steps is not known; for ODE-Nets, Zhuang et al.,
    "Adaptive checkpoint adjoint method", ICML 2020.
    """

    memory: int | str | None = None

    interpolates = True
    _around = contextlib.nullcontext  # what errors are raised in

    def __post_init__(self) -> None:
        if isinstance(self.memory, str):
            _bytes(self.memory)
        elif self.memory is not None and (not _is_count(self.memory)):
            raise ValueError(
                f"`memory` must be a number of states ≥ 1, or bytes such as '64 MiB', got {shown(self.memory)}"
            )

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        if engine.open:
            return engine.seen(problem)
        states = self._states(problem.y0)
        return engine.kept(problem, Keep("Checkpointed", states, _SMALL if states is None else 0.0, self._around))

    def _states(self, y: Tensor) -> int | None:
        """How many states may be kept."""
        if not isinstance(self.memory, str):
            return self.memory
        size = y.numel() * y.element_size()
        count = _bytes(self.memory) // size
        if count < 1:
            raise ValueError(f"`memory={self.memory!r}` does not hold one state of {size} bytes; allow more")
        return count


def _is_count(memory: Any) -> bool:
    return isinstance(memory, int) and not isinstance(memory, bool) and memory >= 1


_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?|)B\s*", text.upper())
    if found is None:
        raise ValueError(
            f"`memory` must be bytes such as '64 MiB' or '1.5 GB', or a number of states, got {shown(text)}"
        )
    return int(float(found[1]) * _UNITS[found[2]])
