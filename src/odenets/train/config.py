"""How to train: one frozen config that checks itself."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["DEVICES", "OPTIMIZERS", "PRECISIONS", "TrainConfig"]


def _sgd(parameters: list[nn.Parameter], config: "TrainConfig", fused: bool) -> Optimizer:
    return SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay, fused=fused)


def _adam(parameters: list[nn.Parameter], config: "TrainConfig", fused: bool) -> Optimizer:
    return Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=fused)


def _adamw(parameters: list[nn.Parameter], config: "TrainConfig", fused: bool) -> Optimizer:
    return AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=fused)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], "TrainConfig", bool], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("no", "bf16", "fp16")


def _whole(low: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _finite(holds: Callable[[float], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int | float) and math.isfinite(value) and holds(value)


def _one_of(names: Collection[str]) -> tuple[Callable[[object], bool], str]:
    return lambda value: value in names, f"one of {', '.join(map(repr, names))}"


def _or_none(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or holds(value)


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "epochs": (_whole(1), "a whole number from 1"),
    "lr": (_finite(lambda lr: lr > 0), "a positive number, such as 0.1"),
    "batch_size": (_whole(1), "a whole number from 1"),
    "optimizer": _one_of(OPTIMIZERS),
    "momentum": (_finite(lambda momentum: 0 <= momentum < 1), "a number from 0 up to, but without, 1"),
    "weight_decay": (_finite(lambda decay: decay >= 0), "0 or a positive number"),
    "accumulate": (_whole(1), "a whole number from 1"),
    "clip_norm": (_or_none(_finite(lambda norm: norm > 0)), "a positive number, or None: no limit"),
    "seed": (_whole(0), "a whole number from 0"),
    "device": _one_of(DEVICES),
    "precision": _one_of(PRECISIONS),
    "patience": (_or_none(_whole(1)), "a whole number of epochs from 1, or None: train all of them"),
    "checkpoint_every": (_or_none(_whole(1)), "a whole number of steps from 1, or None: once an epoch"),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Two runs with equal configs, networks and data on equal machines give equal weights.

    - `epochs`: passes over the training data.
    - `batch_size`: samples in one forward pass, of all processes together: their number changes only the
      speed.
    - `accumulate`: forward passes in one step of the optimizer, which so sees `accumulate * batch_size`
      samples (fewer at the end of an epoch). For batches that do not fit in memory.
    - `lr`, `momentum` (sgd only), `weight_decay`, `optimizer`: a name in `OPTIMIZERS`.
    - `clip_norm`: gradients are scaled down to at most this norm; None does not.
    - `seed`: of the order of the samples and of dropout. The initial weights are the caller's.
    - `device`: "auto" takes the GPU if there is one. `precision`: of the forward pass (autocast); the weights
      and the loss keep theirs. "fp16" scales the loss and needs a GPU.
    - `patience`: end once the test loss has not fallen for so many epochs, and with the weights of the epoch where it
      was lowest. What it is measured on is then part of the training: give a validation part, and test on another.
      None trains all epochs and ends with the last weights.
    - `checkpoint_every`: steps between two checkpoints; None makes one at the end of each epoch only.

    Raises `ValueError` for values out of range and for a `momentum` that would be ignored.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    accumulate: int = 1
    clip_norm: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "no"
    patience: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self):
        for name, (holds, allowed) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ValueError(f"`{name}` is {value!r}; it must be {allowed}.")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"`momentum` is {self.momentum!r}, but `optimizer` {self.optimizer!r} would ignore it. "
                "Leave it at 0, or use `optimizer='sgd'`."
            )
