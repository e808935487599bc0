"""Which samples each process takes in each step: pure functions, so that a run can resume anywhere."""

from dataclasses import dataclass

import torch
from torch import Tensor

from odenets.train.process import mixed_seed

__all__ = ["Share", "epoch_order", "shares"]


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in `epoch` (from 0), (samples,) on the CPU: depends on the arguments only."""
    generator = torch.Generator().manual_seed(mixed_seed("order", seed, epoch))
    return torch.randperm(samples, generator=generator)


@dataclass(frozen=True)
class Share:
    """What one process does of one batch: `order[begin:end]`, whose mean loss counts `weight` in the gradient.

    A batch with fewer samples than processes leaves some without any: they run one sample with weight 0,
    because every process must take part in the exchange of gradients. `samples` are those that count.
    """

    begin: int
    end: int
    samples: int
    weight: float


def shares(step: int, total: int, batch_size: int, accumulate: int, rank: int = 0, processes: int = 1) -> list[Share]:
    """The shares of process `rank` in the batches of `step` (from 0) in an epoch of `total` samples.

    The gradient of a step is the mean over all N samples of its batches. So the mean over this process's n
    samples of one batch must count n / N, times `processes`, because DDP averages over the processes.
    """
    begin = step * batch_size * accumulate
    end = min(total, begin + batch_size * accumulate)
    batches = range(begin, end, batch_size)
    return [_share(first, min(end, first + batch_size), end - begin, rank, processes) for first in batches]


def _share(first: int, last: int, together: int, rank: int, processes: int) -> Share:
    size = last - first
    low, high = first + size * rank // processes, first + size * (rank + 1) // processes
    if low == high:
        return Share(first, first + 1, samples=0, weight=0.0)
    return Share(low, high, high - low, processes * (high - low) / together)
