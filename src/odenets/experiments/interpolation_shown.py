"""What the interpolation experiment says: words, tables and a figure, made of its rows."""

import statistics
from collections.abc import Sequence

from odenets.experiments.driver import Quantity, Row, groups, means_table, values_of
from odenets.experiments.result import Picture, Section

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # of the rows that are shown: Rubanova's up to 0.5, mTAN's from there
MEAN, LAST, LINE = "mean of the channel", "last value", "straight line"
GRU, ODE = "latent ODE, GRU", "latent ODE, ODE-RNN"


def key(share: float, unit: str = "mse") -> str:
    return f"{unit}_{100 * share:.0f}"


ERRORS = tuple(Quantity(key(share), f"{share:.0%} shown") for share in SHARES)
RANGES = tuple(Quantity(key(share, "range"), f"{share:.0%} shown", 2, 1e3) for share in SHARES)
COST = (Quantity("seconds", "seconds", 0), Quantity("parameters", "parameters", 0))


def lead(problem: Row, rows: Sequence[Row]) -> str:
    by = {name: mine for (name,), mine in groups(rows, ["model"]).items()}
    told = []
    for share in SHARES:
        found = {name: statistics.fmean(values_of(mine, key(share))) for name, mine in by.items()}
        best = min((GRU, ODE), key=lambda name: found[name])
        rival = min((MEAN, LAST, LINE), key=lambda name: found[name])
        told.append(f"{share:.0%}: {found[best]:.3f} ({best}) against {found[rival]:.3f} ({rival})")
    return (
        f"{problem['train']:,} stays to train with, {problem['test']:,} to test on, {problem['channels']} variables, "
        f"{problem['rows']:.0f} rows a stay, of which a share is shown: any of them, and the first one. The mean "
        "squared error of the values in the other rows, in variances of the training part, by the better latent ODE "
        f"and by the best answer without training: {'; '.join(told)}."
    )


def accuracy(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    lines = {}
    for (name,), mine in groups(rows, ["model"]).items():
        values = [values_of(mine, key(share)) for share in SHARES]
        mean, low, high = ([f(found) for found in values] for f in (statistics.fmean, min, max))
        lines[name] = figures.Line([100 * share for share in SHARES], mean, low, high)
    return Section(
        "What is filled in",
        "Each observed value in a row that is not shown counts once. A latent ODE is trained once, with a share "
        "that is drawn for each batch from those of the table, to predict all rows; values beyond five deviations "
        "count as that far.",
        (means_table("Mean squared error by the share of the rows that are shown", rows, {"model": "model"}, ERRORS),),
        (
            Picture(
                "shown",
                "Error by the share of rows that are shown",
                "On stays that were not trained on; mean and range of the seeds.",
                figures.lines(lines, "rows shown, %", "mean squared error, variances", marked=True),
            ),
        ),
    )


def published(problem: Row, rows: Sequence[Row]) -> Section:
    note = (
        "Published, none of which is the same measure: 2.118e-3 by the latent ODE with an ODE-RNN of Rubanova et al. "
        "(2019), arXiv 1907.03907, whose code counts the values that are shown as well, averages each patient's and "
        "variable's error, takes that of a variable that was never observed for 0, and scales by the test part too; "
        "mTAN (Shukla and Marlin 2021) pools as here, with sets a and b and 50 to 90 % shown, and reports 4e-3 to 7e-3 "
        "for itself and latent ODEs (second hand)."
    )
    return Section(
        "The same errors over the range of each variable",
        "Published errors are of values that are taken to 0 … 1 by the least and the greatest one. That divides by "
        "what the worst slip of the pen happens to be: a variable with one counts for nothing.",
        (
            means_table(
                "Mean squared error × 1,000, over the square of the range in the training part",
                rows,
                {"model": "model"},
                RANGES,
                note="" if problem["synthetic"] else note,
            ),
        ),
    )


def cost(rows: Sequence[Row]) -> Section:
    trained = [row for row in rows if row.get("seconds")]
    words = "Seconds are those of a training on this machine."
    return Section("What it costs", words, (means_table("Training", trained, {"model": "model"}, COST),))
