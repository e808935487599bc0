"""The engines: what runs a solve. `solve` chooses one of them, once, and hands it to the adjoint."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from odenets import transforms
from odenets.engine import eager
from odenets.engine.compile import known, told, waiting
from odenets.engine.reverse import Replayed
from odenets.engine.tensors.by_python import ByPython
from odenets.engine.tensors.chunks import InChunks, Loops, solve_by_chunks
from odenets.engine.tensors.outcome import of_each_sample, of_the_batch
from odenets.engine.tensors.plan import Plan
from odenets.problem import Problem, Trajectory
from odenets.pullback.bound import Activation
from odenets.pullback.function import Around, Prepared, Solve, autocast_state, forget_casts, prepare


@dataclass(frozen=True)
class Keep:
    """What an adjoint wants an engine to keep of a solve for its backward pass.

    Args:
        name: Of the adjoint, for errors.
        states: How many states at any time; None for one a step.
        step_bytes: What else a loop in tensors may keep of a step, in bytes, so that it need not be made again.
        recorded: The same of all steps of a loop in numbers.
        around: What errors of the forward and the backward pass are raised in.
    """

    name: str = "Checkpointed"
    states: int | None = None
    step_bytes: float = 0.0
    recorded: float = 0.0
    around: Around = contextlib.nullcontext


class Engine(Protocol):
    """What an adjoint asks of an engine."""

    @property
    def open(self) -> bool:
        """Whether each operation has to be seen, by a transform or a tracer: `seen` is then all there is."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether the loops are compiled, forward and backward."""
        ...

    def seen(self, problem: Problem) -> Trajectory:
        """Solve by operations each of which autograd, or whatever transforms or traces them, sees."""
        ...

    def kept(self, problem: Problem, keep: Keep) -> Trajectory:
        """Solve as one function of autograd, which keeps so much and makes the rest again."""
        ...


@dataclass(frozen=True)
class Eager:
    """One step size for the batch, in numbers."""

    open: bool = False
    compiled = False

    def seen(self, problem: Problem) -> Trajectory:
        return eager.run(problem, problem.y0, clock=eager.clock_of(problem))

    def kept(self, problem: Problem, keep: Keep) -> Trajectory:
        prepared = prepare(problem, recorded=keep.recorded > 0 and not problem.method.iterates)
        if not prepared.differentiable:
            with torch.no_grad():
                return eager.run(prepared.problem, problem.y0, prepared.f0)
        solve = Replayed(prepared, keep.states, keep.recorded, f"`adjoint={keep.name}()`", keep.around)
        return solve.finished(*applied(solve, prepared))


def applied(solve: Any, prepared: Prepared) -> Any:
    """What the solve returns, as a function of autograd of what the prepared problem depends on."""
    problem = prepared.problem
    out = Solve.apply(solve, problem.y0, problem.t, *prepared.inputs)
    forget_casts(problem.y0)  # those of weights that f has not used before now stand outside of every graph
    return out


@dataclass(frozen=True)
class InTensors:
    """A step size for each sample, in tensors, run by Python."""

    open: bool = False
    compiled = False

    def seen(self, problem: Problem) -> Trajectory:
        """As described.

        Raises:
            NotImplementedError: If the times carry a tangent, or `vmap` maps over the solve.
        """
        if transforms.carries_derivative(problem.t):
            raise NotImplementedError(
                "`per_sample=True` has no derivative to `t` in forward mode and under `torch.func`: leave `per_sample` "
                "out"
            )
        outputs = problem.has_outputs or problem.dense
        plan = Plan.of(problem, keep=False, outputs=outputs, parts=outputs, timed=False, open=True)
        ended = solve_by_chunks(problem, plan, ByPython(problem), ())
        clock, y = (transforms.unwrapped(x).detach() for x in (ended.clock, ended.y))
        return of_each_sample(problem, ended.ys, replace(ended, clock=clock, y=y))

    def kept(self, problem: Problem, keep: Keep) -> Trajectory:
        prepared, keep = prepare(problem), replace(keep, step_bytes=0.0)  # autograd evaluates f again anyway
        given = prepared if prepared.differentiable else None
        return _by_loops(prepared.problem, ByPython(prepared.problem, given), given is not None, keep, prepared.then)


@dataclass(frozen=True)
class Compiled:
    """The loops compiled; where that cannot be, or a solve fails, another engine goes on, or says what failed."""

    otherwise: Eager | InTensors
    compiled = True

    @property
    def open(self) -> bool:
        return self.otherwise.open

    def seen(self, problem: Problem) -> Trajectory:
        return self.otherwise.seen(problem)

    def kept(self, problem: Problem, keep: Keep) -> Trajectory:
        trajectory = self._compiled(problem, keep)
        if trajectory is not None:
            return trajectory
        if keep.step_bytes == math.inf:  # every activation: autograd's own do that
            return self.otherwise.seen(problem)
        return self.otherwise.kept(problem, keep)

    def _compiled(self, problem: Problem, keep: Keep) -> Trajectory | None:
        if problem.y0.numel() == 0 or told.refused(problem) or (compiler := known.compiler()) is None:
            return None
        problem = replace(problem, y0=problem.y0.contiguous())  # as the loops take it: one program for all layouts
        try:
            with told.or_eagerly(problem):
                loops = compiler.traced_loops(problem)
                differentiable = any(x.requires_grad for x in (problem.y0, problem.t, *loops.tensors))
                differentiable = torch.is_grad_enabled() and differentiable
                then = autocast_state(problem.y0)
                trajectory = _by_loops(problem, loops, differentiable, keep, then, compiled=True)
                loops.settle()
                if problem.per_sample or trajectory.failure is None:
                    return trajectory
        finally:
            waiting.end()
        problem.stats.reset()
        return None


_SHORT = 16  # numbers in a sample: below, a compiled loop is faster along the samples


def _by_loops(
    problem: Problem,
    loops: Loops,
    differentiable: bool,
    keep: Keep,
    then: contextlib.AbstractContextManager,
    compiled: bool = False,
) -> Trajectory:
    timed = differentiable and problem.t.requires_grad
    # The gradient to a time that is t0 once more needs f there.
    outputs = problem.has_outputs or problem.dense or (timed and problem.most_at_start > 1)
    parts = differentiable and problem.method.reuses and _step_bytes(problem, ()) <= keep.step_bytes
    activations = loops.activations() if parts and not problem.per_sample else None
    if activations is not None and _step_bytes(problem, activations) > keep.step_bytes:
        activations = None
    plan = Plan.of(
        problem,
        keep=differentiable,
        outputs=outputs,
        parts=outputs or parts,
        timed=timed,
        batch_last=problem.per_sample and compiled and problem.y0[0].numel() < _SHORT,
        activations=activations,
    )
    if differentiable:
        reverse = loops.backward(plan)  # made now, so that a failure to compile shows now
        what = "compile" if compiled else "per_sample"
        solve = InChunks(
            problem,
            plan,
            loops,
            None if problem.dense else keep.states,  # dense output keeps every step
            reverse,
            then,
            f"`{what}=True`",
            keep.around,
            f"use `adjoint=Direct()` without `{what}`",
        )
        ended = solve.taken(*Solve.apply(solve, problem.y0, problem.t, *loops.tensors))
    else:
        with torch.no_grad():
            ended = solve_by_chunks(replace(problem, y0=problem.y0.detach()), plan, loops, loops.tensors)
    if problem.per_sample:
        return of_each_sample(problem, ended.ys, ended)
    trajectory = of_the_batch(problem, ended.ys, ended)
    if differentiable and activations is not None:
        problem.stats.kept = problem.stats.accepted
    return trajectory


def _step_bytes(problem: Problem, activations: Sequence[Activation]) -> int:
    """What a step keeps beside its state: its parts and those activations of each."""
    part = problem.y0.numel() * problem.y0.element_size() + sum(activation.nbytes for activation in activations)
    return problem.method.parts * part
