"""What can be wrong with the data of a training, each in a sentence that says what to write instead."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from odenets.series import Series

__all__ = ["about_data", "check_data", "check_outputs", "check_pair", "check_targets", "not_finite"]

_Loss = Callable[[Tensor, Tensor], Tensor]


def check_pair(name: str, pair: object) -> tuple[Tensor | Series, Tensor]:
    """`pair` as (x, y); raises `TypeError` where it is no pair of tensors."""
    if isinstance(pair, DataLoader):
        raise TypeError(
            f"`{name}` is a DataLoader; it must be a pair (x, y) of whole tensors, because `fit` makes the batches "
            f"itself (`batch_size` of the config). Write `tuple(map(torch.cat, zip(*loader)))`."
        )
    if isinstance(pair, Dataset):
        raise TypeError(
            f"`{name}` is a {type(pair).__name__}; it must be a pair (x, y) of whole tensors. Write `dataset.tensors` "
            "of a `TensorDataset`, and `torch.utils.data.default_collate([*dataset])` of another one."
        )
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        length = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
        raise TypeError(f"`{name}` is a {type(pair).__name__}{length}; it must be a pair (x, y) of tensors.")
    x, y = pair
    check_data(f"{name}[0]", f"{name}[1]", x, y)
    return x, y


def check_data(x_name: str, y_name: str, x: Tensor | Series, y: Tensor) -> None:
    """Raise unless `x` (or the series) and `y` are without a gradient, of equally many samples, and not none."""
    tensors = {x_name: x.values if isinstance(x, Series) else x, y_name: y}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` is a {type(value).__name__}; it must be a tensor: `torch.as_tensor`.")
        if value.ndim == 0:
            raise ValueError(f"`{name}` is a single number; it must have an axis of samples first, shape (N, ...).")
        if value.requires_grad:
            raise ValueError(f"`{name}` requires grad, which nothing here would use. Give `.detach()` of it.")
    if len(x) == 0:
        raise ValueError(f"`{x_name}` has no samples; give at least one.")
    if len(x) != len(y):
        raise ValueError(f"`{x_name}` has {len(x)} samples and `{y_name}` {len(y)}; they must have as many.")


def check_targets(name: str, loss: _Loss, outputs: Tensor, y: Tensor) -> None:
    """Refuse classes that `loss`, where it is a cross entropy, has no output for: on a GPU that kills the process."""
    functions = (nn.functional.cross_entropy, nn.functional.nll_loss)
    known = loss in functions or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    if not known or y.is_floating_point() or outputs.ndim < 2:
        return
    if y.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"`{name}` is {_dtype(y)}; classes must be int64: `.long()`.")
    classes, ignored = outputs.shape[1], getattr(loss, "ignore_index", -100)
    bad = ((y < 0) | (y >= classes)) & (y != ignored)
    if bad.any():
        at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"`{name}` holds the class {int(y[tuple(at)])} in sample {at[0]}, but the network has {classes} outputs, "
            f"for the classes 0 to {classes - 1}. Number the classes from 0, or give the network as many outputs."
        )


def check_outputs(name: str, loss: _Loss, outputs: Tensor, y: Tensor) -> None:
    """Refuse outputs such as (N, 1) beside targets (N,) where `loss` compares each with every other, by broadcasting.

    A loss may bring such shapes together by itself. So it is asked: its value for a few samples must be the mean of
    its values for each.
    """
    samples = min(len(y), 4)
    if samples < 2 or not _multiply(outputs.shape, y.shape):
        return
    together, *each = _losses(loss, outputs.detach(), y, [range(samples), *([i] for i in range(samples))])
    if not torch.isclose(together, torch.stack(each).mean(), rtol=1e-3, equal_nan=True):  # NaN says nothing of shapes
        raise ValueError(
            f"`{name}` has shape {tuple(y.shape)} and the outputs of the network for them {tuple(outputs.shape)}, so "
            "`loss` compares every output with every target (broadcasting). Give both one shape: "
            + ("`y[:, None]`." if y.ndim < outputs.ndim else "`y.squeeze(1)`.")
        )


def _multiply(outputs: Sequence[int], y: Sequence[int]) -> bool:
    """Whether an elementwise operation on two such tensors gives more numbers than either has."""
    try:
        size = torch.broadcast_shapes(outputs, y).numel()
    except RuntimeError:
        return False
    return size > max(math.prod(outputs), math.prod(y))


def _losses(loss: _Loss, outputs: Tensor, y: Tensor, parts: Sequence[Sequence[int]]) -> list[Tensor]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own losses only warn
        return [loss(outputs[list(part)], y[list(part)]) for part in parts]


def about_data(network: nn.Module, data: Mapping[str, Tensor | Series]) -> str:
    """What may have made the first batch fail: shapes, dtypes that differ, and values that are not finite."""
    return " ".join([_kinds(network, data), *not_finite(data)])


def _kinds(network: nn.Module, given: Mapping[str, Tensor | Series]) -> str:
    data = {name: value.values if isinstance(value, Series) else value for name, value in given.items()}
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()}
    shown = "; ".join(f"`{name}` is {_dtype(value)}, samples {tuple(value.shape[1:])}" for name, value in data.items())
    other = {value.dtype for value in data.values() if value.is_floating_point()} - dtypes
    text = f"The data: {shown}."
    if len(dtypes) == 1 and other:
        (dtype,) = (str(d).removeprefix("torch.") for d in dtypes)
        text += f" The network's weights are {dtype}: give data of that dtype, `.to(torch.{dtype})`."
    return text


def not_finite(data: Mapping[str, Tensor | Series]) -> list[str]:
    """A sentence on each tensor (N, ...) that holds NaNs or infinities; in a series they are what is missing."""
    tensors = {name: value for name, value in data.items() if isinstance(value, Tensor)}
    return [sentence for name, value in tensors.items() if (sentence := _not_finite(name, value)) is not None]


def _not_finite(name: str, value: Tensor) -> str | None:
    bad = ~value.isfinite().flatten(1).all(1) if value.ndim > 1 else ~value.isfinite()  # (N,)
    if not bad.any():
        return None
    first, count = int(bad.nonzero()[0]), int(bad.sum())
    return f"`{name}` holds NaN or infinity in {count} of {len(value)} samples, the first in sample {first}."


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
