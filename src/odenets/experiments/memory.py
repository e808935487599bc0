"""Is the memory of an ODE-Net constant, and can its state be solved backward (section 6, "Constant memory cost")?

Run it:     odenets run memory        (2 minutes on one core)
Expect:     from 4 to 1,024 evaluations the peak of a training step does not grow with Backsolve and Reversible, grows
            1.6 times with ten checkpoints, 71 to 112 times with the others and 140 times in a ResNet. The first three
            take 2.3, 4.2 and 3.3 times as long as Direct. The start solved backward is wrong by more than 1e-2, or not
            found, wherever distances shrink by e^20 and more; the field trained on digits can be solved backward at
            every tolerance tried (6e-3 at 1e-2). Where r ≥ 20, Backsolve and Reversible give no gradient at all.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from odenets.experiments.driver import Row, collect, listed, numbers_of, rows_table
from odenets.experiments.option import check_at_least, option
from odenets.experiments.result import INTRODUCTION, Picture, Result, Section, Table
from odenets.experiments.reversal import (
    ADJOINTS,
    BACKWARD,
    BATCH,
    DECAY,
    RESNET,
    SETTLING,
    TOLERANCES,
    TRAINED,
    WIDTH,
    memory_row,
    way_back,
)

SMALL = {"most": 16, "steepest": 1, "epochs": 1}
RATES = (1, 5, 10, 20, 50)
_FIXED = 1e-4  # the tolerance at which the lead compares gradients
MIB = 2**20
_LOST = 10.0  # an error of the start beyond which nothing of it is left, and which is not drawn
WANTED = 1e-2  # the error of the start that a replication of Chen et al. asks for (VanniLeonardo/NeuralODEs)


@dataclass(frozen=True)
class Config:
    """Options of the memory experiment; what is random in it has the seed 0."""

    most: int = option(1024, "The largest number of evaluations of f; it begins with 4, four times as many each time.")
    steepest: float = option(50, "The largest contraction: distances shrink by e to the minus so much.")
    epochs: int = option(20, "Epochs of the ODE-Net whose trained field is solved backward.")

    def __post_init__(self) -> None:
        check_at_least(self, most=16, steepest=1, epochs=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Measure everything; each piece of work is kept in `folder`, so a stopped run goes on."""
    counts = [4**i for i in range(1, 12) if 4**i <= config.most]
    rates, ways = [rate for rate in RATES if rate <= config.steepest], list(enumerate((*ADJOINTS, RESNET)))
    pieces: dict[str, Callable[[], Row]] = {
        **{f"memory-{i}-{n}": partial(memory_row, name, n) for i, name in ways for n in counts},
        **{f"back-{name}-{r}": partial(way_back, name, r, 0) for name in (DECAY, SETTLING) for r in rates},
        "back-trained": partial(way_back, TRAINED, 0, config.epochs),
    }
    rows = collect(pieces, folder, progress=progress, label="memory")
    memory, back = ([row for row in rows if ("adjoint" in row) is which] for which in (True, False))
    table = growth(memory)
    return Result(
        experiment="memory",
        title="Is the memory of an ODE-Net constant?",
        lead=_lead(table, back),
        config=dataclasses.asdict(config),
        source="Random states; equations with a known solution; the digits that come with scikit-learn.",
        synthetic=False,
        sections=(_memory(memory, table), _back(back), _gradients(back)),
        summary={"table": table, "back": list(map(dict, back)), "runs": numbers_of(memory)},
    )


def growth(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each adjoint: its row with the most evaluations, by how much the peak grew, and the time beside Direct's."""
    least, most = (f(row["evaluations"] for row in rows) for f in (min, max))
    at = {(row["adjoint"], row["evaluations"]): row for row in rows}
    return [
        {
            **at[name, most],
            "growth": at[name, most]["peak"] / at[name, least]["peak"],
            "fewest": least,
            "slower": at[name, most]["seconds"] / at["Direct", most]["seconds"],
        }
        for name in (*ADJOINTS, RESNET)
    ]


# --- words -----------------------------------------------------------------------------------------------------------


def _lead(table: Sequence[Row], back: Sequence[Row]) -> str:
    few, many = table[0]["fewest"], table[0]["evaluations"]
    by = {row["adjoint"]: row for row in table}
    constant = [name for name, row in by.items() if row["growth"] < 1.1]
    others = [name for name, row in by.items() if row["growth"] >= (many / few) ** 0.5 and name not in constant]
    slow = {name: row["growth"] for name, row in by.items() if name not in (*constant, *others)}
    price = " and ".join(f"{by[name]['slower']:.1f} ({name})" for name in constant)
    return (
        f"The claim of section 6 of {INTRODUCTION}, a memory that is constant in the evaluations of f, holds for "
        f"{listed(constant)}: from {few} to {many:,} evaluations the peak of a training step does not grow. "
        + (f"With {listed(list(slow))} it grows up to {max(slow.values()):.1f} times. " if slow else "")
        + f"It is not a property of every ODE-Net: with {listed([name for name in others if name != RESNET])} the peak "
        f"grows {min(by[name]['growth'] for name in others):.0f} times and more, in the ResNet "
        f"{by[RESNET]['growth']:.0f} times. "
        f"What is constant costs time, {price} times that of Direct, {_beside(by)}\n\n{_on_the_way_back(back)}"
    )


def _beside(by: dict[str, Row]) -> str:
    resnet = by[RESNET]
    return (
        f"which itself takes {by['Direct']['seconds'] / resnet['seconds']:.1f} times as long as a ResNet of "
        f"{resnet['evaluations']:,} blocks and needs {by['Direct']['peak'] / resnet['peak']:.2f} times its memory (the "
        "ResNet's own includes the gradients of all its weights)."
    )


def _on_the_way_back(back: Sequence[Row]) -> str:
    fails = sorted({row["rate"] for row in back if row["problem"] != TRAINED and not _ever(row["back"])})
    trained = next(row for row in back if row["problem"] == TRAINED)
    enough = [t for t, error in zip(TOLERANCES, trained["back"]) if error is not None and error <= WANTED]
    loosest = f"up to a tolerance of {max(enough):g}" if enough else "at no tolerance"
    hard = (
        f"where distances shrink by e^{fails[0]:g} or more its error is above {WANTED:g} at every tolerance tried, or "
        "the solve back fails"
        if fails
        else f"in every problem some tolerance brings its error below {WANTED:g}"
    )
    return (
        "“We can always reconstruct the entire trajectory” is true of exact solutions. Of the start solved backward "
        f"from the output, {hard}. The field trained on digits can be solved backward {loosest}. {_on_gradients(back)}"
    )


def _on_gradients(back: Sequence[Row]) -> str:
    cells = [row for row in back if f"gradient {BACKWARD[0]}" in row]
    total, fixed = len(TOLERANCES) * len(cells), TOLERANCES.index(_FIXED)
    told = []
    for name in BACKWARD:
        errors = [row[f"gradient {name}"] for row in cells]
        there = [error[fixed] for error in errors if error[fixed] is not None]
        fails = sum(error is None for row in errors for error in row)
        told.append(f"{name}: {fails} fail, error up to {max(there):.1e}" if there else f"{name}: {fails} fail")
    return f"Of {total} gradients by each adjoint (errors at a tolerance of {_FIXED:g}): {'; '.join(told)}."


def _ever(errors: Sequence[float | None]) -> bool:
    return any(error is not None and error <= WANTED for error in errors)


# --- tables and figures ----------------------------------------------------------------------------------------------


def _memory(rows: Sequence[Row], table: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    drawn = {}
    for name in (*ADJOINTS, RESNET):
        mine = [row for row in rows if row["adjoint"] == name]
        drawn[name] = figures.Line([row["evaluations"] for row in mine], [row["peak"] / MIB for row in mine])
    found = rows_table(
        f"A training step with {table[0]['evaluations']:,} evaluations of f",
        [{**row, "kept": row["kept"] / 2**20, "peak": row["peak"] / MIB, "ms": 1e3 * row["seconds"]} for row in table],
        {
            "gradient": "adjoint",
            "kept, MiB": "kept:.2f",
            "peak, MiB": "peak:.2f",
            f"peak beside that of {table[0]['fewest']}": "growth:.1f",
            "processor ms": "ms:.1f",
            "time beside Direct": "slower:.2f",
        },
        "Kept: what autograd saves between the two passes. Peak: the most bytes of tensors alive at once, counted at "
        f"every operation of both passes. Euler's method, one evaluation a step, on {BATCH} states of {WIDTH} numbers, "
        "beside as many residual blocks with weights of their own.",
    )
    return Section(
        "Memory against evaluations of f",
        "An ODE-Net may keep its states like any network. What makes the memory constant is an adjoint that solves the "
        "state backward: `Backsolve` as another initial value problem, `Reversible` by a scheme whose steps can be "
        "undone. A few checkpoints do it with exact gradients, for one more solve or two.",
        (found,),
        (
            Picture(
                "memory",
                "Peak memory of a training step",
                "Peak of live tensors over evaluations of f, for each way to the gradient and for a ResNet of as many "
                "blocks; both axes are logarithmic.",
                figures.lines(drawn, "evaluations of f", "peak, MiB", log="xy", marked=True),
            ),
        ),
    )


def _name(row: Row) -> str:
    return TRAINED if row["problem"] == TRAINED else f"{row['problem']}, e^−{row['rate']:g}"


def _wide(title: str, rows: Sequence[tuple[str, Sequence[float | None]]], note: str) -> Table:
    """Errors, a column for each tolerance."""
    columns = ("", *(f"at {tolerance:g}" for tolerance in TOLERANCES))
    return Table(
        title,
        columns,
        tuple((name, *("–" if e is None else f"{e:.1e}" for e in errors)) for name, errors in rows),
        note,
    )


def _back(back: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    panels = {}
    for title, which in (("y' = −r y", DECAY), ("y' = r/2 (y − y³)", SETTLING), ("trained on digits", TRAINED)):
        mine = [row for row in back if row["problem"] == which]
        drawn = {_of(row): _line(figures.Line, row["back"]) for row in mine}
        panels[title] = {name: line for name, line in drawn.items() if len(line.x)}
        panels[title]["wanted"] = figures.Line(TOLERANCES, [WANTED] * len(TOLERANCES))
    return Section(
        "The start, solved backward from the output",
        "What contracts forward expands backward: an error at the end grows by as much as distances have shrunk. So "
        "the start is lost once the contraction exceeds the accuracy of the end.",
        (
            _wide(
                "‖y(0) solved backward − y(0)‖ / ‖y(0)‖, by the tolerance of both solves",
                [(_name(row), row["back"]) for row in back],
                "tsit5, float64. A dash: the solve back fails, or takes more than 1,000 steps. A replication of Chen "
                "et al. (VanniLeonardo/NeuralODEs, ReScience C) asks for less than 1e-2, and its image models fail it "
                "at a tolerance of 1e-3.",
            ),
        ),
        (
            Picture(
                "back",
                "Error of the start solved backward",
                "Relative error over the tolerance of both solves for contractions by e to the minus r, and for the "
                "field of an ODE-Net trained on digits. Errors above 10 and solves that fail are not drawn.",
                figures.line_panels(panels, "tolerance", "error of y(0)", log="xy", marked=True, level="wanted"),
            ),
        ),
    )


def _of(row: Row) -> str:
    return "trained field" if row["problem"] == TRAINED else f"r = {row['rate']:g}"


def _line(kind: Callable[..., Any], errors: Sequence[float | None]) -> Any:
    found = [(tolerance, error) for tolerance, error in zip(TOLERANCES, errors) if error and error <= _LOST]
    return kind([x for x, _ in found], [y for _, y in found])


def _gradients(back: Sequence[Row]) -> Section:
    mine = [row for row in back if f"gradient {BACKWARD[0]}" in row]
    return Section(
        "The gradients that follow",
        "Backsolve goes through the states that it solves backward; Checkpointed makes the states again by solving "
        "forward; Interpolated takes them from dense output; Reversible undoes its own steps.",
        tuple(
            _wide(
                f"Relative error of the gradient, {_name(row)}",
                [(name, row[f"gradient {name}"]) for name in BACKWARD],
                "To y0 and all parameters, beside the gradient of the exact solution. A dash: a solve fails.",
            )
            for row in mine
        ),
    )
