"""Made-up intensive-care stays: no real data, but the same kind of gaps. For machines without the real ones."""

import math

import torch
from torch import Tensor

from odenets.series import Series

CHANNELS = ("HR", "MAP", "RespRate", "Temp", "Lactate", "Creatinine", "GCS", "Urine")
HOURS = 48.0
_MEAN = torch.tensor([85.0, 80.0, 18.0, 37.0, 1.6, 1.1, 13.0, 90.0])
_SPREAD = torch.tensor([14.0, 11.0, 4.0, 0.5, 0.5, 0.4, 1.5, 35.0])
_BY_SEVERITY = torch.tensor([12.0, -10.0, 4.0, 0.4, 1.2, 0.7, -2.0, -30.0])
_PER_HOUR = torch.tensor([1.0, 1.0, 0.7, 0.3, 0.05, 0.05, 0.25, 0.6])  # how often each is measured in a calm stay
_MORE_OFTEN = torch.tensor([0.3, 0.3, 0.3, 0.1, 0.9, 0.5, 0.2, 0.1])  # and how much more in a bad one, as a power of e
_DEATHS = 1.9  # by which the logit of death lies below 0 at the mean severity


def make_stays(count: int = 1000, seed: int = 0) -> tuple[Series, Tensor]:
    """Stays of patients whose severity wanders; what is measured, and how often, depends on it, and so does death.

    Args:
        count: How many.
        seed: Of all of it: equal seeds make equal stays.

    Returns:
        Series of 8 channels in hours, with the age as the static number, and who died, (count,), 0 or 1.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = int(HOURS * 4) + 1  # quarters of an hour
    age = 62 + 16 * torch.randn(count, generator=generator)
    begin = torch.randn(count, generator=generator) + 0.03 * (age - 62)
    drift = 0.03 * torch.randn(count, generator=generator)
    steps = 0.12 * torch.randn(count, grid, generator=generator).cumsum(1)
    hours = torch.arange(grid) / 4
    severity = begin[:, None] + drift[:, None] * hours + 0.5 * steps
    own = torch.randn(count, 1, len(CHANNELS), generator=generator)  # each patient's own usual values
    noise = torch.randn(count, grid, len(CHANNELS), generator=generator)
    values = _MEAN + _SPREAD * (0.6 * own + 0.5 * noise) + _BY_SEVERITY * severity[..., None] * 0.6
    rate = _PER_HOUR * torch.exp(_MORE_OFTEN * severity[..., None].clamp(-2, 2))
    measured = torch.rand(values.shape, generator=generator) < 1 - torch.exp(-rate / 4)
    values = values.where(measured, math.nan)
    died = torch.rand(count, generator=generator) < torch.sigmoid(1.3 * severity[:, -1] - _DEATHS)
    seen = measured.any(2)
    seen[:, 0] = True
    times = hours.double().expand(count, -1).contiguous()
    series = Series(times, values.float(), None, age[:, None].float(), CHANNELS)  # pyright: ignore[reportArgumentType]
    return series.kept(seen, "a row"), died.long()
