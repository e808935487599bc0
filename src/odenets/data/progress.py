"""Progress of slow loops: one small function type, so that a caller can plug in its own or none."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

__all__ = ["Progress", "no_progress", "progress_bar"]

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""`progress(items, description)` yields the items one by one and may show how far it is."""


def progress_bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Yield `items` behind a bar on standard error; silent where that is not a terminal (logs, tests)."""
    console = Console(stderr=True)
    return track(items, description, console=console, disable=not console.is_terminal)


def no_progress(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Yield `items` and show nothing."""
    return items
