"""What the generated tables share: Markdown, the committed results, and how numbers are written."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def load(name: str) -> dict[str, Any]:
    """The committed numbers of one measurement."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def with_versions(table: str, result: dict[str, Any], *packages: str, dtype: str = "float32") -> str:
    """The table, and below it what it was made with."""
    versions = result["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", *packages))
    return f"{table}\n{versions['cpu']}, {named}, Python {versions['python']}, {dtype}, one thread.\n"


def optional(value: float | None, digits: int, scale: float = 1.0) -> str:
    """The number, or an empty cell."""
    return "" if value is None else f"{scale * value:.{digits}f}"


def ratio(value: float) -> str:
    """How many times as long: one digit after the point, below 1 two that count, so that none is written as 0.0."""
    return f"{value:.1f}" if value >= 0.95 else f"{value:#.2g}"
