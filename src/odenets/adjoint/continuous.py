"""The continuous adjoint: equations (6) and (7), solved backward in time."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from odenets.controller import PID, Controller
from odenets.engine.eager import run
from odenets.engine.engines import Engine, applied
from odenets.engine.going import Going
from odenets.engine.tape import Accepted
from odenets.evaluation import CountedField, FieldInPieces
from odenets.interpolate import DenseOutput
from odenets.methods import Method, RungeKutta, find, stage_times
from odenets.problem import Extension, Problem, Trajectory
from odenets.pullback.by_autograd import GradientSum, Wanted, inner_product
from odenets.pullback.function import Around, Outside, Prepared, prepare
from odenets.pullback.reached import LostGradientError
from odenets.pullback.replay import check_start
from odenets.solution import SolveError, Stats


@dataclass(frozen=True)
class Backward:
    """How to solve backward."""

    name: str  # of the adjoint
    method: Method
    controller: Controller
    interpolated: bool = False  # whether the state comes from dense output
    max_steps: int | None = None  # None for the limit of the forward solve
    stops: tuple[float, ...] | None = None  # None for those of the forward solve; it has its jumps in any case
    around: Around = contextlib.nullcontext  # what errors of the backward pass are raised in


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
        method: The method of the backward solve, a name or an object; None for that of the forward solve.
        controller: Its controller; None for that of the forward solve. `Fixed(steps=n)` makes n steps of the whole
            interval, not of each part between two outputs; a step that an output lies in is cut there.

    Source: Chen et al., "Neural ordinary differential equations", NeurIPS 2018, appendix C; the quadrature outside of
    the error: Kidger, Chen and Lyons, "Hey, that's not an ODE", ICML 2021.
    """

    method: str | Method | None = None
    controller: Controller | None = None

    interpolates = False

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        return _integrate(problem, engine, self.how(problem.method, problem.controller))

    def how(self, method: Method, controller: Controller) -> Backward:
        """How to solve backward what these solve forward."""
        return _backward("Backsolve", self, method, controller)


@dataclass(frozen=True)
class Interpolated:
    """The continuous adjoint with the state from dense output: equation (6) backward in time, z(t) interpolated.

    When to use: where the adjoint is to be solved more accurately, or by another method, than the forward solve; for
    problems whose state is unstable backward in time, on which `Backsolve` fails. When not: the gradient is that of
    the exact solution, approximated to the tolerances and the order of the interpolation, so it differs from that of
    what was computed; memory is s + 2 states a step, more than `Checkpointed`, whose gradient is exact.

    The backward solve goes through all output times without a restart; at each it takes up the output's gradient.
    The parameter gradient, equation (7), is integrated by the method's own quadrature and takes no part in the error.

    Args:
        method: The method of the backward solve, a name or an object; None for that of the forward solve.
        controller: Its controller; None for that of the forward solve. `Fixed(steps=n)` makes n steps of the whole
            interval, not of each part between two outputs; a step that an output lies in is cut there.

    Raises:
        TypeError: In the solve, with `dense=True`: dense output could not be differentiated.

    Source: Kim et al., "Stiff neural ordinary differential equations", Chaos 31 (2021), interpolating adjoint; the
    quadrature outside of the error: Kidger, Chen and Lyons, "Hey, that's not an ODE", ICML 2021.
    """

    method: str | Method | None = None
    controller: Controller | None = None

    interpolates = False

    def integrate(self, problem: Problem, engine: Engine) -> Trajectory:
        return _integrate(problem, engine, self.how(problem.method, problem.controller))

    def how(self, method: Method, controller: Controller) -> Backward:
        """How to solve backward what these solve forward."""
        return replace(_backward("Interpolated", self, method, controller), interpolated=True)


def _backward(name: str, adjoint: Backsolve | Interpolated, method: Method, controller: Controller) -> Backward:
    if adjoint.method is not None:
        method = find(adjoint.method, f"`method` of `{name}` must be one of")
    return Backward(name, method, adjoint.controller or controller)


def _integrate(problem: Problem, engine: Engine, how: Backward) -> Trajectory:
    if engine.open:
        return engine.seen(problem)
    if how.controller is not problem.controller:
        how = replace(how, controller=problem.of_state(how.controller))
    prepared = prepare(problem)
    if not prepared.differentiable:
        with torch.no_grad():
            return run(prepared.problem, problem.y0, prepared.f0)
    solve = _Continuous(prepared, how)
    return solve.finished(*applied(solve, prepared))


@dataclass
class _Continuous(Outside):
    """The loop, and the adjoint equations solved backward in its place."""

    prepared: Prepared
    how: Backward

    def __post_init__(self) -> None:
        self.then, self.wanted = self.prepared.then, Wanted(self.prepared.reached)
        self.name, self.around = f"`adjoint={self.how.name}()`", self.how.around

    def forward(self, y0: Tensor, t: Tensor, tensors: Sequence[Tensor], timed: bool) -> tuple[Tensor, ...]:
        f0, self.prepared.f0 = self.prepared.f0, None
        if f0 is None:
            raise RuntimeError("f has not been evaluated at the start")
        slopes: dict[int, Tensor] | None = {} if timed else None
        trajectory = run(replace(self.prepared.problem, dense=self.how.interpolated), y0, f0, slopes=slopes)
        self._trajectory, self.inside, self.timed = trajectory, list(slopes or ()), timed
        dense, trajectory.dense = trajectory.dense, None
        self.steps = None if dense is None else (dense.t, dense.dt)
        extension = () if dense is None else (dense.y, dense.parts)
        self._kept = [trajectory.ys, f0, *(slopes or {}).values(), *extension]
        return (trajectory.ys,)

    def backward(
        self, t: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor], bars: Sequence[Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
        ys, f0, *rest = kept
        (grad_ys,), problem, stats = bars, self.prepared.problem, Stats()
        slopes, extension = dict(zip(self.inside, rest)), rest[len(self.inside) :]
        states = None
        if self.steps is not None:
            steps = Extension(*self.steps, extension[0], extension[1])
            states = DenseOutput(problem.method, steps, 0.0, 1.0, lambda y: y)
        backward = replace(
            problem,
            method=self.how.method,
            controller=self.how.controller if states is not None else _of_pair(self.how.controller),
            stops=problem.stops if self.how.stops is None else tuple(sorted({*self.how.stops, *problem.jumps})),
            max_steps=self.how.max_steps or problem.max_steps,
            stats=stats,
        )
        solver = _AdjointSolve(backward, self.how.name, self.wanted, ys[-1], len(ys) - 1, states)
        grad_t = torch.zeros_like(t) if self.timed else None
        for j in reversed(range(1, len(ys))):
            solver.jump(ys[j], grad_ys[j])
            if grad_t is not None:
                grad_t[j] = inner_product(grad_ys[j], slopes[j] if j in slopes else solver.f(j))
            solver.solve_to(j - 1)
        again = check_start(self.name, problem, ys[0], f0)
        if grad_t is not None:
            grad_t[0] = -inner_product(solver.a, again)
        problem.stats.add_backward(stats.nfe)
        return solver.a + grad_ys[0], grad_t, solver.grads.values


class _AdjointSolve:
    """a = ∂L/∂z, solved in s = −t, so that s increases; the state z beside it, or from `states`."""

    def __init__(
        self, problem: Problem, name: str, wanted: Wanted, y: Tensor, last: int, states: DenseOutput | None
    ) -> None:
        self.problem, self.name, self.states = problem, name, states
        self.field = CountedField(problem.f, problem.stats)
        self.y, self.a = y, torch.zeros_like(y)
        self.grads = GradientSum(len(wanted.tensors))
        self.derivatives = _Derivatives(problem, wanted, states)
        stops, jumps = (tuple(-t for t in reversed(times)) for times in (problem.stops, problem.jumps))
        backward = replace(problem, f=self.derivatives, origin=0.0, stops=stops, jumps=jumps)
        # What the derivatives return is new, and names its evaluation by its place.
        self.stepper = Going(backward, self._solved(), -problem.times[last], fresh=True)

    def _solved(self) -> Tensor:
        """What the stepper solves for."""
        return torch.stack([self.y, self.a]) if self.states is None else self.a

    def f(self, j: int) -> Tensor:
        """f at output time j and the present state."""
        (t,) = stage_times(self.problem.at(self.problem.times[j]), 0.0, (0.0,), self.y)
        return self.field(t, self.y)

    def jump(self, y: Tensor, grad_y: Tensor) -> None:
        """At an output time: the state is reset to its stored value, the adjoint takes up the output's gradient."""
        self.y, self.a = y, self.a + grad_y
        self.stepper.jump(self._solved())

    def solve_to(self, j: int) -> None:
        """Go back to output time j.

        Raises:
            SolveError: If the backward solve fails; the text says so.
        """
        end = -self.problem.times[j]
        if self.stepper.dt is None:  # of the whole interval, as `Fixed(steps=...)` is meant
            self.stepper.choose_first_step(-self.problem.times[0])
        while self.stepper.t < end:
            self.derivatives.field.enter(-self.stepper.t, backward=True)
            taken = self.stepper.advance(end)
            if taken is None:
                failure = self.stepper.failure
                if failure is None:
                    raise RuntimeError("the backward solve stopped without a reason")
                detail = f"This was the backward solve of `{self.name}`; `Checkpointed` has none. {failure.detail}"
                failure = replace(failure, t=self.problem.caller_time(-failure.t), detail=detail)
                raise SolveError(failure, self.problem.stats)
            self._add_quadrature(taken)
        if self.states is None:
            self.y, self.a = self.stepper.y.unbind()
        else:
            self.y, self.a = self.derivatives.state(self.problem.times[j]), self.stepper.y

    def _add_quadrature(self, step: Accepted) -> None:
        """Equation (7): ∂L/∂θ = ∫ a ∂f/∂θ ds, by the method's own weights."""
        if step.y is None or step.step is None:
            raise RuntimeError("a step came without what it was made of")
        if self.derivatives.keeps:
            for derivative, weight in self.stepper.method.quadrature(step.step):
                if weight:
                    self.grads.add(self.derivatives.integrand_of(derivative), scale=step.dt * weight)
            f, *slopes = self.stepper.carry or (None,)
            past = slopes[0] if self.stepper.method.remembers else ()
            return self.derivatives.forget_all_but([k for k in (f, *past) if k is not None])
        method = cast(RungeKutta, self.stepper.method)  # the only ones that iterate
        stages = step.step.parts
        for i, (b_i, t_i) in enumerate(zip(method.b, stage_times(step.t, step.dt, method.c, step.y))):
            if b_i:
                self.problem.stats.nfe += 1
                there = method.stage_input(i, step.y, step.dt, stages)
                self.grads.add(self.derivatives.with_integrand(t_i, there)[1], scale=step.dt * b_i)


def _of_pair(controller: Controller) -> Controller:
    """The controller of the pair (y, its adjoint): a norm of the caller's is of one state, and the larger counts."""
    if not isinstance(controller, PID) or (norm := controller.norm) is None:
        return controller
    return replace(controller, norm=lambda pair: torch.maximum(*map(norm, pair.unbind())))


def _differentiate(out: Tensor, by: Sequence[Tensor], a: Tensor) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(out, by, a, allow_unused=True)
    except RuntimeError as error:
        if "a second time" not in str(error):
            raise
        raise LostGradientError(
            "`f` uses what it kept from another evaluation (a cache, `parametrize.cached()`), whose graph is used up"
        ) from error


class _Derivatives:
    """The right-hand side: dz/ds = −f of equation (2), where z is solved for, and da/ds = a ∂f/∂z of equation (6).

    Where the stages of the method are evaluations of it, it keeps the integrand of equation (7), a ∂f/∂θ, of each,
    found by the derivative it returned.
    """

    def __init__(self, problem: Problem, wanted: Wanted, states: DenseOutput | None) -> None:
        self.field = FieldInPieces(problem, Stats(), problem.times[-1])  # the stepper counts what it asks for
        self.origin, self.times = problem.origin, problem.times
        self.wanted, self.states = wanted, states
        self.keeps = not problem.method.iterates
        # By where the derivative lies: nobody else lies there while somebody has it, and it stays nobody's but theirs.
        self.integrands: dict[int, Sequence[Tensor | None]] = {}

    def __call__(self, s: Tensor, solved: Tensor) -> Tensor:
        if not self.keeps:
            return self._evaluate(s, solved, ())[0]
        derivative, integrand = self.with_integrand(s, solved)
        self.integrands[derivative.data_ptr()] = integrand
        return derivative

    def with_integrand(self, s: Tensor, solved: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The derivative, and a ∂f/∂θ."""
        return self._evaluate(s, solved, self.wanted.tensors)

    def _evaluate(self, s: Tensor, solved: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor | None]]:
        z, a = solved.unbind() if self.states is None else (self.state(-float(s)), solved)
        with self.wanted.enable_grad():
            z = z.detach().requires_grad_()
            out = self.field(self.origin - s, z)
        grads: Sequence[Tensor | None] = [None] * (1 + len(tensors))
        if out.requires_grad:
            grads = _differentiate(out, [z, *tensors], a.to(out.dtype))
        d_a = torch.zeros_like(a) if grads[0] is None else grads[0]
        # A tensor of its own, so that it names its evaluation.
        derivative = torch.stack([-out.detach().to(z.dtype), d_a]) if self.states is None else d_a.clone()
        return derivative, grads[1:]

    def state(self, t: float) -> Tensor:
        """z(t), interpolated."""
        if self.states is None:
            raise RuntimeError("the state is solved for, not interpolated")
        return self.states(min(max(t, self.times[0]), self.times[-1]))  # t was rounded to y's dtype for f

    def integrand_of(self, derivative: Tensor) -> Sequence[Tensor | None]:
        """a ∂f/∂θ of the evaluation that returned this."""
        return self.integrands[derivative.data_ptr()]

    def forget_all_but(self, derivatives: Sequence[Tensor]) -> None:
        """Only these are asked for again."""
        known = [k.data_ptr() for k in derivatives]
        self.integrands = {place: self.integrands[place] for place in known if place in self.integrands}
