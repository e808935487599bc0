"""Tables and figures of the experiment `order`, made of its rows."""

from collections.abc import Sequence

from odenets.experiments.convergence import ADAMS, FLOOR, cost_of, implicit
from odenets.experiments.driver import Quantity, Row, groups, means_table, rows_table, values_of
from odenets.experiments.result import Picture, Section
from odenets.methods import METHODS

FAMILIES = {
    "low": ("euler", "midpoint", "heun", "fehlberg2", "heun3", "bosh3"),
    "high": ("rk4", "rk4_38", "dopri5", "tsit5", "dopri8", *ADAMS),
    "implicit": tuple(name for name in METHODS if implicit(name)),
}
BUDGETS = (12, 24)  # evaluations of f, a multiple of the stages of each method
GOALS = (1e-3, 1e-5, 1e-7, 1e-9)


def orders_section(rows: Sequence[Row], taylor: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    titles = {"low": "Explicit, orders 1 to 3", "high": "Explicit, orders 4 to 8", "implicit": "Implicit"}
    pictures = []
    for family, methods in FAMILIES.items():
        mine = {row["method"]: row for row in rows if row["method"] in methods}
        names = list(mine)
        parts = [names[:5], names[5:]] if len(names) > 8 else [names]
        for part, group in enumerate(parts, 1):
            curves = {name: figures.Line([1 / n for n in mine[name]["steps"]], mine[name]["errors"]) for name in group}
            pictures.append(
                Picture(
                    f"order-{family}" + (f"-{part}" if len(parts) > 1 else ""),
                    titles[family] + (f" ({part})" if len(parts) > 1 else ""),
                    "Error at the end over the step, as a part of the interval: the slope is the order.",
                    figures.lines(curves, "step / interval", "relative error", log="xy", marked=True),
                )
            )
    remainders = {f"{r['name']} order": figures.Line([1 / n for n in r["counts"]], r["remainders"]) for r in taylor}
    pictures.append(
        Picture(
            "taylor",
            "Taylor's remainder (definition 4)",
            "How far Taylor's formula of eˣ sin y is off, over the length of a.",
            figures.lines(remainders, "‖a‖", "remainder", log="xy", marked=True),
        )
    )
    return Section(
        "Order",
        "The problem: u = √(2 + sin(t + p)) and v = √(3 + cos(2t + p)) as the solution of two coupled nonlinear "
        "equations, for twelve phases p, from 0 to 2, in float64. The order is the slope of the error by least "
        f"squares over the five finest step sizes whose relative error is above {FLOOR:g}: finer ones show rounding, "
        "coarser ones the terms of higher order. A method whose leading error term is small shows a slope above its "
        "order until the steps are so small that rounding hides it. Adams methods take four derivatives (max_order 5) "
        "and start with the 3/8 rule. Euler's formula (1) is Taylor's formula of the first order; its remainder is of "
        "the second.",
        (
            rows_table(
                "Measured order",
                rows,
                {
                    "method": "method",
                    "order": "order",
                    "measured": "measured:.2f",
                    "from steps": "low",
                    "to steps": "high",
                    "evaluations a step": "stages:.1f",
                },
            ),
            rows_table(
                "Slope of the remainder of Taylor's formula",
                [{**row, "expected": row["order"] + 1} for row in taylor],
                {"formula of order": "name", "expected": "expected", "measured": "measured:.3f"},
            ),
        ),
        tuple(pictures),
    )


def work_section(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415

    curves = {row["method"]: figures.Line(row["nfes"], row["errors"]) for row in rows if row["nfes"]}
    costs = [{**row, **{f"{goal:.0e}": cost_of(row, goal) for goal in GOALS}} for row in rows]
    return Section(
        "Work and precision",
        "The same problem with adaptive steps, rtol = atol from 1e-2 down.",
        (
            rows_table(
                "Evaluations of f that an error costs",
                costs,
                {"method": "method", **{f"{goal:.0e}": f"{goal:.0e}:.0f" for goal in GOALS}}
                | {"failed at": "failed:.0e", "with": "why"},
                "Between two tolerances on logarithmic axes; a dash where no tolerance that was tried gives such an "
                "error. Failed: the first tolerance that 5,000 steps were not enough for; tighter ones were not tried.",
            ),
        ),
        (
            Picture(
                "work-precision",
                "Work and precision",
                "Relative error at the end over the evaluations of f, a point a tolerance: lower left is better.",
                figures.lines(curves, "evaluations of f", "relative error", log="xy", marked=True),
            ),
        ),
    )


def nets_section(rows: Sequence[Row], guesses: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415

    curves = {}
    for (method,), mine in groups(rows, ["method"]).items():
        moved = [values_of(same, "moved") for same in groups(mine, ["budget"]).values()]
        curves[method] = figures.Line(BUDGETS, [sum(v) / len(v) for v in moved], [*map(min, moved)], [*map(max, moved)])
    quantities = (
        Quantity("nfe", "evaluations", 0),
        Quantity("steps", "steps", 0),
        Quantity("accuracy", "accuracy in %", 2, 100),
        Quantity("loss", "test loss"),
        Quantity("tight_accuracy", "tight: accuracy in %", 2, 100),
        Quantity("tight_loss", "tight: loss"),
        Quantity("moved", "outputs move", 1, scientific=True),
        Quantity("gradient", "gradient off by", 1, scientific=True),
        Quantity("seconds", "seconds", 1),
    )
    return Section(
        "ODE-Nets trained with each method",
        "Linear, dz/dt = f(t, z) of 16 numbers with a hidden layer of 32 and tanh, linear; Adam; the solver takes as "
        "many evaluations of f a pass whatever the method. “Tight” is the trained network solved by tsit5 at 1e-8 in "
        "float64: where the answers differ, the network is not an ODE but the steps of its solver (Ott et al., "
        "“ResNet After All?”, ICLR 2021).",
        (
            means_table(
                "Digits, test set",
                [*rows, *guesses],
                {"method": "method"} | {"budget": "budget"},
                quantities,
                note="Outputs move, gradient off: relative difference from the tight solve. Published for the question "
                "“which solver to train with at equal evaluations on digits”: none found.",
            ),
        ),
        (
            Picture(
                "moved",
                "How far a tight solve moves the outputs",
                "Relative difference on the test set, mean and range of the seeds, over the evaluations of f a pass.",
                figures.lines(curves, "evaluations of f", "relative difference", log="y", marked=True),
            ),
        ),
    )
