"""Trajectories in segments of a few times each, every one solved from a state of its own, all of them as one batch.

With one segment this is a solve from the first time to the last ("single shooting"), with more of them "multiple
shooting" (H. G. Bock, "Numerical treatment of inverse problems in chemical reaction kinetics", 1981). Segments begin at
times of the data, and may be of different length: each is solved from s = 0 to 1 with t = start + s × length.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.fitting.given import Data, Observe
from odenets.solution import Status
from odenets.solve import solve

_SAME = 1e9  # parts of a segment within which two times are one


class Grid(NamedTuple):
    """Times in segments.

    Attributes:
        starts, lengths: When each segment begins, and how long it is, (S,) in float64.
        outputs: The s at which states are wanted, from 0 to 1; the times themselves of one segment.
        segment, output: For each of the T times, which segment's state it is and at which output.
    """

    starts: Tensor
    lengths: Tensor
    outputs: list[float]
    segment: Tensor
    output: Tensor

    @staticmethod
    def of(times: list[float], segments: int) -> "Grid":
        """The times in so many segments, at most one less than times."""
        last = len(times) - 1
        bounds = [round(i * last / segments) for i in range(segments + 1)]
        starts = [times[i] for i in bounds[:-1]]
        lengths = [times[j] - times[i] for i, j in itertools.pairwise(bounds)]
        segment = [min(bisect.bisect(bounds, i), segments) - 1 for i in range(len(times))]
        if segments == 1:
            keys, outputs = list(range(len(times))), dict(enumerate(times))
        else:  # the times of a regular grid are one in all segments
            own = [(t - starts[i]) / lengths[i] for t, i in zip(times, segment)]
            keys = [round(_SAME * s) for s in own]
            outputs = dict(zip(keys, own)) | {0: 0.0, round(_SAME): 1.0}
        place = {key: i for i, key in enumerate(sorted(outputs))}
        return Grid(
            torch.tensor(starts, dtype=torch.float64),
            torch.tensor(lengths, dtype=torch.float64),
            [outputs[key] for key in place],
            torch.tensor(segment),
            torch.tensor([place[key] for key in keys]),
        )

    @property
    def segments(self) -> int:
        """How many segments."""
        return len(self.starts)


Field = Callable[[Tensor, Tensor], Tensor]


def solve_segments(field: Field, nodes: Tensor, grid: Grid, options: Mapping[str, Any]) -> Tensor | None:
    """The states at the outputs of all segments, (Q, ..., N, S, n); None where the solve fails.

    Args:
        field: f(t, y) with y like nodes, and t of shape () or, of more segments than one, (S, 1).
        nodes: The states at the starts of the segments, (..., N, S, n).
        options: Those of `odenets.solve`.
    """
    if grid.segments == 1:
        own = field
    else:
        starts, lengths = grid.starts[:, None], grid.lengths[:, None]

        def own(t: Tensor, y: Tensor, /) -> Tensor:
            return lengths.to(y.dtype) * field((starts + t * lengths).to(y.dtype), y)

    solution = solve(own, nodes, grid.outputs, on_failure="status", **options)
    return solution.ys if solution.status is Status.SUCCESS else None


def observed(states: Tensor, grid: Grid, observe: Observe | None) -> Tensor:
    """What is observed at the T times, (..., N, T, d), of states at the outputs (Q, ..., N, S, n)."""
    at_times = states.movedim(-2, 1)[grid.output, grid.segment]  # (T, ..., N, n)
    at_times = at_times.movedim(0, -2)
    return at_times if observe is None else observe(at_times)


def gaps(states: Tensor, nodes: Tensor) -> Tensor:
    """By how much the end of each segment misses the start of the next, (..., N, S - 1, n)."""
    return states[-1][..., :-1, :] - nodes[..., 1:, :]


def check_observed(seen: Tensor, data: Data) -> None:
    """Refuse an `observe` that returns another shape than the values have.

    Raises:
        ValueError: With both shapes.
    """
    trajectories, count, columns = data.values.shape
    if seen.shape != (trajectories, count, columns):
        raise ValueError(
            f"`observe` must make (..., {columns}) of states (..., n), as `values` has {columns} columns; it returned "
            f"{tuple(seen.shape)} for {trajectories} × {count} states"
        )


def flat_times(t: Tensor, y: Tensor) -> Tensor:
    """The t for rows (batch, n) of y: () as it is, (S, 1) repeated for all that stand before the segments."""
    return t if t.dim() == 0 else t.expand(*y.shape[:-1], 1).reshape(-1, 1)


def segments_for(data: Data, components: int, most: float = math.inf) -> int:
    """How many segments: of four times each, and no more unknowns than `most`."""
    trajectories, count, _ = data.values.shape
    return max(1, min(count // 4, int(min(most / (trajectories * components), count)), count - 1))
