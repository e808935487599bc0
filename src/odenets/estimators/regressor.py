"""`SeriesRegressor`: a number for each sample."""

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from torch import nn

from odenets.estimators.base import SeriesEstimator
from odenets.estimators.given import as_outcomes


class SeriesRegressor(RegressorMixin, SeriesEstimator):
    """A number for each irregular time series, by a neural network that is made, scaled and trained by itself.

    `fit(X, y)`, `predict(X)` and `score(X, y)`, R², as in scikit-learn. The loss is the mean squared error of outcomes
    that are scaled by those of the training part.

    Args, X, errors and when to use: as for `SeriesClassifier`, without `class_weight`.

    Attributes:
        network_, history_, scaling_, n_features_in_, channels_: As there.
        target_mean_, target_deviation_: By which outcomes are scaled.
    """

    def fit(self, X: Any, y: Any, *, times: Any = None, static: Any = None) -> Self:
        """Train on series X with outcomes y, (n,) of finite numbers."""
        series = self._fitted_series(X, times, static)
        y = as_outcomes(y, series, type(self).__name__)
        if y.dtype.kind not in "biuf":
            y = np.array([_number(value, name) for value, name in zip(y, series.ids)])
        y = y.astype(np.float64)
        held, seed = self._begin(series, y)
        self.target_mean_ = float(y[~held].mean())
        self.target_deviation_ = float(y[~held].std()) or 1.0
        targets = torch.as_tensor((y - self.target_mean_) / self.target_deviation_, dtype=torch.float32)
        network = self.make_network(1, seed)
        return self._train(network, nn.functional.mse_loss, series, targets[:, None], held, seed)

    def predict(self, X: Any, *, times: Any = None, static: Any = None) -> np.ndarray:
        """(n,), the expected outcome of each sample."""
        outputs = self._outputs(self._series(X, times, static))
        return outputs[:, 0].numpy() * self.target_deviation_ + self.target_mean_


def _number(value: Any, name: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`y` of sample {name!r} is {value}, no number: classes are for `SeriesClassifier`") from None
