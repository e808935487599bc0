"""What the estimators share: settings, the way from X to a trained network, and the way back."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from odenets.arguments import count, number
from odenets.estimators.given import as_series, check_channels, is_matrix, listed
from odenets.estimators.networks import make_network
from odenets.series import Scaling, Series
from odenets.train import Loss, TrainConfig, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 512  # samples of one forward pass when predicting


class SeriesEstimator(BaseEstimator):
    """The base of the estimators; its arguments are those of `SeriesClassifier`."""

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
        solve_options: Mapping[str, Any] | None = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: bool = False,
    ):
        self.model = model
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.solve_options = solve_options
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags

    def __getstate__(self) -> Any:
        """With the network on the CPU, so that a machine without a GPU can read what one with a GPU wrote."""
        state: Any = super().__getstate__().copy()  # pyright: ignore[reportAttributeAccessIssue] — a dict
        if "network_" in state:
            state["network_"] = copy.deepcopy(state["network_"]).cpu()
        return state

    def plot(self) -> "Figure":
        """The learning curve: the loss of the training part and of the held-out part over the epochs."""
        check_is_fitted(self, "history_")
        from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

        name = self.model if isinstance(self.model, str) else type(self.network_).__name__
        return figures.learning_curves({name: self.history_.records})

    # -- from X to series

    def _fitted_series(self, X: Any, times: Any, static: Any) -> Series:
        """The series to fit on; what they are is noted for `predict`."""
        X = listed(X)
        matrix = is_matrix(X, times)
        if matrix:
            X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan")
        series = as_series(X[..., None] if matrix else X, times, static)
        if not matrix:
            self.n_features_in_ = series.values.shape[2]
            vars(self).pop("feature_names_in_", None)
        self.steps_ = series.times.shape[1] if matrix and times is None else None
        self.channels_ = series.channels
        self.n_static_ = 0 if series.static is None else series.static.shape[1]
        return series

    def _series(self, X: Any, times: Any, static: Any) -> Series:
        """The series to answer for, in their own units."""
        check_is_fitted(self, "network_")
        X = listed(X)
        matrix = is_matrix(X, times)
        if matrix and self.steps_ is not None and times is None:
            X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan")
        elif matrix:
            X = np.asarray(X, dtype=np.float64)
        series = as_series(X[..., None] if matrix else X, times, static)
        check_channels(series, self.channels_, self.n_static_)
        return series

    # -- the training

    def _begin(self, series: Series, y: np.ndarray) -> tuple[np.ndarray, int]:
        """Which samples are held out, (n,), and the seed of everything else; the scaling is of those that are not."""
        random = check_random_state(self.random_state)
        held = held_out(y, self.validation_fraction, random)
        self.scaling_ = Scaling.fit(series[np.flatnonzero(~held)])
        return held, int(random.randint(2**31 - 1))

    def make_network(self, outputs: int, seed: int) -> nn.Module:
        """An untrained network for the channels of the fit."""
        channels, static = len(self.channels_), self.n_static_
        return make_network(self.model, channels, outputs, self.hidden, static, self.solve_options, seed)

    def _train(
        self, network: nn.Module, loss: Loss, series: Series, targets: Tensor, held: np.ndarray, seed: int
    ) -> Self:
        """Train the network; with the samples in `held`, if there are any, the best epoch is found."""
        scaled = self.scaling_(series).to(torch.float32)
        patience = None if self.patience is None else count("patience", self.patience)
        config = TrainConfig(
            epochs=count("epochs", self.epochs),
            lr=number("lr", self.lr, "a positive number", lambda x: x > 0),
            batch_size=count("batch_size", self.batch_size),
            optimizer="adam",
            clip_norm=1.0,
            seed=seed,
            device=self.device,
            patience=patience if held.any() else None,
        )
        parts = [np.flatnonzero(mark) for mark in (~held, held if held.any() else ~held)]
        train, validation = ((scaled[part], targets[part]) for part in parts)
        name = self.model if isinstance(self.model, str) else "network"
        self.history_ = fit(network, loss, train, validation, config, name=name, progress=bool(self.verbose))
        self.network_ = network
        return self

    def _outputs(self, series: Series) -> Tensor:
        """(N, outputs), the network's, in float64 on the CPU."""
        scaled = self.scaling_(series).to(torch.float32)
        device = next(self.network_.parameters()).device
        with torch.no_grad():
            parts = [self.network_(scaled[i : i + ROWS].to(device)) for i in range(0, len(scaled), ROWS)]
        return torch.cat(parts).cpu().double()


def held_out(y: np.ndarray, fraction: Any, random: np.random.RandomState) -> np.ndarray:
    """(n,), True for a random part of the samples in which the outcomes are spread as in all; never all of a class.

    Args:
        y: (n,), what sorts: classes as whole numbers, or values.
        fraction: From 0 up to, but without, 1; None is 0.
        random: What to draw from.
    """
    share = number("validation_fraction", fraction or 0, "from 0 up to, but without, 1", lambda x: 0 <= x < 1)
    held = np.zeros(len(y), dtype=bool)
    size = round(share * len(y))
    if size == 0 or size == len(y):
        return held
    order = random.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    held[order[((np.arange(size) + random.uniform()) * len(y) / size).astype(int)]] = True
    if y.dtype.kind == "i":  # classes
        for name in set(y[held]) - set(y[~held]):
            held[y == name] = False
    return held
