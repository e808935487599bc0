"""Keep the accepted steps and replay them in reverse."""

import contextlib
import functools
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from odenets.arguments import shown
from odenets.engine.engines import Engine, Keep
from odenets.problem import Problem, Trajectory

_SMALL = 4 * 2**20  # bytes that a step of a compiled loop keeps beside its state rather than make them again
_ACTIVATIONS = 64 * 2**20  # bytes of them that an eager solve keeps


@dataclass(frozen=True)
class Checkpointed:
    """Keep the accepted steps, replay each in the backward pass (the default).

    When to use: always, unless you need second derivatives. Exact: the same gradient as `Direct`, to rounding.
    Memory: one state a step, or no more than `memory`; the activations of the first steps, as far as `activations`
    goes; and those of one step. Beyond that it does not grow with the evaluations of f.
    Cost: nothing is evaluated again of the steps whose activations are kept, all of them where f or the solve is small;
    `Stats.kept` says how many. Of the others the backward pass evaluates f again, once for each stage of each accepted
    step, never for a rejected one; with `memory`, also to make the states again that were not kept: n steps cost about
    n r evaluations of the step more, where r is the least number with (k + r)! / (k! r!) ≥ n and k is half the states
    that may be kept. Activations are not kept where gradients to the times are wanted, with `dense`, events, implicit
    methods, `per_sample` and weights in half precision.
    With `compile=True` and without `memory`, the stages of a step are kept too, and the activations of f that its
    pullback reads, where together they take no more than 4 MiB a step: then nothing is evaluated again. Stages are
    kept wherever states inside the interval are wanted. There, and with `per_sample=True`, `memory` holds pieces of
    many steps: at least one with its stages, 2 s + 6 states.
    When not: for a field that draws random numbers or changes a state of its own (dropout, a counter): its replay ends
    elsewhere, which raises a `ReplayError`; where all activations are kept there is no replay, and the gradient is that
    of what was computed. Second derivatives raise.

    Args:
        memory: The most states that are kept at any time beside y0 and the outputs: a number of states, or bytes as
            text ("64 MiB", "1.5 GB"). None: as many as there are steps. About log2(number of steps) states cost
            that many times the evaluations of a forward pass; 1 is allowed, and slow.
        activations: How much an eager solve may keep of the graphs of the first steps, in bytes: a number, or text as
            "64 MiB". None: 64 MiB, or nothing where `memory` is given. 0 makes every step again.

    Raises:
        ValueError: If `memory` is not a number of states ≥ 1 or a size in bytes, or `activations` no size in bytes; in
            the solve, if the bytes do not hold one state.

    Source: checkpointing of a time-stepping loop, Griewank and Walther, *Evaluating Derivatives* (2008), chapter 12,
    with states kept at a doubling spacing while the number of steps is not known; for ODE-Nets, Zhuang et al.,
    "Adaptive checkpoint adjoint method", ICML 2020.
    """

    memory: int | str | None = None
    activations: int | str | None = None

    interpolates = True
    _around = contextlib.nullcontext  # what errors are raised in

    def __post_init__(self) -> None:
        if isinstance(self.memory, str):
            _bytes(self.memory)
        elif self.memory is not None and (not _is_count(self.memory)):
            raise ValueError(
                f"`memory` must be a number of states ≥ 1, or bytes such as '64 MiB', got {shown(self.memory)}"
            )
        self._room()

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        if engine.open:
            return engine.seen(problem)
        states = self._states(problem.y0)
        small = _SMALL if states is None else 0.0
        return engine.kept(problem, Keep("Checkpointed", states, small, self._room(), self._around))

    def _room(self) -> int:
        """Bytes of activations that may be kept."""
        if self.activations is None:
            return 0 if self.memory is not None else _ACTIVATIONS
        room = _in_bytes(self.activations) if isinstance(self.activations, str) else self.activations
        if not isinstance(room, int) or isinstance(room, bool) or room < 0:
            raise ValueError(
                f"`activations` must be bytes such as '64 MiB', or 0 for none, got {shown(self.activations)}"
            )
        return room

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


@functools.lru_cache(maxsize=64)
def _in_bytes(text: str) -> int | None:
    """A size in bytes; None for another text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?|)B\s*", text.upper())
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])


def _bytes(text: str) -> int:
    size = _in_bytes(text)
    if size is None:
        raise ValueError(
            f"`memory` must be bytes such as '64 MiB' or '1.5 GB', or a number of states, got {shown(text)}"
        )
    return size
