"""How far a fit is, told while it runs, and kept as its history."""

import sys
from typing import Any, NamedTuple

from odenets.advance import Written
from odenets.arguments import shown


class FitAdvance(NamedTuple):
    """How far a fit is, after an iteration."""

    stage: str  # what is being done: "growing 12 of 50 times", "plain"
    iteration: int  # within the stage
    loss: float  # the mean of the squared residuals over sigma, with what a stage adds to it


class Teller(Written):
    """Keeps what is told, and passes it on.

    Raises:
        TypeError: If `progress` is neither a bool nor a function.
    """

    def __init__(self, progress: Any) -> None:
        super().__init__()
        if not isinstance(progress, bool) and (not callable(progress) or isinstance(progress, type)):
            raise TypeError(f"`progress` must be True, False or a function of a `FitAdvance`, got {shown(progress)}")
        self.history: list[FitAdvance] = []
        self.line = progress is True and sys.stderr.isatty()
        self.told = None if isinstance(progress, bool) else progress

    def __call__(self, stage: str, iteration: int, loss: float) -> None:
        advance = FitAdvance(stage, iteration, loss)
        self.history.append(advance)
        if self.told is not None:
            self.told(advance)
        if self.line and self.is_due():
            self.write(f"{stage}, iteration {iteration}, loss {loss:.6g}")
