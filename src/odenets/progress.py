"""What a person sees of slow work: a sentence before it, and a bar, for which a caller can plug in its own or none."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from odenets.extra import experiments_extra

with experiments_extra("`odenets.progress`"):
    from rich.console import Console
    from rich.progress import track

__all__ = ["Progress", "no_progress", "progress_bar", "say"]

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""`progress(items, description)` yields the items one by one and may show how far it is."""


def say(text: str) -> None:
    """Write a line to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def progress_bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Yield `items` behind a bar on standard error; silent where that is not a terminal (logs, tests)."""
    console = Console(stderr=True)
    return track(items, description, console=console, disable=not console.is_terminal)


def no_progress(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Yield `items` and show nothing."""
    return items
