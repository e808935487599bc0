"""The tables and figures of the depth experiment, made of its rows."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from odenets.experiments.driver import Row, groups, mean_text, values_of
from odenets.experiments.layers import INITS
from odenets.experiments.result import Cell, Picture, Section, Table

if TYPE_CHECKING:
    from odenets.figures import Line


def typical(rows: Sequence[Row]) -> float:
    """The geometric mean of the ratios; 0 where one is."""
    ratios = [row["ratio"] for row in rows]
    return statistics.geometric_mean(ratios) if min(ratios) > 0 else 0.0


def gradients_section(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    depth = rows[0]["depths"][-1]
    panels = {}
    for (sigma, init), mine in groups(rows, ["activation", "init"]).items():
        panels[f"{sigma}, {init} weights"] = {n: _line(some) for (n,), some in groups(mine, ["network"]).items()}
    pictures = [
        Picture(
            f"gradient-{number}",
            f"Gradient by depth, {init} weights",
            "How many times as large the gradient is before the first layer as after the last, by the number of "
            f"layers: mean and range of the seeds, before training, {init} weights.",
            figures.line_panels(
                {name: lines for name, lines in panels.items() if name.endswith(f", {init} weights")},
                "layers, or steps",
                "first / last",
                log="y",
            ),
        )
        for number, init in enumerate(INITS)
    ]
    profiles = {
        f"{init} weights": {
            n: figures.Line(range(depth + 1), _average([row["profile"] for row in some]))
            for (n,), some in groups(
                [r for r in rows if (r["activation"], r["init"]) == ("tanh", init)], ["network"]
            ).items()
        }
        for init in INITS
    }
    pictures.append(
        Picture(
            "profile",
            f"Gradient by layer, tanh, {depth} layers",
            "The gradient to the state after each layer beside that to the last one; it goes from right to left. A "
            "straight line is the same factor in each layer.",
            figures.line_panels(profiles, "layer", "gradient / last", log="y", share_y=False),
        )
    )
    body = []
    for (network, sigma), mine in groups(rows, ["network", "activation"]).items():
        by = groups(mine, ["init"])
        body.append((network, sigma, *(f"{typical(by[init,]):.1e}" for init in INITS)))
    table = Table(
        f"Gradient before the first layer, of that after the last, {depth} layers",
        ("network", "activation", *(f"{init} weights" for init in INITS)),
        tuple(body),
        f"Geometric mean of {len({row['seed'] for row in rows})} seeds; “small” and “large” are 0.2 and 4 times "
        "PyTorch's own initial weights. 0 has vanished even in float64.",
    )
    text = (
        "The norm of the loss's gradient to the states before and after the layers, for 128 digits and untrained "
        "weights, in float64. A number below 1 vanishes on its way to the first layer, one above 1 explodes."
    )
    return Section("The gradient before training", text, (table,), tuple(pictures))


def _line(rows: Sequence[Row]) -> "Line":
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    columns = list(zip(*(row["ratios"] for row in rows)))
    middle = [statistics.geometric_mean(c) if min(c) > 0 else 0.0 for c in columns]
    return figures.Line(rows[0]["depths"], middle, list(map(min, columns)), list(map(max, columns)))


def _average(curves: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.geometric_mean(values) if min(values) > 0 else 0.0 for values in zip(*curves)]


def adjoints_section(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    panels = {
        f"{row['activation']}, {row['init']} weights": {
            "adjoint, highest": figures.Line(row["ends"], row["highest"]),
            "adjoint, lowest": figures.Line(row["ends"], row["lowest"]),
            "exp ∫ μ(J)": figures.Line(row["ends"], row["upper"]),
            "exp −∫ μ(−J)": figures.Line(row["ends"], row["lower"]),
        }
        for row in rows
        if row["activation"] == "tanh"
    }
    picture = Picture(
        "adjoint",
        "How an adjoint grows with time, tanh",
        "The norm of the adjoint at 0 beside that at T, the highest and lowest of 16 digits, between its bounds.",
        figures.line_panels(panels, "T", "|a(0)| / |a(T)|", log="y", share_y=False),
    )
    columns = ("activation", "weights", "lower bound", "lowest", "highest", "upper bound", "outside")
    keys = ("lower", "lowest", "highest", "upper")
    body = tuple(
        (row["activation"], row["init"], *(f"{row[k][-1]:.1e}" for k in keys), f"{row['outside']} of {row['tried']}")
        for row in rows
    )
    table = Table(f"Adjoints from T = {rows[0]['ends'][-1]:g} to 0", columns, body)
    text = (
        "The ODE itself, dz/dt = σ(W z + b), solved closely. Its adjoint obeys da/dt = −Jᵀ a, so that on its way "
        "from T to 0 it grows by exp ∫ μ(J) dt at the most and falls to exp −∫ μ(−J) dt at the least, where μ(J) is "
        "the largest eigenvalue of the symmetric part of the Jacobian J. “Outside” counts what breaks its own bound by "
        "1 %."
    )
    return Section("The adjoint of an ODE-Net can explode too", text, (table,), (picture,))


def training_section(rows: Sequence[Row], steps: int, optimizer: str) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    panels, body = {}, []
    depths = sorted({row["depth"] for row in rows})
    for (sigma, init), mine in groups(rows, ["activation", "init"]).items():
        lines = {}
        for (network,), some in groups(mine, ["network"]).items():
            by = [[100 * x for x in values_of(group, "accuracy")] for group in groups(some, ["depth"]).values()]
            lines[network] = figures.Line(
                depths, list(map(statistics.fmean, by)), list(map(min, by)), list(map(max, by))
            )
            body.append((network, sigma, init, *(_cell(group) for group in groups(some, ["depth"]).values())))
        panels[f"{sigma}, {init} weights"] = lines
    picture = Picture(
        "trained",
        "Accuracy by depth",
        f"Right on the test digits after {steps} steps, mean and range of the seeds; a tenth is chance.",
        figures.line_panels(panels, "layers, or steps", "right, %", log="x", marked=True),
    )
    columns = ("network", "activation", "weights", *(f"{depth} layers" for depth in depths))
    text = (
        f"{steps} steps of {optimizer.upper()}, 128 digits each. The table says right on the test, %, "
        "and how many runs ended in no number."
    )
    return Section("Does it learn?", text, (Table("Right on the test digits, %", columns, tuple(body)),), (picture,))


def _cell(rows: Sequence[Row]) -> Cell:
    bad = sum(row["diverged"] for row in rows)
    return f"{mean_text(values_of(rows, 'accuracy'), 1, 100)}{f' ({bad:.0f} no number)' if bad else ''}"
