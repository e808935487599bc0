"""Problem 2: heartbeats of the MIT-BIH database in five classes (section 5 of the introduction).

Run it:     odenets run ecg                          (both networks on the random split: about 2 minutes on one core)
            odenets run ecg --split both --pair both --seeds 10      (all of it: about an hour on one core)
Expect:     random split, 20 epochs: test cross entropy 0.09–0.10 and accuracy 97.5 % for both networks;
            inter-patient split: cross entropy 0.8–1.1, and accuracy below that of calling every beat normal.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odenets.data.ecg import CLASSES, SOURCES, SPLITS, ECGData, load_ecg
from odenets.experiments.driver import Trained, seeds_of
from odenets.experiments.ecg_page import FILE_NAMES, lead, section
from odenets.experiments.ecg_summary import MATCHED, ODENET, RESNET, differences, summarise
from odenets.experiments.ecg_summary import class_means as class_means
from odenets.experiments.ecg_summary import seconds_until as seconds_until
from odenets.experiments.ecg_tables import ALWAYS, NEIGHBOUR
from odenets.experiments.option import ADJOINTS, check_at_least, check_choices, option, solver_options
from odenets.experiments.result import Result
from odenets.extra import experiments_extra
from odenets.methods import ANY_SYSTEM
from odenets.nn.models import count_parameters, twins
from odenets.progress import no_progress, progress_bar, say
from odenets.train import TrainConfig, evaluate, fit
from odenets.train.config import DEVICES, PRECISIONS

SMALL = {"data": "synthetic", "epochs": 1, "baselines": False}
PAIRS = {"document": (RESNET, ODENET), "matched": (RESNET, MATCHED), "both": (RESNET, ODENET, MATCHED)}


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
    method: str = option("dopri5", "Solver of the ODE-Net.", ANY_SYSTEM)
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
    return Trained.of(model, row, history)


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


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Train the networks on each split for each seed; files go to `folder`, the findings are returned."""
    tell, bar = (say, progress_bar) if progress else (lambda text: None, no_progress)
    sections, rows, base, sources, synthetic = [], [], [], [], False
    for split in SPLITS if config.split == "both" else (config.split,):
        tell("Reading the heartbeats …")
        data = load_ecg(config.data, split, data_dir=config.data_dir, progress=bar)
        trained = [
            train_one(name, data, config, seed, folder, resume, progress)
            for seed in seeds_of(config)
            for name in PAIRS[config.pair]
        ]
        if config.baselines:
            tell("Measuring the nearest neighbours, up to half a minute …")
        base_rows = [{"split": split, **row} for row in baselines(data, config)]
        tell("Drawing the figures …")
        sections.append(section(data, config, trained, base_rows))
        rows += [t.row for t in trained]
        base += base_rows
        sources.append(data.source)
        synthetic = synthetic or data.synthetic
    return Result(
        experiment="ecg",
        title=f"ECG: ODE-Net and ResNet on {'synthetic' if synthetic else 'MIT-BIH'} heartbeats",
        lead=lead(rows, base, synthetic),
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
