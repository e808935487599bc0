"""Solves by `odenets.solve`: one, or one for each piece between the times where f jumps."""

import bisect
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from odenets.adjoint import Adjoint
from odenets.controller import Fixed
from odenets.problem import Between
from odenets.solution import Solution
from odenets.solve import solve
from odenets.torchdiffeq.call import Call
from odenets.torchdiffeq.grid import Grid
from odenets.torchdiffeq.words import raise_failure
from odenets.transforms import is_differentiated

AdjointOf = Callable[[Tensor], Adjoint]  # of the solve for those times


def states(call: Call, t: Tensor, adjoint: AdjointOf, event: bool = False) -> Tensor:
    """The states at the times t, (T, *y0.shape)."""
    ys = [solution.ys[wanted] for solution, wanted in pieces(call, t, adjoint, event=event)]
    return ys[0] if len(ys) == 1 else torch.cat(ys)


def pieces(
    call: Call, t: Tensor, adjoint: AdjointOf, *, dense: bool = False, event: bool = False
) -> Iterator[tuple[Solution, slice]]:
    """The solutions between the times where f jumps, each with those of its outputs that are its own."""
    times = t.detach().to(torch.float64).tolist()
    edges = call.scheme.edges(call, t)
    cuts = {value: edge for value, edge in zip(edges.tolist(), edges.unbind()) if times[0] < value < times[-1]}
    method = call.scheme.solver_method(call, call.watch, event)
    y, dt = call.y0, None
    for low, high in itertools.pairwise([times[0], *cuts, times[-1]]):
        piece, f, wanted = t, call.f, slice(None)
        if cuts:
            piece, wanted = _between(t.to(torch.float64), times, cuts, low, high)
            f = Between(call.f, low, high) if call.scheme.one_sided else call.f
        if event and isinstance(call.scheme, Grid):
            controller = Fixed(dt=float(call.scheme.step_size))
        else:
            controller = call.scheme.controller(call, t, low, call.sign, call.watch, dt)
        solution = solve(
            f,
            y,
            piece,
            method=method,
            controller=controller,
            adjoint=adjoint(piece),
            dense=dense,
            max_steps=call.scheme.most_steps(t),
            on_failure="status",
        )
        if solution.failure is not None:
            raise_failure(solution.failure, solution.stats, call.sign)
        y, dt = solution.ys[-1], getattr(controller, "planned", None)
        yield solution, wanted


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
