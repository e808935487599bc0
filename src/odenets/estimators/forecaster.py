"""`SeriesForecaster`: the values of series at later times, each with a standard deviation."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from odenets.arguments import shown
from odenets.estimators.base import ROWS, SeriesEstimator
from odenets.nn.series.inputs import last_values
from odenets.series import Series, gaussian_nll
from odenets.series.forms import as_times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST, _MOST = -5.0, 3.0  # of the logarithm of a standard deviation, in scaled units
_GRID = 60  # times of a figure's line


class SeriesForecaster(SeriesEstimator):
    """Values of irregular time series at any later times, with a standard deviation, by a network trained by itself.

    `fit(series)`, then `predict(times)` for the series that were fitted, `predict(series, times)` for others. In each
    step of the training every series is cut at a random time, and the network learns the values behind the cut, as
    normal distributions around the last value seen plus what it adds.

    When to use: for many series of one kind, such as patients or sensors. When not: for a single one, which has nothing
    to learn from but itself (cut it into windows); beyond times as far ahead as the series are long.

    Args, X, errors: as for `SeriesClassifier`, without `class_weight`. `predict` also refuses times before a sample's
    first row.

    Attributes:
        series_: The series that were fitted.
        network_, history_, scaling_, n_features_in_, channels_: As there; `network_` returns losses, and its
            `distribution(scaled series, scaled times)` the means and deviations.

    Source: the loss is the negative logarithm of the normal density; the random cut is that of Rubanova, Chen and
    Duvenaud (2019), "Latent ODEs for irregularly-sampled time series", section 4, for extrapolation.
    """

    def fit(self, X: Any, y: Any = None, *, times: Any = None, static: Any = None) -> Self:
        """Train on series X; `y` is there for scikit-learn's sake and is not looked at."""
        series = self._fitted_series(X, times, static)
        if not (series.end > series.start).any():
            raise ValueError("`X` has no sample with two times, so there is nothing to predict: give longer series")
        held, seed = self._begin(series, np.zeros(len(series)))
        network = Behind(self.make_network(2 * len(self.channels_), seed))
        self.series_ = series
        return self._train(network, lambda losses, _: losses.mean(), series, torch.zeros(len(series)), held, seed)

    def predict(self, X: Any = None, times: Any = None, *, static: Any = None, return_std: bool = False) -> Any:
        """The values expected at times from a sample's first row on; what is behind the last row is a forecast.

        Args:
            X: The series, if not those of `fit`; an array's rows are at 0, 1, ….
            times: (K,) for all samples or (N, K) for each, in the unit of the series:
                `series.end[:, None] + torch.arange(1, 7)` are the next six.
            return_std: Whether the standard deviations are wanted, too.

        Returns:
            (N, K, channels), or two of these, means and standard deviations.
        """
        check_is_fitted(self, "network_")
        if times is None:
            X, times = None, X
        series = self.series_ if X is None else self._series(X, None, static)
        at = self._asked(times, series)
        scaled, at = self.scaling_(series).to(torch.float32), self.scaling_.times(series, at)
        network: Any = self.network_
        device = next(network.parameters()).device
        with torch.no_grad():
            parts = [
                network.distribution(scaled[i : i + ROWS].to(device), at[i : i + ROWS].to(device))
                for i in range(0, len(scaled), ROWS)
            ]
        mean, deviation = (torch.cat(part).cpu().double() for part in zip(*parts))
        mean, deviation = self.scaling_.values(mean).numpy(), (deviation * self.scaling_.deviation).numpy()
        return (mean, deviation) if return_std else mean

    def score(self, X: Any, y: Any = None, *, static: Any = None) -> float:
        """R² of the values behind the middle of each series, pooled over scaled channels: 0 is to say the mean."""
        series = self._series(X, None, static)
        cut = (series.start + series.end)[:, None] / 2
        predicted = torch.as_tensor(self.predict(series.until(cut[:, 0]), series.times))
        later = (series.times > cut)[..., None] & series.mask
        truth, predicted = (x[later] for x in ((series.values - self.scaling_.mean) / self.scaling_.deviation,
                            (predicted - self.scaling_.mean) / self.scaling_.deviation))  # fmt: skip
        return float(1 - (truth - predicted).square().sum() / (truth - truth.mean()).square().sum())

    def plot(self, X: Any = None, sample: int = 0, *, cut: float | None = None, until: float | None = None) -> "Figure":
        """What was observed of one sample, and the forecast with a band of two standard deviations.

        Args:
            X: The series, if not those of `fit`.
            sample: Which of them.
            cut: The time up to which the network sees the sample; None: its last row.
            until: The last time of the forecast; None: half as far again as the series is long.
        """
        check_is_fitted(self, "network_")
        from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

        one = (self.series_ if X is None else self._series(X, None, None))[sample]
        start, end = float(one.start), float(one.end)
        seen = one if cut is None else one.until(cut)
        at = torch.linspace(float(seen.end), end + (end - start) / 2 if until is None else until, _GRID)
        mean, deviation = self.predict(seen, at.double(), return_std=True)
        return figures.forecast(one.times[0], one.values[0], at, mean[0], 2 * deviation[0], self.channels_)

    def _asked(self, times: Any, series: Series) -> Tensor:
        """(N, K), the times wanted, none before its sample's first row."""
        if times is None:
            raise ValueError("`times` must be the times to predict at, (K,) or (N, K), got none")
        if getattr(times, "ndim", 1) == 2:
            at = torch.as_tensor(times, dtype=torch.float64)
        else:
            at = as_times(times, "`times`").expand(len(series), -1)
        if at.dim() != 2 or len(at) != len(series):
            raise ValueError(f"`times` must be (K,) or ({len(series)}, K), a row for each sample, got {shown(times)}")
        wrong = ~at.isfinite() | (at < series.start[:, None])
        if wrong.any():
            i, k = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"`times` of sample {series.ids[i]!r} has {at[i, k].item()}: give times from its first row on, "
                f"{series.start[i].item()}"
            )
        return at


class Behind(nn.Module):
    """A network of two numbers a channel, taught to say what lies behind a cut of each series."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, series: Series) -> Tensor:
        """(N,), the mean −log p of the values behind the cut; at a random time in training, else in the middle."""
        share = torch.rand(len(series)) if self.training else torch.full((len(series),), 0.5)
        cut = series.start + share.to(series.start) * (series.end - series.start)
        mean, deviation = self.distribution(series.until(cut), series.times)
        later = series.values.where((series.times > cut[:, None])[..., None], torch.nan)
        return gaussian_nll(mean, later, deviation) / (~later.isnan()).sum((1, 2)).clamp(min=1)

    def distribution(self, series: Series, at: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, (N, K, channels) each."""
        added, logarithm = self.network(series, at).chunk(2, dim=-1)
        last = last_values(series.values)[0][:, -1:]
        return last + added, logarithm.clamp(_LEAST, _MOST).exp()
