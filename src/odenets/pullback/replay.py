"""Is f the same function in the backward pass? If not, the gradient would be that of something never computed."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from odenets.evaluation import evaluate_at_start
from odenets.methods import rounding_of
from odenets.problem import Problem
from odenets.solution import Stats
from odenets.transforms import is_captured


class ReplayError(RuntimeError):
    """f returned something else in the backward pass than in the forward pass, at the same t and y."""


class SameAgain:
    """Compares what the backward pass makes again with what the forward pass made.

    Equal but for rounding: an operation may be carried out otherwise where autograd looks on. On an accelerator nothing
    is read before `finish`.

    Args:
        name: What has the backward pass, as the caller wrote it, for the error.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._excess: Tensor | None = None  # the largest difference, in units of what is allowed

    def check(self, again: Tensor, before: Tensor, start: Tensor) -> None:
        """Compare `again` with `before`, where f has made what is more than `start`."""
        if before.device.type == "cpu" and torch.equal(again, before):
            return
        eps = rounding_of(before)
        size = (before - start).abs()
        largest = size.max() if size.numel() else 0.0
        allowed = math.sqrt(eps) * size + 16 * eps * before.abs() + 100 * eps * largest
        excess = ((again - before).abs() / allowed.clamp(min=torch.finfo(before.dtype).tiny)).flatten()
        excess = torch.cat([excess, excess.new_zeros(1)]).max()
        self._excess = excess if self._excess is None else torch.maximum(self._excess, excess)
        if before.device.type == "cpu":
            self.finish()

    def finish(self) -> None:
        """Say what was found.

        Raises:
            ReplayError: If something differed.
        """
        if self._excess is None or is_captured(self._excess):  # calls before a capture have been looked at
            return
        if not float(self._excess) <= 1:  # NaN too
            raise ReplayError(
                f"`f` returned something else in the backward pass of {self.name} than in the forward pass, at "
                "the same t and y, so the gradient would be wrong: it draws random numbers (dropout) or changes a "
                "state of its own (a counter, a running mean, `spectral_norm` in training). Write `adjoint=Direct()`, "
                "which evaluates `f` once, or let `f` depend on t, y and `args` alone"
            )


def check_start(name: str, problem: Problem, y0: Tensor, f0: Tensor) -> Tensor:
    """Evaluate f once more at the start, where it was f0; the new value.

    Raises:
        ReplayError: If it differs.
    """
    stats = Stats()
    again = evaluate_at_start(replace(problem, stats=stats), y0)
    problem.stats.add_backward(stats.nfe)
    same = SameAgain(name)
    same.check(again, f0, torch.zeros_like(f0))
    same.finish()
    return again
