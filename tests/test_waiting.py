"""What a terminal shows while a solve is compiled."""

import io
import time

import pytest

from odenets.engine.compile import waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What is on the terminal after something was compiled; pytest puts its own standard error in between."""
    monkeypatch.delenv("ODENETS_QUIET", raising=False)

    def shown(first=0.0, terminal=True):
        monkeypatch.setattr("sys.stderr", written := Terminal() if terminal else io.StringIO())
        monkeypatch.setattr(waiting, "_FIRST", first)
        waiting.begin()
        waiting.begin()  # the second direction
        end = time.monotonic() + 10
        while waiting._line is not None and first == 0 and not written.getvalue() and time.monotonic() < end:
            time.sleep(0.001)
        waiting.end()
        waiting.end()
        return written.getvalue()

    return shown


def test_one_line_that_ends_with_the_seconds(shown):
    text = shown()
    first, *_, last = text.split("\r")[1:]
    assert first == "odenets: compiling the solve, 0 s; once, and its steps are fast from then on"
    assert last.rstrip() == "odenets: compiled the solve in 0 s"
    assert text.endswith("\n")
    assert text.count("\n") == 1


def test_silence(shown, monkeypatch):
    """For what is there at once, where nobody reads, and where it is asked for."""
    assert shown(first=60.0) == ""
    assert shown(terminal=False) == ""
    monkeypatch.setenv("ODENETS_QUIET", "1")
    assert shown() == ""
