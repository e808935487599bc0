"""Problem 2: heartbeats of the MIT-BIH database in five classes (section 5 of the introduction).

Run it:     odenets run ecg                          (both networks on the random split: about 2 minutes on one core)
            odenets run ecg --split both --pair both --seeds 10      (all of it: about an hour on one core)
Expect:     random split, 20 epochs: test cross entropy 0.09–0.10 and accuracy 97.5 % for both networks;
            inter-patient split: cross entropy 0.8–1.1, and accuracy below that of calling every beat normal.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from odenets.data.ecg import CLASS_NAMES, CLASSES, SOURCES, SPLITS, ECGData, load_ecg
from odenets.experiments.option import ADJOINTS, check_at_least, check_choices, option, solver_options
from odenets.experiments.result import INTRODUCTION, Picture, Result, Section, Table
from odenets.extra import experiments_extra
from odenets.methods import METHODS
from odenets.nn.models import count_parameters, twins
from odenets.progress import no_progress, progress_bar, say
from odenets.train import TrainConfig, evaluate, fit
from odenets.train.config import DEVICES, PRECISIONS

SMALL = {"data": "synthetic", "epochs": 1, "baselines": False}
RESNET, ODENET, MATCHED = "ResNet", "ODE-Net", "ODE-Net (matched)"
FILE_NAMES = {RESNET: "resnet", ODENET: "odenet", MATCHED: "odenet-matched"}
PAIRS = {"document": (RESNET, ODENET), "matched": (RESNET, MATCHED), "both": (RESNET, ODENET, MATCHED)}
DOCUMENT = {RESNET: {"test_loss": 0.10, "accuracy": 0.975}, ODENET: {"test_loss": 0.09, "accuracy": 0.975}}
NEIGHBOUR, ALWAYS = "nearest neighbour", "always N"


@dataclass(frozen=True)
class Config:
    """Options of the ECG experiment; the defaults are the document's."""

    data: str = option("auto", "Where the beats come from.", SOURCES)
    data_dir: str | None = option(None, "Folder with the records or the CSV files; also ODENETS_DATA.")
    split: str = option("random", "Random beats, or patients kept apart.", (*SPLITS, "both"))
    pair: str = option("document", "The document's networks, a pair of equal size, or both.", PAIRS)
    seed: int = option(0, "First seed, of the initial weights and the order of the beats.")
    seeds: int = option(1, "Number of seeds.")
    epochs: int = option(20, "Epochs.")
    batch_size: int = option(128, "Beats in a batch.")
    lr: float = option(0.1, "Learning rate of stochastic gradient descent.")
    momentum: float = option(0.9, "Its momentum.")
    width: int = option(64, "Width of the networks.")
    depth: int = option(6, "Residual blocks of the ResNet.")
    method: str = option("dopri5", "Solver of the ODE-Net.", METHODS)
    rtol: float = option(1e-3, "Relative tolerance of the solver.")
    atol: float = option(1e-3, "Absolute tolerance of the solver.")
    dt: float | None = option(None, "Fixed step of the solver, in place of the tolerances.")
    adjoint: str = option("direct", "How the solve is differentiated.", tuple(ADJOINTS))
    compile: bool = option(False, "Compile the solves: seconds to a minute once, then steps several times as fast.")
    baselines: bool = option(True, "Also measure the nearest neighbour, beside “always N” (half a minute).")
    device: str = option("cpu", "Device.", DEVICES)
    precision: str = option("no", "Mixed precision of the forward pass.", PRECISIONS)
    checkpoint_every: int | None = option(None, "Steps between checkpoints; otherwise one an epoch.")

    def __post_init__(self) -> None:
        check_choices(self)
        solver_options(self)
        check_at_least(self, seed=0, seeds=1, epochs=1, batch_size=1, width=1, depth=1, checkpoint_every=1)
        train_config(self, self.seed)


def train_config(config: Config, seed: int) -> TrainConfig:
    """How each of the networks is trained."""
    return TrainConfig(
        epochs=config.epochs,
        lr=config.lr,
        momentum=config.momentum,
        batch_size=config.batch_size,
        seed=seed,
        device=config.device,
        precision=config.precision,
        checkpoint_every=config.checkpoint_every,
    )


def network(name: str, config: Config, seed: int) -> nn.Module:
    """One of the three networks of section 5, new, with weights of that seed.

    187 → 64 → 64 → 64 with ReLU between; then six residual blocks x + W ReLU(x), or dz/dt = Linear(ReLU(z) + t) on
    [0, 1]; then ReLU and 64 → 5. The matched ODE-Net's field has a hidden layer, so that it has as many parameters
    as the ResNet.
    """
    torch.manual_seed(seed)
    pair = twins(
        187,
        len(CLASSES),
        config.width,
        depth=config.depth,
        matched=name == MATCHED,
        verbose=False,
        **solver_options(config),
    )
    return pair.resnet if name == RESNET else pair.odenet


class Trained(NamedTuple):
    """One network after training, measured."""

    row: dict[str, Any]  # what `summary.json` keeps of the run
    history: list[dict[str, Any]]


def measure(y: Tensor, predicted: np.ndarray) -> dict[str, Any]:
    """Accuracy, macro-F1, sensitivity and precision per class, and the confusion matrix [true, predicted]."""
    with experiments_extra("measuring"):
        from sklearn import metrics  # noqa: PLC0415 — seconds to import

    truth, labels = y.numpy(), list(range(len(CLASSES)))
    common: dict[str, Any] = {"labels": labels, "average": None, "zero_division": 0}
    return {
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "macro_f1": float(np.mean(metrics.f1_score(truth, predicted, **common))),
        "sensitivity": np.asarray(metrics.recall_score(truth, predicted, **common)).tolist(),
        "precision": np.asarray(metrics.precision_score(truth, predicted, **common)).tolist(),
        "confusion": metrics.confusion_matrix(truth, predicted, labels=labels).tolist(),
    }


def train_one(
    name: str, data: ECGData, config: Config, seed: int, folder: Path, resume: bool, progress: bool
) -> Trained:
    """Train one network with one seed on one split, and measure it on the test beats."""
    model = network(name, config, seed)
    train, test = ((beats.x, beats.y) for beats in (data.train, data.test))
    loss = nn.functional.cross_entropy
    file_name = FILE_NAMES[name] + ("-inter-patient" if config.split == "both" and data.split != "random" else "")
    how = train_config(config, seed)
    history = fit(model, loss, train, test, how, folder, file_name, resume=resume, progress=progress)
    test_loss, outputs = evaluate(model, loss, *test)
    row = {
        "network": name,
        "split": data.split,
        "seed": seed,
        "parameters": count_parameters(model),
        "test_loss": test_loss,
        **measure(data.test.y, outputs.argmax(1).cpu().numpy()),
        "train_loss": history.final.train_loss,
        "seconds_per_epoch": statistics.median(history.column("seconds")),
        "nfe": history.final.nfe,
        "nfe_backward": history.final.nfe_backward,
        "test_losses": history.column("test_loss"),
        "seconds": history.column("seconds"),
    }
    return Trained(row, [dataclasses.asdict(record) for record in history.records])


def baselines(data: ECGData, config: Config) -> list[dict[str, Any]]:
    """What needs no network: calling every beat normal, and the class of the nearest training beat."""
    constant = {"network": ALWAYS, **measure(data.test.y, np.zeros(len(data.test.y), dtype=int))}
    if not config.baselines:
        return [constant]
    with experiments_extra("measuring"):
        from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415 — seconds to import

    model = KNeighborsClassifier(n_neighbors=1, algorithm="brute")
    model.fit(data.train.x.numpy(), data.train.y.numpy())
    neighbour = {"network": NEIGHBOUR, **measure(data.test.y, model.predict(data.test.x.numpy()))}
    return [constant, neighbour]


def _say_nothing(text: str) -> None:
    """`say` where no progress is to be shown."""


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train the networks on each split for each seed; files go to `folder`, the findings are returned."""
    tell = say if progress else _say_nothing
    splits = SPLITS if config.split == "both" else (config.split,)
    sections, rows, base, sources, synthetic = [], [], [], [], False
    for split in splits:
        tell("Reading the heartbeats …")
        data = load_ecg(
            config.data, split, data_dir=config.data_dir, progress=progress_bar if progress else no_progress
        )
        trained = [
            train_one(name, data, config, seed, folder, resume, progress)
            for seed in range(config.seed, config.seed + config.seeds)
            for name in PAIRS[config.pair]
        ]
        if config.baselines:
            tell("Measuring the nearest neighbours, up to half a minute …")
        base_rows = [{"split": split, **row} for row in baselines(data, config)]
        tell("Drawing the figures …")
        sections.append(_section(data, config, trained, base_rows))
        rows += [t.row for t in trained]
        base += base_rows
        sources.append(data.source)
        synthetic = synthetic or data.synthetic
    return Result(
        experiment="ecg",
        title=f"ECG: ODE-Net and ResNet on {'synthetic' if synthetic else 'MIT-BIH'} heartbeats",
        lead=_lead(rows, base, synthetic),
        config=dataclasses.asdict(config),
        source=" ".join(dict.fromkeys(sources)),
        synthetic=synthetic,
        sections=tuple(sections),
        summary={
            "table": summarise(rows, synthetic),
            "differences": differences(rows),
            "baselines": base,
            "runs": rows,
        },
    )


# --- statistics over seeds -------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, Any]], synthetic: bool) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds for each split and network, and the time to the ResNet's error.

    The document's numbers stand beside those of its networks on its split, unless the beats are `synthetic`.
    """
    groups = dict.fromkeys((row["split"], row["network"]) for row in rows)
    return [
        _summary_row(split, name, rows, DOCUMENT.get(name, {}) if split == "random" and not synthetic else {})
        for split, name in groups
    ]


def _summary_row(
    split: str, name: str, rows: Sequence[Mapping[str, Any]], document: Mapping[str, float]
) -> dict[str, Any]:
    here = [row for row in rows if row["split"] == split]
    mine = [row for row in here if row["network"] == name]
    goals = {row["seed"]: row["test_losses"][-1] for row in here if row["network"] == RESNET}
    arrivals = [seconds_until(row, goals[row["seed"]]) for row in mine if row["seed"] in goals]
    reached = [a for a in arrivals if a is not None]
    out: dict[str, Any] = {"split": split, "network": name, "seeds": len(mine), "parameters": mine[0]["parameters"]}
    for key in ("test_loss", "accuracy", "macro_f1"):
        values = [row[key] for row in mine]
        out[key] = statistics.fmean(values)
        out[f"{key}_median"] = statistics.median(values)
        out[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        out[f"{key}_document"] = document.get(key)
    out["collapsed"] = [row["seed"] for row in mine if collapsed(row)]
    out["seconds_per_epoch"] = statistics.median(row["seconds_per_epoch"] for row in mine)
    out["seconds_to_resnet"] = statistics.median(reached) if reached else None
    out["reached"] = len(reached)
    out["nfe"] = mine[0]["nfe"] if mine[0]["nfe"] is None else statistics.fmean(row["nfe"] for row in mine)
    return out


def seconds_until(row: Mapping[str, Any], goal: float) -> float | None:
    """Training seconds until the test loss of an epoch's end is at most `goal`; None if it never is."""
    seconds = 0.0
    for loss, elapsed in zip(row["test_losses"], row["seconds"]):
        seconds += elapsed
        if loss <= goal:
            return seconds
    return None


def differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """ODE-Net minus ResNet, paired by seed: mean and 95 % confidence interval (Student's t) of each quantity."""
    out = []
    for split in dict.fromkeys(row["split"] for row in rows):
        by_network = _by_network(row for row in rows if row["split"] == split)
        for name in (ODENET, MATCHED):
            seeds = sorted(by_network.get(name, {}).keys() & by_network.get(RESNET, {}).keys())
            for key in ("test_loss", "accuracy", "macro_f1") if seeds else ():
                values = [by_network[name][seed][key] - by_network[RESNET][seed][key] for seed in seeds]
                lost = [s for s in seeds if collapsed(by_network[name][s]) or collapsed(by_network[RESNET][s])]
                kept = [value for value, seed in zip(values, seeds) if seed not in lost]
                out.append(
                    {
                        "split": split,
                        "network": name,
                        "quantity": key,
                        **_estimate(values),
                        "values": values,
                        "seeds": seeds,
                        "collapsed": lost,
                        "without_collapsed": _estimate(kept) if lost and kept else None,
                    }
                )
    return out


def _estimate(values: Sequence[float]) -> dict[str, float | None]:
    low, high = interval(values)
    return {"mean": statistics.fmean(values), "low": low, "high": high}


def collapsed(row: Mapping[str, Any]) -> bool:
    """Whether a network ended up calling every test beat the same, as training at a high rate sometimes does."""
    return np.count_nonzero(np.sum(row["confusion"], axis=0)) == 1


def _by_network(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    out: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        out.setdefault(row["network"], {})[row["seed"]] = row
    return out


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """The confidence interval of a mean by Student's t; (None, None) from fewer than two values."""
    if len(values) < 2:
        return None, None
    with experiments_extra("a confidence interval"):
        from scipy.special import stdtrit  # noqa: PLC0415 — slow to import

    spread = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * spread
    return statistics.fmean(values) - half, statistics.fmean(values) + half


# --- words, tables and pictures --------------------------------------------------------------------------------------


def _lead(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], synthetic: bool) -> str:
    kind = "synthetic heartbeats" if synthetic else "heartbeats of the MIT-BIH database"
    splits = dict.fromkeys(row["split"] for row in rows)
    parts = [_finding(*([row for row in group if row["split"] == split] for group in (rows, base))) for split in splits]
    about = (
        f"Networks that differ only in their middle classify {kind}, as in section 5 of {INTRODUCTION}, “the document” "
        "below."
    )
    if not synthetic and "random" in splits:
        about += (
            " It reports, for one run on a random split, a cross entropy of 0.10 (ResNet) and 0.09 (ODE-Net), "
            "and 97.5 % for both."
        )
    return "\n\n".join([*parts, about])


IN_WORDS = {ALWAYS: "calling every beat normal", NEIGHBOUR: "taking the class of the nearest training beat"}


def _finding(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> str:
    """What one split says: the best network beside the best trivial answer, then the networks beside each other."""
    found = summarise(rows, synthetic=True)
    best, rival = (max(group, key=lambda row: row["accuracy"]) for group in (found, base))
    right, theirs = f"{100 * best['accuracy']:.1f} %", f"{IN_WORDS[rival['network']]} ({100 * rival['accuracy']:.1f} %)"
    ahead = (
        f"the {best['network']} is right about {right} of the test beats, more than {theirs}"
        if best["accuracy"] > rival["accuracy"]
        else f"no network is right about more test beats than {theirs}; the best of them, the {best['network']}, "
        f"about {right}"
    )
    losses = ", ".join(f"{row['network']} {row['test_loss']:.3f}" for row in found)
    return f"{rows[0]['split'].capitalize()} split: {ahead}. Cross entropy: {losses}; {_settled(rows)}."


def _settled(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the seeds can tell about the cross entropies of the networks."""
    seeds = len({row["seed"] for row in rows})
    if seeds == 1:
        return "one seed, which settles nothing between them"
    paired = [difference for difference in differences(rows) if difference["quantity"] == "test_loss"]
    better = [f"{_verdict(d)} is better than {_other(d)}" for d in paired if _verdict(d) != UNSETTLED]
    return f"means of {seeds} seeds, by which {' and '.join(better) or 'no difference is settled'}"


def _other(difference: Mapping[str, Any]) -> str:
    return RESNET if _verdict(difference) == difference["network"] else difference["network"]


CLASS_TEXT = f"The five classes of beats: {'; '.join(f'{c} {name}' for c, name in zip(CLASSES, CLASS_NAMES))}."
SPLIT_TEXTS = {
    "random": "Random split, as in the document: beats of one patient stand on both sides, so it mostly measures how "
    "well a network remembers patients; the class of the nearest training beat is already a strong answer.",
    "inter-patient": "Inter-patient split (de Chazal): no record stands on both sides, paced records are left out. It "
    "measures what a clinic would want to know, and is far harder; paced and unclassifiable beats (class Q) are nearly "
    "absent.",
}


def _section(data: ECGData, config: Config, trained: Sequence[Trained], base: Sequence[Mapping[str, Any]]) -> Section:
    rows = [t.row for t in trained]
    found = summarise(rows, data.synthetic)
    tables = [main_table(found, base), class_table(class_means(rows, base), config.seeds), time_table(found)]
    paired = differences(rows)
    if config.seeds > 1:
        tables.insert(1, difference_table(paired))
    return Section(
        f"{data.split.capitalize()} split",
        f"{SPLIT_TEXTS[data.split]}\n\n{CLASS_TEXT}\n\n"
        f"{len(data.train.y):,} beats to learn from, {len(data.test.y):,} to test on. {data.source}",
        tuple(tables),
        tuple(_pictures(data, config, trained, paired)),
    )


MAIN_COLUMNS = {
    "network": "",
    "test_loss": "cross entropy",
    "accuracy": "accuracy %",
    "macro_f1": "macro-F1",
    "test_loss_document": "document: cross entropy",
    "accuracy_document": "document: accuracy %",
    "parameters": "parameters",
}


_NOTES = {
    ALWAYS: "“Always N” calls every beat normal.",
    NEIGHBOUR: "“Nearest neighbour” takes the class of the nearest training beat.",
}


def main_table(found: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> Table:
    """Cross entropy, accuracy and macro-F1 of networks and baselines, with the document's numbers if it has any."""
    rows = [*map(_network_cells, found), *map(_baseline_cells, base)]
    seeds = found[0]["seeds"]
    shown = {key: head for key, head in MAIN_COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    return Table(
        f"Test beats, {found[0]['split']} split, {'one seed' if seeds == 1 else f'{seeds} seeds'}",
        tuple(shown.values()),
        tuple(tuple(row.get(key) for key in shown) for row in rows),
        note=("" if seeds == 1 else "Mean ± standard deviation over the seeds. ")
        + "Macro-F1 is the mean over the classes."
        + "".join(f" {_NOTES[row['network']]}" for row in base)
        + "".join(
            f" {row['network']}, seeds {row['collapsed']}: calls every beat the same."
            for row in found
            if row["collapsed"]
        ),
    )


def _network_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    document = row["accuracy_document"]
    means = {
        "test_loss": _mean(row, "test_loss", 3),
        "accuracy": _mean(row, "accuracy", 2, 100),
        "macro_f1": _mean(row, "macro_f1", 3),
    }
    return {**row, **means, "accuracy_document": None if document is None else 100 * document}


def _baseline_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "network": row["network"],
        "accuracy": f"{100 * row['accuracy']:.2f}",
        "macro_f1": f"{row['macro_f1']:.3f}",
    }


def _mean(row: Mapping[str, Any], key: str, digits: int, scale: float = 1.0) -> str:
    spread = row[f"{key}_sd"]
    text = f"{scale * row[key]:.{digits}f}"
    return text if spread is None else f"{text} ± {scale * spread:.{digits}f}"


def difference_table(paired: Sequence[Mapping[str, Any]]) -> Table:
    """ODE-Net minus ResNet, with the confidence interval and what it settles."""
    rows = []
    for d in paired:
        rows.append((f"{d['network']} − ResNet", *_difference_cells(d, d)))
        if d["without_collapsed"]:
            rows.append((f"the same without seeds {d['collapsed']}", *_difference_cells(d, d["without_collapsed"])))
    return Table(
        "Paired differences over the seeds, with 95 % confidence interval",
        ("pair", "quantity", "better", "mean", "low", "high"),
        tuple(rows),
        note="Student's t on the differences of equal seeds. An interval that holds zero settles nothing. A collapsed "
        "network calls every beat normal; seeds with one are also left out, since one such number hides all others.",
    )


def _difference_cells(difference: Mapping[str, Any], estimate: Mapping[str, Any]) -> tuple[str | float | None, ...]:
    verdict = _verdict({**difference, **estimate})
    return _QUANTITIES[difference["quantity"]], verdict, estimate["mean"], estimate["low"], estimate["high"]


UNSETTLED = "not settled"
_QUANTITIES = {"test_loss": "cross entropy", "accuracy": "accuracy", "macro_f1": "macro-F1"}


def _verdict(difference: Mapping[str, Any]) -> str:
    low, high = difference["low"], difference["high"]
    if low is None or low <= 0 <= high:
        return UNSETTLED
    higher_is_better = difference["quantity"] != "test_loss"
    return difference["network"] if (low > 0) == higher_is_better else RESNET


def class_means(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sensitivity and precision of every class for each split and network, mean over the seeds."""
    everything = [*rows, *base]
    out = []
    for split, name in dict.fromkeys((row["split"], row["network"]) for row in everything):
        mine = [row for row in everything if (row["split"], row["network"]) == (split, name)]
        for key in ("sensitivity", "precision"):
            values = np.mean([row[key] for row in mine], axis=0).tolist()
            out.append({"split": split, "network": name, "quantity": key, "values": values})
    return out


def class_table(means: Sequence[Mapping[str, Any]], seeds: int) -> Table:
    """Sensitivity and precision of every class."""
    rows = tuple((f"{m['network']}, {m['quantity']}", *(f"{100 * value:.1f}" for value in m["values"])) for m in means)
    over = "" if seeds == 1 else f", mean of {seeds} seeds"
    note = "Sensitivity: of the beats of a class, the share found. Precision: of those called so, the share that are."
    return Table(f"Sensitivity and precision per class, %{over}", ("", *CLASSES), rows, note)


def time_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """What training cost."""
    head = ("", "nfe a batch, last epoch", "seconds an epoch", "seconds to the ResNet's final test loss", "seeds there")
    note = "nfe: evaluations of f. The ResNet's own row says when it first had the loss that it ends with."
    keys = ("network", "nfe", "seconds_per_epoch", "seconds_to_resnet")
    rows = [tuple(row[key] for key in keys) for row in found]
    if found[0]["seeds"] == 1:
        return Table("Time", head[:-1], tuple(rows), note)
    there = [f"{row['reached']} of {row['seeds']}" for row in found]
    return Table("Time", head, tuple((*row, n) for row, n in zip(rows, there)), f"Medians over the seeds. {note}")


def _pictures(
    data: ECGData, config: Config, trained: Sequence[Trained], paired: Sequence[Mapping[str, Any]]
) -> Iterable[Picture]:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    names = dict.fromkeys(t.row["network"] for t in trained)
    histories = {n: [r for t in trained if t.row["network"] == n for r in t.history] for n in names}
    matrices = {n: np.sum([t.row["confusion"] for t in trained if t.row["network"] == n], axis=0) for n in names}
    prefix, several = data.split, config.seeds > 1
    yield Picture(
        f"{prefix}-learning-curves",
        "Cross entropy over the epochs (the document's figures 9 and 10)",
        "Training and test cross entropy of each network"
        + (": the mean of the seeds and, as a band, their range." if several else "."),
        figures.learning_curves(histories, label="cross entropy"),
    )
    yield Picture(
        f"{prefix}-time",
        "Test cross entropy over training time",
        "Against seconds instead of epochs: when the ODE-Net reaches what the ResNet ends with.",
        figures.loss_over_time(histories, label="test cross entropy"),
    )
    yield Picture(
        f"{prefix}-nfe",
        "Evaluations of f over training",
        "Mean number of evaluations of f in the forward pass of a batch.",
        figures.metric_over_epochs(histories, "nfe", "evaluations of f a batch"),
    )
    yield Picture(
        f"{prefix}-seconds",
        "Time an epoch takes",
        "Seconds of training an epoch, without tests.",
        figures.seconds_per_epoch(histories),
    )
    yield Picture(
        f"{prefix}-confusion",
        "Confusion matrices",
        f"Rows are the true class, with the share of the row and the count{', all seeds together' * several}. "
        f"{CLASS_TEXT}",
        figures.confusion(matrices, CLASSES),
    )
    for difference in paired:
        if difference["quantity"] == "test_loss" and difference["low"] is not None:
            yield Picture(
                f"{prefix}-difference-{FILE_NAMES[difference['network']]}",
                f"{difference['network']} minus ResNet, seed by seed",
                "Difference of the test cross entropy of equal seeds, with its mean and 95 % confidence interval.",
                figures.seed_differences(
                    difference["values"],
                    (difference["low"], difference["high"]),
                    f"test cross entropy, {difference['network']} − ResNet",
                    difference["seeds"],
                ),
            )
    yield Picture(
        f"{prefix}-beats",
        "What the networks see",
        "The first three training beats of every class, each scaled to 0–1 and filled up with zeros.",
        figures.beats(data.train.x, data.train.y, [f"{c}: {name}" for c, name in zip(CLASSES, CLASS_NAMES)]),
    )
