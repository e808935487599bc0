"""One training: the steps of an epoch, what happens between them, the end of an epoch, checkpoints."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor, nn

from odenets.files import RunFolderError
from odenets.series import Series
from odenets.train.batches import Share, epoch_order, shares
from odenets.train.checkpoint import Checkpoint, Label, Store
from odenets.train.checks import about_data, check_outputs, check_targets, not_finite
from odenets.train.config import OPTIMIZERS, TrainConfig
from odenets.train.display import Display
from odenets.train.ended import Interrupted, NonFiniteLoss
from odenets.train.evaluation import Loss, accuracy, evaluate, mean_loss
from odenets.train.history import EpochRecord, History
from odenets.train.network import Wrapped, can_fuse, cpu_tensors, ode_layers
from odenets.train.process import (
    StopSignals,
    generator_states,
    set_generator_states,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


_AGREE_EVERY = 16  # steps between two looks at whether any process was told to stop: each costs a reduction
_LOOK_SECONDS = 5.0  # between two looks for a non-finite loss inside an epoch
_BAR_SECONDS = 0.25  # between two movements of the progress bar


@dataclass(frozen=True)
class Data:
    """The tensors of a training, on its device; inputs may be series."""

    x: Tensor | Series  # (N, ...)
    y: Tensor  # (N, ...)
    test_x: Tensor | Series  # (M, ...)
    test_y: Tensor  # (M, ...)

    def named(self) -> dict[str, Tensor | Series]:
        """The tensors under the names that the caller of `fit` gave them."""
        return {"train[0]": self.x, "train[1]": self.y, "test[0]": self.test_x, "test[1]": self.test_y}


@dataclass
class _Position:
    """Where a run is, and the sums of its unfinished epoch, as far as this process made them."""

    epoch: int = 0  # epochs that are finished
    step: int = 0  # steps done in the epoch after them
    seconds: float = 0.0
    samples: int = 0
    batches: int = 0
    nfe: int = 0
    nfe_backward: int = 0


@dataclass
class Trainer:
    """One call of `fit`. A step is one of the optimizer; it is made of `accumulate` batches."""

    network: nn.Module
    loss: Loss
    data: Data
    config: TrainConfig
    label: Label
    accelerator: "Accelerator"
    store: Store | None
    display: Display
    stop: StopSignals
    on_epoch: Callable[[EpochRecord], object] | None

    def __post_init__(self):
        self.device = self.accelerator.device
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.wrapped = Wrapped(self.network)
        self.model = self.accelerator.prepare_model(self.wrapped)  # on the device, under autocast, in DDP
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        make_optimizer = OPTIMIZERS[self.config.optimizer]
        self.optimizer = make_optimizer(self.parameters, self.config, can_fuse(self.parameters))
        self.layers = ode_layers(self.network)
        self.steps = math.ceil(len(self.data.x) / (self.config.batch_size * self.config.accumulate))
        self.records: list[EpochRecord] = []
        self.best: dict[str, Tensor] | None = None  # with `patience`, the weights of the epoch of the lowest test loss
        self.checked = self.proven = False  # the first outputs are; a first epoch with these data went through
        self._start_epoch(0)

    def run(self, resume: bool) -> History:
        self._open(resume)
        while self.position.epoch < self.config.epochs and not self._has_waited():
            with self._note_on_data():
                self._train_epoch()
                record = self._finish_epoch()
            self.proven = True
            self._save()
            self._report(record)
            if self.position.epoch < self.config.epochs:
                self._obey_stop()
        if self.best is not None:
            self.network.load_state_dict(self.best)
        self.network.eval()
        if self.store is not None:
            self.store.save_weights(cpu_tensors(self.network))
        self.accelerator.wait_for_everyone()  # so that the files are there for every process
        self._obey_stop()
        return History(tuple(self.records))

    def _has_waited(self) -> bool:
        """Whether the test loss has not fallen for `patience` epochs."""
        if self.config.patience is None or not self.records:
            return False
        lowest = min(self.records, key=lambda record: record.test_loss)
        return self.records[-1].epoch - lowest.epoch >= self.config.patience

    @contextlib.contextmanager
    def _note_on_data(self) -> Iterator[None]:
        """Until an epoch went through, an error of the network or the loss gets a note on the data."""
        try:
            yield
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if not self.proven and not isinstance(error, RunFolderError):
                error.add_note(about_data(self.network, self.data.named()))
            raise

    def _start_epoch(self, epoch: int) -> None:
        self.position = _Position(epoch)
        # Losses in float64, because a float32 sum over an epoch loses digits; MPS has no float64.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        # One number a step: the sum over the samples of this process, so that a bad step can be named later.
        self.losses = torch.zeros(self.steps, dtype=dtype, device=self.device)

    # -- the steps of an epoch

    def _train_epoch(self) -> None:
        self.network.train()
        order = epoch_order(len(self.data.x), self.config.seed, self.position.epoch).to(self.device)
        self._start_clock()
        while self.position.step < self.steps:
            self._step(order)
            self._between_steps()
        self._stop_clock()

    def _step(self, order: Tensor) -> None:
        *others, last = shares(
            self.position.step,
            len(order),
            self.config.batch_size,
            self.config.accumulate,
            self.rank,
            self.processes,
        )
        for share in others:
            with self.accelerator.no_sync(self.model):
                self._backward(order, share)
        self._backward(order, last)
        self._update()
        self.position.step += 1

    def _backward(self, order: Tensor, share: Share) -> None:
        rows = order[share.begin : share.end]
        # `index_select`, because `x[rows]` takes four times as long on the CPU.
        outputs, y = self.model(self.data.x.index_select(0, rows)), self.data.y.index_select(0, rows)
        if not self.checked:
            self._check_first(outputs, y)
        value = mean_loss(self.loss, outputs, y)  # ()
        self.accelerator.backward(value if share.weight == 1.0 else value * share.weight)
        self.losses[self.position.step].add_(value.detach(), alpha=share.samples)
        self._count(share)

    def _check_first(self, outputs: Tensor, y: Tensor) -> None:
        check_targets("train[1]", self.loss, outputs, self.data.y)
        check_targets("test[1]", self.loss, outputs, self.data.test_y)
        check_outputs("train[1]", self.loss, outputs, y)
        check_outputs("test[1]", self.loss, outputs, self.data.test_y[: len(outputs)])
        self.checked = True

    def _count(self, share: Share) -> None:
        self.position.samples += share.samples
        self.position.batches += 1
        for layer in self.layers:
            if layer.stats is not None:
                self.position.nfe += layer.stats.nfe
                self.position.nfe_backward += layer.stats.nfe_backward or 0

    def _update(self) -> None:
        """One step of the optimizer itself, not of accelerate's wrapper around it.

        The wrapper looks at each step on the disk whether an optional package is installed: 65 μs, 5 % of
        a small network's step (accelerate 1.15). All it adds is the scaler of fp16.
        """
        if self.config.clip_norm is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        scaler = self.accelerator.scaler
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad()

    # -- between steps

    def _between_steps(self) -> None:
        step = self.position.step
        if step == self.steps:
            return  # the end of the epoch looks at all of this
        if self.processes == 1 or step % _AGREE_EVERY == 0:
            self._obey_stop()
        if self.config.checkpoint_every and self._total_steps() % self.config.checkpoint_every == 0:
            self._save_in_epoch()
        if time.monotonic() >= self.next_look:
            self._look()

    def _total_steps(self) -> int:
        return self.position.epoch * self.steps + self.position.step

    def _look(self) -> None:
        losses = self.losses.cpu()
        if self.processes == 1:  # several must find it together, at a checkpoint or the end of the epoch
            self._check_losses(losses)
        samples, batches = max(1, self.position.samples), max(1, self.position.batches)
        nfe = self.position.nfe / batches if self.layers else None
        self.display.move(self._total_steps(), float(losses.sum()) / samples, nfe)
        self._plan_look()

    def _plan_look(self) -> None:
        self.next_look = time.monotonic() + (_LOOK_SECONDS if self.display.bar is None else _BAR_SECONDS)

    def _obey_stop(self) -> None:
        """Raise `Interrupted` if this or another process was told to stop; every process must call it."""
        told = self.stop.told
        if self.processes > 1:
            told = bool(self._sum(torch.tensor(int(told), device=self.device)))
        if not told:
            return
        if self.position.step:
            self._save_in_epoch()
        self.accelerator.wait_for_everyone()  # so that every process sees what is saved
        raise Interrupted(self._interruption(), None if self.store is None else self.store.latest())

    def _interruption(self) -> str:
        step, epoch = self.position.step, self.position.epoch
        where = f"step {step} of {self.steps} of epoch {epoch + 1}" if step else f"epoch {epoch}"
        if self.store is None:
            return f"Training of {self.label} stopped after {where}. Nothing was saved: `folder` is None."
        return (
            f"Training of {self.label} stopped after {where}; saved in {self.store.latest()}. "
            "To go on, repeat the call with `resume=True` (the command with `--resume`)."
        )

    def _start_clock(self) -> None:
        self._plan_look()
        self.clock = time.perf_counter()

    def _stop_clock(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.position.seconds += time.perf_counter() - self.clock

    # -- the end of an epoch

    def _finish_epoch(self) -> EpochRecord:
        losses, position = self._totals()
        self._check_losses(losses)
        test_loss, test_accuracy = self._test()
        if not math.isfinite(test_loss):
            self._blame(f"The test loss became {test_loss} after epoch {position.epoch + 1}")
        record = EpochRecord(
            network=self.label.name,
            seed=self.label.seed,
            epoch=position.epoch + 1,
            train_loss=float(losses.sum()) / position.samples,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            nfe=position.nfe / position.batches if self.layers else None,
            nfe_backward=position.nfe_backward / position.batches if self.layers else None,
            seconds=position.seconds,
            samples=position.samples,
        )
        if self.config.patience is not None and test_loss < min((r.test_loss for r in self.records), default=math.inf):
            self.best = cpu_tensors(self.network)
        self.records.append(record)
        self._start_epoch(position.epoch + 1)
        return record

    def _report(self, record: EpochRecord) -> None:
        self.display.epoch(record, self._total_steps())
        if self.on_epoch is not None and self.accelerator.is_main_process:
            self.on_epoch(record)

    def _totals(self) -> tuple[Tensor, _Position]:
        """The losses, (steps,) on the CPU, and the position, summed over the processes; each must call it."""
        names = ("samples", "batches", "nfe", "nfe_backward")
        sums = torch.tensor([getattr(self.position, name) for name in names], device=self.device)
        counts = dict(zip(names, self._sum(sums).tolist()))
        return self._sum(self.losses).cpu().double(), dataclasses.replace(self.position, **counts)

    def _sum(self, part: Tensor) -> Tensor:
        """The sum over the processes of what each has; each must call it."""
        return part if self.processes == 1 else cast(Tensor, self.accelerator.reduce(part, "sum"))

    def _test(self) -> tuple[float, float | None]:
        """The mean loss and the accuracy over the test data, of which each process runs its share."""
        total = len(self.data.test_x)
        low, high = total * self.rank // self.processes, total * (self.rank + 1) // self.processes
        sums = self._test_share(low, high) if high > low else (0.0, 0.0, 0.0)
        if self.processes > 1:
            sums = self._sum(torch.tensor(sums, dtype=torch.float64, device=self.device)).tolist()
        loss, right, classes = sums
        return loss / total, right / total if classes else None

    def _test_share(self, low: int, high: int) -> tuple[float, float, float]:
        """Sums over the test samples low..high: their losses, the right ones, and 1 if they have classes."""
        x, y = self.data.test_x[low:high], self.data.test_y[low:high]
        loss, outputs = evaluate(self.wrapped, self.loss, x, y, self.config.batch_size)
        right = accuracy(outputs, y)
        return loss * len(x), 0.0 if right is None else right * len(x), float(right is not None)

    def _check_losses(self, losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step, value = int(bad[0]), float(losses[bad[0]])
            where = f"step {step + 1} of {self.steps} of epoch {self.position.epoch + 1}"
            self._blame(f"The training loss became {value} at {where}")

    def _check_weights(self) -> None:
        """Refuse to save weights that are not finite: the last loss can be finite and its step not."""
        if not torch.stack([p.detach().isfinite().all() for p in self.parameters]).all():
            where = f"step {self._total_steps()}, counted from the first epoch"
            self._blame(f"A weight became NaN or infinite at {where}")

    def _blame(self, what: str) -> NoReturn:
        saved = None if self.store is None else self.store.latest()
        faults = not_finite(self.data.named())
        clip = "set `clip_norm`, for example to 1.0" if self.config.clip_norm is None else "lower `clip_norm`"
        kept = "" if saved is None else f" The last good checkpoint is {saved}."
        remedy = " ".join(faults) or f"Lower `lr` (it is {self.config.lr:g}), or {clip}."
        raise NonFiniteLoss(f"{what} ({self.label}). {remedy}{kept}")

    # -- checkpoints

    def _open(self, resume: bool) -> None:
        if self.store is not None:
            self.store.prepare(resume)
            self.accelerator.wait_for_everyone()
            saved = self.store.latest()
            if saved is not None:
                self._restore(Checkpoint.read(saved))
            self.store.rewrite_metrics(self.records)
        self.display.start(self.steps * self.config.epochs, self._total_steps())

    def _save_in_epoch(self) -> None:
        self._stop_clock()
        self._save()
        self._start_clock()

    def _save(self) -> None:
        if self.store is None:
            return
        losses, position = self._totals()
        self._check_losses(losses)
        self._check_weights()
        from accelerate.utils import gather_object  # noqa: PLC0415 — accelerate is imported where it is used

        generators = gather_object([generator_states(self.device)])
        if self.accelerator.is_main_process:
            about = self._about() | {"position": dataclasses.asdict(position)}
            scaler = self.accelerator.scaler
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "generators": generators,
                "losses": losses,
                "best": self.best,
            }
            checkpoint = Checkpoint(about, self.records, cpu_tensors(self.network), state)
            self.store.save(self._total_steps(), checkpoint, ends_epoch=position.step == 0)

    def _about(self) -> dict[str, Any]:
        """What must be the same on both sides of a checkpoint, in words that an error can quote."""
        config = dataclasses.asdict(self.config) | {"device": self.device.type}
        return {"config": config, "processes": self.processes, "training samples": len(self.data.x)}

    def _restore(self, checkpoint: Checkpoint) -> None:
        checkpoint.check(self._about(), self.network)
        self.network.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        set_generator_states(checkpoint.state["generators"][self.rank], self.device)
        self.records, self.best = list(checkpoint.records), checkpoint.state["best"]
        saved = _Position(**checkpoint.about["position"])
        self._start_epoch(saved.epoch)
        if self.rank == 0:  # the sums were of all processes; the first carries them on
            self.position = saved
            self.losses.copy_(checkpoint.state["losses"])
        else:
            self.position = _Position(saved.epoch, saved.step, saved.seconds)
