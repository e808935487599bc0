"""Is f the same function in the backward pass? If not, the gradient would be that of something never computed."""

import math

import torch
from torch import Tensor

from odenets.loop import Problem, evaluate_at_start


class ReplayError(RuntimeError):
    """f returned something else in the backward pass than in the forward pass, at the same t and y."""


class SameAgain:
    """Compares what the backward pass makes again with what the forward pass made.

    Equal but for rounding: an operation may be carried out otherwise where autograd looks on. On an accelerator nothing
    is read before `finish`.

    Args:
        adjoint: The name of the adjoint, for the error.
    """

    def __init__(self, adjoint: str) -> None:
        self.adjoint = adjoint
        self._excess: Tensor | None = None  # the largest difference, in units of what is allowed

    def check_start(self, problem: Problem, y0: Tensor, f0: Tensor) -> Tensor:
        """Evaluate f once more at the start, where it was f0; the new value."""
        again = evaluate_at_start(problem, y0)
        self.check(again, f0, torch.zeros_like(f0))
        self.finish()
        return again

    def check(self, again: Tensor, before: Tensor, start: Tensor) -> None:
        """Compare `again` with `before`, where f has made what is more than `start`."""
        if before.device.type == "cpu" and torch.equal(again, before):
            return
        eps = _rounding(before)
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
        if self._excess is not None and not float(self._excess) <= 1:  # NaN too
            raise ReplayError(
                f"`f` returned something else in the backward pass of `adjoint={self.adjoint}()` than in the forward "
                "pass, at the same t and y, so the gradient would be wrong: it draws random numbers (dropout) or "
                "changes a state of its own (a counter, a running mean). Write `adjoint=Direct()`, which evaluates "
                "`f` once, or let `f` depend on t, y and `args` alone"
            )


def _rounding(y: Tensor) -> float:
    """How precise f is: as y, or as what autocast computes with."""
    kind = y.device.type
    eps = torch.finfo(y.dtype).eps
    return max(eps, torch.finfo(torch.get_autocast_dtype(kind)).eps) if torch.is_autocast_enabled(kind) else eps
