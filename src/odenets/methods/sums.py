"""Sums of stages, and times, in numbers or in tensors: what every method is made of."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.transforms import active


@dataclass(frozen=True)
class Since:
    """A time counted from an origin.

    The origin is added last, so that the end of a step and the start of the next are one time, far from zero too.
    """

    origin: float | Tensor
    t: float | Tensor

    def __add__(self, dt: float | Tensor) -> "Since":
        return Since(self.origin, self.t + dt)

    @property
    def absolute(self) -> float | Tensor:
        return self.origin + self.t


@dataclass(frozen=True)
class Known:
    """A step's times as f gets them, made before: those of its nodes."""

    times: Sequence[Tensor]


Time = float | Tensor | Since


def stage_times(t: Time | Known, dt: float | Tensor, nodes: Sequence[float], y: Tensor) -> Sequence[Tensor]:
    """t + c dt for each node c, in y's real dtype; sums are made in float64. 0-dimensional, or of t's shape."""
    if isinstance(t, Known):
        return t.times
    dtype = real_dtype(y)
    origin, t = (t.origin, t.t) if isinstance(t, Since) else (0.0, t)
    different = set(nodes)
    if isinstance(t, float) and isinstance(dt, float) and isinstance(origin, float):
        if y.is_cpu and len(different) > _FEW_NODES:
            return torch.tensor([origin + (t + c * dt) for c in nodes], dtype=dtype).unbind()
        # A fill is a kernel of the device's own; for a copy to the device the host would wait at every step.
        at = {c: filled((), origin + (t + c * dt), y) for c in different}
    else:
        at = {c: torch.as_tensor(origin + (t + c * dt)).to(dtype) for c in different}
    return [at[c] for c in nodes]


_FEW_NODES = 3  # a tensor made of a Python list takes as long on a CPU as three that are filled


def filled(shape: Sequence[int], value: float, y: Tensor) -> Tensor:
    """That value in y's real dtype, everywhere; infinite where float16 has no such number."""
    dtype = real_dtype(y)
    wide = torch.float64 if dtype == torch.float16 else dtype  # a GPU refuses to fill what overflows
    return torch.full(shape, value, dtype=wide, device=y.device).to(dtype)


def real_dtype(y: Tensor) -> torch.dtype:
    """The dtype of a real number that goes with y: of t, for f."""
    return y.dtype.to_real() if y.dtype.is_complex else y.dtype


def combine(
    y: Tensor | None, dt: float | Tensor, weights: Sequence[float | Tensor], stages: Sequence[Tensor]
) -> Tensor:
    """y + dt Σ_i w_i k_i (without y: dt Σ_i w_i k_i); a weight that is the number 0 costs nothing.

    The sum is made first and added to y once: so it is not rounded to y's size stage by stage.
    """
    if isinstance(dt, Tensor) or not _NUMBERS.issuperset(map(type, weights)):
        return _combine_tensors(y, dt, weights, stages)
    # Dynamo traces through a cache, with a warning.
    largest, pivot, terms = (_split if torch.compiler.is_compiling() else _terms)(tuple(weights))
    if not largest or not dt:
        return torch.zeros_like(stages[0]) if y is None else y
    total = stages[pivot]
    in_place = len(terms) > 1 and not active()  # under `vmap` one stage may be mapped and another not
    for n, (i, ratio) in enumerate(terms):  # the first sum is a tensor of our own
        total = total.add_(stages[i], alpha=ratio) if n and in_place else torch.add(total, stages[i], alpha=ratio)
    scale: Any = dt * largest
    return total * scale if y is None else torch.add(y, total, alpha=scale)


def _split(weights: tuple[Any, ...]) -> tuple[float, int, list[tuple[int, Any]]]:
    """The largest weight, its place, and the others that are not 0 in units of it."""
    largest = max(weights, key=abs, default=0.0)
    pivot = weights.index(largest) if largest else 0
    return largest, pivot, [(i, w / largest) for i, w in enumerate(weights) if w and i != pivot]


_NUMBERS = {float, int}
_terms = functools.lru_cache(maxsize=1024)(_split)


def _combine_tensors(
    y: Tensor | None, dt: float | Tensor, weights: Sequence[float | Tensor], stages: Sequence[Tensor]
) -> Tensor:
    """y + dt Σ_i w_i k_i where dt or a weight is a tensor: differentiable, and one fused loop when compiled."""
    total = None
    for w, k in zip(weights, stages):
        if isinstance(w, Tensor) or w != 0:
            term = k * (w.to(k.dtype) if isinstance(w, Tensor) else w)
            total = term if total is None else total + term
    if total is None:
        return torch.zeros_like(stages[0]) if y is None else y
    total = total * (dt.to(total.dtype) if isinstance(dt, Tensor) else dt)
    return total if y is None else y + total
