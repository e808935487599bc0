"""A solve inside somebody else's graph: `torch.compile` of a model with an ODE layer, `torch.export`, ONNX.

Fixed steps are laid out one after the other. Adaptive steps are a `torch.while_loop` for each output time, which
PyTorch differentiates itself by running each step again, as `Checkpointed` does; every output time is the end of a
step. Nothing is read by the host, so nothing is counted, and a solve that fails gives NaN.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._higher_order_ops import while_loop

from odenets.controller import Fixed
from odenets.loop import Problem, Trajectory
from odenets.march import CLOCK, Plan, forward

_MOST_STEPS = 4096  # fixed steps that are laid out


def integrate(problem: Problem) -> Trajectory:
    """The solve as tensor operations without an end that depends on values."""
    segments = _fixed if isinstance(problem.controller, Fixed) else _adaptive
    return Trajectory(segments(problem), [], [], None)


def _fixed(problem: Problem) -> Tensor:
    times, y, f = problem.times, problem.y0, problem.f
    size = problem.controller.first_step(f, y, y, times[0], times[-1], problem.method.order).dt
    steps = math.ceil((times[-1] - times[0]) / size * (1 - 1e-9))
    if steps > _MOST_STEPS:
        raise ValueError(f"{steps} fixed steps are too many to be laid out in one graph; at most {_MOST_STEPS}")
    ys, t = [y] * times.count(times[0]), times[0]
    for i in range(steps):
        dt = times[-1] - t if i == steps - 1 else size
        t1 = times[-1] if i == steps - 1 else t + dt
        step = problem.method.step(f, t, y, dt, None)
        inside = [value for value in times[len(ys) :] if value <= t1]
        if any(value != t1 for value in inside):
            step = step.with_f1(f)
        for value in inside:
            theta = (value - t) / dt
            ys.append(step.y if value == t1 else problem.method.interpolate(y, dt, step.stages, theta))
        y, t = step.y, t1
    return torch.stack(ys)


def _adaptive(problem: Problem) -> Tensor:
    times, y = problem.times, problem.y0
    plan = Plan(problem.method, problem.controller, problem.per_sample, False, False, False, False)
    tunable = [getattr(problem.controller, name) for name in getattr(problem.controller, "tunable", ())]
    ys = [y] * times.count(times[0])
    t0 = times[0]
    for t1 in times[len(ys) :]:
        if t1 > t0:
            dt = 0.0 if plan.chooses_first_step else float(problem.controller.dt0)  # pyright: ignore
            numbers = torch.tensor(
                [t0, t1, problem.max_steps, dt, 1.0, 1.0, *tunable], dtype=torch.float64, device=y.device
            )
            shape = (y.shape[0], *(1,) * (y.dim() - 1)) if problem.per_sample else ()
            clock = torch.zeros((CLOCK + len(plan.controller.start), *shape), dtype=torch.float64, device=y.device)
            _, clock, end, *_ = forward(plan, _while, lambda _: problem.f, numbers, numbers[:1], clock, y, y)
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
    return while_loop(lambda *now: condition(*now, *constants), lambda *now: body(*now, *constants), carry)
