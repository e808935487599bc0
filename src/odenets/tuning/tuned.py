"""What `tune` returns: the candidates, the choice, and the table that it was made from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from odenets.controller import Fixed
from odenets.solution import Status
from odenets.table import aligned
from odenets.tuning.measure import method_text, steps_text, the_block, value_of

TUNED = ("method", "rtol", "atol", "controller", "adjoint", "compile")


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        options: The options of `ODEBlock` that it stands for.
        loss_error: |loss − reference| / |reference|; NaN where the solve failed.
        gradient_error: ‖gradient − reference‖ / ‖reference‖, over all parameters together; NaN where the solve failed.
        nfe, nfe_backward: Evaluations of f in the forward and in the backward pass (0 with `Direct`).
        admissible: Whether both errors are small enough.
        seconds: Median time of a training step (forward and backward pass); NaN where it was not measured.
        note: What else there is to say: why there are no errors, for example.
        status: How the solve failed; None where it did not.
        present: Whether these are the settings that the layer has now.
    """

    options: dict[str, Any]
    loss_error: float = math.nan
    gradient_error: float = math.nan
    nfe: int = 0
    nfe_backward: int = 0
    admissible: bool = False
    seconds: float = math.nan
    note: str = ""
    status: Status | None = None
    present: bool = False

    @property
    def failed(self) -> bool:
        return math.isnan(self.loss_error)

    @property
    def compiled(self) -> bool:
        return bool(value_of(self.options, "compile"))


@dataclass(frozen=True)
class Tuning:
    """What `tune` found. Printed, it is the table that the choice was made from.

    Attributes:
        rows: All candidates in the order in which they were tried.
        chosen: The fastest admissible one; where none is admissible, the most accurate.
        reference: What the errors are relative to, in words.
        tolerance, gradient_tolerance: The largest errors that are admissible.
    """

    rows: tuple[Row, ...]
    chosen: Row
    reference: str
    tolerance: float
    gradient_tolerance: float

    @property
    def options(self) -> dict[str, Any]:
        """The chosen options, to write `ODEBlock(field, **tuning.options)`."""
        return dict(self.chosen.options)

    def apply(self, block: nn.Module) -> None:
        """Give a module's ODE layer the chosen options; its others, such as `max_steps` and `args`, stay.

        Raises:
            ValueError: If the module does not contain exactly one `ODEBlock`.
        """
        layer = the_block(block, "tune")
        layer.solve_options = {**others(layer.solve_options), **self.options}

    def __str__(self) -> str:
        head = (
            f"errors relative to {self.reference}; admissible: loss error ≤ {self.tolerance:g}, "
            f"gradient error ≤ {self.gradient_tolerance:g}"
        )
        shown = sorted(self.rows, key=lambda row: (not row.admissible, or_infinity(row.seconds)))
        return "\n".join([head, *_table(shown, self.chosen), *self._verdict()])

    def _verdict(self) -> Iterator[str]:
        if not self.chosen.admissible:
            yield (
                "No candidate is admissible; marked is the most accurate. Allow larger errors with `tolerance` and "
                "`gradient_tolerance`, or add tighter `tolerances`, or train in float64."
            )
        settings = ", ".join(f"{name}={value!r}" for name, value in self.options.items()) or "the defaults"
        now = next((row.seconds for row in self.rows if row.present), math.nan)
        known = self.chosen.seconds > 0 and now > 0 and not self.chosen.present
        yield f"chosen: {settings}" + (f": {now / self.chosen.seconds:.1f} × as fast as now" if known else "")
        if isinstance(self.chosen.options.get("controller"), Fixed):
            yield (
                "Fixed steps do not follow a field that changes: tune again as it trains, or leave "
                f"{method_text(self.options)} out of `methods`."
            )


def others(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in TUNED}


def or_infinity(seconds: float) -> float:
    return math.inf if math.isnan(seconds) else seconds


_HEAD = ("method", "steps", "adjoint", "loss error", "gradient error", "nfe", "ms", "")
_RIGHT = (3, 4, 5, 6)  # the columns of numbers


def cells(row: Row) -> tuple[str, ...]:
    remarks = ("as it is now" if row.present else "", row.note)
    return (
        method_text(row.options),
        steps_text(row.options),
        type(value_of(row.options, "adjoint")).__name__ + (", compiled" if row.compiled else ""),
        "" if row.failed else f"{row.loss_error:.1e}",
        "" if row.failed else f"{row.gradient_error:.1e}",
        "" if row.failed else f"{row.nfe} + {row.nfe_backward}",
        "" if math.isnan(row.seconds) else f"{1e3 * row.seconds:.2f}",
        "; ".join(remark for remark in remarks if remark),
    )


def _table(rows: Sequence[Row], chosen: Row) -> list[str]:
    """Aligned lines: a head, and a row each with a mark at the chosen one."""
    lines = aligned([_HEAD, *(cells(row) for row in rows)], _RIGHT)
    marks = ["", *("→" if row is chosen else "" for row in rows)]
    return [f"{mark:1} {line}".rstrip() for mark, line in zip(marks, lines)]
