"""Solves by the loops in tensors: compiled, or with a step size for each sample."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.adjoint.outside import AsThen, ByAutograd, Call, autocast_state, prepare
from odenets.adjoint.replay import check_start
from odenets.chunks import Call as MarchCall
from odenets.chunks import Engine, March, march, sample_trajectory, shared_trajectory
from odenets.evaluation import CountedField
from odenets.loop import Problem, Trajectory
from odenets.march import Activation, Plan
from odenets.march import backward as march_backward
from odenets.march import forward as march_forward
from odenets.solution import Stats

_KNOWN = ("2.13",)  # the torches on which the tests of the compiled loops have been seen to pass


@functools.cache  # so that it warns once
def compiler() -> Any:
    """The module `odenets.compiled`; None, with a warning, where this torch's compiler is not one that is known."""
    if not torch.__version__.startswith(tuple(f"{release}." for release in _KNOWN)):
        warnings.warn(
            f"`compile=True` is known to work with torch {' and '.join(_KNOWN)}, and this is {torch.__version__}: "
            "solves run eagerly; install that, or leave `compile` out",
            stacklevel=5,
        )
        return None
    from odenets import compiled  # noqa: PLC0415 — imports PyTorch's compiler, which takes seconds

    return compiled


def march_samples(problem: Problem, states: int | None) -> Trajectory:
    """A step size for each sample, run by Python."""
    problem, f0, call, inputs = prepare(problem)
    start = None if call is None or f0 is None else (problem.y0.detach().clone(), f0)
    engine = _Python(problem, call, inputs, () if call is None else tuple(range(len(inputs))), start)
    return _marched(problem, engine, call is not None, states, then=None if call is None else call.then)


def march_openly(problem: Problem) -> Trajectory:
    """A step size for each sample, in the reach of whatever transforms it.

    Raises:
        NotImplementedError: If the times carry a tangent, or `vmap` maps over the solve.
    """
    if transforms.carries_derivative(problem.t):
        raise NotImplementedError(
            "`per_sample=True` has no derivative to `t` in forward mode and under `torch.func`: leave `per_sample` out"
        )
    outputs = _has_outputs(problem)
    plan = Plan(
        problem.method,
        problem.controller,
        per_sample=True,
        keep=False,
        outputs=outputs,
        stages=outputs,
        timed=False,
        open=True,
    )
    result = march(problem, plan, _Python(problem, None, (), (), None), ())
    seen = replace(result, clock=transforms.unwrapped(result.clock).detach(), y=transforms.unwrapped(result.y).detach())
    return sample_trajectory(problem, result.ys, seen)


def march_compiled(problem: Problem, states: int | None, most: float) -> Trajectory | None:
    """Run by compiled loops; None where the eager engine has to take over, to go on or to say what failed.

    Args:
        states: How many states may be kept for the backward pass; None for any number.
        most: Bytes that a step may keep beside its state: its stages, and what the pullback of f reads.
    """
    if problem.y0.numel() == 0 or (compiled := compiler()) is None or compiled.refused(problem):
        return None
    problem = replace(problem, y0=problem.y0.contiguous())  # as the loops take it: one program for all layouts
    with compiled.or_eagerly(problem):
        engine = compiled.capture(problem)
        differentiable = any(x.requires_grad for x in (problem.y0, problem.t, *engine.tensors))
        trajectory = _marched(problem, engine, torch.is_grad_enabled() and differentiable, states, most)
        if problem.per_sample or trajectory.failure is None:
            return trajectory
    problem.stats.reset()
    return None


_SHORT = 16  # numbers in a sample: below, a compiled loop is faster along the samples


def _marched(
    problem: Problem,
    engine: Engine,
    differentiable: bool,
    states: int | None,
    most: float = 0.0,
    then: AsThen | None = None,
) -> Trajectory:
    timed = differentiable and problem.t.requires_grad
    # The gradient to a time that is t0 once more needs f there.
    outputs = _has_outputs(problem) or (timed and problem.times.count(problem.times[0]) > 1)
    stages = differentiable and _step_bytes(problem, ()) <= most
    activations = engine.activations() if stages and not problem.per_sample else None
    plan = Plan(
        problem.method,
        problem.controller,
        problem.per_sample,
        keep=differentiable,
        outputs=outputs,
        stages=outputs or stages,
        timed=timed,
        batch_last=problem.per_sample and problem.compile and problem.y0[0].numel() < _SHORT,
        activations=None if activations is None or _step_bytes(problem, activations) > most else activations,
    )
    backward = engine.backward(plan) if differentiable else None  # made now, so that a failure to compile shows now
    marching = MarchCall(problem, plan, engine, then or autocast_state(problem.y0), backward, states)
    if differentiable:
        ys = March.apply(marching, problem.y0, problem.t, *engine.tensors)
        result, marching.result = marching.result, None
    else:
        with torch.no_grad():
            result = march(replace(problem, y0=problem.y0.detach()), plan, engine, engine.tensors)
        ys = result.ys
    if result is None:
        raise RuntimeError("the forward pass left no result")
    return sample_trajectory(problem, ys, result) if problem.per_sample else shared_trajectory(problem, ys, result)


def _has_outputs(problem: Problem) -> bool:
    """Whether states are wanted between the first and the last time."""
    return len(problem.times) > 1 + problem.times.count(problem.times[0])


def _step_bytes(problem: Problem, activations: Sequence[Activation]) -> int:
    """What a step keeps beside its state: its stages and those activations of each."""
    stage = problem.y0.numel() * problem.y0.element_size() + sum(activation.nbytes for activation in activations)
    return (len(problem.method.b) + 1) * stage


@dataclass
class _Python:
    """The loops in tensors as Python loops."""

    problem: Problem
    call: Call | None
    tensors: Sequence[Tensor]
    wanted: Sequence[int]
    start: tuple[Tensor, Tensor] | None  # y0 and f there, where there will be a backward pass

    def forward(self, plan: Plan) -> Any:
        f = CountedField(self.problem.f, Stats())
        return functools.partial(march_forward, plan, _while, lambda tensors: f)

    def activations(self) -> None:
        """None: autograd keeps its own."""

    def check(self) -> None:
        if self.start is not None:
            check_start("Checkpointed", self.problem, *self.start)

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
    while _holds(condition(*carry, *constants)):
        carry = body(*carry, *constants)
    return carry


def _holds(condition: Tensor) -> bool:
    if transforms.is_mapped(condition):
        raise NotImplementedError(
            "`per_sample=True` ends its loop by values, which `vmap` cannot map over: leave `per_sample` out, or put "
            "the samples into the first axis of `y0` instead of `vmap`"
        )
    return bool(condition)
