"""What a caller gave: checked, brought into one form, and shown in an error."""

import datetime
import numbers
import operator
import reprlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

_LONGEST = 120  # characters of a value in an error
_EXACT = 2**53  # integers up to here are float64 numbers


class _Short(reprlib.Repr):
    """Arrays by shape and dtype, the rest abbreviated."""

    def repr1(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        if not isinstance(shape, tuple) or (shape == () and not isinstance(x, Tensor)):
            return super().repr1(x, level)
        dtype = f", {x.dtype}" if hasattr(x, "dtype") else ""
        return f"{type(x).__name__} of shape {tuple(shape)}{dtype}"


_short = _Short()
_short.maxother = _short.maxstring = _short.maxlong = _LONGEST


def shown(value: object) -> str:
    """The value in a few words, however large it is."""
    text = " ".join(_short.repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"


def number(name: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> float:
    """A real number of any kind (Python's, NumPy's, a 0-dimensional tensor), for which `holds` does.

    Raises:
        TypeError: If it is no number.
        ValueError: If `holds` does not.
    """
    if type(value) not in (float, int):
        value = _as_float(name, value, allowed)
    if not holds(value):
        raise ValueError(f"`{name}` must be {allowed}, got {shown(value)}")
    return value


def _as_float(name: str, value: Any, allowed: str) -> float:
    wrong = f"`{name}` must be {allowed}, got {shown(value)}"
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{wrong}, which requires grad, and no gradient goes there: write {name}.item()")
    if isinstance(value, str):
        raise TypeError(f"{wrong}: write it without the quotes")
    if getattr(value, "ndim", 0) > 0 or isinstance(value, list | tuple):
        raise TypeError(f"{wrong}: give one number")
    if _is_moment(value):
        raise TypeError(f"{wrong}: give a number, such as {name}.total_seconds() of a time difference")
    if _is_bool(value) or (not isinstance(value, numbers.Real | Tensor) and not hasattr(value, "__float__")):
        raise TypeError(wrong)
    if _is_complex(value):
        raise TypeError(f"{wrong}: give a real one")
    return float(value)


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number from `least`: Python's, NumPy's or a 0-dimensional tensor of integers.

    Raises:
        TypeError, ValueError: If it is none.
    """
    if type(value) is not int:
        wrong = f"`{name}` must be an integer ≥ {least}, got {shown(value)}"
        if _is_bool(value) or getattr(value, "ndim", 0) > 0:
            raise TypeError(wrong)
        try:
            value = operator.index(value)
        except TypeError as error:
            whole = isinstance(value, float) and value.is_integer()
            raise TypeError(f"{wrong}: write {value:.0f}" if whole else wrong) from error
    if value < least:
        raise ValueError(f"`{name}` must be an integer ≥ {least}, got {value}")
    return value


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """A text that is one of those allowed.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {shown(value)}")
    return value


def refuse_class(name: str, f: object) -> None:
    """Refuse a class where an instance of it is meant.

    Raises:
        TypeError: With what to write instead.
    """
    if isinstance(f, type):
        raise TypeError(f"`{name}` must be a module or a function, got the class {f.__name__}: write {f.__name__}(...)")


def given_times(t: Any, rows: str = "") -> Tensor | list[Any]:
    """Times as a real 1-D tensor, or as a list of floats and of real 0-dimensional tensors.

    Args:
        rows: What is to be written where each sample shall have its own times, if there is such a thing.

    Raises:
        TypeError, ValueError: If they are none.
    """
    if isinstance(t, Tensor):
        return _tensor_of_times(t, rows)
    if getattr(t, "ndim", 0) > 1:  # of NumPy or pandas
        raise ValueError(f"`t` must be 1-D, got {shown(t)}: take one column{rows}")
    if str(getattr(t, "dtype", "")).startswith(("datetime", "timedelta")):
        _refuse_moments(t)
    if not isinstance(t, list | tuple | range) and not _is_sequence(t):
        _refuse_times(t)
    if len(t) == 0:
        raise ValueError("`t` must be 1-D with at least one time, got none: write t=(0.0, 1.0)")
    return [value if type(value) is float else _time(value, i, t, rows) for i, value in enumerate(t)]


def has_rows(t: Any) -> bool:
    """Whether these are times in rows: 2-D, or a sequence of sequences."""
    if not isinstance(t, list | tuple):
        return getattr(t, "ndim", 0) == 2
    return len(t) > 0 and all(isinstance(row, list | tuple | range) or getattr(row, "ndim", 0) == 1 for row in t)


def given_rows(t: Any) -> Tensor:
    """Times in rows as a real tensor (rows, times).

    Raises:
        TypeError, ValueError: If they are none.
    """
    if isinstance(t, list | tuple):
        lengths = [len(row) for row in t]
        i = next((i for i, n in enumerate(lengths) if n != lengths[0]), None)
        if i is not None:
            raise ValueError(
                f"`t` must have rows of one length, row 0 has {lengths[0]} times and row {i} has {lengths[i]}: repeat "
                "the last time of the shorter ones"
            )
        rows = [given_times(row) for row in t]
        return torch.stack([row if isinstance(row, Tensor) else _stacked(row) for row in rows])
    if str(getattr(t, "dtype", "")).startswith(("datetime", "timedelta")):
        _refuse_moments(t)
    t = t if isinstance(t, Tensor) else torch.as_tensor(t.__array__())
    if t.shape[1] == 0:
        raise ValueError(f"`t` must have at least one time in each row, got shape {tuple(t.shape)}")
    _check_numbers(t)
    return t


def _stacked(times: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in times])


def _check_numbers(t: Tensor) -> None:
    if t.dtype.is_complex or t.dtype == torch.bool:
        raise TypeError(f"`t` must be real numbers, got dtype {t.dtype}: write the times in float64")
    if not t.dtype.is_floating_point and t.numel():
        # `.abs()` of the least integer is negative
        largest = max(abs(int(t.max())), abs(int(t.min())))
        if largest > _EXACT:
            raise ValueError(f"`t` must be integers up to 2**53, got {largest}: count them from the first, t - t[0]")


def _tensor_of_times(t: Tensor, rows: str) -> Tensor:
    if t.dim() == 0:
        raise ValueError("`t` must be 1-D with at least one time, got shape (): write (0.0, t), the start and the end")
    if t.dim() != 1 or t.numel() == 0:
        raise ValueError(
            f"`t` must be 1-D with at least one time, got shape {tuple(t.shape)}: write t.flatten() where these are "
            f"the times of one solve{rows}"
        )
    _check_numbers(t)
    return t


def _time(value: Any, i: int, t: Any, rows: str) -> Any:
    name = f"t[{i}]"
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.dtype.is_complex or value.dtype == torch.bool:
            raise TypeError(
                f"`{name}` must be a number, got {shown(value)}: give a 0-dimensional tensor of real numbers"
            )
        return value
    if _is_moment(value):
        _refuse_moments(t)
    if isinstance(value, list | tuple):
        raise ValueError(f"`t` must be 1-D, got {shown(value)} as t[{i}]: write one number a time{rows}")
    if isinstance(value, numbers.Integral) and abs(int(value)) > _EXACT:
        raise ValueError(f"`t` must be integers up to 2**53, got {value}: count them from the first, x - t[0]")
    return float(number(name, value, "a number", lambda _: True))


def _refuse_times(t: Any) -> None:
    wrong = f"`t` must be the times in order, a sequence or a 1-D tensor of them, got {shown(t)}"
    if _is_moment(t):
        _refuse_moments(t)
    if isinstance(t, set | frozenset):
        raise TypeError(f"{wrong}, which has no order: write sorted(t)")
    if hasattr(t, "__next__") or hasattr(t, "keys"):
        raise TypeError(f"{wrong}: write list(t{'.values()' if hasattr(t, 'values') else ''})")
    if isinstance(t, numbers.Real):
        raise TypeError(f"{wrong}: write (0.0, {t}), the start and the end")
    raise TypeError(f"{wrong}: write t=(0.0, 1.0), the start and the end")


def _refuse_moments(t: Any) -> None:
    if hasattr(t, "iloc"):
        seconds = "(t - t.iloc[0]).dt.total_seconds()"
    elif hasattr(t, "dtype"):
        seconds = "(t - t[0]) / np.timedelta64(1, 's')"
    else:
        seconds = "[(x - t[0]).total_seconds() for x in t]"
    raise TypeError(f"`t` must be numbers, got {shown(t)}: count the time from the first one, {seconds}")


def _is_sequence(t: Any) -> bool:
    if isinstance(t, str | bytes | dict):
        return False
    return isinstance(t, Sequence) or (hasattr(t, "__array__") and getattr(t, "ndim", 0) == 1)


def _is_moment(value: Any) -> bool:
    kind = str(getattr(value, "dtype", ""))
    return isinstance(value, datetime.date | datetime.timedelta) or kind.startswith(("datetime", "timedelta"))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def _is_complex(value: Any) -> bool:
    return (isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)) or (
        isinstance(value, Tensor) and value.is_complex()
    )
