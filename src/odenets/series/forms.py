"""Series from arrays, a sample each, and from and to the forms of other libraries."""

import datetime
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.extra import experiments_extra
from odenets.series.batch import Series


class SortedRows(UserWarning):
    """Rows were not in the order of their times, and have been put in it."""


def from_arrays(
    times: Sequence[Any],
    values: Sequence[Any],
    *,
    static: Any = None,
    channels: Sequence[str] = (),
    ids: Sequence[Any] = (),
    dtype: torch.dtype = torch.float32,
) -> Series:
    """A batch of samples, each with times of its own.

    Args:
        times: For each sample its times, (L,): numbers, arrays or tensors; of any unit, also seconds since 1970.
            Equal ones are allowed; where they are not in order the rows are sorted, and a `SortedRows` warning says so.
        values: For each sample its values, (L, C) or (L,) for one channel; NaN where a value is missing.
        static: (N, S), or None.
        channels, ids, dtype: See `Series`.

    Raises:
        TypeError, ValueError: If a sample has no row, its times and values are not equally long, a time is not finite,
            or a value infinite; with the sample, the row and the channel.
    """
    if len(times) != len(values):
        raise ValueError(f"`times` and `values` must have an entry for each sample, got {len(times)} and {len(values)}")
    if not dtype.is_floating_point:
        raise TypeError(f"`dtype` must be floating-point, since NaN marks what is missing, got {dtype}")
    ids = tuple(ids) or tuple(range(len(times)))
    if len(ids) != len(times):
        raise ValueError(f"`ids` must name the {len(times)} samples, got {len(ids)}")
    pairs = [_sample(name, t, x, dtype) for name, t, x in zip(ids, times, values, strict=True)]
    if not pairs:
        raise ValueError("`times` must have an entry for at least one sample, got none")
    unsorted = [name for name, (t, _) in zip(ids, pairs) if bool((t.diff() < 0).any())]
    if unsorted:
        warnings.warn(f"{len(unsorted)} samples were not in the order of time, the first {unsorted[0]!r}: sorted",
                      SortedRows, stacklevel=2)  # fmt: skip
        orders = [t.argsort(stable=True) for t, _ in pairs]
        pairs = [(t[order], x[order]) for (t, x), order in zip(pairs, orders)]
    counts = {x.shape[1] for _, x in pairs}
    if len(counts) > 1:
        raise ValueError(f"`values` must have the same channels in every sample, got {sorted(counts)} of them")
    lengths = torch.tensor([len(t) for t, _ in pairs])
    longest = int(lengths.max())
    series = Series(
        torch.stack([torch.cat([t, t[-1:].expand(longest - len(t))]) for t, _ in pairs]),
        torch.stack([torch.cat([x, x.new_full((longest - len(x), x.shape[1]), math.nan)]) for _, x in pairs]),
        lengths,
        None if static is None else _numbers(static, "`static` must be numbers, NaN where missing", dtype),
        (channels,) if isinstance(channels, str) else tuple(channels),
        ids,
    )
    return series.checked()


def _plain(x: Any) -> Any:
    """NumPy's arrays as copies: torch takes none that run backward, and warns of those that are read-only.

    What pandas has becomes an array in float64, NaN where a value is missing.
    """
    if hasattr(x, "__array_interface__"):
        return x.copy()
    return (
        x
        if isinstance(x, Tensor) or not hasattr(x, "to_numpy")
        else x.to_numpy(dtype="float64", na_value=math.nan, copy=True)
    )


def _numbers(x: Any, what: str, dtype: torch.dtype) -> Tensor:
    """x as a tensor.

    Raises:
        TypeError: If it holds anything but real numbers; the text begins with `what`.
    """
    try:
        plain = _plain(x)
        if getattr(plain, "dtype", None) in _COMPLEX or str(getattr(plain, "dtype", "")).startswith("complex"):
            raise TypeError("complex numbers: give their real and imaginary parts as two channels")
        return torch.as_tensor(plain, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what}, got {shown(x)}: {error}") from None


_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


def _sample(name: Any, times: Any, values: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    t = as_times(times, f"`times` of sample {name!r}")
    x = _numbers(values, f"`values` of sample {name!r} must be numbers, NaN where missing", dtype)
    x = x[:, None] if x.dim() == 1 else x
    if x.dim() != 2 or t.shape != x.shape[:1]:
        wanted = "(L, C) with one row for each of its times"
        raise ValueError(f"`values` of sample {name!r} must be {wanted}, got {tuple(x.shape)} for {len(t)} times")
    if len(t) == 0:
        raise ValueError(f"sample {name!r} has no row: leave it out")
    wrong = ~t.isfinite()
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(f"`times` of sample {name!r}, row {i}, is {t[i].item()!r}: leave the row out")
    return t, x


def as_times(times: Any, name: str, unit: str = "h") -> Tensor:
    """Times as a tensor in float64: numbers as they are, dates in hours (or `unit`) since 1970, durations in them.

    Raises:
        TypeError: If they are none of these.
    """
    if not isinstance(times, Tensor):
        times = _moments(times, name)
        if str(getattr(times, "dtype", "")).startswith(("datetime64", "timedelta64")):
            return _seconds(times, name) / UNITS[unit]
    found = _numbers(times, f"{name} must be numbers or dates", torch.float64)
    if found.dim() != 1:
        raise ValueError(f"{name} must be 1-D, got shape {tuple(found.shape)}")
    return found


def _moments(times: Any, name: str) -> Any:
    """Dates and durations as NumPy has them, dates in UTC; anything else as it is."""
    if getattr(getattr(times, "dtype", None), "tz", None) is not None:  # of pandas
        times = getattr(times, "dt", times).tz_convert("UTC")
        times = getattr(times, "dt", times).tz_localize(None)
    if hasattr(times, "dtype"):
        moments = str(times.dtype).startswith(("datetime64", "timedelta64"))
        return times.to_numpy() if moments and hasattr(times, "to_numpy") else times
    try:
        given = list(times)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of times, got {shown(times)}") from None
    if all(isinstance(x, int | float | Tensor) for x in given):
        return given
    with experiments_extra("a date, or a duration, as a time"):
        import numpy as np  # noqa: PLC0415 — not in a plain installation

    kinds = (datetime.date | np.datetime64, datetime.timedelta | np.timedelta64)
    for kind, dtype in zip(kinds, ("datetime64[us]", "timedelta64[us]")):
        if any(isinstance(x, kind) for x in given):
            wrong = [x for x in given if not isinstance(x, kind)]
            if wrong:
                raise TypeError(f"{name} must be dates, durations or numbers throughout, got {shown(wrong[0])}")
            zones = {getattr(x, "tzinfo", None) is None for x in given}
            if len(zones) > 1:
                raise ValueError(f"{name} mixes dates with and without a time zone: give all of them one")
            return np.array([_in_utc(x) for x in given]).astype(dtype)
    return given


def _in_utc(x: Any) -> Any:
    return x.astimezone(datetime.UTC).replace(tzinfo=None) if getattr(x, "tzinfo", None) is not None else x


def _seconds(ticks: Any, name: str) -> Tensor:
    """NumPy's dates or durations in seconds: whole ones and the rest apart, so that no digit and no century is lost."""
    import numpy as np  # noqa: PLC0415 — not in a plain installation, and then there are none of its dates

    if np.isnat(ticks).any():
        raise ValueError(f"{name} has no date in row {int(np.isnat(ticks).argmax())}: leave the row out")
    whole = ticks.astype(f"{ticks.dtype.kind}8[s]")
    rest = (ticks - whole) / np.timedelta64(1, "s")
    return torch.tensor(whole.astype("int64")).double() + torch.tensor(rest, dtype=torch.float64)


UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}  # seconds


def from_torchcde(x: Tensor, *, lengths: Tensor | None = None) -> Series:
    """From torchcde's form: (N, L, 1 + C), time as the first channel, NaN missing; padded by NaN, or by repeating.

    Args:
        x: The tensor.
        lengths: (N,), where rows behind a sample's end repeat its last; None: rows whose time is NaN are padding.
    """
    if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[2] < 2:
        raise TypeError(f"`x` must be (N, L, 1 + C) with time as the first channel, got {shown(x)}")
    x = x if x.is_floating_point() else x.float()
    if lengths is None:
        lengths = (~x[..., 0].isnan()).sum(1)
    lengths = torch.as_tensor(_plain(lengths))
    whole = not lengths.is_floating_point() and lengths.shape == x.shape[:1]
    if not whole or bool((lengths < 1).any()) or bool((lengths > x.shape[1]).any()):
        raise ValueError(f"`lengths` must be ({len(x)},), numbers of rows from 1 to {x.shape[1]}, got {shown(lengths)}")
    each = [x[i, : int(n)] for i, n in enumerate(lengths)]
    return from_arrays([row[:, 0] for row in each], [row[:, 1:] for row in each], dtype=x.dtype)


def to_torchcde(series: Series) -> Tensor:
    """torchcde's form: (N, L, 1 + C) with time, counted from each sample's first row, as the first channel.

    Behind a sample's end the time stays and values are NaN, which its interpolations fill forward.
    """
    time = (series.times - series.start[:, None]).to(series.values.dtype)
    return torch.cat([time[..., None], series.values], dim=-1)


def from_pypots(data: dict[str, Any], *, times: Any = None) -> Series:
    """From PyPOTS's form: {"X": (n, steps, features) with NaN}; steps are 0, 1, …, or `times`, (steps,) or (n, steps).

    A sample ends with its last observation, since PyPOTS pads by NaN.

    Args:
        data: The dict; what else is in it is not looked at.
        times: Numbers, dates or durations, as of `from_arrays`.

    Raises:
        TypeError, ValueError: If there is no "X" of three axes, times are none or of another shape, or a sample has no
            observation.
    """
    if not isinstance(data, dict) or "X" not in data:
        raise TypeError(f'`data` must be a dict with "X", got {shown(data)}')
    try:
        x = torch.as_tensor(data["X"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f'`data["X"]` must be numbers, got {shown(data["X"])}: {error}') from None
    x = x if x.is_floating_point() else x.float()
    if x.dim() != 3:
        raise ValueError(f'`data["X"]` must be (n, steps, features), got shape {tuple(x.shape)}')
    at = _times_of_steps(times, len(x), x.shape[1])
    seen = (~x.isnan()).any(2)
    if not seen.any(1).all():
        raise ValueError(f"sample {int((~seen.any(1)).nonzero()[0])} has no observation: leave it out")
    last = x.shape[1] - seen.flip(1).to(torch.int8).argmax(1)
    rows = [int(n) for n in last]
    return from_arrays([t[:n] for t, n in zip(at, rows)], [v[:n] for v, n in zip(x, rows)], dtype=x.dtype)


def _times_of_steps(times: Any, samples: int, steps: int) -> list[Tensor]:
    """(steps,) of each sample."""
    if times is None:
        return [torch.arange(steps, dtype=torch.float64)] * samples
    if getattr(times, "ndim", 1) == 2 or (isinstance(times, list | tuple) and any(map(_is_row, times))):
        each = [as_times(row, f"`times` of sample {i}") for i, row in enumerate(times)]
    else:
        each = [as_times(times, "`times`")] * samples
    wrong = [len(row) for row in each if len(row) != steps]
    if wrong or len(each) != samples:
        got = f"a row of {wrong[0]}" if wrong else f"{len(each)} rows"
        raise ValueError(f"`times` must be ({steps},) or ({samples}, {steps}), got {got}")
    return each


def _is_row(x: Any) -> bool:
    return isinstance(x, list | tuple | range) or getattr(x, "ndim", 0) == 1


def to_pypots(series: Series, y: Any = None) -> dict[str, Any]:
    """PyPOTS's form, {"X": (n, steps, features) as a NumPy array, "y": y}: it knows rows alone, no times."""
    found: dict[str, Any] = {"X": series.values.detach().cpu().numpy()}
    return found if y is None else {**found, "y": y}
