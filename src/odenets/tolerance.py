"""A tolerance for each component, and a norm of the caller's: checked, and brought to the one tensor that a state is.

Where a state is a nest, a tolerance may be one number, or a nest like it whose leaves are numbers and tensors; a number
in place of a part holds for all of that part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets.arguments import number, shown
from odenets.methods import real_dtype, wide

ALLOWED = "a number ≥ 0"


def given(name: str, value: Any) -> Any:
    """A tolerance as the caller wrote it, checked: numbers are Python's, tensors copies that nobody else writes into.

    Raises:
        TypeError, ValueError: If it is none.
    """
    if isinstance(value, dict):
        return {key: given(name, part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(given(name, part) for part in value)
    if getattr(value, "ndim", 0) > 0:
        return _tensor(name, value)
    return number(name, value, ALLOWED, lambda x: 0 <= x < torch.inf)


def _tensor(name: str, value: Any) -> Tensor:
    wrong = f"`{name}` must be finite numbers ≥ 0, got {shown(value)}"
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{wrong}, which requires grad, and no gradient goes there: write {name}.detach()")
    try:
        x = value.clone() if isinstance(value, Tensor) else torch.tensor(value.__array__())
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise TypeError(wrong) from None
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(wrong)
    if not bool(((x >= 0) & (x < torch.inf)).all()):
        raise ValueError(f"{wrong}, the least of which is {float(x.min()):g}")
    return x if x.is_floating_point() else x.double()


def is_one_number(value: Any) -> bool:
    """Whether the tolerance is the same for all components."""
    return not isinstance(value, Tensor | tuple | list | dict)


def of_components(name: str, value: Any, y0: Tensor, split: Callable[[Tensor], Any]) -> Any:
    """A tolerance that was `given`, as a number or as a tensor that broadcasts against y0, a state that is one tensor.

    Args:
        split: Gives y0 the caller's structure.

    Raises:
        ValueError: If it has not that structure or shape.
    """
    if is_one_number(value):
        return value
    state, dtype = split(y0), real_dtype(wide(y0))
    if isinstance(state, Tensor):
        return _against(name, value, state, "").to(y0.device, dtype)
    parts = zip(_leaves(name, value, state, ""), pytree.tree_leaves(state))
    batch = y0.shape[:-1]  # the axis of the samples, where that stays apart
    flat = [part.to(y0.device, dtype).expand(leaf.shape).reshape((*batch, -1)) for part, leaf in parts if leaf.numel()]
    return torch.cat(flat, dim=-1) if flat else torch.zeros_like(y0, dtype=dtype)


def _leaves(name: str, value: Any, state: Any, place: str) -> Iterator[Tensor]:
    """One tensor for each of the state's."""
    if isinstance(state, Tensor):
        yield _against(name, value, state, place)
    elif is_one_number(value):
        yield from (torch.tensor(value, dtype=torch.float64) for _ in pytree.tree_leaves(state))
    elif isinstance(state, dict) and isinstance(value, dict) and state.keys() == value.keys():
        for key, part in state.items():
            yield from _leaves(name, value[key], part, f"{place}[{key!r}]")
    elif isinstance(state, tuple | list) and isinstance(value, tuple | list) and len(value) == len(state):
        for i, part in enumerate(state):
            yield from _leaves(name, value[i], part, f"{place}[{i}]")
    else:
        kind = f"{type(state).__name__} of {len(state)}"
        keys = f" with the keys {', '.join(map(shown, state))}" if isinstance(state, dict) else ""
        raise ValueError(f"`{name}`{place} must be a number, or as `y0`{place} a {kind}{keys}, got {shown(value)}")


def _against(name: str, value: Any, y: Tensor, place: str) -> Tensor:
    if isinstance(value, tuple | list) and all(map(is_one_number, value)):
        value = torch.tensor(value, dtype=torch.float64)  # one axis of components
    if is_one_number(value):
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, Tensor):
        try:
            if torch.broadcast_shapes(value.shape, y.shape) == y.shape:
                return value
        except RuntimeError:
            pass  # which says less than what follows
    raise ValueError(
        f"`{name}`{place} must be a number, or a tensor that broadcasts against `y0`{place} of shape {tuple(y.shape)}, "
        f"got {shown(value)}"
    )


@dataclass(frozen=True)
class NormOfState:
    """The caller's norm, of a state that is one tensor; with `per_sample` of each sample, (batch, 1, …, 1)."""

    norm: Callable[[Any], Any]
    split: Callable[[Tensor], Any]
    per_sample: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.per_sample:
            return torch.vmap(self._of_one)(x).reshape(x.shape[0], *(1,) * (x.dim() - 1)).double()
        return self._of_one(x)

    def _of_one(self, x: Tensor) -> Tensor:
        size = torch.as_tensor(self.norm(self.split(x)), device=x.device)
        if size.numel() != 1 or size.is_complex():
            raise ValueError(f"`norm` must return one real number, the size of the state, returned {shown(size)}")
        return size.reshape(()).abs()
