"""What a caller gives to `fit_trajectory`: checked, and brought into one form."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odenets.arguments import given_times, shown

Observe = Callable[[Tensor], Tensor]  # states (..., n) to what is observed of them (..., d)


@dataclass(frozen=True)
class Data:
    """N trajectories, observed at T times.

    Args:
        times: The times, increasing, as numbers.
        values: What was observed, (N, T, d) in float64; 0 where it is missing.
        seen: Where it is not, (N, T, d).
        weights: One over the standard deviation of the noise, (N, T, d); 0 where it is missing.
        known: Whether that standard deviation is the caller's.
        single: Whether the caller gave one trajectory, (T, d).
    """

    times: list[float]
    values: Tensor
    seen: Tensor
    weights: Tensor
    known: bool
    single: bool

    @property
    def lags(self) -> list[float]:
        """The times since the first."""
        return [t - self.times[0] for t in self.times]

    @property
    def scale(self) -> Tensor:
        """The size of each column, (d,), above zero: its standard deviation, or its size where it does not change."""
        count = self.seen.sum((0, 1))
        mean = self.values.sum((0, 1)) / count
        spread = ((self.values - mean).where(self.seen, 0).square().sum((0, 1)) / count).sqrt()
        size = self.values.abs().amax((0, 1))
        scale = spread.where(spread > 1e-9 * size, size)
        return scale.where(scale > 0, 1.0)

    def until(self, count: int) -> "Data":
        """The first `count` times of it."""
        values, seen, weights = (x[:, :count] for x in (self.values, self.seen, self.weights))
        return replace(self, times=self.times[:count], values=values, seen=seen, weights=weights)


def read_data(times: Any, values: Any, sigma: Any) -> Data:
    """The observations, checked.

    Raises:
        TypeError, ValueError: If they are none; the text says what would be.
    """
    own_times = _times(times)
    table = _real("values", values)
    if table.dim() not in (2, 3) or 0 in table.shape:
        raise ValueError(
            f"`values` must have the shape (T, d), or (N, T, d) of N trajectories, got {tuple(table.shape)}: write "
            "values[:, None] for one column"
        )
    single = table.dim() == 2
    table = table[None] if single else table  # (N, T, d)
    if table.shape[1] != len(own_times):
        raise ValueError(
            f"`values` must have a row for each of the {len(own_times)} `times`, got shape {shown_shape(values)}: "
            "repeat no time, and write NaN where a value is missing"
        )
    if table.isinf().any():
        raise ValueError("`values` must be finite, or NaN where a value is missing; some are infinite")
    seen = ~table.isnan()
    for what, gone in (("column", ~seen.any(1).any(0)), ("trajectory", ~seen.any(2).any(1))):
        if gone.any():
            i = int(gone.int().argmax())
            raise ValueError(f"`values` has no number in {what} {i}: leave it out" + _observe_hint(what))
    weights = _weights(sigma, table, seen)
    return Data(own_times, table.where(seen, 0), seen, weights, sigma is not None, single)


def _observe_hint(what: str) -> str:
    return ", and pass `observe` where the model has it" if what == "column" else ""


def shown_shape(values: Any) -> str:
    """The shape of an array, or of what would be made of a list."""
    return str(tuple(torch.as_tensor(values).shape))


def _times(times: Any) -> list[float]:
    given = given_times(times)
    numbers = [float(t) for t in (given.tolist() if isinstance(given, Tensor) else given)]
    wrong = next((t for t in numbers if not math.isfinite(t)), None)
    if wrong is not None:
        raise ValueError(f"`times` must be finite, got {wrong}")
    if len(numbers) < 2:
        raise ValueError(f"`times` must be at least 2, got {len(numbers)}")
    for i, (a, b) in enumerate(itertools.pairwise(numbers)):
        if not b > a:
            raise ValueError(
                f"`times` must increase; times[{i}] = {a!r} is followed by {b!r}: sort them with their values; give "
                "two values of one time as two trajectories"
            )
    return numbers


def _real(name: str, value: Any) -> Tensor:
    """The value as a float64 tensor of its own."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`{name}` must be numbers, got {shown(value)}: write an array or a tensor") from error
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"`{name}` must be real numbers, got dtype {tensor.dtype}")
    return tensor.detach().to("cpu", torch.float64, copy=True)


def _weights(sigma: Any, values: Tensor, seen: Tensor) -> Tensor:
    if sigma is None:
        return seen.to(torch.float64)
    sigma = _real("sigma", sigma)
    try:
        spread = sigma.expand(values.shape)
    except RuntimeError as error:
        raise ValueError(
            f"`sigma` must be a number, or one for each column or value, so broadcast against (N, T, d) = "
            f"{tuple(values.shape)}; got shape {tuple(sigma.shape)}"
        ) from error
    if not (spread[seen] > 0).all() or spread[seen].isinf().any():
        raise ValueError("`sigma` must be above 0 and finite: it is the standard deviation of the noise")
    return (1 / spread).where(seen, 0)


def read_start(y0: Any, free: Any, data: Data, observe: Observe | None) -> tuple[Tensor | None, Tensor]:
    """The initial states to begin with, (N, n) or None where they are to be read off the data; and which of the n
    components are fitted.

    Raises:
        TypeError, ValueError: If they are none.
    """
    trajectories, _, columns = data.values.shape
    start = None
    if y0 is None and observe is not None:
        raise ValueError("`y0` must be given beside `observe`, (n,) or (N, n): a guess will do, it is fitted")
    if y0 is not None:
        start = _real("y0", y0)
        wanted = f"(n,) or (N, n) with N = {trajectories}" + (f" and n = {columns}" if observe is None else "")
        fits = start.dim() in (1, 2) and start.shape[:-1] in ((), (1,), (trajectories,)) and start.shape[-1] > 0
        if not fits or (observe is None and start.shape[-1] != columns):
            raise ValueError(f"`y0` must have the shape {wanted}, got {tuple(start.shape)}")
        if not start.isfinite().all():
            raise ValueError(f"`y0` must be finite, got {shown(start.tolist())}")
        start = start.expand(trajectories, -1).clone()
    n = columns if start is None else start.shape[-1]
    if isinstance(free, bool):
        chosen = torch.full((n,), free)
    else:
        chosen = torch.as_tensor(free)
        if chosen.dtype != torch.bool or chosen.shape != (n,):
            raise ValueError(f"`fit_y0` must be True, False, or {n} of them, one a component; got {shown(free)}")
    if start is None and not chosen.all():
        raise ValueError("`y0` must be given where `fit_y0` is not True for all of it")
    return start, chosen
