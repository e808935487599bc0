"""A trained estimator as a folder: weights as safetensors, everything else as JSON, no code and no pickles."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from odenets.data.errors import DataError
from odenets.estimators import SeriesClassifier, SeriesRegressor
from odenets.estimators.base import SeriesEstimator
from odenets.files import DamagedFolderError, RunFolderError, folder_errors, read_directory, write_directory
from odenets.series import Scaling
from odenets.tabular.read import Columns

MODEL = "model"
_FORMAT = 1
_KINDS: dict[str, type[SeriesEstimator]] = {kind.__name__: kind for kind in (SeriesClassifier, SeriesRegressor)}
_NUMBERS = ("target_mean_", "target_deviation_", "n_features_in_", "n_static_")


def save(estimator: SeriesEstimator, columns: Columns, folder: Path) -> None:
    """Write the folder `model` in `folder`, whole or not at all; raises `RunFolderError`."""
    scaling = {field.name: getattr(estimator.scaling_, field.name) for field in dataclasses.fields(Scaling)}
    settings = {
        "format": _FORMAT,
        "estimator": type(estimator).__name__,
        "parameters": estimator.get_params(),
        "columns": dataclasses.asdict(columns),
        "classes": estimator.classes_.tolist() if isinstance(estimator, SeriesClassifier) else None,
        "fitted": {name: getattr(estimator, name) for name in _NUMBERS if hasattr(estimator, name)},
        "scaling": {name: x.tolist() if isinstance(x, torch.Tensor) else x for name, x in scaling.items()},
    }
    weights = {name: x.detach().cpu().contiguous() for name, x in estimator.network_.state_dict().items()}
    files = {"settings.json": json.dumps(settings, indent=1).encode(), "weights.safetensors": save_tensors(weights)}
    with folder_errors("The model", folder):
        write_directory(folder / MODEL, files)


def load(folder: Path) -> tuple[SeriesEstimator, Columns]:
    """The estimator and the columns of a folder of `save`, every byte checked; raises `RunFolderError`, `DataError`."""
    if not (folder / MODEL).is_dir():
        raise DataError(f"{folder} holds no trained model: give the folder that `odenets fit` wrote")
    try:
        files = read_directory(folder / MODEL)
    except DamagedFolderError as error:
        raise RunFolderError(f"The model is damaged: {error}. Train it again: `odenets fit`.") from None
    settings = json.loads(files["settings.json"])
    if settings["format"] != _FORMAT:
        raise RunFolderError(f"{folder / MODEL} was written by another version of odenets. Train it again.")
    estimator = _KINDS[settings["estimator"]](**settings["parameters"])
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["columns"].items()}
    known["words"] = {name: tuple(words) for name, words in known.get("words", {}).items()}
    columns = Columns(**known)
    estimator.channels_, estimator.steps_ = columns.values, None
    for name, value in settings["fitted"].items():
        setattr(estimator, name, value)
    estimator.scaling_ = Scaling(**{name: _tensor(x) for name, x in settings["scaling"].items()})
    outputs = 1
    if isinstance(estimator, SeriesClassifier):
        estimator.classes_ = np.asarray(settings["classes"])
        outputs = len(estimator.classes_)
    estimator.network_ = estimator.make_network(outputs, seed=0)
    estimator.network_.load_state_dict(load_tensors(files["weights.safetensors"]))
    estimator.network_.eval()
    return estimator, columns


def _tensor(x: Any) -> Any:
    return torch.tensor(x, dtype=torch.float64) if isinstance(x, list) else x
