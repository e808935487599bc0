"""A solve inside somebody else's graph: `torch.compile` of a model with an ODE layer, `torch.export`, ONNX.

Fixed steps are laid out one after the other. Adaptive steps are a `torch.while_loop` for each output time, which
PyTorch differentiates itself by running each step again, as `Checkpointed` does; every output time is the end of a
step. Nothing is read by the host, so nothing is counted, and a solve that fails gives NaN.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odenets.engine.eager import run
from odenets.engine.engines import Keep
from odenets.engine.tensors.forward import forward
from odenets.engine.tensors.plan import Clock, Flow, Numbers, Plan
from odenets.engine.tensors.stops import Stops
from odenets.evaluation import checked
from odenets.problem import Problem, Trajectory

_MOST_STEPS = 4096  # fixed steps that are laid out


@dataclass(frozen=True)
class Inline:
    """Operations of the graph that is being traced."""

    open = True
    compiled = False

    def seen(self, problem: Problem) -> Trajectory:
        """The solve as tensor operations without an end that depends on values.

        Raises:
            ValueError: If there are too many fixed steps.
        """
        if problem.controller.adaptive:
            return Trajectory(_adaptive(problem))
        times = problem.times
        size = problem.controller.given_step(times[0], times[-1])
        if times[-1] - times[0] > _MOST_STEPS * size:
            steps = (times[-1] - times[0]) / size
            raise ValueError(f"{steps:.0f} fixed steps are too many to be laid out in one graph; at most {_MOST_STEPS}")
        return run(problem, problem.y0, read=False)

    def kept(self, problem: Problem, keep: Keep) -> Trajectory:
        return self.seen(problem)


def _adaptive(problem: Problem) -> Tensor:
    times, y = problem.times, problem.y0

    def f(t: Tensor, y: Tensor) -> Tensor:
        return checked(problem.f(t, y), t, y)

    plan = Plan.of(problem, keep=False, outputs=False, parts=False, timed=False)
    stops = Stops.given(plan, problem)
    ys = [y] * problem.at_start
    t0, first = times[0], True
    clock = torch.zeros((Clock.length(plan.controller), *plan.time_shape(y)), dtype=torch.float64, device=y.device)
    state, carry = y, plan.carry(y)
    for t1 in times[len(ys) :]:
        if t1 > t0:
            numbers = torch.tensor(Numbers.of(problem, t0, t1, first), dtype=torch.float64, device=y.device)
            _, clock, state, *carry = forward(
                plan, _FLOW, lambda _: f, numbers, numbers[:1], clock, state, *stops, *carry
            )
            y = torch.where(Clock.read(clock).t >= t1, state, math.nan)
            t0, first = t1, False
        ys.append(y)
    return torch.stack(ys)


def _while(
    condition: Callable[..., Tensor],
    body: Callable[..., tuple[Tensor, ...]],
    carry: tuple[Tensor, ...],
    constants: tuple[Tensor, ...],
    mutated: Sequence[int],
) -> tuple[Tensor, ...]:
    from torch._higher_order_ops import while_loop  # noqa: PLC0415 — imports PyTorch's compiler; and of its private parts

    return while_loop(lambda *now: condition(*now, *constants), lambda *now: body(*now, *constants), carry)


def _branch(*_: object) -> tuple[Tensor, ...]:
    raise RuntimeError("steps that are made of those before are laid out, not looped over")


_FLOW = Flow(_while, _branch)
