"""Times that can be compared: one core, one thread, all contestants in turn in each round, fresh processes."""

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from odenets.experiments.result import versions

Result = TypeVar("Result")
Key = TypeVar("Key")  # what names a contestant
PEERS = ("torchdiffeq", "torchode", "diffrax", "jax", "jaxlib")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
WARM_UP = 3  # calls before the first round; the last ones compile nothing any more
TURN = 0.02  # seconds: a turn is as many calls as take about so long, since a training loop too calls again at once
MOST_CALLS = 500


def use_one_core() -> None:
    """For the processes started from now on; those of this one are too old for it."""
    os.environ.update(ONE_THREAD)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """What the function returns in a process of its own, in which nothing has been compiled."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def interleaved(steps: Mapping[Key, Callable[[], None]], rounds: int) -> dict[Key, dict[str, float]]:
    """Median and quartiles of each contestant's time of one call, in milliseconds, over the rounds."""
    calls = {name: calls_a_turn(step) for name, step in steps.items()}
    seconds: dict[Key, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            if calls[name] > 1:
                timed(step, calls[name] // 2)  # the others have filled the caches
            seconds[name].append(timed(step, calls[name]))
    return {name: spread(values) for name, values in seconds.items()}


def least(steps: Mapping[Key, Callable[[], object]], turns: int, seconds: float) -> dict[Key, float]:
    """Least processor time of one call of each, in milliseconds, in turn: other work disturbs it least.

    So many turns, or as many as fit into so many seconds of the processor, but three; the first, in which caches fill
    and programs are compiled, aside.
    """
    best = dict.fromkeys(steps, math.inf)
    begun = 0.0
    for turn in range(turns):
        begun = time.thread_time() if turn == 1 else begun
        for name, step in steps.items():
            started = time.thread_time()
            step()
            best[name] = min(best[name], 1e3 * (time.thread_time() - started))
        if turn > 1 and time.thread_time() - begun > seconds:
            break
    return best


def calls_a_turn(step: Callable[[], None]) -> int:
    """How many calls fill a turn, after the warm-up."""
    timed(step, WARM_UP)
    return max(1, min(MOST_CALLS, int(TURN / timed(step, 1))))


def timed(step: Callable[[], None], calls: int) -> float:
    """Seconds a call; a GPU has then done its part."""
    started = time.perf_counter()
    for _ in range(calls):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls


def spread(seconds: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"ms": 1e3 * median, "q1": 1e3 * q1, "q3": 1e3 * q3}


def all_versions() -> dict[str, Any]:
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {**versions(), **gpu, **{name: version(name) for name in PEERS}}
