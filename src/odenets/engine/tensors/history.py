"""What a step of a multistep method is made of beside y, in tensors of one shape, however many steps there were."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odenets.methods import Past


class History(NamedTuple):
    """The steps before, the newest first; those that are not there yet have any values."""

    slopes: Tensor  # (steps, *y.shape): f where they began
    sizes: Tensor  # (steps + 1,) in float64: how long they were, and last how many are there

    @staticmethod
    def none(length: int, y: Tensor) -> "History":
        """That of so many steps, of which none is there."""
        sizes = torch.zeros(length + 1, dtype=torch.float64, device=y.device)
        return History(y.new_zeros((length, *y.shape)), sizes)

    @property
    def full(self) -> Tensor:
        """Whether all are there."""
        return self.sizes[-1] == len(self.sizes) - 1

    @property
    def past(self) -> Past:
        """The carry of a step, where all are there."""
        return Past(None, self.slopes.unbind(), self.sizes[:-1].unbind())

    def after(self, slope: Tensor, dt: Tensor, fresh: Tensor | None) -> "History":
        """That behind a step of size dt, where f was `slope` at its start; without any where one begins `fresh`."""
        count = (self.sizes[-1] + 1).clamp(max=len(self.sizes) - 1)
        count = count if fresh is None else torch.where(fresh, 0.0, count)
        sizes = torch.cat([dt[None], self.sizes[:-2], count[None]])
        return History(torch.cat([slope[None], self.slopes[:-1]]), sizes)


class HistoryBars(NamedTuple):
    """∂L/∂(the steps before), the newest first, where a reverse sweep stands."""

    slopes: Tensor  # (steps, *y.shape)
    sizes: Tensor  # (steps,) in float64

    @staticmethod
    def none(length: int, y: Tensor) -> "HistoryBars":
        history = History.none(length, y)
        return HistoryBars(history.slopes, history.sizes[1:])

    @property
    def of_step(self) -> Tensor:
        """∂L/∂(the size of the step about to be undone) by the steps behind it."""
        return self.sizes[0]

    def before(self, slopes: Sequence[Tensor | None], sizes: Sequence[Tensor]) -> "HistoryBars":
        """Those at the start of the step, of whose own history these are, or () where it has none."""
        none = torch.zeros_like(self.slopes[:1]), torch.zeros_like(self.sizes[:1])
        behind = torch.cat([self.sizes[1:], none[1]])
        if not slopes:
            return HistoryBars(torch.cat([self.slopes[1:], none[0]]), behind)
        return HistoryBars(torch.stack([x for x in slopes if x is not None]), behind + torch.stack(list(sizes)))
