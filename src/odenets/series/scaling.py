"""Numbers of about 1: what is taken off and divided by, fitted on the training part alone."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.series.batch import Series


@dataclass(frozen=True, eq=False)
class Scaling:
    """Takes series to zero mean and unit deviation, channel by channel, and times to lengths of about 1.

    Fit it on the training part, apply it to every part: `scaling = Scaling.fit(train)`, `scaling(test)`. Times are
    counted from each sample's first row, in units of `span`; missing values stay missing.

    Args:
        mean, deviation: (C,), of the values observed.
        static_mean, static_deviation: (S,), the same of what is static; None without.
        span: The unit of time: the longest sample's length.

    Source: the usual standard scores; a channel that never changes is only shifted.
    """

    mean: Tensor
    deviation: Tensor
    static_mean: Tensor | None
    static_deviation: Tensor | None
    span: float

    @classmethod
    def fit(cls, series: Series) -> "Scaling":
        """Of these samples, which should be those of the training part.

        Raises:
            ValueError: If a channel, or a static number, was never observed in any of them.
        """
        _check(series)
        mean, deviation = _scores(series.values.flatten(0, 1), series.channels, "channel")
        static = (None, None)
        if series.static is not None:
            names = tuple(map(str, range(series.static.shape[1])))
            static = _scores(series.static, names, "static column")
        span = float((series.end - series.start).max())
        return cls(mean, deviation, *static, span if span > 0 else 1.0)

    def __call__(self, series: Series) -> Series:
        """The series in these units.

        Raises:
            ValueError: If it has other channels or static numbers than that which this was fitted on.
        """
        _check(series)
        static = series.static
        have = series.values.shape[2], None if static is None else static.shape[1]
        fitted = len(self.mean), None if self.static_mean is None else len(self.static_mean)
        if have != fitted:
            raise ValueError(f"fitted on series of (channels, static numbers) = {fitted}, and these have {have}")
        if static is not None and self.static_mean is not None and self.static_deviation is not None:
            static = (static - self.static_mean.to(static)) / self.static_deviation.to(static)
        values = (series.values - self.mean.to(series.values)) / self.deviation.to(series.values)
        return replace(series, times=self.times(series, series.times), values=values, static=static)

    def times(self, series: Series, at: Tensor) -> Tensor:
        """Times (K,) or (N, K) in these units, counted from each sample's first row: (N, K)."""
        return (at.to(series.device, torch.float64) - series.start[:, None]) / self.span

    def values(self, scaled: Tensor) -> Tensor:
        """Values (..., C) in their own units again."""
        return scaled * self.deviation.to(scaled) + self.mean.to(scaled)


def _check(series: Series) -> None:
    if not isinstance(series, Series):
        raise TypeError(f"`series` must be an `odenets.Series`, got {shown(series)}: see `odenets.series.from_arrays`")


def _scores(x: Tensor, names: tuple[str, ...], what: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column, in float64 by two passes, NaN left out."""
    x = x.double()
    seen = ~x.isnan()
    count = seen.sum(0)
    if (count == 0).any():
        name = names[int((count == 0).nonzero()[0])]
        raise ValueError(f"{what} {name!r} was never observed in the {len(x)} rows to fit on: leave it out")
    mean = x.nansum(0) / count
    off = x - mean
    largest = off.nan_to_num().abs().amax(0)
    unit = largest.where(largest > 0, 1.0)  # whose square is in range
    deviation = ((off / unit).square().nansum(0) / count).sqrt() * unit
    tiny = deviation <= 1e-12 * mean.abs()  # rounding, or a constant
    return mean, deviation.where(~tiny & (deviation > 0), 1.0)
