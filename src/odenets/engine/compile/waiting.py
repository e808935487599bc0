"""What a person sees while a solve is compiled: one line on a terminal, with the seconds."""

import os
import sys
import threading
import time

from odenets.advance import Written

_QUIET = "ODENETS_QUIET"  # an environment variable: anything but "" asks for silence
_FIRST = 1.0  # seconds before the first line: what is compiled already is there sooner
_PAUSE = 0.2  # and between two


class _Line:
    def __init__(self) -> None:
        self.begun, self.done = time.monotonic(), threading.Event()
        self.written = Written()
        self.thread = threading.Thread(target=self._run, name="odenets-line", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        pause = _FIRST
        while not self.done.wait(pause):
            pause = _PAUSE
            self.written.write(
                f"odenets: compiling the solve, {self._seconds} s; once, and its steps are fast from then on"
            )

    def end(self) -> None:
        self.done.set()
        self.thread.join()
        if self.written.length:
            self.written.write(f"odenets: compiled the solve in {self._seconds} s")
            self.written.close()

    @property
    def _seconds(self) -> int:
        return round(time.monotonic() - self.begun)


_line: _Line | None = None


def begin() -> None:
    """Something is being compiled from now on."""
    global _line
    if _line is None and sys.stderr.isatty() and not os.environ.get(_QUIET):
        _line = _Line()


def end() -> None:
    """Nothing is, any more."""
    global _line
    if _line is not None:
        line, _line = _line, None
        line.end()
