"""`SeriesClassifier`: which class a sample belongs to."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn

from odenets.estimators.base import SeriesEstimator
from odenets.estimators.given import as_outcomes


class SeriesClassifier(ClassifierMixin, SeriesEstimator):
    """A class for each irregular time series, by a neural network that is made, scaled and trained by itself.

    `fit(X, y)`, `predict(X)`, `predict_proba(X)` and `score(X, y)` as in scikit-learn; clones, pipelines and grid
    searches work. X is a `Series`; an array (n, steps) of one channel or (n, steps, channels); or, with a list as
    `times`, a list of arrays, one a sample. NaN is a missing value. In searches and
    cross-validation give a `Series`, which carries its times and what is static. All is scaled by the training part
    alone.

    When to use: for labelled series of a few hundred samples or more, with gaps, with missing values. When not: for
    fewer, where logistic regression on the last values is hard to beat (compare!).

    Args:
        model: "ode_rnn", "gru", "gru_d", "cde", "mtan"; or a function (channels, outputs, hidden,
            static=...) that returns a new module, such as a class of `odenets.nn.series` or a `functools.partial` of
            one. See these classes for when to use which.
        hidden: The width of the network's state.
        epochs: At most so many passes over the training part.
        batch_size: Samples of one step of Adam.
        lr: Its learning rate.
        validation_fraction: The share of the samples that is held out, by which the best epoch is chosen; 0: none.
        patience: Training ends once the held-out loss has not fallen for so many epochs; None: never before `epochs`.
        class_weight: None, "balanced", or a dict from class to weight.
        solve_options: Options of `odenets.solve` for the models "ode_rnn" and "cde": `{"method": "rk4", ...}`.
        random_state: The seed of the held-out part, the first weights and the order: an int for equal results.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "mps".
        verbose: Whether a bar (in a log: a line an epoch) is shown on standard error.

    Attributes:
        classes_: The classes, sorted.
        network_: The trained `torch.nn.Module`; it takes a scaled `Series`, `scaling_(series)`.
        history_: The `odenets.train.History`, a record an epoch; its "test" loss is that of the held-out part.
        scaling_: The `odenets.series.Scaling` of the training part.
        n_features_in_: The number of steps of a matrix, of channels otherwise.
        channels_: The names of the channels.

    Raises (`fit`, `predict`):
        ValueError: In one sentence, with the sample's name and what to do: a time that is not finite, a sample without
            an observation, a channel that was never observed in the training part, NaN in y, one class only, other
            channels than in `fit`. Rows that are not in the order of time are sorted, and a `SortedRows` warning says
            so.
    """

    def __init__(
        self,
        model: Any = "ode_rnn",
        *,
        hidden: int = 32,
        epochs: int = 100,
        batch_size: int = 64,
        lr: float = 0.01,
        validation_fraction: float | None = 0.1,
        patience: int | None = 15,
        class_weight: Any = None,
        solve_options: Mapping[str, Any] | None = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: bool = False,
    ):
        super().__init__(
            model,
            hidden=hidden,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            validation_fraction=validation_fraction,
            patience=patience,
            solve_options=solve_options,
            random_state=random_state,
            device=device,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, *, times: Any = None, static: Any = None) -> Self:
        """Train on series X with classes y, (n,) of numbers or text."""
        series = self._fitted_series(X, times, static)
        y = as_outcomes(y, series, type(self).__name__)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"`y` must have two classes or more, got one class only, {self.classes_[0]}: add samples of another"
            )
        held, seed = self._begin(series, codes)
        loss = _Weighted(compute_class_weight(self.class_weight, classes=self.classes_, y=y[~held]), codes[~held])
        network = self.make_network(len(self.classes_), seed)
        return self._train(network, loss, series, torch.as_tensor(codes), held, seed)

    def predict_proba(self, X: Any, *, times: Any = None, static: Any = None) -> np.ndarray:
        """(n, classes), how probable each class is, in the order of `classes_`."""
        return self._outputs(self._series(X, times, static)).softmax(dim=1).numpy()

    def predict(self, X: Any, *, times: Any = None, static: Any = None) -> np.ndarray:
        """(n,), the most probable class of each sample."""
        likely = self.predict_proba(X, times=times, static=static).argmax(1)
        return self.classes_[likely]


class _Weighted:
    """The cross entropy in which a class counts by its weight; the mean weight of the training samples is 1."""

    def __init__(self, weights: np.ndarray, codes: np.ndarray):
        self.weights = torch.as_tensor(weights / weights[codes].mean(), dtype=torch.float32)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (nn.functional.cross_entropy(outputs, y, reduction="none") * self.weights.to(outputs.device)[y]).mean()
