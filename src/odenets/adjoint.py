"""How a solve is differentiated. Each adjoint gets the problem and runs the loop; none knows of `solve`.

All give gradients for y0, for every tensor that f reaches, and for every time. The equation numbers are those of
"Introduction to Neural Ordinary Differential Equation" (Della Bona and Dumez, 2021), section 4.3.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from odenets.captured import Reached, check_reached, reached_tensors, sequence_number
from odenets.controller import Controller, Fixed
from odenets.loop import CountedField, Kept, Problem, Stepper, Trajectory, interpolate, run
from odenets.methods import ExplicitRungeKutta
from odenets.solution import SolveError, Stats


class Adjoint(Protocol):
    """What `solve` asks of an adjoint: run the loop so that autograd can differentiate it."""

    def integrate(self, problem: Problem) -> Trajectory: ...


@dataclass(frozen=True)
class Direct:
    """Autograd through every operation of the solver: "discretise, then optimise".

    When to use: for second derivatives, under mixed forward and backward modes, for short solves where memory is
    no concern. When not: memory grows with the number of evaluations of f, each keeps its activations.
    Exact: the gradient of what the solver computed. Step sizes are constants to the gradient, except where a step
    is cut to end on the last time.
    """

    def integrate(self, problem: Problem) -> Trajectory:
        clock = problem.t if problem.t.requires_grad and torch.is_grad_enabled() else None
        return run(problem, problem.y0, None, keep=False, clock=clock)


@dataclass(frozen=True)
class Checkpointed:
    """Keep the accepted steps, replay each in the backward pass (the default).

    When to use: always, unless you need second derivatives. Exact: the same gradient as `Direct`, to rounding.
    Memory: one state a step, and the activations of one step; it does not grow with the evaluations of f.
    Cost: the backward pass evaluates f again, once for each stage of each accepted step, never for a rejected one.
    When not: for a field that draws random numbers (the replay would draw others); second derivatives raise.

    Source: checkpointing of a time-stepping loop, Griewank and Walther, *Evaluating Derivatives* (2008), chapter 12;
    for ODE-Nets, Zhuang et al., "Adaptive checkpoint adjoint method", ICML 2020.
    """

    def integrate(self, problem: Problem) -> Trajectory:
        return _outside_autograd(problem, _Replay, keep=True)


@dataclass(frozen=True)
class Backsolve:
    """The continuous adjoint: solve equations (6) and (7) backward in time, with the state solved backward beside.

    When to use: where even one stored state a step is too much; memory does not depend on the number of steps.
    When not: the gradient is that of the exact solution, approximated to the tolerance of the backward solve, so it
    differs from the gradient of what the forward solve computed, most with loose tolerances and low orders, and it
    can fail where the state is unstable backward in time. Prefer `Checkpointed`.

    The state is reset to its stored value at every output time; the solver goes on there with its step size. The
    parameter gradient, equation (7), is integrated by the method's own quadrature and takes no part in the error.

    Args:
        method: The method of the backward solve; None for that of the forward solve.
        controller: Its controller; None for that of the forward solve.

    Source: Chen et al., "Neural ordinary differential equations", NeurIPS 2018, appendix C; the quadrature outside of
    the error: Kidger, Chen and Lyons, "Hey, that's not an ODE", ICML 2021.
    """

    method: ExplicitRungeKutta | None = None
    controller: Controller | None = None

    def integrate(self, problem: Problem) -> Trajectory:
        backward = replace(
            problem,
            method=self.method or problem.method,
            controller=self.controller or _whole_interval(problem),
        )
        return _outside_autograd(problem, _SolveBack, keep=False, extra=backward)


def _whole_interval(problem: Problem) -> Controller:
    """The forward controller, with `Fixed(steps=...)` meant for the whole interval and not for each part of it."""
    controller = problem.controller
    if isinstance(controller, Fixed) and problem.times[-1] > problem.times[0]:
        return Fixed(dt=controller.size(problem.times[0], problem.times[-1]))
    return controller


# What the two adjoints share: f runs outside of autograd, so the tensors that it reaches become inputs of a Function.


@dataclass
class _Call:
    """What a Function keeps beside its tensors."""

    problem: Problem
    f0: Tensor | None
    reached: Reached
    wanted: "_Wanted"
    extra: Any
    autocast: Any
    trajectory: Trajectory | None = None


def _outside_autograd(problem: Problem, function: Any, *, keep: bool, extra: Any = None) -> Trajectory:
    if not torch.is_grad_enabled():
        return run(problem, problem.y0, None, keep=False)
    originals, args = _substitute(problem.args)
    problem = replace(problem, args=args, f=problem.bind(args))
    if extra is not None:
        extra = replace(extra, args=args, f=problem.f)
    f0, reached = _probe(problem)
    inputs = [originals.get(id(t), t) for t in reached.tensors]
    if not any(t.requires_grad for t in (problem.y0, problem.t, *inputs)):
        with torch.no_grad():
            return run(problem, problem.y0, f0.detach(), keep=False)
    if problem.t.requires_grad and problem.times[0] == problem.times[-1]:
        raise ValueError("`t` requires grad but spans no time: there is no gradient to times that are all equal")
    call = _Call(problem, f0.detach(), reached, _Wanted(reached.tensors), extra, _autocast_state(problem.y0))
    ys, *dense = function.apply(call, keep, problem.y0, problem.t, *inputs)
    trajectory = call.trajectory
    if trajectory is None:
        raise RuntimeError("the forward pass left no trajectory")
    call.trajectory, call.f0 = None, None  # what the backward pass does not need
    trajectory.ys = ys
    if dense:
        trajectory.dense = [d._replace(y=y, stages=k) for d, y, k in zip(trajectory.dense, *dense)]
    return trajectory


class _Wanted:
    """The tensors that f is differentiated by in the backward pass.

    A tensor with hooks (`register_hook`, `retain_grad`) must not fire them at each evaluation: they fire once, when
    the gradient that the Function returns arrives. For such a tensor f computes with a leaf in its place.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        hooked = [t for t in tensors if t._backward_hooks or t.retains_grad]
        self.places = {id(t): t.detach().requires_grad_() for t in hooked}
        self.tensors = tuple(self.places.get(id(t), t) for t in tensors)

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
    with torch.enable_grad():
        started = sequence_number()
        f0 = Stepper(problem, problem.y0.detach(), problem.times[0]).derivative()
    return f0, reached_tensors(f0, started, (problem.watched, problem.args))


def _autocast_state(y: Tensor) -> contextlib.AbstractContextManager:
    kind = y.device.type
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind))


class _Replay(torch.autograd.Function):
    """The loop, and its reverse: each accepted step again, with grad, from the last to the first."""

    @staticmethod
    def forward(ctx: Any, call: _Call, keep: bool, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        trajectory = run(call.problem, y0.detach(), call.f0, keep=keep, timed=ctx.needs_input_grad[3])
        call.trajectory = trajectory
        ctx.call = call
        ctx.kept = [kept._replace(y=_NOTHING) for kept in trajectory.kept]
        ctx.count = len(tensors)
        ctx.save_for_backward(t, *tensors, *(kept.y for kept in trajectory.kept))
        trajectory.kept = []
        if not trajectory.dense:
            return (trajectory.ys,)
        return trajectory.ys, *(torch.stack(column) for column in zip(*((d.y, d.stages) for d in trajectory.dense)))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative("Checkpointed")
        grad_ys, *grad_dense = grad_outputs
        t, *saved = ctx.saved_tensors
        states = saved[ctx.count :]
        pass_ = _ReversePass(ctx.call, t if ctx.needs_input_grad[3] else None, grad_ys, grad_dense)
        with ctx.call.autocast:
            for k in reversed(range(len(states))):
                pass_.undo(k, ctx.kept[k]._replace(y=states[k]))
        grad_y0 = pass_.finish()
        return None, None, grad_y0, pass_.grad_t, *pass_.grads.values


_NOTHING = torch.empty(0)


class _ReversePass:
    """The running cotangents of a reverse sweep over the kept steps."""

    def __init__(self, call: _Call, t: Tensor | None, grad_ys: Tensor, grad_dense: Sequence[Tensor]) -> None:
        self.problem, self.call = call.problem, call
        self.grad_ys, self.grad_dense = grad_ys, grad_dense
        self.lam: Tensor | None = None  # ∂L/∂y at the end of the step about to be undone
        self.grads = _GradientSum(len(call.wanted.tensors))
        self.t = None if t is None else t.detach()
        self.grad_t = None if t is None else torch.zeros_like(t)
        self.lam_t: Tensor | float = 0.0  # ∂L/∂t at the end of that step, the time being the sum of the steps so far
        self.unchecked = True
        self.stats = Stats()
        self.f = CountedField(self.problem.f, self.stats)

    def undo(self, k: int, kept: Kept) -> None:
        """Pull the cotangents back through step k."""
        started = sequence_number()
        timed = self.t is not None
        with self.call.wanted.enable_grad():
            y = kept.y.detach().requires_grad_()
            t_in, dt_in, times = self._times(kept)
            outputs = self._replay(kept, y, t_in, dt_in, times)
        if self.unchecked:
            check_reached(
                outputs[0],
                started,
                self.call.reached,
                (y, *times.values(), *_tensors(t_in, dt_in), *self.call.wanted.places.values()),
            )
            self.unchecked = False
        wrt = [y, *self.call.wanted.tensors, *(_tensors(t_in, dt_in) if timed else ()), *times.values()]
        cotangents = self._cotangents(k, kept)
        pairs = [(out, c) for out, c in zip(outputs, cotangents) if c is not None]
        if not pairs:
            return
        grads = torch.autograd.grad([p[0] for p in pairs], wrt, [p[1] for p in pairs], allow_unused=True)
        count = len(self.call.wanted.tensors)
        self.lam = grads[0]
        if self.grad_dense:
            self.lam = _plus(self.lam, self.grad_dense[0][k])
        self.grads.add(grads[1 : 1 + count])
        if timed:
            self._time_cotangents(kept, times, grads[1 + count :])

    def finish(self) -> Tensor:
        """∂L/∂y0, with the outputs that are y0 itself."""
        self.problem.stats.nfe_backward = (self.problem.stats.nfe_backward or 0) + self.stats.nfe
        if self.grad_t is not None:
            self.grad_t[0] += self.lam_t
        reached = 1 if self.t is not None else self.problem.times.count(self.problem.times[0])
        return _plus(self.lam, self.grad_ys[:reached].sum(0))

    def _times(self, kept: Kept) -> tuple[Any, Any, dict[int, Tensor]]:
        """The step's t and dt, and the times of the outputs inside it: leaves of autograd where that is wanted."""
        if self.t is None:
            return kept.t, kept.dt, {}
        values = [kept.t, kept.dt, *(self.problem.times[j] for j in kept.inside)]
        t, dt, *times = (v.requires_grad_() for v in self.t.new_tensor(values).unbind())
        return t, dt, dict(zip(kept.inside, times))

    def _replay(self, kept: Kept, y: Tensor, t: Any, dt: Any, times: dict[int, Tensor]) -> list[Tensor]:
        """The step again: its end, the outputs inside it (in the order of their indices), and its stages if dense."""
        method = self.problem.method
        step = method.step(self.f, t, y, dt, None)
        if kept.inside or self.grad_dense:
            step = step.with_f1(self.f)
        outputs = [step.y]
        for j in kept.inside:
            outputs.append(interpolate(method, y, step, t, dt, times.get(j, self.problem.times[j])))
        if self.grad_dense:
            outputs.append(torch.stack(step.stages))
        return outputs

    def _cotangents(self, k: int, kept: Kept) -> list[Tensor | None]:
        """∂L/∂(each of `_replay`'s outputs)."""
        lam = self.lam
        for j in kept.ends:
            lam = _plus(lam, self.grad_ys[j])
        dense = [self.grad_dense[1][k]] if self.grad_dense else []
        return [lam, *(self.grad_ys[j] for j in kept.inside), *dense]

    def _time_cotangents(self, kept: Kept, times: dict[int, Tensor], grads: Sequence[Tensor | None]) -> None:
        d_t, d_dt, *d_outputs = (0.0 if g is None else g for g in grads)
        if self.grad_t is None:
            return
        for j, d_out in zip(times, d_outputs):
            self.grad_t[j] += d_out
        if kept.final:  # dt = t_end − t
            self.grad_t[-1] += d_dt
            self.lam_t = d_t - d_dt
        else:  # t_next = t + dt, dt constant
            self.lam_t = self.lam_t + d_t


class _SolveBack(torch.autograd.Function):
    """The loop without a memory, and the adjoint equations solved backward in its place."""

    @staticmethod
    def forward(ctx: Any, call: _Call, keep: bool, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        if call.problem.dense:
            raise TypeError(
                "`adjoint=Backsolve()` cannot differentiate dense output; "
                "use `adjoint=Checkpointed()` or `adjoint=Direct()`, or `dense=False`"
            )
        trajectory = run(call.problem, y0.detach(), call.f0, keep=keep)
        call.trajectory = trajectory
        ctx.call = call
        ctx.save_for_backward(trajectory.ys, t, *tensors)
        return (trajectory.ys,)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative("Backsolve")
        (grad_ys,) = grad_outputs
        ys = ctx.saved_tensors[0]
        call: _Call = ctx.call
        stats = Stats()
        solver = _AdjointSolve(replace(call.extra, stats=stats), call.wanted, ys[-1], len(ys) - 1)
        grad_t = torch.zeros_like(ctx.saved_tensors[1]) if ctx.needs_input_grad[3] else None
        with call.autocast:
            for j in reversed(range(1, len(ys))):
                solver.jump(ys[j], grad_ys[j])
                if grad_t is not None:
                    grad_t[j] = _inner(grad_ys[j], solver.f(j))
                solver.solve_to(j - 1)
            if grad_t is not None:
                grad_t[0] = -_inner(solver.a, solver.f(0))
        call.problem.stats.nfe_backward = (call.problem.stats.nfe_backward or 0) + stats.nfe
        return None, None, solver.a + grad_ys[0], grad_t, *solver.grads.values


class _AdjointSolve:
    """z and a = ∂L/∂z, solved together in s = −t, so that s increases.

    Equation (2): dz/ds = −f. Equation (6): da/ds = a ∂f/∂z. Equation (7): ∂L/∂θ = ∫ a ∂f/∂θ ds, by quadrature.
    """

    def __init__(self, problem: Problem, wanted: _Wanted, y: Tensor, last: int) -> None:
        self.problem, self.wanted = problem, wanted
        self.a = torch.zeros_like(y)  # ∂L/∂z at the present time
        self.y = y
        self.grads = _GradientSum(len(wanted.tensors))
        self.by_stage: dict[int, tuple[Tensor, Sequence[Tensor | None]]] = {}
        backward = replace(problem, f=self._derivatives)
        self.stepper = Stepper(backward, torch.stack([y, self.a]), -problem.times[last])

    def f(self, j: int) -> Tensor:
        """f at output time j and the present state."""
        self.problem.stats.nfe += 1
        t = torch.tensor(self.problem.times[j], dtype=self.y.real.dtype, device=self.y.device)
        return self.problem.f(t, self.y)

    def jump(self, y: Tensor, grad_y: Tensor) -> None:
        """At an output time: the state is reset to its stored value, the adjoint takes up the output's gradient."""
        self.y, self.a = y, self.a + grad_y
        self.stepper.jump(torch.stack([self.y, self.a]))

    def solve_to(self, j: int) -> None:
        """Go back to output time j.

        Raises:
            SolveError: If the backward solve fails; the text says so.
        """
        end = -self.problem.times[j]
        while self.stepper.t < end:
            taken = self.stepper.advance(end)
            if taken is None:
                failure = self.stepper.failure
                if failure is None:
                    raise RuntimeError("the backward solve stopped without a reason")
                detail = f"This was the backward solve of `Backsolve`; `Checkpointed` has none. {failure.detail}"
                raise SolveError(replace(failure, t=-failure.t, detail=detail), self.problem.stats)
            self._add_quadrature(taken.step.stages, taken.dt)
        self.y, self.a = self.stepper.y[0], self.stepper.y[1]

    def _derivatives(self, s: Tensor, state: Tensor) -> Tensor:
        a = state[1]
        with self.wanted.enable_grad():
            z = state[0].detach().requires_grad_()
            out = self.problem.f(-s, z)
        grads: Sequence[Tensor | None] = [None] * (1 + len(self.wanted.tensors))
        if out.requires_grad:
            grads = torch.autograd.grad(out, [z, *self.wanted.tensors], a.to(out.dtype), allow_unused=True)
        d_a = torch.zeros_like(a) if grads[0] is None else grads[0]
        derivative = torch.stack([-out.detach().to(z.dtype), d_a])
        self.by_stage[id(derivative)] = (derivative, grads[1:])  # holding the tensor keeps its id its own
        return derivative

    def _add_quadrature(self, stages: Sequence[Tensor], dt: float) -> None:
        for b_i, k in zip(self.stepper.method.b, stages):
            if b_i != 0:
                self.grads.add(self.by_stage[id(k)][1], scale=dt * b_i)
        f1 = stages[len(self.stepper.method.b) :]
        self.by_stage = {id(k): self.by_stage[id(k)] for k in f1}


class _GradientSum:
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


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _tensors(*values: Any) -> tuple[Tensor, ...]:
    return tuple(v for v in values if isinstance(v, Tensor))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product over all elements."""
    return (a.conj() * b).sum().real


def _refuse_second_derivative(name: str) -> None:
    if torch.is_grad_enabled():  # only with create_graph=True
        raise NotImplementedError(
            f"`adjoint={name}()` has no second derivative (create_graph=True); use `adjoint=Direct()`"
        )
