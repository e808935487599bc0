"""The one training loop, for every network, on accelerate: one process or many, any device, any precision.

`fit` trains and returns a `History`; `evaluate` measures. Both take whole tensors and index them by
batch: the data of this package fits in memory, and a `DataLoader` that collates sample by sample costs
more than the network.

Three promises shape the code:

- the order of the samples is a pure function of (seed, epoch), so a run resumes in the middle of an epoch by
  skipping what is done, and a resumed run ends with the same bits as one that was never stopped;
- every batch is divided between the processes and its shares are weighted by their sizes, so several
  processes, or several accumulated batches, give the gradient of the whole batch exactly, also for the
  last, smaller one;
- the loop reads nothing from the device: losses stay there, and are read once an epoch, at a checkpoint,
  and a few times a second for the progress bar.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from odenets.series import Series
from odenets.train.checkpoint import Label, Store
from odenets.train.checks import check_pair
from odenets.train.config import TrainConfig
from odenets.train.display import Display
from odenets.train.evaluation import Loss
from odenets.train.history import EpochRecord, History
from odenets.train.process import (
    StopSignals,
    make_accelerator,
    own_generators,
)
from odenets.train.trainer import Data, Trainer


def fit(
    network: nn.Module,
    loss: Loss,
    train: tuple[Tensor | Series, Tensor],
    test: tuple[Tensor | Series, Tensor],
    config: TrainConfig,
    folder: Path | str | None = None,
    name: str = "network",
    *,
    resume: bool = False,
    progress: bool = True,
    on_epoch: Callable[[EpochRecord], object] | None = None,
) -> History:
    """Train `network` in place, and leave it on the device of `config` in eval mode; returns the `History`.

    - `loss(outputs, y)` returns the mean over the samples, shape ().
    - `train` and `test` are pairs (x, y), each (N, ...), x also a `Series` of N samples; both are moved to the
      device whole.
    - `folder`: where to write `metrics.jsonl`, `checkpoints/<name>-seed<seed>/` and, at the end,
      `<name>-seed<seed>.safetensors`. Several networks and seeds may share it, one after the other. None:
      nowhere.
    - `resume`: go on from the checkpoint in `folder`; without one there, start. Only `epochs` and
      `checkpoint_every` may differ from the run that wrote it. The bits are those of a run without a stop.
    - `progress`: on a terminal a bar, elsewhere a line an epoch, on standard error.
    - `on_epoch(record)` is called after each epoch, its checkpoint included, in the first process.

    Under `torchrun` every process calls this with the same arguments, and only the first one writes.
    BatchNorm, and the step sizes of an adaptive solver, depend on the samples in one process, so with
    those the result changes a little with the number of processes.

    Raises `ValueError` and `TypeError` for unusable arguments; an error of the network or the loss in the first epoch
    has a note on the data. Raises `RunFolderError` before the training where the folder
    cannot be used (or another process, which it names, trains in it) and during it where a file cannot be
    written (the last checkpoint then is intact), `CheckpointError`, `NonFiniteLoss`, and `Interrupted` after
    Ctrl-C or SIGTERM: a second Ctrl-C stops at once.
    """
    label = Label(name, config.seed)
    if resume and folder is None:
        raise ValueError("`resume` is True, but `folder` is None. Give the folder of the run to go on with.")
    _check_network(network, config)
    train, test = check_pair("train", train), check_pair("test", test)
    with make_accelerator(config) as accelerator, own_generators(config.seed, accelerator):
        main = accelerator.is_main_process
        (x, y), (test_x, test_y), device = train, test, accelerator.device
        data = Data(x.to(device), y.to(device), test_x.to(device), test_y.to(device))
        store = None if folder is None else Store(Path(folder), label, main)
        locked = contextlib.nullcontext() if store is None else store.locked()
        with locked, Display(progress and main, label, config.epochs) as display, StopSignals(display.say) as stop:
            trainer = Trainer(network, loss, data, config, label, accelerator, store, display, stop, on_epoch)
            return trainer.run(resume)


def _check_network(network: nn.Module, config: TrainConfig) -> None:
    dtypes = {p.dtype for p in network.parameters() if p.requires_grad}
    if not dtypes:
        raise ValueError("`network` has no parameter that requires a gradient; there is nothing to train.")
    if config.precision != "no" and torch.float64 in dtypes:
        raise ValueError(
            f"`precision` is {config.precision!r}, but `network` has float64 weights, which autocast leaves "
            "alone. Use `precision='no'`, or a float32 network."
        )
