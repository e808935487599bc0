"""Densities learnt by continuous normalising flows (reference [2] of the introduction; FFJORD).

Run it:     odenets run density        (18 trainings of a minute or two on one free core; --resume goes on)
Expect:     a negative log-likelihood of the true density of 2.41 (moons), 3.27 (circles), 3.47 (checkerboard: log 32),
            and of one Gaussian 3.29, 3.89, 4.50. Beyond the truth, in nats: the flow 0.04, 0.15 and 0.26 at 29 to 44
            evaluations of f, with Hutchinson's trace 0.04, 0.18, 0.27; the best mixture of Gaussians 0.02, 0.03, 0.18.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from odenets.experiments.driver import Quantity, Row, collect, groups, means, means_table, numbers_of, values_of
from odenets.experiments.option import ADJOINTS, check_at_least, check_choices, option, solver_options
from odenets.experiments.planes import DATA, draw, true_log_density
from odenets.experiments.result import Picture, Result, Section
from odenets.experiments.training import step
from odenets.extra import experiments_extra
from odenets.methods import ANY_SYSTEM
from odenets.nn import CNF, ConcatSquashField, count_parameters
from odenets.solution import SolveError
from odenets.solve import solve

SMALL = {"data": "moons", "seeds": 1, "iterations": 40, "points": 400, "batch": 100, "width": 16}
FLOWS = {"exact": "flow, exact trace", "hutchinson": "flow, Hutchinson's trace"}
GAUSSIAN, MIXTURE, TRUTH = "single Gaussian", "mixture of Gaussians", "true density"
COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
EDGE, GRID = 5.0, 61  # the maps: points along each side of the square [−EDGE, EDGE]²
FINE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # FFJORD's tolerance: for every number that is reported
MOST_STEPS = 1000  # of a solve: a training that gets there has failed
EVERY = 20  # iterations from one point of a curve to the next


@dataclass(frozen=True)
class Config:
    """Options of the density experiment."""

    seed: int = option(0, "First seed, of the points, the weights and the probes.")
    seeds: int = option(3, "Number of seeds.")
    data: str = option("all", "Which points.", (*DATA, "all"))
    trace: str = option("both", "How the flow finds the trace in training.", (*FLOWS, "both"))
    points: int = option(4000, "Training points; as many to test, and a quarter of it to choose the mixture.")
    iterations: int = option(600, "Steps of Adam.")
    batch: int = option(250, "Points of a step.")
    lr: float = option(1e-2, "Learning rate at the start; it falls to 0 along a half cosine.")
    width: int = option(64, "Neurons of each hidden layer.")
    depth: int = option(3, "Hidden layers.")
    method: str = option("tsit5", "Solver.", ANY_SYSTEM)
    rtol: float = option(1e-3, "Relative tolerance in training.")
    atol: float = option(1e-3, "Absolute tolerance in training.")
    dt: float | None = option(None, "Fixed step, in place of the tolerances.")
    adjoint: str = option("direct", "How the solve is differentiated.", tuple(ADJOINTS))
    compile: bool = option(False, "Compile the solves: a quarter of an hour and more, once; not measured.")

    def __post_init__(self) -> None:
        check_choices(self)
        solver_options(self)
        check_at_least(self, seed=0, seeds=1, points=40, iterations=1, batch=1, lr=0, width=1, depth=1)


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Fit every model to every data set for each seed; each is a piece kept in `folder`, so a stopped run goes on."""
    names = list(DATA) if config.data == "all" else [config.data]
    traces = list(FLOWS) if config.trace == "both" else [config.trace]
    pieces: dict[str, Callable[[], Row]] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        for name in names:
            first = seed == config.seed
            pieces[f"{name}-mixture-{seed}"] = partial(mixture_row, name, seed, config.points, first)
            for kind, model in ((1, GAUSSIAN), (0, TRUTH)):
                pieces[f"{name}-known{kind}-{seed}"] = partial(known_row, name, model, seed, config.points, first)
            for trace in traces:
                pieces[f"{name}-{trace}-{seed}"] = partial(flow_row, name, trace, seed, config, first)
    rows = collect(pieces, folder, progress=progress, label="densities")
    return Result(
        experiment="density",
        title="Densities by continuous normalising flows",
        lead=_lead(rows, names),
        config=dataclasses.asdict(config),
        source="Points drawn from the seed: make_moons and make_circles of scikit-learn, and a checkerboard.",
        synthetic=False,
        sections=(_numbers(rows, config), *(_pictures(name, rows) for name in names)),
        summary={"table": means(rows, ["data", "model"], QUANTITIES), "runs": numbers_of(rows)},
    )


# --- the models ------------------------------------------------------------------------------------------------------


def known_row(name: str, model: str, seed: int, points: int, first: bool) -> Row:
    """One Gaussian fitted by its moments, or the density that the points are drawn from."""
    train, _, test = draw(name, seed, points)
    if model == TRUTH:
        density = partial(true_log_density, name)
    else:
        density = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov()).log_prob
    return _row(name, model, seed) | _measured(density, test, first, drawn=model == TRUTH)


def mixture_row(name: str, seed: int, points: int, first: bool) -> Row:
    """The mixture of Gaussians whose number of components is best on the validation points."""
    with experiments_extra("the experiment density"):
        from sklearn.mixture import GaussianMixture  # noqa: PLC0415 — seconds to import

    train, validation, test = (x.numpy() for x in draw(name, seed, points))
    started = time.process_time()
    fits = [GaussianMixture(k, random_state=seed).fit(train) for k in COMPONENTS if k <= len(train) // 10]
    best = max(fits, key=lambda fit: fit.score(validation))
    seconds = time.process_time() - started
    measured = _measured(lambda x: torch.from_numpy(best.score_samples(x.numpy())), torch.from_numpy(test), first)
    return _row(name, MIXTURE, seed) | measured | {"components": best.n_components, "seconds": seconds}


def flow_row(name: str, trace: str, seed: int, config: Config, first: bool) -> Row:
    """A flow trained by maximum likelihood, measured with the exact trace and a fine tolerance."""
    train, _, test = (x.float() for x in draw(name, seed, config.points))
    torch.manual_seed(seed)
    field = ConcatSquashField(2, (config.width,) * config.depth)
    row = _row(name, FLOWS[trace], seed) | {"parameters": count_parameters(field)}
    drawn = trace in ("exact", config.trace)  # of two flows the first
    started = time.process_time()
    try:
        curves = _train(CNF(field, trace=trace, max_steps=MOST_STEPS, **solver_options(config)), train, config)
        seconds = time.process_time() - started
        flow = CNF(field, **FINE)
        with torch.no_grad():
            measured = _measured(flow.log_prob, test, first, drawn)
            shown = _shown(flow, seed) if first and drawn else {}
    except SolveError as error:  # a training that fails is a result, too
        return row | {"failed": str(error)}
    return row | curves | measured | shown | {"seconds": seconds, "nfe": fmean(curves["nfes"][-5:])}


def _train(flow: CNF, points: Tensor, config: Config) -> dict[str, Any]:
    """Adam on the mean negative log-likelihood; means of it and of the evaluations of f over every few iterations."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    found: list[tuple[float, float]] = []
    for _ in range(config.iterations):
        batch = points[torch.randint(len(points), (min(config.batch, len(points)),))]
        loss = -flow.log_prob(batch).mean()
        step(optimizer, loss)
        schedule.step()
        stats = flow.stats
        found.append((loss.item(), 0 if stats is None else stats.nfe))
    losses, nfes = zip(*found)
    places = range(0, len(found), EVERY)
    return {
        "iterations": [min(i + EVERY, len(found)) for i in places],
        "losses": [fmean(losses[i : i + EVERY]) for i in places],
        "nfes": [fmean(nfes[i : i + EVERY]) for i in places],
    }


def _row(name: str, model: str, seed: int) -> dict[str, Any]:
    return {"data": name, "model": model, "seed": seed}


def _measured(log_density: Callable[[Tensor], Tensor], test: Tensor, first: bool, drawn: bool = True) -> dict[str, Any]:
    """Mean negative log-density of the test points, and for one seed the mass on a grid, with the density if drawn."""
    nll = -log_density(test).mean().item()
    if not first:
        return {"nll": nll}
    axis = torch.linspace(-EDGE, EDGE, GRID, dtype=test.dtype)
    density = log_density(torch.cartesian_prod(axis, axis).flip(1)).exp()  # rows of equal x₂
    mass = density.sum().item() * (2 * EDGE / (GRID - 1)) ** 2
    return {"nll": nll, "mass": mass, **({"density": density.reshape(GRID, GRID)} if drawn else {})}


def _shown(flow: CNF, seed: int) -> dict[str, Any]:
    """Samples of the flow, and the paths of a few points from the base."""
    z = torch.randn(600, 2, generator=torch.Generator().manual_seed(seed))
    paths = solve(flow.field, z, torch.linspace(0, 1, 31), **FINE).ys
    return {"samples": paths[-1], "paths": paths[:, :60]}


# --- what is said of them --------------------------------------------------------------------------------------------

QUANTITIES = (
    Quantity("nll", "negative log-likelihood, nats"),
    Quantity("mass", "mass on the map"),
    Quantity("components", "components", 0),
    Quantity("parameters", "parameters", 0),
    Quantity("nfe", "evaluations of f at the end", 0),
    Quantity("seconds", "seconds", 0),
)


def _of(rows: Sequence[Row], name: str, model: str) -> list[Row]:
    return groups(rows, ["data", "model"]).get((name, model), [])


def _nll(rows: Sequence[Row], name: str, model: str) -> float | None:
    values = values_of(_of(rows, name, model), "nll")
    return fmean(values) if values else None


def _lead(rows: Sequence[Row], names: Sequence[str]) -> str:
    failed = [row for row in rows if "failed" in row]
    text = "\n\n".join(_finding(rows, name) for name in names)
    if failed:
        text += f"\n\n{len(failed)} of the trainings failed: {failed[0]['failed']}"
    return (
        f"{text}\n\nThe excess is the negative log-likelihood of test points over that of the density they are drawn "
        "from, in nats: 0 cannot be beaten but by chance. We know of no published likelihoods for these three sets."
    )


def _finding(rows: Sequence[Row], name: str) -> str:
    """How far each model is from the truth on one data set."""
    truth = _nll(rows, name, TRUTH) or 0.0
    excess = {model: _nll(rows, name, model) for model in (*FLOWS.values(), MIXTURE, GAUSSIAN)}
    known = sorted((value - truth, model) for model, value in excess.items() if value is not None)
    (least, best), *others = known
    rest = ", ".join(f"the {model} {value:.3f}" for value, model in others)
    return f"{name.capitalize()}: the {best} is nearest to the truth, with an excess of {least:.3f} nats; {rest}."


def _numbers(rows: Sequence[Row], config: Config) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    solver = config.method + (f" at {config.rtol:g}" if config.dt is None else "")
    text = (
        f"A field of {config.depth} hidden layers of {config.width} neurons, {config.iterations} steps of Adam on "
        f"batches of {config.batch} from {config.points} points, by {solver}. FFJORD (Grathwohl et al. 2019) has "
        "64-64-64 neurons, 10,000 steps on 100 fresh points each, and dopri5 at 1e-5; here the points are a finite "
        "set, the same for all models, and likelihoods are measured at 1e-5 with the exact trace, whatever the flow "
        "was trained with. The mixture is the best of 1 to 64 components on points of its own."
    )
    table = means_table("On test points", rows, {"data": "data", "model": "model"}, QUANTITIES)
    return Section("How well, and at what cost", text, (table,), tuple(_curves(rows, figures)))


def _curves(rows: Sequence[Row], figures: Any) -> list[Picture]:
    trained = [row for row in rows if "losses" in row]
    words = {
        "losses": (
            "training",
            "Training",
            "negative log-likelihood, nats",
            "The negative log-likelihood of the batches",
        ),
        "nfes": ("evaluations", "Evaluations of f", "evaluations of f", "The evaluations of f of a solve forward"),
    }
    pictures = []
    for key, (name, title, label, caption) in words.items():
        panels: dict[str, dict[str, Any]] = {}
        for (data, model), mine in groups(trained, ["data", "model"]).items():
            steps = mine[0]["iterations"]
            values = torch.tensor([row[key] for row in mine])
            low, high = (values.amin(0), values.amax(0)) if len(mine) > 1 else (None, None)
            panels.setdefault(data, {})[model] = figures.Line(steps, values.mean(0), low, high)
            if key == "losses":
                panels[data][TRUTH] = figures.Line(steps, [_nll(rows, data, TRUTH)] * len(steps))
        if panels:
            drawn = figures.line_panels(panels, "iteration", label, share_y=key == "nfes", level=TRUTH)
            over = ", mean of the seeds and their range" if len({row["seed"] for row in trained}) > 1 else ""
            pictures.append(Picture(name, title, f"{caption}, means of {EVERY} iterations{over}.", drawn))
    return pictures


def _pictures(name: str, rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    shown = {row["model"]: row for row in rows if row["data"] == name and "density" in row}
    flow = next((shown[model] for model in FLOWS.values() if model in shown), None)
    mapped = (TRUTH, *(() if flow is None else (flow["model"],)), MIXTURE)
    grids = {model: shown[model]["density"] for model in mapped}
    pictures = [
        Picture(
            f"{name}-maps",
            "Densities",
            f"Densities on the square of side {2 * EDGE:g}, dark where large: the true one and those of the models.",
            figures.maps(grids, (-EDGE, EDGE, -EDGE, EDGE), "x₁", "x₂"),
        )
    ]
    if flow is not None:
        paths = torch.tensor(flow["paths"])
        data = draw(name, flow["seed"], len(flow["samples"]))[0]
        samples = {"data": data, "samples of the flow": flow["samples"]}
        moved = {"points of the base": paths[0], "where they go": paths[-1]}
        words = (
            "Points of the standard normal distribution, the paths that the flow takes them along, and where they end."
        )
        pictures += [
            Picture(
                f"{name}-samples", "Samples", f"Points and samples, {flow['model']}.", figures.plane(samples, size=6)
            ),
            Picture(f"{name}-paths", "The flow", words, figures.plane(moved, paths=paths)),
        ]
    return Section(name.capitalize(), DATA[name], (), tuple(pictures))
