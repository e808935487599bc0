"""The report of `odenets fit`: how good the network is on samples that it has not seen, beside simpler answers."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn import metrics
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from odenets import figures
from odenets.estimators import SeriesClassifier
from odenets.experiments.result import Picture, Result, Section, Table
from odenets.nn.series.inputs import last_values
from odenets.series import Series

_POINTS = 2000  # in a scatter plot
_DRAWS = 500


@dataclass(frozen=True)
class Tested:
    """A trained estimator, all samples, and which of them, (n,), it was not trained on."""

    estimator: Any  # a `SeriesClassifier` or `SeriesRegressor`
    series: Series
    y: np.ndarray
    test: np.ndarray

    @property
    def name(self) -> str:
        return str(self.estimator.model)

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        return np.flatnonzero(~self.test), np.flatnonzero(self.test)


def page(tested: Tested, path: Path, target: str, config: Mapping[str, Any]) -> Result:
    """The report's content."""
    classes = isinstance(tested.estimator, SeriesClassifier)
    train, test = tested.parts()
    found, truth, measures = _classified(tested) if classes else _regressed(tested)
    rows = {name: {key: f(truth, answer) for key, f in measures.items()} for name, answer in found.items()}
    answers = found[tested.name]
    columns = tuple(next(iter(rows.values())))
    table = Table(
        f"{len(test):,} samples that were held out",
        ("", *columns),
        tuple((name, *row.values()) for name, row in rows.items()),
        "“Last values” are each channel's last observation and how often it was observed, with what is static.",
    )
    key, network = columns[0], rows[tested.name][columns[0]]
    rival, best = max(((name, row[key]) for name, row in rows.items() if name != tested.name), key=lambda pair: pair[1])
    low, high = _interval(measures[key], truth, found[tested.name], found[rival])
    records = tested.estimator.history_.records
    lead = (
        f"On {len(test):,} samples that it was not trained on, the network reaches {key} {network:.3f}; {rival}: "
        f"{best:.3f}. The difference, {network - best:+.3f}, lies between {low:+.3f} and {high:+.3f} (95 %, by drawing "
        f"test samples again {_DRAWS} times): that settles {'nothing' if low <= 0 <= high else 'which is better'}. "
        f"{len(train):,} samples were for training, in {len(records)} epochs."
    )
    curve = Picture(
        "learning-curve",
        "Learning curve",
        "The loss over the epochs: of the part that is trained on, and of another held-out part, by which the best "
        "epoch is chosen. It is not the test part above.",
        tested.estimator.plot(),
    )
    pictures = _class_pictures(tested, answers) if classes else _number_pictures(tested, answers)
    sections = (
        Section(f"Prediction of {target}", "", (table,), tuple(pictures)),
        Section("Training", "", (), (curve,)),
    )
    return Result("fit", f"{target} from {path.name}", lead, config, str(path), False, sections, {"test": rows})


Measure = Callable[[np.ndarray, np.ndarray], float]
Found = tuple[dict[str, np.ndarray], np.ndarray, dict[str, Measure]]


def _interval(measure: Measure, truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of how much more the network reaches, by the bootstrap (Efron 1979)."""
    random, differences = np.random.RandomState(0), []
    for _ in range(_DRAWS):
        part = random.randint(len(truth), size=len(truth))
        differences.append(measure(truth[part], ours[part]) - measure(truth[part], theirs[part]))
    low, high = np.nanquantile([0.0] if np.isnan(differences).all() else differences, (0.025, 0.975))
    return float(low), float(high)


def _classified(tested: Tested) -> Found:
    """What the network and the simpler answers say, what is true, and how to measure that."""
    estimator, (train, test) = tested.estimator, tested.parts()
    names = estimator.classes_
    code = {name: i for i, name in enumerate(names)}
    codes = np.array([code[name] for name in tested.y])
    shares = np.bincount(codes[train], minlength=len(names)) / len(train)
    x = _last(tested)
    simple = LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        simple.fit(x[train], codes[train])
    found = {
        tested.name: estimator.predict_proba(tested.series[test]),
        "logistic regression on last values": simple.predict_proba(x[test]),
        f"always {names[shares.argmax()]}": np.tile(shares, (len(test), 1)),
    }
    return found, codes[test], _class_measures(codes[test], len(names))


def _class_measures(codes: np.ndarray, classes: int) -> dict[str, Measure]:
    """The measures of classes 0, 1, … against probabilities (n, classes); the first one is what is compared by."""
    measures: dict[str, Measure] = {
        "accuracy": lambda codes, p: float((p.argmax(1) == codes).mean()),
        "log loss": lambda codes, p: float(-np.log(p[np.arange(len(codes)), codes].clip(1e-15)).mean()),
    }
    if classes > 2 or len(set(codes)) < 2:
        return measures
    return {
        "AUROC": _auroc,
        "average precision": lambda codes, p: float(metrics.average_precision_score(codes, p[:, 1])),
        **measures,
    }


def _auroc(codes: np.ndarray, likely: np.ndarray) -> float:
    """The share of pairs, one of each class, that are in the right order (Mann–Whitney); NaN without such a pair."""
    ones = int(codes.sum())
    pairs = ones * (len(codes) - ones)
    ranks = rankdata(likely[:, 1])[codes == 1].sum()
    return float((ranks - ones * (ones + 1) / 2) / pairs) if pairs else math.nan


def _regressed(tested: Tested) -> Found:
    (train, test), x, y = tested.parts(), _last(tested), tested.y.astype(float)
    found = {
        tested.name: tested.estimator.predict(tested.series[test]),
        "linear regression on last values": Ridge().fit(x[train], y[train]).predict(x[test]),
        "always the mean": np.full(len(test), y[train].mean()),
    }
    return found, y[test], _NUMBER_MEASURES


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    spread = float(np.square(y - y.mean()).sum())
    return 1 - float(np.square(predicted - y).sum()) / spread if spread else math.nan


_NUMBER_MEASURES: dict[str, Measure] = {
    "R²": _r2,
    "root mean square error": lambda y, predicted: float(np.sqrt(np.square(predicted - y).mean())),
    "mean absolute error": lambda y, predicted: float(np.abs(predicted - y).mean()),
}


def _last(tested: Tested) -> np.ndarray:
    """(n, numbers), scaled: each channel's last observation (the mean where there is none), counts, what is static."""
    scaled = tested.estimator.scaling_(tested.series)
    last = last_values(scaled.values)[0][:, -1]
    counts = scaled.mask.sum(1).log1p()
    static = [] if scaled.static is None else [scaled.static.nan_to_num()]
    return torch.cat([last, counts.to(last), *static], dim=1).numpy()


def _class_pictures(tested: Tested, likely: np.ndarray) -> Iterator[Picture]:
    names, (_, test) = tested.estimator.classes_, tested.parts()
    truth = tested.y[test]
    counts = metrics.confusion_matrix(truth, names[likely.argmax(1)], labels=names)
    words = "How many samples of each class are taken for which; the shade is the share of the row."
    yield Picture("confusion", "Right and wrong", words, figures.confusion({tested.name: counts}, [*map(str, names)]))
    if len(names) != 2 or len(set(truth)) != 2:
        return
    positive = truth == names[1]
    false, true, _ = metrics.roc_curve(positive, likely[:, 1])
    chance = figures.Line([0, 1], [0, 1])
    yield Picture(
        "roc",
        "Receiver operating characteristic",
        f"The share of class {names[1]} that is found, over the share of the others that is taken for it.",
        figures.lines(
            {tested.name: figures.Line(false, true), "chance": chance}, "false positives", "found", level="chance"
        ),
    )
    precision, recall, _ = metrics.precision_recall_curve(positive, likely[:, 1])
    share = float(positive.mean())
    chance = figures.Line([0, 1], [share, share])
    yield Picture(
        "precision",
        "Precision and recall",
        f"The share of class {names[1]} among those that are taken for one, over the share of it that is found.",
        figures.lines(
            {tested.name: figures.Line(recall, precision), "chance": chance}, "found", "precision", level="chance"
        ),
    )


def _number_pictures(tested: Tested, predicted: np.ndarray) -> Iterator[Picture]:
    _, test = tested.parts()
    y = tested.y[test].astype(float)
    residuals = np.stack([predicted, y - predicted], axis=1)[:_POINTS]
    both = np.stack([y, predicted], axis=1)[:_POINTS]
    words = "A point for each sample that was held out."
    yield Picture("predicted", "Predicted and true", words, figures.plane({tested.name: both}, "outcome", "predicted"))
    yield Picture(
        "residuals", "Residuals", words, figures.plane({tested.name: residuals}, "predicted", "outcome − predicted")
    )
