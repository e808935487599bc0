"""What is one per process: accelerate's state, the random number generators, the signals."""

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odenets.extra import experiments_extra
from odenets.train.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "StopSignals",
    "generator_states",
    "make_accelerator",
    "mixed_seed",
    "own_generators",
    "set_generator_states",
]


@contextlib.contextmanager
def make_accelerator(config: TrainConfig) -> Iterator["Accelerator"]:
    """An `Accelerator` for `config` in the block.

    accelerate keeps one state a process, fixed by the first `Accelerator`: a second one with another
    precision or device is refused. So the state is set aside here and put back, the caller's own included
    (accelerate 1.15). The process group of torch.distributed stays, for the next call.
    """
    device = _choose_device(config)
    with experiments_extra("`fit`"):
        from accelerate import Accelerator  # noqa: PLC0415 — seconds to import
        from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: PLC0415
        from accelerate.utils import GradientAccumulationPlugin  # noqa: PLC0415
    states = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    try:
        # Accumulation is ours: accelerate divides each loss by a constant, wrong for the last, shorter
        # step. A plugin of 1, because without one an environment variable decides.
        once = GradientAccumulationPlugin(num_steps=1)
        yield Accelerator(cpu=device == "cpu", mixed_precision=config.precision, gradient_accumulation_plugin=once)
    finally:
        for state, earlier in zip(states, before):
            state._shared_state.clear()
            state._shared_state.update(earlier)


def _choose_device(config: TrainConfig) -> str:
    """One of "cuda", "mps", "cpu"; raises `ValueError` where `config` asks for what is not there.

    Never left to accelerate: without a GPU, and not told to use the CPU, it trains each of torchrun's processes
    by itself, and says nothing.
    """
    several = _launched_processes() > 1
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not several,
        "cpu": True,
    }
    device = next(d for d in there if there[d]) if config.device == "auto" else config.device
    if not there[device]:
        why = "works with one process only" if several and device == "mps" else "is not available here"
        raise ValueError(f"`device` is {device!r}, which {why}. Use 'cpu', or 'auto' for the best there is.")
    if config.precision == "fp16" and device == "cpu":
        raise ValueError("`precision` is 'fp16', which the CPU has no autocast for. Use 'bf16' or 'no'.")
    return device


def _launched_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def own_generators(seed: int, accelerator: "Accelerator") -> Iterator[None]:
    """torch's random numbers in the block come from (seed, process); afterwards they are as it had not been."""
    before = generator_states(accelerator.device)
    torch.manual_seed(mixed_seed("dropout", seed, accelerator.process_index))
    try:
        yield
    finally:
        set_generator_states(before, accelerator.device)


def mixed_seed(*parts: object) -> int:
    """A seed, in 32 bits, that differs where any part does.

    Hashed, because torch's CPU generator uses the lower 32 bits only: `seed * 2**32 + epoch` loses the seed.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators on the CPU and on `device`, for `set_generator_states`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_generator_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Make torch's generators go on from `states`, as `generator_states` gave them."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])


class StopSignals:
    """In the block the first SIGINT or SIGTERM only sets `told`; a second one acts as it did before the block.

    SIGTERM is what torchrun, schedulers and containers send before they kill. A signal that is ignored
    (`nohup`), or that the caller handles (SIGTERM), is left alone, and so are all outside the main
    thread.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.told = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        signal.signal(number, self.before[number])
        self.say("Stopping after this step. Once more to stop at once, without a checkpoint.")
