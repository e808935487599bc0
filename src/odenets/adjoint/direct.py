"""Autograd through the solver, and what every adjoint is."""

import math
from dataclasses import dataclass
from typing import Protocol

from odenets.engine.engines import Engine, Keep
from odenets.problem import Problem, Trajectory


class Adjoint(Protocol):
    """What `solve` asks of an adjoint."""

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        """Let the engine run so that autograd can differentiate it."""
        ...

    @property
    def interpolates(self) -> bool:
        """Whether states inside the steps get their gradients by the continuous extension of the step."""
        ...


@dataclass(frozen=True)
class Direct:
    """Autograd through every operation of the solver: "discretise, then optimise".

    When to use: for second derivatives, under mixed forward and backward modes, for short solves where memory is
    no concern. When not: memory grows with the number of evaluations of f, each keeps its activations.
    Exact: the gradient of what the solver computed. Step sizes are constants to the gradient, except where a step
    is cut to end on the last time.
    With `compile=True` the loops are those of `Checkpointed`, which keep whatever the pullback of f needs, however
    large it is: the activations of accepted steps alone. Second derivatives raise there.
    """

    interpolates = True

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        if engine.compiled and not engine.open:
            return engine.kept(problem, Keep("Direct", step_bytes=math.inf))
        return engine.seen(problem)
