"""What callers give for X, times, static and y: brought into series and arrays, or refused with the sample's name."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d

from odenets.arguments import shown
from odenets.series import Series, collate, from_arrays


def is_matrix(X: Any, times: Any) -> bool:
    """Whether X is one regular channel, (n, steps), for scikit-learn to check.

    Raises:
        ValueError: If it is no form of series.
    """
    if X is None or type(X) in (str, dict) or getattr(X, "ndim", 2) not in (2, 3) or _is_one_series(X):
        raise ValueError(
            "`X` must be a Series, an array (n, steps) or (n, steps, channels), or a list with an array for each "
            f"sample, got {shown(X)}" + ". Reshape your data: write [X] where it is one sample" * _is_one_series(X)
        )
    if isinstance(X, Series) or getattr(X, "ndim", 2) == 3:
        return False
    return not (isinstance(X, list | tuple) and _is_list_of_samples(X, times))


def listed(X: Any) -> Any:
    """An array of objects, one a sample, as a list; what else is given as it is."""
    return list(X) if getattr(X, "ndim", 0) == 1 and str(getattr(X, "dtype", "")) == "object" else X


def as_series(X: Any, times: Any = None, static: Any = None) -> Series:
    """X as a `Series`, every sample of it observed at least once.

    Args:
        X: A `Series` or a list of them; an array (n, steps) or (n, steps, channels); or a list with an array
            (rows,) or (rows, channels) for each sample.
        times: None: rows are 0, 1, …; (steps,) for all samples, (n, steps) for each, or a list beside a list.
        static: (n, S) or (n,).

    Raises:
        TypeError, ValueError: If something is wrong, with the sample, the row and the channel.
    """
    if isinstance(X, list | tuple) and len(X) and isinstance(X[0], Series):
        X = collate(X)
    if isinstance(X, Series):
        if times is not None:
            raise ValueError("`times` are in the series: leave the argument out")
        series = X.checked()
    else:
        samples = [np.asarray(x) for x in X]
        each = [np.arange(len(x)) for x in samples] if times is None else _times(times, len(samples))
        series = from_arrays(each, samples, dtype=torch.float64)
    if static is not None:
        series = replace(series, static=_static(static, series))
    unseen = ~series.mask.flatten(1).any(1)
    if unseen.any():
        i = int(unseen.nonzero()[0])
        raise ValueError(f"sample {series.ids[i]!r} has no observation, all of its values are missing: leave it out")
    return series


def as_outcomes(y: Any, series: Series, estimator: str) -> np.ndarray:
    """(n,), an outcome for each sample.

    Raises:
        ValueError: If there are not as many as samples, or one is missing or infinite, with the sample's name.
    """
    if y is None:
        raise ValueError(f"{estimator} requires y to be passed, but the target y is None")
    y = column_or_1d(y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else y, warn=True)
    if len(y) != len(series):
        raise ValueError(f"`y` must have one entry for each of the {len(series)} samples, got {len(y)}")
    missing = ~np.isfinite(y) if y.dtype.kind == "f" else np.array([v is None or v != v for v in y], dtype=bool)
    if missing.any():
        i = int(missing.argmax())
        raise ValueError(f"`y` of sample {series.ids[i]!r} is {y[i]}: leave the sample out of `X` and `y`")
    return y


def check_channels(series: Series, channels: tuple[str, ...], static: int) -> None:
    """Refuse series of other channels than those that were fitted, by name."""
    if series.channels != channels:
        lacks = [c for c in channels if c not in series.channels]
        extra = [c for c in series.channels if c not in channels]
        words = [f"lacks {', '.join(map(repr, lacks))}"] * bool(lacks)
        words += [f"has {', '.join(map(repr, extra))} more"] * bool(extra)
        raise ValueError(
            f"`X` {' and '.join(words) or 'has its channels in another order'}: give the channels of the fit, "
            f"{', '.join(channels)}, in that order"
        )
    found = 0 if series.static is None else series.static.shape[1]
    if found != static:
        raise ValueError(f"`static` must have the {static} columns of the fit, got {found}")


def _is_one_series(X: Any) -> bool:
    numbers = isinstance(X, list | tuple) and len(X) > 0 and not isinstance(X[0], Series) and np.ndim(X[0]) == 0
    return numbers or getattr(X, "ndim", 2) == 1


def _is_list_of_samples(X: Sequence[Any], times: Any) -> bool:
    if not len(X):
        return False
    try:
        shapes = {(len(x),) if isinstance(x, Series) else np.shape(x) for x in X}
    except ValueError:  # of a list in lists that differ in length
        return True
    one_dimensional = all(len(shape) == 1 for shape in shapes)
    return isinstance(X[0], Series) or len(shapes) > 1 or not one_dimensional or (times is not None and _nested(times))


def _nested(times: Any) -> bool:
    if not hasattr(times, "__len__") or getattr(times, "ndim", 1) == 0:
        raise ValueError(f"`times` must be (steps,) for all samples, or one array for each, got {shown(times)}")
    return getattr(times, "ndim", 1) == 2 or (len(times) > 0 and np.ndim(times[0]) == 1)


def _times(times: Any, samples: int) -> list[Any]:
    """The times of each sample."""
    each = list(times) if _nested(times) else [times] * samples
    if len(each) != samples:
        raise ValueError(f"`times` must have an entry for each of the {samples} samples, got {len(each)}")
    return each


def _static(static: Any, series: Series) -> torch.Tensor:
    try:
        known = np.asarray(static, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`static` must be numbers (n, S), got {shown(static)}: {error}") from None
    known = known[:, None] if known.ndim == 1 else known
    if known.ndim != 2 or len(known) != len(series):
        raise ValueError(f"`static` must have a row for each of the {len(series)} samples, got shape {known.shape}")
    return torch.as_tensor(known, dtype=series.values.dtype)
