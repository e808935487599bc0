"""`odenets predict`: outcomes of the samples in a file, by a model in a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from odenets.data.errors import DataError
from odenets.estimators import SeriesRegressor
from odenets.files import folder_errors, write_atomically
from odenets.series import Series
from odenets.tabular.folder import load
from odenets.tabular.read import as_series, read_csv


def predict_file(folder: Path, path: Path, out: Path) -> int:
    """Write what the model in `folder` predicts of the samples in `path`, whole or not at all; how many they are.

    Raises:
        DataError, RunFolderError: If something is wrong with one of them, or `out` exists.
    """
    if out.exists():
        raise DataError(f"{out} is there already: name another file by `--out`, or delete it")
    estimator, columns = load(folder)
    series = as_series(read_csv(path, columns.id), path, columns)
    table = predictions(estimator, series, columns.id)
    with folder_errors("The predictions", out):
        write_atomically(out, table.to_csv(index=False))
    return len(table)


def predictions(estimator: Any, series: Series, id: str) -> pd.DataFrame:
    """A line for each sample: its name, what is predicted, and how probable each class is."""
    table: dict[str, Any] = {id: list(series.ids)}
    if isinstance(estimator, SeriesRegressor):
        return pd.DataFrame({**table, "predicted": estimator.predict(series)})
    likely = estimator.predict_proba(series)
    table["predicted"] = estimator.classes_[np.argmax(likely, axis=1)]
    return pd.DataFrame({**table, **{f"probability of {c}": p for c, p in zip(estimator.classes_, likely.T)}})
