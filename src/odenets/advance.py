"""How far a solve is, told while it runs: to a function of the caller's, or as one line on standard error."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from odenets.arguments import shown

_PAUSE = 0.1  # seconds between two lines that a person reads


class Advance(NamedTuple):
    """How far a solve is, after an accepted step; in the caller's time."""

    t: float  # the time reached
    dt: float  # of the step, negative where the solve goes backward
    accepted: int
    rejected: int
    nfe: int  # evaluations of f


Told = Callable[[Advance], Any]


def teller(progress: Any, start: float, end: float) -> Told | None:
    """What is to be called after each accepted step of a solve from start to end; None where nobody asks.

    Raises:
        TypeError: If `progress` is neither a bool nor a function.
    """
    if progress is False:
        return None
    if progress is True:
        return Line(start, end) if sys.stderr.isatty() else None
    if not callable(progress) or isinstance(progress, type):
        raise TypeError(f"`progress` must be True, False or a function of an `Advance`, got {shown(progress)}")
    return progress


class Written:
    """One line on standard error, written over and over, at most ten times a second."""

    def __init__(self) -> None:
        self.last, self.length = 0.0, 0

    def is_due(self, always: bool = False) -> bool:
        """Whether a person can read another one; then that is taken to be written."""
        now = time.monotonic()
        if not always and now - self.last < _PAUSE:
            return False
        self.last = now
        return True

    def write(self, text: str) -> None:
        """Write it over what was there."""
        sys.stderr.write(f"\r{text:<{self.length}}")
        sys.stderr.flush()
        self.length = len(text)

    def close(self) -> None:
        """Leave the line as it is."""
        if self.length:
            sys.stderr.write("\n")
            sys.stderr.flush()


class Line(Written):
    """How far a solve is, as such a line."""

    def __init__(self, start: float, end: float) -> None:
        super().__init__()
        self.start, self.end = start, end

    def __call__(self, advance: Advance) -> None:
        if self.is_due(always=advance.t == self.end):
            self.write(self.text(advance))

    def text(self, advance: Advance) -> str:
        """What a person reads."""
        t, dt, accepted, rejected, nfe = advance
        share = (t - self.start) / (self.end - self.start)  # 0 where the end is infinite
        return (
            f"{share:4.0%}  t = {t:.6g} of {self.end:g}, dt = {dt:.2g}, {accepted:,} steps, {rejected:,} rejected, "
            f"{nfe:,} evaluations"
        )
