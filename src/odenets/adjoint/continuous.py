"""The continuous adjoint: equations (6) and (7), solved backward in time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets.adjoint.outside import Call, GradientSum, Wanted, inner_product, outside_autograd, refuse_second_derivative
from odenets.controller import Controller, Fixed
from odenets.loop import Problem, Stepper, Trajectory, run
from odenets.methods import ExplicitRungeKutta
from odenets.solution import SolveError, Stats


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
        return outside_autograd(problem, _SolveBack, keep=False, extra=backward)


def _whole_interval(problem: Problem) -> Controller:
    """The forward controller, with `Fixed(steps=...)` meant for the whole interval and not for each part of it."""
    controller = problem.controller
    if isinstance(controller, Fixed) and problem.times[-1] > problem.times[0]:
        return Fixed(dt=controller.size(problem.times[0], problem.times[-1]))
    return controller


class _SolveBack(torch.autograd.Function):
    """The loop without a memory, and the adjoint equations solved backward in its place."""

    @staticmethod
    def forward(ctx: Any, call: Call, keep: bool, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
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
        refuse_second_derivative("Backsolve")
        (grad_ys,) = grad_outputs
        ys = ctx.saved_tensors[0]
        call: Call = ctx.call
        stats = Stats()
        solver = _AdjointSolve(replace(call.extra, stats=stats), call.wanted, ys[-1], len(ys) - 1)
        grad_t = torch.zeros_like(ctx.saved_tensors[1]) if ctx.needs_input_grad[3] else None
        with call.autocast:
            for j in reversed(range(1, len(ys))):
                solver.jump(ys[j], grad_ys[j])
                if grad_t is not None:
                    grad_t[j] = inner_product(grad_ys[j], solver.f(j))
                solver.solve_to(j - 1)
            if grad_t is not None:
                grad_t[0] = -inner_product(solver.a, solver.f(0))
        call.problem.stats.nfe_backward = (call.problem.stats.nfe_backward or 0) + stats.nfe
        return None, None, solver.a + grad_ys[0], grad_t, *solver.grads.values


class _AdjointSolve:
    """z and a = ∂L/∂z, solved together in s = −t, so that s increases.

    Equation (2): dz/ds = −f. Equation (6): da/ds = a ∂f/∂z. Equation (7): ∂L/∂θ = ∫ a ∂f/∂θ ds, by quadrature.
    """

    def __init__(self, problem: Problem, wanted: Wanted, y: Tensor, last: int) -> None:
        self.problem, self.wanted = problem, wanted
        self.a = torch.zeros_like(y)  # ∂L/∂z at the present time
        self.y = y
        self.grads = GradientSum(len(wanted.tensors))
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
