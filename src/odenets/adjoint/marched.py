"""Solves by the loops in tensors: compiled, or with a step size for each sample."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import compiled
from odenets.adjoint.outside import ByAutograd, Call, autocast_state, prepare
from odenets.chunks import Call as MarchCall
from odenets.chunks import Engine, March, march, sample_trajectory, shared_trajectory
from odenets.loop import CountedField, Problem, Trajectory
from odenets.march import Activation, Plan
from odenets.march import backward as march_backward
from odenets.march import forward as march_forward
from odenets.solution import Stats


def march_samples(problem: Problem, states: int | None) -> Trajectory:
    """A step size for each sample, run by Python."""
    problem, _, call, inputs = prepare(problem)
    engine = _Python(problem, call, inputs, () if call is None else tuple(range(len(inputs))))
    return _marched(problem, engine, call is not None, states)


def march_compiled(problem: Problem, states: int | None, *, everything: bool = False) -> Trajectory | None:
    """Run by compiled loops; None where the eager engine has to take over, to go on or to say what failed.

    Args:
        states: How many states may be kept for the backward pass; None for any number.
        everything: Keep what the pullback of f needs however large it is, so that f is not evaluated again.
    """
    if problem.times[0] == problem.times[-1] or compiled.cannot(problem.watched):
        return None
    with compiled.or_eagerly(problem):
        engine = compiled.capture(problem)
        differentiable = any(x.requires_grad for x in (problem.y0, problem.t, *engine.tensors))
        trajectory = _marched(problem, engine, torch.is_grad_enabled() and differentiable, states, everything)
        if problem.per_sample or trajectory.failure is None:
            return trajectory
    problem.stats.reset()
    return None


_SMALL = 4 * 2**20  # bytes: what a step below this keeps beside its state is not made again by the compiled loop
_FEW = 512  # numbers: a compiled loop makes so few activations again as fast as it keeps them


def _stages_are_small(problem: Problem, kept: Sequence[Activation] = ()) -> bool:
    bytes_ = problem.y0.numel() * problem.y0.element_size() + sum(activation.nbytes for activation in kept)
    return (len(problem.method.b) + 1) * bytes_ <= _SMALL


def _activations(problem: Problem, engine: Engine, everything: bool) -> Sequence[Activation] | None:
    """Those that the compiled loop keeps beside the stages, so that the backward pass need not evaluate f."""
    kept = None if problem.per_sample else engine.activations()
    if kept is None or everything:
        return kept
    if not _stages_are_small(problem, kept):
        return None
    return None if 0 < sum(math.prod(activation.shape) for activation in kept) < _FEW else kept


_SHORT = 16  # numbers in a sample: below, a compiled loop is faster along the samples


def _marched(
    problem: Problem, engine: Engine, differentiable: bool, states: int | None, everything: bool = False
) -> Trajectory:
    outputs = len(problem.times) > 1 + problem.times.count(problem.times[0])
    small = problem.compile and states is None and _stages_are_small(problem)
    keep_more = differentiable and (everything or small)
    plan = Plan(
        problem.method,
        problem.controller,
        problem.per_sample,
        keep=differentiable,
        outputs=outputs,
        stages=outputs or keep_more,
        timed=differentiable and problem.t.requires_grad,
        batch_last=problem.per_sample and problem.compile and problem.y0[0].numel() < _SHORT,
        activations=_activations(problem, engine, everything) if keep_more else None,
    )
    backward = engine.backward(plan) if differentiable else None  # made now, so that a failure to compile shows now
    marching = MarchCall(problem, plan, engine, autocast_state(problem.y0), backward, states)
    if differentiable:
        ys = March.apply(marching, problem.y0, problem.t, *engine.tensors)
        result, marching.result = marching.result, None
    else:
        with torch.no_grad():
            result = march(problem, plan, engine, engine.tensors)
        ys = result.ys
    if result is None:
        raise RuntimeError("the forward pass left no result")
    return sample_trajectory(problem, ys, result) if problem.per_sample else shared_trajectory(problem, ys, result)


@dataclass
class _Python:
    """The loops in tensors as Python loops."""

    problem: Problem
    call: Call | None
    tensors: Sequence[Tensor]
    wanted: Sequence[int]

    def forward(self, plan: Plan) -> Any:
        f = CountedField(self.problem.f, Stats())
        return functools.partial(march_forward, plan, _while, lambda tensors: f)

    def activations(self) -> None:
        """None: autograd keeps its own."""

    def backward(self, plan: Plan) -> Any:
        if self.call is None:
            raise RuntimeError("there is nothing to differentiate")
        f = CountedField(self.problem.f, Stats())
        by_autograd = ByAutograd(f, self.call, timed=True)

        def vjp(tensors: Any, t: Tensor, y: Tensor, *_: Any) -> Any:
            k, pullback = by_autograd(t, y)
            like = (t, y, *by_autograd.wanted.tensors)

            def pull(bar: Tensor) -> list[Tensor]:
                y_bar, bars, t_bar = pullback(bar)
                grads = (t_bar, y_bar, *bars)
                return [torch.zeros_like(x) if g is None else g for x, g in zip(like, grads)]

            return k, pull

        return functools.partial(march_backward, plan, _while, vjp, self.wanted)


def _while(condition: Any, body: Any, carry: tuple, constants: tuple, mutated: tuple) -> tuple:
    while bool(condition(*carry, *constants)):
        carry = body(*carry, *constants)
    return carry
