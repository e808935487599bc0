"""`odenets fit`: a file of series, a network trained on most of its samples and tested on the rest, a folder of it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from odenets.data.errors import DataError
from odenets.estimators import SeriesClassifier, SeriesRegressor
from odenets.estimators.base import SeriesEstimator, held_out
from odenets.experiments.result import Result
from odenets.files import folder_errors, write_atomically
from odenets.files.lock import LOCK, RunFolderError
from odenets.series import Series
from odenets.tabular import folder as folders
from odenets.tabular.page import Tested, page
from odenets.tabular.predict import predictions
from odenets.tabular.read import Columns, as_series, outcomes_of_column, outcomes_of_file, read_csv, with_columns_of

TASKS = ("auto", "classification", "regression")
_CLASSES = 10  # as many whole numbers are classes, more are an amount
_LEAST = 10  # samples


@dataclass(frozen=True)
class FitOptions:
    """What `odenets fit` is told."""

    columns: Columns
    target: str
    outcomes: Path | None = None
    task: str = "auto"
    test_fraction: float = 0.2
    seed: int = 0
    network: dict[str, Any] | None = None  # model, hidden, epochs, … of the estimator

    def __post_init__(self):
        if self.task not in TASKS:
            raise DataError(f"`--task` must be one of {', '.join(TASKS)}, got {self.task!r}")
        if not 0 < self.test_fraction < 1:
            raise DataError(f"`--test-fraction` must be between 0 and 1, got {self.test_fraction}")


def fit_file(path: Path, options: FitOptions, folder: Path, *, progress: bool) -> Result:
    """Train, write the model and the predictions into `folder`, which must be empty; the report's content.

    Raises:
        DataError, RunFolderError, ValueError: If something is wrong with the file, the folder or an option.
    """
    if any(file.name != LOCK for file in folder.iterdir()):
        raise RunFolderError(f"The folder {folder} is not empty. Name another by `--out`, or delete it.")
    frame = read_csv(path, options.columns.id)
    columns = with_columns_of(frame, path, options.columns, options.target)
    series = as_series(frame, path, columns)
    y = _outcomes(frame, path, options, series)
    kind = _task(options.task, y, options.target)
    test = held_out(_sorting(y, kind), options.test_fraction, np.random.RandomState(options.seed))
    if len(y) < _LEAST or not test.any():
        raise DataError(f"{path} has {len(y)} samples: give at least {_LEAST}, of which some can be held out")
    make = SeriesClassifier if kind == "classification" else SeriesRegressor
    estimator = make(**options.network or {}, random_state=options.seed, verbose=progress)
    train = np.flatnonzero(~test)
    estimator.fit(series[train], y[train])
    folders.save(estimator, columns, folder)
    with folder_errors("The predictions", folder):
        write_atomically(folder / "predictions.csv", _table(estimator, series, columns, y, test).to_csv(index=False))
    tested = Tested(estimator, series, y, test)
    config = asdict(options) | {"file": str(path), "task": kind, "columns": asdict(columns)}
    return page(tested, path, options.target, config)


def _outcomes(frame: pd.DataFrame, path: Path, options: FitOptions, series: Series) -> np.ndarray:
    id, target = options.columns.id, options.target
    if options.outcomes is None:
        return outcomes_of_column(frame, path, id, target, series.ids)
    return outcomes_of_file(options.outcomes, id, target, series.ids)


def _task(task: str, y: np.ndarray, target: str) -> str:
    number = y.dtype.kind in "iuf"
    if task == "regression" and not number:
        raise DataError(f"`--target` {target!r} is text, such as {y[0]!r}: leave `--task regression` out")
    if task != "auto":
        return task
    few = len(np.unique(y)) <= _CLASSES if number else True
    return "classification" if few and (not number or (y == np.round(y)).all()) else "regression"


def _sorting(y: np.ndarray, kind: str) -> np.ndarray:
    return np.unique(y, return_inverse=True)[1] if kind == "classification" else y.astype(float)


def _table(estimator: SeriesEstimator, series: Series, columns: Columns, y: np.ndarray, test: np.ndarray) -> Any:
    table = predictions(estimator, series, columns.id)
    table.insert(1, "part", np.where(test, "test", "training"))
    table.insert(2, "outcome", y)
    return table
