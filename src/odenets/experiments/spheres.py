"""What a flow cannot do: nested spheres, and the line turned around (beyond the introduction: Dupont et al. 2019).

Run it:     odenets run spheres        (30 trainings, 8 to 20 minutes on one core; --resume goes on)
Expect:     (five seeds) nested spheres: ODE-Net 0.997 ± 0.005 right at 42 ± 8 evaluations of f, augmented 1.000 at
            36 ± 5, ResNet 1.000. The line: the ODE-Net ends at an error of 0.3500, which no map that keeps the order
            comes below; the augmented one at 0.0000, the ResNet at 0.0016.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from odenets.experiments.driver import Quantity, Row, collect, groups, means, means_table, numbers_of, values_of
from odenets.experiments.nested import (
    AUGMENTED,
    NETWORKS,
    PLAIN,
    RADII,
    RESNET,
    ball_and_shell,
    body,
    evaluations,
    paths,
    train,
)
from odenets.experiments.option import ADJOINTS, check_at_least, check_choices, option, solver_options
from odenets.experiments.result import Picture, Result, Section
from odenets.methods import ANY_SYSTEM
from odenets.nn import ACTIVATIONS, count_parameters
from odenets.solution import SolveError

SMALL = {"seeds": 1, "epochs": 3, "points": 300, "iterations": 60}
ALWAYS, ORDERED = "always the shell", "best that keeps the order"
# A replication in ReScience C of Dupont, Doucet and Teh, "Augmented neural ODEs", NeurIPS 2019.
PUBLISHED = {
    (PLAIN,): {"published accuracy": "0.995 ± 0.006", "published evaluations": 241},
    (AUGMENTED,): {"published accuracy": "0.999 ± 0.001", "published evaluations": 177},
}


@dataclass(frozen=True)
class Config:
    """Options of the spheres experiment."""

    seed: int = option(0, "First seed, of the points and the weights.")
    seeds: int = option(5, "Number of seeds.")
    points: int = option(3000, "Points of the spheres to train on, a third of them inside; half as many to test.")
    epochs: int = option(30, "Epochs on the spheres.")
    batch: int = option(64, "Points of a step on the spheres.")
    lr: float = option(1e-3, "Learning rate of Adam on the spheres.")
    iterations: int = option(400, "Steps of Adam on the line, all points each, at a rate of 0.02.")
    hidden: int = option(32, "Neurons of the two hidden layers of the ODE-Net; the others are made as large.")
    activation: str = option("relu", "Activation.", ACTIVATIONS)
    augment: int = option(1, "Extra dimensions of the augmented ODE-Net: one is enough.")
    method: str = option("dopri5", "Solver.", ANY_SYSTEM)
    rtol: float = option(1e-3, "Relative tolerance.")
    atol: float = option(1e-3, "Absolute tolerance.")
    dt: float | None = option(None, "Fixed step, in place of the tolerances.")
    adjoint: str = option("direct", "How the solve is differentiated.", tuple(ADJOINTS))
    compile: bool = option(False, "Compile the solves: minutes once, then steps several times as fast.")

    def __post_init__(self) -> None:
        check_choices(self)
        solver_options(self)
        check_at_least(self, seed=0, seeds=1, points=30, epochs=1, batch=1, lr=0, iterations=1, hidden=1, augment=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train every network on both problems for each seed; each is a piece kept in `folder`: a stopped run goes on."""
    pieces: dict[str, Callable[[], Row]] = {
        f"{problem}-{name.replace(' ', '-')}-{seed}": partial(work, name, config, seed)
        for seed in range(config.seed, config.seed + config.seeds)
        for problem, work in (("spheres", spheres_row), ("line", line_row))
        for name in NETWORKS
    }
    rows = collect(pieces, folder, progress=progress, label="spheres and lines")
    spheres, lines = ([row for row in rows if row["problem"] == problem] for problem in ("spheres", "line"))
    return Result(
        experiment="spheres",
        title="What a flow cannot do",
        lead=f"{_lead_spheres(spheres)}\n\n{_lead_line(lines)}{_failures(rows)}",
        config=dataclasses.asdict(config),
        source="Points drawn from the seed: a ball and a shell around it in the plane; 41 points of a line.",
        synthetic=False,
        sections=(_spheres(spheres, config), _line(lines, config)),
        summary={"table": means(rows, ["problem", "network"], QUANTITIES), "runs": numbers_of(rows)},
    )


# --- the trainings ---------------------------------------------------------------------------------------------------


def spheres_row(name: str, config: Config, seed: int) -> Row:
    """One network told to tell the ball from the shell."""
    generator = torch.Generator().manual_seed(seed)
    x, labels = ball_and_shell(config.points, generator)
    test, truth = ball_and_shell(config.points // 2, generator)
    torch.manual_seed(seed)
    inner = body(name, 2, config)
    model = nn.Sequential(inner, nn.Linear(2 + getattr(inner, "augment", 0), 2))
    row = {"problem": "spheres", "network": name, "seed": seed, "parameters": count_parameters(model)}
    batches = [
        batch for _ in range(config.epochs) for batch in torch.randperm(len(x), generator=generator).split(config.batch)
    ]
    every = len(batches) // config.epochs
    try:
        curves = train(model, nn.functional.cross_entropy, x, labels, batches, config.lr, every)
    except SolveError as error:  # a training that fails is a result, too
        return row | {"failed": str(error)}
    with torch.no_grad():
        accuracy = (model(test).argmax(1) == truth).double().mean().item()
    # The first points of the ball and of the shell, for the figure.
    some = torch.cat([test[truth == label][:40] for label in RADII])
    drawn = {"paths": paths(inner, some)} if seed == config.seed else {}
    return row | curves | {"accuracy": accuracy, "nfe": evaluations(inner), **drawn}


def line_row(name: str, config: Config, seed: int) -> Row:
    """One network told to map x to −x; the output is the flow itself, and of an augmented one the first component."""
    x = torch.linspace(-1, 1, 41)[:, None]
    torch.manual_seed(seed)
    model = body(name, 1, config)
    row = {"problem": "line", "network": name, "seed": seed, "parameters": count_parameters(model)}
    batches = [torch.arange(len(x))] * config.iterations
    try:
        curves = train(model, lambda out, y: nn.functional.mse_loss(out[:, :1], y), x, -x, batches, 0.02, 10)
    except SolveError as error:
        return row | {"failed": str(error)}
    with torch.no_grad():
        out = model(x)[:, :1]
    error = nn.functional.mse_loss(out, -x).item()
    drawn = {"out": out[:, 0], "paths": paths(model, x[::5])} if seed == config.seed else {}
    return row | curves | {"error": error, "nfe": evaluations(model), **drawn}


# --- what is said of them --------------------------------------------------------------------------------------------

QUANTITIES = (
    Quantity("accuracy", "accuracy"),
    Quantity("error", "mean squared error", 4),
    Quantity("nfe", "evaluations of f", 0),
    Quantity("parameters", "parameters", 0),
    Quantity("seconds", "seconds", 0),
)


def _mean(rows: Sequence[Row], name: str, key: str) -> float | None:
    values = values_of([row for row in rows if row["network"] == name], key)
    return fmean(values) if values else None


def _lead_spheres(rows: Sequence[Row]) -> str:
    known = {name: value for name in NETWORKS if (value := _mean(rows, name, "accuracy")) is not None}
    right = ", ".join(f"the {name} {value:.3f}" for name, value in known.items())
    text = f"Nested spheres, share of the test points told rightly: {right} (always saying “shell”: 0.667)."
    nfe = {name: _mean(rows, name, "nfe") for name in (PLAIN, AUGMENTED)}
    plain, augmented = nfe[PLAIN], nfe[AUGMENTED]
    if plain is None or augmented is None:
        return text
    verdict = "more than" if plain > augmented else "no more than"
    return (
        f"{text} No flow of the plane brings the ball out of the shell, so the ODE-Net can only tear the shell between "
        f"two points; it takes {plain:.0f} evaluations of f, {verdict} the {augmented:.0f} of the augmented one."
    )


def _lead_line(rows: Sequence[Row]) -> str:
    known = {name: value for name in NETWORKS if (value := _mean(rows, name, "error")) is not None}
    errors = ", ".join(f"the {name} {value:.4f}" for name, value in known.items())
    bound = bound_of_the_line()
    held = all(value >= bound - 1e-3 for value in values_of([r for r in rows if r["network"] == PLAIN], "error"))
    verdict = "no ODE-Net got below it" if held else "an ODE-Net got below it, so its solve was no flow"
    return (
        f"The line turned around: a mean squared error of {errors}. A flow of the line keeps the order of its points, "
        f"and no map that does comes below {bound:.4f}, that of sending everything to 0; {verdict}."
    )


def bound_of_the_line() -> float:
    """The least error of a map of the 41 points that keeps their order: the best is the mean, everywhere."""
    return torch.linspace(-1, 1, 41, dtype=torch.float64).square().mean().item()


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if "failed" in row]
    return f"\n\n{len(failed)} of the trainings failed: {failed[0]['failed']}" if failed else ""


def _spheres(rows: Sequence[Row], config: Config) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    text = (
        f"A ball of radius 0.5 inside of a shell of radii 1 to 1.5 in the plane, {config.points} points, "
        f"{config.epochs} epochs, batches of {config.batch}, Adam at {config.lr:g}; each ends in a linear layer."
    )
    always = {"problem": "spheres", "network": ALWAYS, "accuracy": 2 / 3}
    note = "Published: a replication in ReScience C of Dupont, Doucet and Teh, NeurIPS 2019."
    table = means_table(
        "Nested spheres", [*rows, always], {"network": "network"}, QUANTITIES, published=PUBLISHED, note=note
    )
    pictures = []
    for name, shown in _shown(rows).items():
        of, label = ([0, -1], "extra dimension") if name == AUGMENTED else ([0, 1], "x₂")
        ways = torch.tensor(shown["paths"])[:, :, of].asinh()  # which bends what has gone far back into the picture
        marks = {"ball": ways[-1, :40], "shell": ways[-1, 40:]}
        drawn = figures.plane(marks, "asinh x₁", f"asinh {label}", paths=ways)
        words = (
            f"Where the {name} of seed {shown['seed']} takes test points (marks), and the way there (lines). Both axes "
            "are bent by asinh, which is x where x is small, and log 2x where it is large."
        )
        pictures.append(Picture(f"spheres-{name.lower().replace(' ', '-')}", name, words, drawn))
    curves = {"nfes": ("Evaluations of f", "evaluations of f"), "losses": ("Cross-entropy", "cross-entropy, nats")}
    for key, (title, label) in curves.items():
        drawn = figures.lines(_bands(rows, key, figures), "epoch", label, log="y" if key == "losses" else "")
        words = f"{title} over training: means of an epoch{_over(rows)}."
        pictures.append(Picture(f"spheres-{key}", f"{title} over training", words, drawn))
    return Section("Nested spheres", text, (table,), tuple(pictures))


def _line(rows: Sequence[Row], config: Config) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    text = (
        f"41 points between −1 and 1 are to be sent to their opposites, by {config.iterations} steps of Adam on all of "
        "them. Two paths of a flow cannot meet, since from where they met there is one way back."
    )
    bound = {"problem": "line", "network": ORDERED, "error": bound_of_the_line()}
    table = means_table("The line turned around", [*rows, bound], {"network": "network"}, QUANTITIES)
    x = torch.linspace(-1, 1, 41)
    shown = _shown(rows)
    outs = {name: figures.Line(x, row["out"]) for name, row in shown.items()} | {"−x": figures.Line(x, -x)}
    pictures = [
        Picture("line-maps", "What they make of x", "Input and output.", figures.lines(outs, "x", "output", level="−x"))
    ]
    for name, row in shown.items():
        ways = torch.tensor(row["paths"])
        t = torch.linspace(0, 1, len(ways))
        words = "after each of its blocks, which may jump" if name == RESNET else "over time"
        first = " (its first component; the other one makes room)" if name == AUGMENTED else ""
        drawn = figures.flow(t, ways[..., 0], network="ResNet" if name == RESNET else "ODE-Net")
        caption = f"Nine points in the {name}{first} {words}, seed {row['seed']}."
        pictures.append(Picture(f"line-{name.lower().replace(' ', '-')}", name, caption, drawn))
    return Section("The line turned around", text, (table,), tuple(pictures))


def _shown(rows: Sequence[Row]) -> dict[str, Row]:
    """The training of each network with the first seed, where it did not fail."""
    return {name: mine[0] for (name,), mine in groups([r for r in rows if "paths" in r], ["network"]).items()}


def _bands(rows: Sequence[Row], key: str, figures: Any) -> Mapping[str, Any]:
    bands = {}
    for (name,), mine in groups([row for row in rows if key in row], ["network"]).items():
        values = torch.tensor([row[key] for row in mine])
        low, high = (values.amin(0), values.amax(0)) if len(mine) > 1 else (None, None)
        bands[name] = figures.Line(torch.arange(1, values.shape[1] + 1), values.mean(0), low, high)
    return bands


def _over(rows: Sequence[Row]) -> str:
    return ", mean of the seeds and their range" if len({row["seed"] for row in rows}) > 1 else ""
