"""Autograd through the solver, and what every adjoint is."""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from odenets import transforms
from odenets.adjoint.marched import march_compiled, march_openly
from odenets.loop import Problem, Trajectory, run


class Adjoint(Protocol):
    """What `solve` asks of an adjoint."""

    def integrate(self, problem: Problem) -> Trajectory:
        """Run the loop so that autograd can differentiate it."""
        ...

    def integrate_openly(self, problem: Problem) -> Trajectory:
        """The same numbers by operations that a transform of torch sees, each: forward mode, `torch.func`."""
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

    def integrate(self, problem: Problem) -> Trajectory:
        trajectory = march_compiled(problem, None, math.inf) if problem.compile else None
        if trajectory is not None:
            return trajectory
        return self.integrate_openly(problem)

    def integrate_openly(self, problem: Problem) -> Trajectory:
        return integrate_openly(problem)


def integrate_openly(problem: Problem) -> Trajectory:
    """The loop as it is, in the reach of whatever differentiates or maps over it."""
    if problem.per_sample:
        return march_openly(problem)
    return run(problem, problem.y0, None, clock=clock_of(problem))


def clock_of(problem: Problem) -> Tensor | None:
    """The times, where their derivatives are wanted."""
    return problem.t if transforms.is_differentiated(problem.t) else None
