"""A state in normal form, one tensor, and f as a function of that."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets.arguments import shown
from odenets.methods import Field, real_dtype, wide
from odenets.returned import as_tensor, explain, in_dtype_of, leaves_like, refuse_shape


@dataclass(frozen=True)
class Narrowed:
    """From states that are solved for in a wider dtype to the caller's."""

    split: Callable[[Tensor], Any]
    dtype: torch.dtype

    def __call__(self, y: Tensor) -> Any:
        return self.split(y.to(self.dtype))


def flatten_state(y0: Any, per_sample: bool, widen: bool) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The state as one tensor, and the way back for states (..., *shape); with `per_sample` the batch stays apart.

    To `widen` a state in half precision is to solve for it in float32, where f gets it in its own dtype: what a short
    step adds would be lost in rounding. A method that iterates knows half precision itself, and when to end.
    """
    flat, unflatten = _flattened(y0, per_sample)
    wider = wide(flat) if widen else flat
    return wider, unflatten if wider.dtype == flat.dtype else Narrowed(unflatten, flat.dtype)


def _flattened(y0: Any, per_sample: bool) -> tuple[Tensor, Callable[[Tensor], Any]]:
    if isinstance(y0, Tensor):
        _check_leaf(y0, "")
        if per_sample and y0.dim() == 0:
            raise ValueError("`per_sample=True` needs samples along the first axis of `y0`, which has none")
        return y0, same
    leaves, spec = pytree.tree_flatten(y0)
    if not leaves:
        raise ValueError(f"`y0` must hold a tensor, got {shown(y0)}: write torch.tensor(...)")
    for i, leaf in enumerate(leaves):
        _check_leaf(leaf, f" (leaf {i})")
        if (leaf.dtype, leaf.device) != (leaves[0].dtype, leaves[0].device):
            raise TypeError(
                f"`y0` must be of one dtype and device, leaf 0 is {leaves[0].dtype} on {leaves[0].device}, "
                f"leaf {i} is {leaf.dtype} on {leaf.device}"
            )
    if (per_sample and len({(leaf.dim(), leaf.shape[:1]) for leaf in leaves}) > 1) or leaves[0].dim() < int(per_sample):
        raise ValueError(
            "`per_sample=True` needs all tensors of `y0` to have as many axes, the first of them the samples; got "
            f"shapes {', '.join(str(tuple(leaf.shape)) for leaf in leaves)}"
        )
    batch = 1 if per_sample else 0  # axes that stay
    shapes = [leaf.shape[batch:] for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]

    def unflatten(y: Tensor) -> Any:
        parts = y.split(sizes, dim=-1)
        return pytree.tree_unflatten([p.reshape((*y.shape[:-1], *s)) for p, s in zip(parts, shapes)], spec)

    flat = [leaf.reshape((*leaf.shape[:batch], size)) for leaf, size in zip(leaves, sizes)]  # −1 is no size if empty
    return torch.cat(flat, dim=-1), unflatten


def _check_leaf(leaf: Any, where: str) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"`y0`{where} must be a tensor, got {shown(leaf)}: write {_tensor_of(leaf)}")
    if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
        raise TypeError(f"`y0`{where} must be floating-point or complex, got {leaf.dtype}: write y0.float()")


def _tensor_of(leaf: Any) -> str:
    """How to write it as a tensor."""
    if isinstance(leaf, int | float) and not isinstance(leaf, bool):
        return f"torch.tensor({float(leaf)})"
    return "torch.as_tensor(y0)" if hasattr(leaf, "__array__") else "torch.tensor(...)"


def same(y: Tensor) -> Tensor:
    return y


def field_of(f: Callable[..., Any], args: tuple, unflatten: Callable[[Tensor], Any], sign: float) -> Field:
    """f in normal form: of one tensor, in increasing time."""
    if isinstance(unflatten, Narrowed):
        return _of_wide(field_of(f, args, unflatten.split, sign), unflatten.dtype)

    def called(t: Tensor, y: Any) -> Any:
        try:
            return f(t, y, *args)
        except Exception as error:  # f may raise anything
            explain(error, f, t, y, args)
            raise

    def forward(t: Tensor, y: Tensor) -> Tensor:
        return as_tensor(called(t, y))

    def nested(t: Tensor, y: Tensor) -> Tensor:
        state = unflatten(y)
        if t.dim() > 0:  # with `per_sample`: as many axes as the tensors of the state have
            t = t.reshape(-1, *(1,) * (pytree.tree_leaves(state)[0].dim() - 1))
        leaves = leaves_like(called(t, state), state)
        batch = y.shape[:-1]
        return torch.cat([k.reshape((*batch, math.prod(k.shape[len(batch) :]))) for k in leaves], dim=-1)

    field = forward if unflatten is same else nested

    def backward(t: Tensor, y: Tensor) -> Tensor:
        out = field(-t, y)
        return -out if out.shape == y.shape else refuse_shape(out, -t, y)  # in the caller's time

    return field if sign > 0 else backward


def _of_wide(f: Field, dtype: torch.dtype) -> Field:
    """f, which takes and returns states in that dtype, of states in a wider one."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        given = y.to(dtype)
        return in_dtype_of(given, f(t.to(real_dtype(given)), given)).to(y.dtype)

    return field
