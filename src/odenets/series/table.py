"""Series from a table in long form: one line for each sample and time."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.extra import experiments_extra
from odenets.series.batch import Series
from odenets.series.forms import UNITS, SortedRows, as_times, from_arrays


def from_long(
    frame: Any,
    *,
    id: str,
    time: str,
    values: str | Sequence[str] | None = None,
    variable: str | None = None,
    static: str | Sequence[str] = (),
    unit: str = "h",
    dtype: torch.dtype = torch.float32,
) -> Series:
    """A batch from a table with a line for each row of a sample, such as a CSV file read by pandas.

    Args:
        frame: A pandas DataFrame.
        id: The column that names the sample of a line; samples come in the order in which they come first.
        time: The column of times: numbers, dates, which become `unit`s since 1970 (with a time zone in UTC), or
            durations.
        values: The columns of the channels, one each; None: all other columns. With `variable`, the one column of
            numbers.
        variable: The column that names the channel of each line, for tables with a line for each single value
            ("time, variable, value"); lines of one sample and time become one row, the last of a channel counts.
        static: Columns of what is known of a sample at any time: the first value that is not missing.
        unit: "s", "min", "h" or "d", for dates and durations.
        dtype: Of the values.

    Raises:
        KeyError: If there is no such column.
        TypeError, ValueError: If a time is missing, a value is text or infinite, dates mix time zones, or a sample has
            no row; with the line of the table (from 0, without its heading), the column, and what to do.
    """
    with experiments_extra("`from_long`"):
        import pandas as pd  # noqa: PLC0415 — not in a plain installation

    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {', '.join(UNITS)}, got {shown(unit)}")
    is_frame: bool = isinstance(frame, pd.DataFrame)
    if not is_frame:
        remedy = "frame.to_pandas()" if hasattr(frame, "to_pandas") else "pandas.DataFrame(frame)"
        kind = f"{type(frame).__module__.partition('.')[0]}.{type(frame).__name__}"
        raise TypeError(f"`frame` must be a pandas DataFrame, got {kind}: write {remedy}")
    names, static = _names(values), _names(static)
    _check_columns(frame, [id, time, *names, *static, *([] if variable is None else [variable])])
    if frame.empty:
        raise ValueError("`frame` must have at least one line, got none")
    if bool(frame[id].isna().any()):
        raise ValueError(f"line {_first(frame[id].isna())}, column {id!r}: no sample is named; leave the line out")
    if variable is not None and bool(frame[variable].isna().any()):
        i = _first(frame[variable].isna())
        raise ValueError(f"line {i}, column {variable!r}: no channel is named; leave the line out")
    at = _times(pd, frame[time], time, unit)
    if variable is not None:
        if len(names) != 1:
            raise ValueError("with `variable`, `values` must be the one column of numbers")
        frame, at, names = _by_variable(pd, frame, at, id, variable, names[0], static)
    names = names or [c for c in frame.columns if c not in (id, time, *static)]
    if not names:
        raise ValueError("`values` must name at least one column of numbers")
    table = torch.stack([_numbers(pd, frame[c], c, dtype) for c in names], dim=1)
    codes, which = pd.factorize(frame[id], sort=False)
    code = torch.as_tensor(codes)
    order = _by_sample_and_time(code, at, which)
    sizes = torch.bincount(code[order], minlength=len(which)).tolist()
    known = None
    if static:
        columns = [_numbers(pd, frame[c], c, dtype) for c in static]
        known = torch.stack([_first_known(x, code, len(which)) for x in columns], dim=1)
    return from_arrays(
        at[order].split(sizes), table[order].split(sizes), static=known, channels=names, ids=which.tolist(), dtype=dtype
    )


def _names(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else [] if given is None else list(given)


def _check_columns(frame: Any, wanted: Sequence[str]) -> None:
    for column in wanted:
        if column in frame.index.names:
            raise KeyError(f"{column!r} is part of the table's index: write frame.reset_index()")
        if column not in frame:
            raise KeyError(f"the table has no column {column!r}; it has {', '.join(map(str, frame.columns))}")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"the table has two columns {twice!r}: give each a name of its own")


def _first(wrong: Any) -> int:
    return int(wrong.to_numpy().argmax())


def _times(pd: Any, column: Any, name: str, unit: str) -> Tensor:
    if column.isna().any():
        raise ValueError(f"line {_first(column.isna())}, column {name!r}: the time is missing; leave the line out")
    types = pd.api.types
    if types.is_numeric_dtype(column) or types.is_timedelta64_dtype(column):
        return as_times(column.to_numpy(), f"column {name!r}", unit)
    if not types.is_datetime64_any_dtype(column):
        column = _dates(pd, column, name)
    if pd.api.types.is_extension_array_dtype(column) and not isinstance(column.dtype, pd.DatetimeTZDtype):  # of Arrow
        column = pd.to_datetime(column.astype(object))
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return as_times(column.to_numpy(), f"column {name!r}", unit)


def _dates(pd: Any, column: Any, name: str) -> Any:
    """A column of text or objects as dates.

    Raises:
        ValueError: If it holds anything else; numbers and times of day written as text are no dates.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of dates that are guessed one by one
            return pd.to_datetime(column)
    except (TypeError, ValueError, UserWarning) as error:
        text = str(error).lower()
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().all() and isinstance(column.iloc[0], str):
        raise ValueError(
            f"column {name!r} holds numbers as text: write frame[{name!r}] = frame[{name!r}].astype(float)"
        )
    dates = pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
    zoned = column.astype(str).str.contains(r"(?:[+-]\d\d:?\d\d|Z)$")
    if "zone" in text or "tz-aware" in text or (dates.notna().all() and zoned.any() and not zoned.all()):
        remedy = f"frame[{name!r}] = pandas.to_datetime(frame[{name!r}], utc=True)"
        raise ValueError(f"column {name!r} mixes time zones: write {remedy}")
    if dates.notna().all():  # some with a time of day, some without
        return dates
    i = _first(dates.isna())
    raise ValueError(
        f"line {i}, column {name!r}: {column.iloc[i]!r} is neither a number nor a date: mend or leave it out, or write "
        f"frame[{name!r}] = pandas.to_datetime(frame[{name!r}], format=...), or pandas.to_timedelta for durations"
    )


def _numbers(pd: Any, column: Any, name: str, dtype: torch.dtype) -> Tensor:
    types = pd.api.types
    if types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column) or types.is_complex_dtype(column):
        raise ValueError(f"column {name!r} holds {column.dtype}, no real numbers: name the columns to take in `values`")
    found = pd.to_numeric(column, errors="coerce")
    wrong = found.isna() & column.notna()
    if wrong.any():
        i = _first(wrong)
        raise ValueError(
            f"line {i}, column {name!r}: {column.iloc[i]!r} is not a number: mend it, leave it empty where the value "
            f"is missing, or give words numbers, frame[{name!r}].map({{...}})"
        )
    x = torch.tensor(found.to_numpy(dtype="float64", na_value=float("nan")))
    if x.isinf().any():
        i = int(x.isinf().nonzero()[0])
        raise ValueError(f"line {i}, column {name!r}: the value is infinite: leave it empty where the value is missing")
    return x.to(dtype)


def _by_sample_and_time(code: Tensor, at: Tensor, which: Any) -> Tensor:
    """The order of the lines: sample by sample, in time."""
    by_time = at.argsort(stable=True)
    order = by_time[code[by_time].argsort(stable=True)]
    together = code.argsort(stable=True)
    moved = (code[together].diff() == 0) & (at[together].diff() < 0)
    if moved.any():
        first = which[int(code[together][1:][moved][0])]
        count = len(code[together][1:][moved].unique())
        warnings.warn(f"{count} samples were not in the order of time, the first {first!r}: sorted",
                      SortedRows, stacklevel=3)  # fmt: skip
    return order


def _first_known(x: Tensor, code: Tensor, samples: int) -> Tensor:
    """(samples,), the first value of each that is not NaN."""
    line = torch.arange(len(x)).where(~x.isnan(), len(x))
    first = torch.full((samples,), len(x)).scatter_reduce(0, code, line, "amin")
    return torch.cat([x, x.new_full((1,), float("nan"))])[first]


def _by_variable(
    pd: Any, frame: Any, at: Tensor, id: str, variable: str, value: str, static: Sequence[str]
) -> tuple[Any, Tensor, list[str]]:
    """A line for each sample and time, a column for each variable."""
    which, first = pd.MultiIndex.from_arrays([frame[id].to_numpy(), at.numpy()]).factorize()
    channel, names = pd.factorize(frame[variable].astype(str))
    taken = [name for name in names if name in (id, *static)]
    if taken:
        raise ValueError(f"channel {taken[0]!r} has the name of another column: give that column another name")
    numbers = _numbers(pd, frame[value], value, torch.float64)
    seen = ~numbers.isnan()
    table = torch.full((len(first), len(names)), float("nan"), dtype=torch.float64).numpy()
    table[which[seen.numpy()], channel[seen.numpy()]] = numbers[seen].numpy()  # in order, so the last one counts
    wide = pd.DataFrame(table, columns=names)
    wide[id] = first.get_level_values(0)
    for column in static:
        known = frame.dropna(subset=[column]).drop_duplicates(id).set_index(id)[column]
        wide[column] = wide[id].map(known)
    return wide, torch.tensor(first.get_level_values(1).to_numpy()), list(names)
