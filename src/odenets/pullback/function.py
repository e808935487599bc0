"""A solve as one function of autograd: f runs outside of it, so the tensors that it reaches become inputs."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odenets.evaluation import evaluate_at_start
from odenets.problem import Problem, Trajectory
from odenets.pullback.reached import Reached, kept_by_graph, reached_tensors, sequence_number
from odenets.solution import Stats
from odenets.transforms import refuse_in_backward

Around = Callable[[], contextlib.AbstractContextManager]  # what errors are raised in


class Outside:
    """A solve that runs outside of autograd, forward and backward."""

    around: Around = contextlib.nullcontext
    then: contextlib.AbstractContextManager  # what held in the forward pass, for the backward pass
    without: str = "use `adjoint=Direct()`"  # what a solve has to do without to have second derivatives
    name: str  # what has none
    _kept: Sequence[Tensor] = ()
    _trajectory: Trajectory | None = None

    def forward(self, y0: Tensor, t: Tensor, tensors: Sequence[Tensor], timed: bool) -> tuple[Tensor, ...]:
        """ys, and what else the caller's graph shall know; `timed` says that gradients to the times are wanted."""
        raise NotImplementedError

    def backward(
        self, t: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor], bars: Sequence[Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
        """∂L/∂y0, ∂L/∂t and ∂L/∂(each tensor) from those of what `forward` has returned."""
        raise NotImplementedError

    def take_kept(self) -> Sequence[Tensor]:
        """What the backward pass needs; it is the graph's from now on."""
        kept, self._kept = self._kept, ()
        return kept

    def finished(self, ys: Tensor) -> Trajectory:
        """The trajectory that the forward pass has left, with the states that autograd has returned."""
        trajectory, self._trajectory = self._trajectory, None
        if trajectory is None:
            raise RuntimeError("the forward pass left no trajectory")
        trajectory.ys = ys
        return trajectory


class Solve(torch.autograd.Function):
    """A solve as a function of y0, the times and the tensors that f reaches."""

    @staticmethod
    def forward(ctx: Any, solve: Outside, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        out = solve.forward(y0.detach(), t, tensors, ctx.needs_input_grad[2])
        ctx.solve, ctx.count = solve, len(tensors)
        ctx.save_for_backward(t, *tensors, *solve.take_kept())
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        solve: Outside = ctx.solve
        with solve.around():
            refuse_in_backward(grad_outputs, solve.without)
            if torch.is_grad_enabled():  # only with create_graph=True
                raise NotImplementedError(f"{solve.name} has no second derivative (create_graph=True); {solve.without}")
            t, *saved = ctx.saved_tensors
            tensors, kept = saved[: ctx.count], saved[ctx.count :]
            with solve.then:
                y0_bar, t_bar, bars = solve.backward(t, tensors, kept, grad_outputs)
        return None, y0_bar, t_bar, *bars


@dataclass
class Prepared:
    """A problem whose arguments are cut off from what they were computed from, and the tensors that its f reaches."""

    problem: Problem
    f0: Tensor | None = None  # f(t0, y0), where it had to be evaluated
    inputs: Sequence[Tensor] = ()  # the tensors that f reaches, as the caller has them
    reached: Reached = field(default_factory=lambda: Reached((), ()))
    differentiable: bool = False  # whether there is anything to differentiate
    begun: "Begun | None" = None  # the evaluation at the start with its graph, where that was asked for

    @property
    def then(self) -> "AsThen":
        return AsThen(self.problem.y0, self.reached.modules)


@dataclass
class Begun:
    """f at the start of a solve with its graph."""

    y0: Tensor  # a leaf, or a constant where no gradient is due to it
    f0: Tensor
    started: int  # the number of its first node
    nbytes: int  # that the graph keeps beside y0 and parameters


def prepare(problem: Problem, *, recorded: bool = False) -> Prepared:
    """Find what f reaches, by one evaluation, which the solve needs anyway; `recorded` with a graph to go on from."""
    if not torch.is_grad_enabled():
        return Prepared(problem)
    originals, args = _substitute(problem.args)
    cut_off = replace(problem, args=args, f=problem.bind(args))
    begun = None
    if recorded:
        begun, reached = _begin(cut_off)
        f0 = begun.f0
    else:
        f0, reached = _probe(cut_off, problem.y0.detach())
    inputs = [originals.get(id(t), t) for t in reached.tensors]
    if not any(t.requires_grad for t in (problem.y0, problem.t, *inputs)):
        return Prepared(problem, f0.detach())
    return Prepared(cut_off, f0.detach(), inputs, reached, True, begun)


def _begin(problem: Problem) -> tuple[Begun, Reached]:
    y0, started = problem.y0.detach().requires_grad_(problem.y0.requires_grad), sequence_number()
    f0, reached = _probe(problem, y0)
    known = {x.untyped_storage()._cdata for x in (y0, *reached.tensors)}
    return Begun(y0, f0, started, sum(n for key, n in kept_by_graph(f0, started).items() if key not in known)), reached


def _substitute(args: tuple) -> tuple[dict[int, Tensor], tuple]:
    """The extra arguments with each result of an earlier computation replaced by a leaf of the same value.

    So a gradient that reaches the argument cannot at the same time reach what it was computed from.
    """
    leaves, spec = pytree.tree_flatten(args)
    originals: dict[int, Tensor] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.requires_grad and not leaf.is_leaf:
            leaves[i] = leaf.detach().requires_grad_()
            originals[id(leaves[i])] = leaf
    return originals, pytree.tree_unflatten(leaves, spec)


def _probe(problem: Problem, y0: Tensor) -> tuple[Tensor, Reached]:
    """f(t0, y0), which the solve needs anyway, evaluated so that its graph shows the tensors it reaches."""
    forget_casts(y0)

    def again() -> Tensor:
        with torch.random.fork_rng([y0.device] if y0.is_cuda else []):
            return evaluate_at_start(replace(problem, stats=Stats()), y0)

    with torch.enable_grad():
        started = sequence_number()
        f0 = evaluate_at_start(problem, y0)
        named = getattr(problem.watched, "adjoint_params", ())
        return f0, reached_tensors(f0, started, (problem.watched, problem.args), again, (y0,), named)


def forget_casts(y: Tensor) -> None:
    """Forget what autocast has cast: a cast of another graph, or of none, would stand between f and its weights."""
    if torch.is_autocast_enabled(y.device.type):
        torch.clear_autocast_cache()


def autocast_state(y: Tensor) -> contextlib.AbstractContextManager:
    kind = y.device.type
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind))


class AsThen:
    """The state of the forward pass, for the backward pass: autocast, and the weights of the modules.

    `torch.func.functional_call` gives a module other weights while it runs, and takes them back before the backward
    pass, which has to compute with them again.
    """

    def __init__(self, y: Tensor, modules: Iterable[nn.Module]) -> None:
        self._autocast, self._y = autocast_state(y), y.detach()
        tables: list[dict[str, Any]] = [x for module in modules for x in (module._parameters, module._buffers)]
        self._then = [(table, dict(table)) for table in tables if table]
        self._now: list[tuple[dict, dict]] = []

    def __enter__(self) -> None:
        self._autocast.__enter__()
        forget_casts(self._y)
        changed = [pair for pair in self._then if any(pair[0].get(name) is not x for name, x in pair[1].items())]
        self._now = [(table, dict(table)) for table, _ in changed]
        for table, then in changed:
            table.update(then)

    def __exit__(self, *error: Any) -> None:
        for table, now in self._now:
            table.clear()
            table.update(now)
        self._now = []
        forget_casts(self._y)
        self._autocast.__exit__(*error)
