"""The loops in tensors, run by Python: each operation at once, and f differentiated by autograd."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.engine.tensors.backward import backward
from odenets.engine.tensors.forward import forward
from odenets.engine.tensors.plan import Flow, Plan
from odenets.evaluation import CountedField
from odenets.methods import Past
from odenets.problem import Problem
from odenets.pullback.by_autograd import ByAutograd, Wanted
from odenets.pullback.function import Prepared
from odenets.pullback.replay import check_start
from odenets.solution import Stats


@dataclass
class ByPython:
    """`Loops` of a problem, prepared for its backward pass; None where it will have none."""

    problem: Problem
    prepared: Prepared | None = None

    def __post_init__(self) -> None:
        self.tensors: Sequence[Tensor] = () if self.prepared is None else self.prepared.inputs
        self.wanted = range(len(self.tensors))
        self.start: tuple[Tensor, Tensor] | None = None  # y0 and f there
        if self.prepared is not None and self.prepared.f0 is not None:
            self.start = self.problem.y0.detach().clone(), self.prepared.f0

    def activations(self) -> None:
        """None: autograd keeps its own."""

    def check(self) -> None:
        if self.start is not None:
            check_start("`adjoint=Checkpointed()`", self.problem, *self.start)

    def forward(self, plan: Plan) -> Any:
        f = CountedField(self.problem.f, Stats())
        return functools.partial(forward, plan, _FLOW, lambda tensors: f)

    def backward(self, plan: Plan) -> Any:
        if self.prepared is None:
            raise RuntimeError("there is nothing to differentiate")
        f, reached = CountedField(self.problem.f, Stats()), self.prepared.reached
        vjp = _ByAutograd(ByAutograd(f, reached, Wanted(reached), timed=True))
        return functools.partial(backward, plan, _FLOW, vjp, self.wanted)


@dataclass
class _ByAutograd:
    """The pullback of f by autograd: a `Vjp`. It has tensors of its own, the same as it is given."""

    of_f: ByAutograd

    def __call__(self, tensors: Any, t: Tensor, y: Tensor, k: Tensor | None, activations: Any) -> Any:
        k, pullback = self.of_f(t, y)
        like = (t, y, *self.of_f.wanted.tensors)

        def pull(bar: Tensor) -> list[Tensor]:
            y_bar, bars, t_bar = pullback(bar)
            return _with_zeros((t_bar, y_bar, *bars), like)

        return k, pull

    def through(self, tensors: Any, step: Any, t: Tensor, y: Tensor, dt: Tensor, *past: Tensor, moved: Any) -> Any:
        n = len(past) // 2
        # The step gives the time its origin itself.
        made = lambda f, t, y, dt, past: step(f, t.t, y, dt, *Past(*past).slopes, *Past(*past).steps)  # noqa: E731
        out, pullback = self.of_f.through(made, t, y, dt, Past(None, past[:n], past[n:]))
        like = (t, y, dt, *past, *self.of_f.wanted.tensors)

        def pull(bars: Sequence[Tensor]) -> list[Tensor]:
            y_bar, slope_bars, (t_bar, dt_bar, *step_bars), of_tensors = pullback(bars)
            return _with_zeros((t_bar, y_bar, dt_bar, *slope_bars, *step_bars, *of_tensors), like)

        return out, pull


def _with_zeros(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(like, grads)]


def _while(condition: Any, body: Any, carry: tuple, constants: tuple, mutated: tuple) -> tuple:
    while _holds(condition(*carry, *constants)):
        carry = body(*carry, *constants)
    return carry


def _branch(which: Tensor, one: Any, other: Any, operands: tuple) -> tuple:
    return (one if which else other)(*operands)


_FLOW = Flow(_while, _branch)


def _holds(condition: Tensor) -> bool:
    if transforms.is_mapped(condition):
        raise NotImplementedError(
            "`per_sample=True` ends its loop by values, which `vmap` cannot map over: leave `per_sample` out, or put "
            "the samples into the first axis of `y0` instead of `vmap`"
        )
    return bool(condition)
