"""How a solve is differentiated. Each adjoint gets the problem and runs the loop; none knows of `solve`.

All give gradients for y0, for every tensor that f reaches, and for every time. The equation numbers are those of
"Introduction to Neural Ordinary Differential Equation" (Della Bona and Dumez, 2021), section 4.3.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from odenets import compiled
from odenets.captured import Reached, check_reached, reached_tensors, sequence_number
from odenets.chunks import Call as MarchCall
from odenets.chunks import Engine, March, march, sample_trajectory, shared_trajectory
from odenets.controller import Controller, Fixed
from odenets.loop import CountedField, Kept, Problem, Stepper, Trajectory, run, sample_shape
from odenets.march import Plan
from odenets.march import backward as march_backward
from odenets.march import forward as march_forward
from odenets.methods import ExplicitRungeKutta, Pull, real_dtype
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
    With `compile=True` the stages of a step are kept too where they take no more than 4 MiB, which spares the
    evaluations that would make them again; and wherever states inside the interval are wanted.
    When not: for a field that draws random numbers (the replay would draw others); second derivatives raise.

    Source: checkpointing of a time-stepping loop, Griewank and Walther, *Evaluating Derivatives* (2008), chapter 12;
    for ODE-Nets, Zhuang et al., "Adaptive checkpoint adjoint method", ICML 2020.
    """

    def integrate(self, problem: Problem) -> Trajectory:
        trajectory = _march_compiled(problem) if problem.compile else None
        if trajectory is not None:
            return trajectory
        problem = replace(problem, compile=False)
        if problem.per_sample:
            return _march_samples(problem)
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
    problem, f0, call, inputs = _prepare(problem, extra)
    if call is None:
        with torch.no_grad():
            return run(problem, problem.y0, f0, keep=False)
    if problem.t.requires_grad and problem.times[0] == problem.times[-1]:
        raise ValueError("`t` requires grad but spans no time: there is no gradient to times that are all equal")
    ys, *dense = function.apply(call, keep, problem.y0, problem.t, *inputs)
    trajectory = call.trajectory
    if trajectory is None:
        raise RuntimeError("the forward pass left no trajectory")
    call.trajectory, call.f0 = None, None  # what the backward pass does not need
    trajectory.ys = ys
    if dense:
        trajectory.dense = [d._replace(y=y, stages=k) for d, y, k in zip(trajectory.dense, *dense)]
    return trajectory


def _prepare(problem: Problem, extra: Any = None) -> tuple[Problem, Tensor | None, _Call | None, list[Tensor]]:
    """The problem with its arguments cut off from what they were computed from, and the tensors that f reaches.

    With them f(t0, y0), where it had to be evaluated. No call where there is nothing to differentiate.
    """
    if not torch.is_grad_enabled():
        return problem, None, None, []
    originals, args = _substitute(problem.args)
    cut = replace(problem, args=args, f=problem.bind(args))
    if extra is not None:
        extra = replace(extra, args=args, f=cut.f)
    f0, reached = _probe(cut)
    inputs = [originals.get(id(t), t) for t in reached.tensors]
    if not any(t.requires_grad for t in (problem.y0, problem.t, *inputs)):
        return problem, f0.detach(), None, []
    call = _Call(cut, f0.detach(), reached, _Wanted(reached.tensors), extra, _autocast_state(problem.y0))
    return cut, call.f0, call, inputs


def _march_samples(problem: Problem) -> Trajectory:
    """A step size for each sample, run by Python."""
    problem, _, call, inputs = _prepare(problem)
    engine = _Python(problem, call, inputs, () if call is None else tuple(range(len(inputs))))
    return _marched(problem, engine, call is not None)


def _march_compiled(problem: Problem) -> Trajectory | None:
    """Run by compiled loops; None where the eager engine has to take over, to go on or to say what failed."""
    if problem.times[0] == problem.times[-1] or compiled.cannot(problem.watched):
        return None
    with compiled.or_eagerly(problem):
        engine = compiled.capture(problem)
        differentiable = any(x.requires_grad for x in (problem.y0, problem.t, *engine.tensors))
        trajectory = _marched(problem, engine, torch.is_grad_enabled() and differentiable)
        if problem.per_sample or trajectory.failure is None:
            return trajectory
    problem.stats.reset()
    return None


_SMALL = 4 * 2**20  # bytes: the stages of a step below this are kept by the compiled loop, not made again


def _stages_are_small(problem: Problem) -> bool:
    return (len(problem.method.b) + 1) * problem.y0.numel() * problem.y0.element_size() <= _SMALL


_SHORT = 16  # numbers in a sample: below, a compiled loop is faster along the samples


def _marched(problem: Problem, engine: Engine, differentiable: bool) -> Trajectory:
    outputs = len(problem.times) > 1 + problem.times.count(problem.times[0])
    plan = Plan(
        problem.method,
        problem.controller,
        problem.per_sample,
        keep=differentiable,
        outputs=outputs,
        stages=outputs or (differentiable and problem.compile and _stages_are_small(problem)),
        timed=differentiable and problem.t.requires_grad,
        batch_last=problem.per_sample and problem.compile and problem.y0[0].numel() < _SHORT,
    )
    backward = engine.backward(plan) if differentiable else None  # made now, so that a failure to compile shows now
    marching = MarchCall(problem, plan, engine, _autocast_state(problem.y0), backward)
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
    call: _Call | None
    tensors: Sequence[Tensor]
    wanted: Sequence[int]

    def forward(self, plan: Plan) -> Any:
        f = CountedField(self.problem.f, Stats())
        return functools.partial(march_forward, plan, _while, lambda tensors: f)

    def backward(self, plan: Plan) -> Any:
        if self.call is None:
            raise RuntimeError("there is nothing to differentiate")
        f = CountedField(self.problem.f, Stats())
        by_autograd = _ByAutograd(f, self.call, timed=True)

        def vjp(bind: Any, tensors: Any, wanted: Any, t: Tensor, y: Tensor) -> Any:
            k, pullback = by_autograd(t, y)
            like = (t, y, *by_autograd.wanted.tensors)

            def pull(bar: Tensor) -> list[Tensor]:
                y_bar, bars, t_bar = pullback(bar)
                grads = (t_bar, y_bar, *bars)
                return [torch.zeros_like(x) if g is None else g for x, g in zip(like, grads)]

            return k, pull

        return functools.partial(march_backward, plan, _while, lambda tensors: f, vjp, self.wanted)


def _while(condition: Any, body: Any, carry: tuple, constants: tuple, mutated: tuple) -> tuple:
    while bool(condition(*carry, *constants)):
        carry = body(*carry, *constants)
    return carry


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
        y0 = problem.y0.detach()
        if problem.per_sample:
            t0 = torch.full(sample_shape(y0), problem.times[0], dtype=real_dtype(y0), device=y0.device)
            f0 = CountedField(problem.f, problem.stats)(t0, y0)
        else:
            f0 = Stepper(problem, y0, problem.times[0]).derivative()
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
        self.timed = t is not None
        self.grad_t = None if t is None else torch.zeros_like(t)
        self.lam_t: Tensor | float = 0.0  # ∂L/∂t at the end of that step, the time being the sum of the steps so far
        self.stats = Stats()
        by_autograd = _ByAutograd(CountedField(self.problem.f, self.stats), call, self.timed)
        self.linearize = _Linearize(by_autograd, self.grads)

    def undo(self, k: int, kept: Kept) -> None:
        """Pull the cotangents back through step k."""
        lam = self.lam
        for j in kept.ends:
            lam = _plus(lam, self.grad_ys[j])
        if lam is None and not kept.inside and not self.grad_dense:
            return
        method, (t, dt, y) = self.problem.method, kept[:3]
        with_f1 = bool(kept.inside or self.grad_dense)
        stages, pulls = method.linearize(self.linearize, t, y, dt, with_f1=with_f1)
        inner = _inner if self.timed else None
        stage_bars, direct, t_bar, dt_bar = self._outputs(k, kept, stages, inner)
        lam = torch.zeros_like(y) if lam is None else lam
        lam, d_t, d_dt = method.pullback(pulls, y, dt, stages, lam, stage_bars, inner)
        for bar in direct:
            lam = lam + bar
        self.lam = lam
        if self.timed:
            self._time_cotangents(kept, t_bar + d_t, dt_bar + d_dt)

    def finish(self) -> Tensor:
        """∂L/∂y0, with the outputs that are y0 itself."""
        self.problem.stats.nfe_backward = (self.problem.stats.nfe_backward or 0) + self.stats.nfe
        if self.grad_t is not None:
            self.grad_t[0] += self.lam_t
        reached = 1 if self.timed else self.problem.times.count(self.problem.times[0])
        return _plus(self.lam, self.grad_ys[:reached].sum(0))

    def _outputs(
        self, k: int, kept: Kept, stages: Sequence[Tensor], inner: Any
    ) -> tuple[list[Tensor] | None, list[Tensor], Any, Any]:
        """What the outputs inside the step, and dense output, give to its stages, its y, its t and its dt."""
        bars = list(self.grad_dense[1][k].unbind()) if self.grad_dense else None
        direct = [self.grad_dense[0][k]] if self.grad_dense else []
        t_bar: Any = 0.0
        dt_bar: Any = 0.0
        for j in kept.inside:
            theta = (self.problem.times[j] - kept.t) / kept.dt
            given, rise, d_dt = self.problem.method.pull_output(kept.dt, stages, theta, self.grad_ys[j], inner)
            bars = given if bars is None else [bar + more for bar, more in zip(bars, given)]
            direct.append(self.grad_ys[j])
            t_bar, dt_bar = t_bar - rise, dt_bar + d_dt
            if self.grad_t is not None:
                self.grad_t[j] += rise
        return bars, direct, t_bar, dt_bar

    def _time_cotangents(self, kept: Kept, t_bar: Any, dt_bar: Any) -> None:
        if self.grad_t is None:
            return
        if kept.final:  # dt = t_end − t
            self.grad_t[-1] += dt_bar
            self.lam_t = t_bar - dt_bar
        else:  # t_next = t + dt, dt constant
            self.lam_t = self.lam_t + t_bar


@dataclass
class _Linearize:
    """f with its pullback, adding up the gradients to tensors: for `ExplicitRungeKutta.linearize`."""

    by_autograd: "_ByAutograd"
    grads: "_GradientSum"

    def __call__(self, t: Tensor, y: Tensor) -> tuple[Tensor, Pull]:
        k, pullback = self.by_autograd(t, y)

        def pull(k_bar: Tensor) -> tuple[Tensor, Any]:
            y_bar, bars, t_bar = pullback(k_bar)
            self.grads.add(bars)
            return torch.zeros_like(y) if y_bar is None else y_bar, 0.0 if t_bar is None else t_bar.double()

        return k, pull


class _ByAutograd:
    """f and its pullback to y, to the tensors that it reaches, and (timed) to t; None for what f does not depend on."""

    def __init__(self, f: CountedField, call: _Call, timed: bool) -> None:
        self.f, self.wanted, self.reached, self.timed = f, call.wanted, call.reached, timed
        self.unchecked = True  # until one step has been checked for tensors that the first evaluation did not show
        self.started = sequence_number()

    def __call__(self, t: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        with self.wanted.enable_grad():
            y = y.detach().requires_grad_()
            t = t.detach().requires_grad_() if self.timed else t
            out = self.f(t, y)
        if self.unchecked:
            check_reached(out, self.started, self.reached, (y, t, *self.wanted.places.values()))
        wrt = (y, *self.wanted.tensors, *((t,) if self.timed else ()))

        def pullback(bar: Tensor) -> tuple[Tensor | None, Sequence[Tensor | None], Tensor | None]:
            self.unchecked = False  # all stages of a step are evaluated before the first is pulled back
            if not out.requires_grad:
                return None, [None] * len(self.wanted.tensors), None
            y_bar, *bars = torch.autograd.grad(out, wrt, bar, allow_unused=True)
            return y_bar, bars[: len(self.wanted.tensors)], bars[-1] if self.timed else None

        return out.detach(), pullback


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


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product over all elements."""
    return (a.conj() * b).sum().real


def _refuse_second_derivative(name: str) -> None:
    if torch.is_grad_enabled():  # only with create_graph=True
        raise NotImplementedError(
            f"`adjoint={name}()` has no second derivative (create_graph=True); use `adjoint=Direct()`"
        )
