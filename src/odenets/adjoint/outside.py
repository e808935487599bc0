"""f runs outside of autograd, so the tensors that it reaches become inputs of one function of autograd."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from odenets.captured import Reached, check_reached, reached_tensors, sequence_number
from odenets.evaluation import CountedField
from odenets.loop import DenseStep, Problem, Trajectory, evaluate_at_start, run
from odenets.methods import Pull, RungeKutta, Time
from odenets.solution import Stats
from odenets.transforms import refuse_in_backward


@dataclass
class Call:
    """What a Function keeps beside its tensors."""

    problem: Problem
    f0: Tensor | None
    reached: Reached
    wanted: "Wanted"
    extra: Any
    then: "AsThen"
    trajectory: Trajectory | None = None


Plain = Callable[[Problem, Tensor | None], Trajectory]


def _plain(problem: Problem, f0: Tensor | None) -> Trajectory:
    return run(problem, problem.y0, f0)


def outside_autograd(problem: Problem, function: Any, extra: Any = None, plain: Plain = _plain) -> Trajectory:
    """Run a function of autograd, or where there is nothing to differentiate `plain`, which gets f(t0, y0) if known.

    The function gets the `Call`, y0, the times and the tensors that f reaches; it leaves the trajectory in the call and
    returns ys, then, of dense output, the states, the stages and where gradients to the times are wanted t and dt.
    """
    problem, f0, call, inputs = prepare(problem, extra)
    if call is None:
        with torch.no_grad():
            return plain(problem, f0)
    ys, *dense = function.apply(call, problem.y0, problem.t, *inputs)
    forget_casts(problem.y0)  # those of weights that f has not used before now stand outside of every graph
    trajectory = call.trajectory
    if trajectory is None:
        raise RuntimeError("the forward pass left no trajectory")
    call.trajectory, call.f0 = None, None  # what the backward pass does not need
    trajectory.ys = ys
    if dense:
        trajectory.dense = [DenseStep(d.t, d.dt, *parts) for d, *parts in zip(trajectory.dense, *dense)]
    return trajectory


def prepare(problem: Problem, extra: Any = None) -> tuple[Problem, Tensor | None, Call | None, list[Tensor]]:
    """The problem with its arguments cut off from what they were computed from, and the tensors that f reaches.

    With them f(t0, y0), where it had to be evaluated. No call where there is nothing to differentiate.
    """
    if not torch.is_grad_enabled():
        return problem, None, None, []
    originals, args = _substitute(problem.args)
    cut = replace(problem, args=args, f=problem.bind(args))
    f0, reached = _probe(cut)
    inputs = [originals.get(id(t), t) for t in reached.tensors]
    if not any(t.requires_grad for t in (problem.y0, problem.t, *inputs)):
        return problem, f0.detach(), None, []
    then = AsThen(problem.y0, reached.modules)
    call = Call(cut, f0.detach(), reached, Wanted(reached), extra, then)
    return cut, call.f0, call, inputs


class Wanted:
    """The tensors that f is differentiated by in the backward pass.

    A tensor with hooks (`register_hook`, `retain_grad`) must not fire them at each evaluation: they fire once, when
    the gradient that the Function returns arrives. And through a tensor that was computed from another of them no
    gradient may go on to that one: it would come twice. For such tensors f computes with leaves in their place.
    """

    def __init__(self, reached: Reached) -> None:
        hooked = [t for t in reached.tensors if t._backward_hooks or t.retains_grad]
        self.places = {id(t): t.detach().requires_grad_() for t in (*hooked, *reached.entangled)}
        self.tensors = tuple(self.places.get(id(t), t) for t in reached.tensors)

    def enable_grad(self) -> contextlib.AbstractContextManager:
        """Grad enabled, and the leaves in the places of their tensors."""
        if not self.places:
            return torch.enable_grad()
        stack = contextlib.ExitStack()
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_InPlaceOf(self.places))
        return stack


class _InPlaceOf(TorchFunctionMode):
    """Every torch function gets some tensors replaced by others."""

    def __init__(self, places: dict[int, Tensor]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(lambda x: self.places.get(id(x), x), (args, kwargs or {}))
        return func(*args, **kwargs)


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


def _probe(problem: Problem) -> tuple[Tensor, Reached]:
    """f(t0, y0), which the solve needs anyway, evaluated so that its graph shows the tensors it reaches."""
    forget_casts(problem.y0)
    y0 = problem.y0.detach()

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


@dataclass
class LinearizeAndSum:
    """f with its pullback, adding up the gradients to tensors: for `RungeKutta.linearize`."""

    by_autograd: "ByAutograd"
    grads: "GradientSum"

    def of_step(
        self, method: RungeKutta, t: Time, y: Tensor, dt: float, with_f1: bool = False
    ) -> tuple[list[Tensor], list[Pull]]:
        """The stages of a step of the method, and the pullback of f at each."""
        known = method.solved_stages(self.by_autograd.f, t, y, dt)
        return method.linearize(self, t, y, dt, with_f1=with_f1, stages=known)

    def __call__(self, t: Tensor, y: Tensor) -> tuple[Tensor, Pull]:
        k, pullback = self.by_autograd(t, y)

        def pull(k_bar: Tensor, /, *, last: bool = True) -> tuple[Tensor, Any]:
            y_bar, bars, t_bar = pullback(k_bar, last)
            self.grads.add(bars)
            return torch.zeros_like(y) if y_bar is None else y_bar, 0.0 if t_bar is None else t_bar.double()

        return k, pull


class ByAutograd:
    """f and its pullback to y, to the tensors that it reaches, and (timed) to t; None for what f does not depend on."""

    def __init__(self, f: CountedField, call: Call, timed: bool) -> None:
        self.f, self.wanted, self.reached, self.timed = f, call.wanted, call.reached, timed
        self.unchecked = True  # until one step has been checked for tensors that the first evaluation did not show
        self.started = sequence_number()

    def __call__(self, t: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        with self.wanted.enable_grad():
            y = y.detach().requires_grad_()
            t = t.detach().requires_grad_() if self.timed else t
            out = self.f(t, y)
        if self.unchecked:
            check_reached(
                out,
                self.started,
                self.reached,
                (y, t, *self.wanted.places.values()),
                functools.partial(self._once_more, t, y),
            )
        wrt = (y, *self.wanted.tensors, *((t,) if self.timed else ()))

        def pullback(bar: Tensor, last: bool = True) -> tuple[Tensor | None, Sequence[Tensor | None], Tensor | None]:
            self.unchecked = False  # all stages of a step are evaluated before the first is pulled back
            if not out.requires_grad:
                return None, [None] * len(self.wanted.tensors), None
            if not last:
                (y_bar,) = torch.autograd.grad(out, y, bar, retain_graph=True, allow_unused=True)
                return y_bar, [None] * len(self.wanted.tensors), None
            y_bar, *bars = torch.autograd.grad(out, wrt, bar, allow_unused=True)
            return y_bar, bars[: len(self.wanted.tensors)], bars[-1] if self.timed else None

        return out.detach(), pullback

    def _once_more(self, t: Tensor, y: Tensor) -> Tensor:
        with self.wanted.enable_grad(), torch.random.fork_rng([y.device] if y.is_cuda else []):
            return self.f.f(t, y)


class GradientSum:
    """A sum of gradients of several tensors, each of which may be missing."""

    def __init__(self, count: int) -> None:
        self.values: list[Tensor | None] = [None] * count

    def add(self, grads: Sequence[Tensor | None], scale: float = 1.0) -> None:
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            old = self.values[i]
            if old is None:
                self.values[i] = grad * scale  # a copy: autograd may hand out one tensor twice
            else:
                old.add_(grad, alpha=scale)


def plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product over all elements."""
    return (a.conj() * b).sum().real


def refuse_backward(name: str, cotangents: Sequence[Tensor | None]) -> None:
    """Refuse what a backward pass outside of autograd cannot do."""
    refuse_in_backward(cotangents, "use `adjoint=Direct()`")
    if torch.is_grad_enabled():  # only with create_graph=True
        raise NotImplementedError(
            f"`adjoint={name}()` has no second derivative (create_graph=True); use `adjoint=Direct()`"
        )
