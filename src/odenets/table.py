"""Tables as text: aligned columns, numbers to the right."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """The rows as lines, columns padded to one width; those in `right` have their text at the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(_cell(cell, w, i in right) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows
    ]


def _cell(text: str, width: int, right: bool) -> str:
    return f"{text:>{width}}" if right else f"{text:<{width}}"
