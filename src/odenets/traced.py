"""A solve inside somebody else's graph: `torch.compile` of a model with an ODE layer, `torch.export`, ONNX.

Fixed steps are laid out one after the other. Adaptive steps are a `torch.while_loop` for each output time, which
PyTorch differentiates itself by running each step again, as `Checkpointed` does; every output time is the end of a
step. Nothing is read by the host, so nothing is counted, and a solve that fails gives NaN.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from odenets.evaluation import checked
from odenets.loop import Problem, Trajectory, run
from odenets.march import CLOCK, Plan, forward, numbers_of, time_shape
from odenets.methods import ImplicitRungeKutta

_MOST_STEPS = 4096  # fixed steps that are laid out


def integrate(problem: Problem) -> Trajectory:
    """The solve as tensor operations without an end that depends on values.

    Raises:
        TypeError: With dense output, which it would have to leave out; with an implicit method, which has to iterate.
        ValueError: If there are too many fixed steps.
    """
    if problem.dense:
        raise TypeError("`dense=True` keeps nothing inside a graph: pass the times that are wanted in `t`")
    if isinstance(problem.method, ImplicitRungeKutta):
        raise TypeError(f"`method` {problem.method.name!r} is implicit and iterates, which no graph can hold")
    if problem.controller.adaptive:
        return Trajectory(_adaptive(problem), [], None)
    times = problem.times
    size = problem.controller.given_step(times[0], times[-1])
    if times[-1] - times[0] > _MOST_STEPS * size:
        steps = (times[-1] - times[0]) / size
        raise ValueError(f"{steps:.0f} fixed steps are too many to be laid out in one graph; at most {_MOST_STEPS}")
    return run(problem, problem.y0, None, read=False)


def _adaptive(problem: Problem) -> Tensor:
    times, y = problem.times, problem.y0

    def f(t: Tensor, y: Tensor) -> Tensor:
        return checked(problem.f(t, y), t, y)

    plan = Plan(problem.method, problem.controller, problem.per_sample, False, False, False, False)
    shape = time_shape(plan, y)
    ys = [y] * times.count(times[0])
    t0 = times[0]
    for t1 in times[len(ys) :]:
        if t1 > t0:
            numbers = torch.tensor(numbers_of(problem, t0, t1, True), dtype=torch.float64, device=y.device)
            clock = torch.zeros((CLOCK + len(plan.controller.start), *shape), dtype=torch.float64, device=y.device)
            _, clock, end, *_ = forward(plan, _while, lambda _: f, numbers, numbers[:1], clock, y, y)
            y = torch.where(clock[0] >= t1, end, math.nan)
            t0 = t1
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
