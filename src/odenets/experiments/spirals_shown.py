"""What the spirals experiment says: words, tables and figures, made of its rows."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from odenets.experiments.driver import Quantity, Row, groups, means_table, values_of
from odenets.experiments.result import Picture, Section

ODE, THEIRS, RNN = "latent ODE", "latent ODE, as published", "RNN"
HELD, KNOWN = "last point holds", "least squares, knows both curves"
PUBLISHED = {ODE: {30: 0.1642, 50: 0.1502, 100: 0.1346}, RNN: {30: 0.3937, 50: 0.3202, 100: 0.1813}}

QUANTITIES = (
    Quantity("new_clean", "RMSE, new spirals, without noise"),
    Quantity("new_median", "median of a new spiral"),
    Quantity("same_clean", "trained spirals, without noise"),
    Quantity("new_noisy", "new, with noise"),
    Quantity("same_noisy", "trained, with noise"),
    Quantity("seconds", "seconds", 0),
    Quantity("parameters", "parameters", 0),
    Quantity("nfe", "evaluations of f a solve", 0),
)


def lead(rows: Sequence[Row]) -> str:
    by = _means(rows)
    told = "; ".join(
        f"{points} points: {by[ODE, points]:.3f} for the latent ODE (published {published}), {by[THEIRS, points]:.3f} "
        f"for one as published, {by[RNN, points]:.3f} for the RNN ({PUBLISHED[RNN][points]}), "
        f"{by[HELD, points]:.2f} where the last point holds, {by[KNOWN, points]:.3f} for who knows both curves"
        for points, published in PUBLISHED[ODE].items()
    )
    reached = [points for points, published in PUBLISHED[ODE].items() if by[ODE, points] <= published]
    theirs = [points for points, published in PUBLISHED[ODE].items() if by[THEIRS, points] <= published]
    ahead = [points for points in PUBLISHED[ODE] if by[ODE, points] < by[RNN, points]]
    return (
        f"RMSE of the 100 points behind those seen, on spirals never trained with and without their noise. {told}.\n\n"
        f"The latent ODE is at or below its published error with {_which(reached)}, the one as published, trained on "
        f"these spirals, with {_which(theirs)}; ahead of the RNN the first is with {_which(ahead)}."
    )


def _which(points: Sequence[int]) -> str:
    if len(points) == len(PUBLISHED[ODE]):
        return "every number of points"
    return f"{' and '.join(map(str, points))} points" if points else "no number of points"


def _means(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    found = groups(rows, ["model", "points"])
    return {(name, points): statistics.fmean(values_of(mine, "new_clean")) for (name, points), mine in found.items()}


def errors(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    lines: dict[str, Any] = {}
    for (name,), mine in groups(rows, ["model"]).items():
        at = {points: values_of(found, "new_clean") for (points,), found in groups(mine, ["points"]).items()}
        mean, low, high = ([f(values) for values in at.values()] for f in (statistics.fmean, min, max))
        lines[name] = figures.Line(list(at), mean, low, high)
    for name, at in PUBLISHED.items():
        lines[f"{name} (2018)"] = figures.Line(list(at), list(at.values()))
    published: Mapping[tuple[Any, ...], Mapping[str, Any]] = {
        (name, points): {"published": value} for name, at in PUBLISHED.items() for points, value in at.items()
    }
    return Section(
        "How far off, by the number of points seen",
        "A spiral is seen with noise at so many random points of 100, the first one among them, and nobody trains on "
        "what lies behind. The latent ODE makes all of it from one state; the RNN is told each gap and goes on from "
        "its own predictions. “As published” is the model and the loss of torchdiffeq's example on these spirals, with "
        "as many spirals and steps: the bound leaves open what z does at later times than are seen. Ours has the same "
        "bound and two terms more, of the points seen alone: the flow meets the encoder's state behind later rows, and "
        "z stays where spirals begin. They and their weights were chosen by spirals of the first seed that were drawn "
        "to train with and held out; test errors of two stopped runs had been seen when the number of steps and the "
        "batch were set. The example itself takes 2,000 steps of all of its spirals.",
        (
            means_table(
                "RMSE of a coordinate on the 100 points behind those seen",
                rows,
                {"model": "model", "points": "points seen"},
                QUANTITIES[:5],
                published=published,
                note="Published: Chen et al. 2018, table 2. Not known of it: the noise, whether points with noise or "
                "without were predicted, of spirals that were trained with or others, and whether a coordinate or a "
                "point counts. With the noise of their example, 0.3, nothing can be below 0.3 against noisy points. "
                "Coordinates are those of the example: those asked for deviate by 4.7 from their mean.",
            ),
        ),
        (
            Picture(
                "errors",
                "RMSE by the number of points seen",
                "On new spirals, without noise: mean and range of the seeds; (2018): the published errors.",
                figures.lines(lines, "points seen", "RMSE", log="y", marked=True),
            ),
        ),
    )


def curves(rows: Sequence[Row], seed: int) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    pictures = []
    for row in rows:
        if row["seed"] != seed or row["model"] in (HELD, KNOWN):
            continue
        parts = {"seen": row["seen"], "predicted, behind": row["ahead"]}
        if "back" in row:
            parts["made, seen and before"] = row["back"]
        groups_of = {name: [place for path in paths for place in path] for name, paths in parts.items()}
        paths = list(zip(*row["truth"]))  # the points of each time
        pictures.append(
            Picture(
                f"{row['model'].lower().replace(',', '').replace(' ', '-')}-{row['points']}",
                f"{row['model']}, {row['points']} points",
                "New spirals, the thin lines; the points seen, with noise, and what the network makes of them.",
                figures.plane(groups_of, "x", "y", paths=paths, size=4.0),
            )
        )
    return Section(
        "What they make of it",
        "The latent ODE is asked behind the points seen and, backward in time, before them. The RNN knows no way back.",
        (),
        tuple(pictures),
    )


def latent(rows: Sequence[Row], seed: int) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    pictures = []
    for row in rows:
        if row["seed"] == seed and row["model"] == ODE and row["points"] == max(PUBLISHED[ODE]):
            kinds = {
                name: [z for z, clockwise in zip(row["z"], row["clockwise"]) if clockwise is which]
                for name, which in (("clockwise", True), ("counter-clockwise", False))
            }
            drawn = figures.plane(kinds, "first principal axis", "second principal axis")
            words = "Means of z(t₀) of the new spirals on their first two principal axes."
            pictures.append(Picture("latent", "Where the states begin", words, drawn))
    return Section(
        "The latent space",
        "A point is a spiral: four numbers that say where it begins and which way it turns; nobody told the network "
        "the directions.",
        (),
        tuple(pictures),
    )


def cost(rows: Sequence[Row]) -> Section:
    trainings = [row for row in rows if row["model"] not in (HELD, KNOWN)]
    return Section(
        "What it costs",
        "Seconds of a training on this machine, at the same number of steps and spirals.",
        (means_table("Training", trainings, {"model": "model", "points": "points seen"}, QUANTITIES[5:]),),
    )
