"""Solves by `odenets.solve`: one, or one for each step where the points of a grid have derivatives of their own."""

import bisect
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odenets.adjoint import Adjoint
from odenets.controller import Fixed
from odenets.problem import Between
from odenets.solution import Solution, Status
from odenets.solve import solve
from odenets.torchdiffeq.call import Call
from odenets.torchdiffeq.words import raise_failure
from odenets.transforms import is_differentiated

AdjointOf = Callable[[Tensor], Adjoint]  # of the solve for those times


def states(call: Call, t: Tensor, adjoint: AdjointOf) -> Tensor:
    """The states at the times t, (T, *y0.shape)."""
    return _step_by_step(call, t, adjoint) if call.scheme.moves(t) else solved(call, t, adjoint(t)).ys


def solved(call: Call, t: Tensor, adjoint: Adjoint, **options: Any) -> Solution:
    """The solution at the times t, as the call's scheme makes its steps."""
    stops, jumps = call.scheme.stops(call, call.t, call.sign)
    options |= {"controller": call.scheme.controller(call.watch), "stops": stops, "jumps": jumps}
    return _solved(call, call.y0, t, adjoint=adjoint, **options)


def _step_by_step(call: Call, t: Tensor, adjoint: AdjointOf) -> Tensor:
    """The states at the times t, each step from point to point of the grid a solve of its own."""
    scheme, times = call.scheme, t.detach().to(torch.float64).tolist()
    points = scheme.points(call, t.detach() if scheme.on_outputs else t, call.sign)
    cuts = {value: point for value, point in zip(points.tolist(), points.unbind()) if times[0] < value < times[-1]}
    y, ys = call.y0, []
    for low, high in itertools.pairwise([times[0], *cuts, times[-1]]):
        piece, wanted = _between(t.to(torch.float64), times, cuts, low, high)
        found = _solved(call, y, piece, adjoint=adjoint(piece), controller=Fixed(steps=1)).ys
        ys.append(found[wanted])
        y = found[-1]
    return torch.cat(ys)


def _solved(call: Call, y0: Tensor, t: Tensor, **options: Any) -> Solution:
    method, most = call.scheme.solver_method(call, call.watch), call.scheme.most_steps(call.t, "event" in options)
    f = Between(call.f, *t.detach()[[0, -1]].tolist()) if call.scheme.perturb else call.f
    solution = solve(f, y0, t, method=method, max_steps=most, on_failure="status", **options)
    failure = solution.failure
    if failure is not None:
        if failure.status is Status.NO_EVENT and solution.stats.steps >= most:
            failure = replace(failure, detail=call.scheme.further)
        raise_failure(failure, solution.stats, call.sign)
    return solution


def _between(t: Tensor, times: list[float], cuts: dict[float, Tensor], low: float, high: float) -> tuple[Tensor, slice]:
    """Low and high with the times of t between, and which of them are outputs that the piece before has not had."""
    first, last = bisect.bisect_right(times, low), bisect.bisect_left(times, high)
    # A cut with derivatives is no output, even where it has the value of one.
    begin, end = (_moving(cuts.get(edge)) for edge in (low, high))
    start = t[first - 1 : first] if times[first - 1] == low else t.new_tensor([low])
    outputs = t[first : last + (times[last] == high)]
    wanted = slice(0 if low == times[0] else 1, None if times[last] == high and end is None else -1)
    if end is None and times[last] != high:
        end = t.new_tensor([high])
    parts = [start if begin is None else begin, outputs, *([] if end is None else [end])]
    return torch.cat(parts), wanted


def _moving(cut: Tensor | None) -> Tensor | None:
    """The cut as a vector, where it has derivatives."""
    return cut[None] if cut is not None and is_differentiated(cut) else None
