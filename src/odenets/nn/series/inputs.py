"""What the models make of a series before they compute: filled values, gaps, and what is static."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.arguments import count, shown
from odenets.nn.block import check_callable, check_repeatable
from odenets.nn.field import MLPField, layer_sizes
from odenets.returned import works
from odenets.series import Series
from odenets.solution import Solution, SolveError
from odenets.solve import solve

FIELD = (50,)  # hidden layers of a field that a model makes itself


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


def field_of(field: Any, width: int, hidden: int | Sequence[int], model: str) -> Any:
    """The field that is given, or one with hidden layers of these sizes where it is None.

    Raises:
        TypeError, ValueError: If it cannot be called, draws random numbers, or is given beside sizes.
    """
    if field is None:
        return MLPField(width, layer_sizes("field_hidden", hidden), time="none")
    check_callable("field", field, "field(t, h)")
    check_repeatable("field", field, model)
    if hidden != FIELD:
        raise TypeError("`field_hidden` would be ignored beside `field`: leave one of them out")
    return field


def solved(field: Any, f: Any, y0: Tensor, t: Any, args: tuple, options: dict[str, Any]) -> Solution:
    """The solve of f, which calls the model's `field`; where that fails since it does not take the state, it says so.

    Raises:
        ValueError: Naming the state's shape, and a field that takes it.
    """
    try:
        return solve(f, y0, t, args, **options)
    except SolveError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        if works(field, y0.new_zeros(()), y0, y0, ()):
            raise
        width = y0.shape[1]
        raise ValueError(
            f"`field` is called as field(t, h) with h of shape (N, {width}) and must return that shape, which "
            f"{shown(field)} does not ({error}): write odenets.nn.MLPField({width}, (50,)), or one for that width"
        ) from error


def check_options(options: dict[str, Any], *own: str) -> None:
    """Refuse what is no option of `solve`, those that the model gives itself, and those that it has no use for.

    Raises:
        TypeError: Naming the option.
    """
    known = inspect.signature(solve).parameters
    for name in options:
        if name not in known:
            raise TypeError(f"`{name}` is no option of the model, nor of `odenets.solve`: leave it out")
        if name in ("f", "y0", "t", "args", *own):
            raise TypeError(f"`{name}` is given by the model: leave it out")
        if name in ("dense", "event"):
            raise TypeError(f"`{name}` would be ignored, since the model returns answers and no solution: leave it out")


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
