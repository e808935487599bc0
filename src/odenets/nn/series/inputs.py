"""What the models make of a series before they compute: filled values, gaps, and what is static."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from odenets.arguments import count, shown
from odenets.series import Series
from odenets.solve import solve


def check_series(series: Series, model: nn.Module, channels: int, static: int) -> None:
    """Refuse what is no series of so many channels and static numbers, in the dtype that the model computes in.

    Raises:
        TypeError, ValueError: Naming what the model was made for.
    """
    if not isinstance(series, Series):
        raise TypeError(f"the model takes an `odenets.Series`, got {shown(series)}: see `odenets.series.from_arrays`")
    have = series.values.shape[2]
    if have != channels:
        raise ValueError(f"the model was made for `channels={channels}`, and the series has {have}: {series.channels}")
    dtype = next(model.parameters()).dtype
    if series.values.dtype != dtype and not torch.is_autocast_enabled(series.device.type):
        raise TypeError(
            f"the model computes in {dtype}, and the series has {series.values.dtype}: write series.to({dtype})"
        )
    found = 0 if series.static is None else series.static.shape[1]
    if found != static:
        raise ValueError(f"the model was made for `static={static}` numbers of a sample, and the series has {found}")


def sizes(**given: int) -> None:
    """Refuse sizes that are no whole numbers from 1 (`static` from 0)."""
    for name, value in given.items():
        count(name, value, least=0 if name == "static" else 1)


def check_options(options: dict[str, Any], *own: str) -> None:
    """Refuse what is no option of `solve`, and those that the model gives itself.

    Raises:
        TypeError: Naming the option.
    """
    known = inspect.signature(solve).parameters
    for name in options:
        if name not in known or name in ("f", "y0", "t", "args", *own):
            why = "is given by the model" if name in known else "is no option of the model, nor of `odenets.solve`"
            raise TypeError(f"`{name}` {why}: leave it out")


def last_values(values: Tensor) -> tuple[Tensor, Tensor]:
    """The last observed value of each channel up to each row, 0 before the first; and in which row it was, −1 before.

    Args:
        values: (N, L, C), NaN where missing.
    """
    row = torch.arange(values.shape[1], device=values.device)[:, None]
    seen = torch.where(values.isnan(), -1, row).cummax(dim=1).values
    last = values.nan_to_num().gather(1, seen.clamp(min=0))
    return last.where(seen >= 0, 0.0), seen


def since_seen(times: Tensor, seen: Tensor, base: Tensor, at: Tensor) -> Tensor:
    """How long before each of the times `at` a channel was last observed, up to the row `base`; since the first row
    where it never was.

    Args:
        times: (N, L).
        seen: (N, L, C), as of `last_values`.
        base, at: (N, K).

    Returns:
        (N, K, C), the δ of Che et al. (2018), equation (1).
    """
    row = seen.gather(1, base[..., None].expand(-1, -1, seen.shape[2])).clamp(min=0)
    return at[..., None] - times[..., None].expand(-1, -1, seen.shape[2]).gather(1, row)


def questions(series: Series, at: Tensor | None, *, causal: bool = True) -> Tensor:
    """The times asked for as (N, K) in float64; the last row of each sample where `at` is None.

    Args:
        causal: Whether they must not lie before a sample's first row.

    Raises:
        TypeError, ValueError: If they are no such times.
    """
    if at is None:
        return series.end[:, None]
    if not isinstance(at, Tensor) or at.dim() not in (1, 2):
        raise TypeError(f"`at` must be a tensor of times (K,) or (N, K), got {shown(at)}")
    at = at.detach().to(series.device, torch.float64)
    at = at.expand(len(series), -1) if at.dim() == 1 else at
    if len(at) != len(series):
        raise ValueError(f"`at` must have a row for each of the {len(series)} samples, got shape {tuple(at.shape)}")
    if not at.isfinite().all():
        raise ValueError("`at` must be finite: leave out the times that are not")
    early = at < series.start[:, None]
    if causal and early.any():
        i, k = early.nonzero()[0].tolist()
        raise ValueError(
            f"`at` of sample {series.ids[i]!r} has {at[i, k].item()!r}, before its first row at "
            f"{series.start[i].item()!r}: this model goes forward from there; ask at that time or later"
        )
    return at


def rows_before(series: Series, at: Tensor) -> Tensor:
    """(N, K), the last row of each sample that is not behind the times `at`."""
    times = series.times.where(series.rows, torch.inf)
    return (torch.searchsorted(times, at.contiguous(), right=True) - 1).clamp(min=0)


def gaps(times: Tensor) -> Tensor:
    """(N, L), from each row to the one before it, 0 for the first: differences in float64."""
    return torch.cat([torch.zeros_like(times[:, :1]), times.diff(dim=1)], dim=1)


def static_of(series: Series) -> Tensor | None:
    """What is static, with 0, the mean of scaled numbers, where it is missing."""
    return None if series.static is None else series.static.nan_to_num()
