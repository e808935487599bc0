"""How far a fit is, told while it runs, and kept as its history."""

import sys
import time
from typing import Any, NamedTuple

from odenets.arguments import shown

_PAUSE = 0.1  # seconds between two lines that a person reads


class FitAdvance(NamedTuple):
    """How far a fit is, after an iteration."""

    stage: str  # what is being done: "growing 12 of 50 times", "plain"
    iteration: int  # within the stage
    loss: float  # the mean of the squared residuals over sigma, with what a stage adds to it


class Teller:
    """Keeps what is told, and passes it on.

    Raises:
        TypeError: If `progress` is neither a bool nor a function.
    """

    def __init__(self, progress: Any) -> None:
        if not isinstance(progress, bool) and (not callable(progress) or isinstance(progress, type)):
            raise TypeError(f"`progress` must be True, False or a function of a `FitAdvance`, got {shown(progress)}")
        self.history: list[FitAdvance] = []
        self.line = progress is True and sys.stderr.isatty()
        self.told = None if isinstance(progress, bool) else progress
        self.last, self.length = 0.0, 0

    def __call__(self, stage: str, iteration: int, loss: float) -> None:
        advance = FitAdvance(stage, iteration, loss)
        self.history.append(advance)
        if self.told is not None:
            self.told(advance)
        if self.line and time.monotonic() - self.last >= _PAUSE:
            self.last = time.monotonic()
            self._write(f"{stage}, iteration {iteration}, loss {loss:.6g}")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r{text:<{self.length}}")
        sys.stderr.flush()
        self.length = len(text)

    def close(self) -> None:
        """Leave the line as it is."""
        if self.length:
            sys.stderr.write("\n")
            sys.stderr.flush()
