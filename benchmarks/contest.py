"""One work, all contestants, in this process: times, errors, counts, limits."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax  # pyright: ignore[reportMissingImports]

import contestants_jax as on_jax
import contestants_torch as on_torch
from contestants_torch import Evaluations, Plain
from measure import all_versions, interleaved
from works import Work, make, moved

Contestant = on_torch.Step | on_jax.Step | Plain
NETWORKS = ("ResNet twin", "ResNet twin, compiled")  # no solve: no counts, no error

STAGES = 6  # new evaluations of f in a step of dopri5


def contestants(name: str, device: str = "cpu") -> dict[str, Contestant]:
    """JAX takes the device that it finds, from data on the CPU."""
    given = make(name)
    work = moved(given, device)
    if work.loss is None:
        return {**on_torch.forward(work), **on_jax.forward(given)}
    steps: dict[str, Contestant] = {**on_torch.training(work), **on_jax.training(given)}
    if work.resnet is not None:
        steps |= {name: Plain(work, work.resnet, compiles="compiled" in name) for name in NETWORKS}
    return steps


def contest(name: str, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """The result of one work."""
    work = moved(make(name), device)
    steps, left_out = usable(contestants(name, device))
    pieces: dict[str, Callable[[], None]] = {"f": Evaluations(work, STAGES, backward=False)}
    if work.loss is not None:
        pieces["f and backward"] = Evaluations(work, STAGES, backward=True)
        pieces["rest"] = on_torch.Step(work, on_torch.nothing)
    times = interleaved({**steps, **pieces}, rounds)
    rows = judge(work, steps)
    for row in rows:
        row.update(times[row["contestant"]])
    return {
        "what": work.what,
        **{"rtol": work.rtol, "atol": work.atol, "dtype": str(work.dtype).removeprefix("torch."), "exact": work.exact},
        "rounds": rounds,
        "rows": rows,
        "limits": limits(rows, {piece: times[piece]["ms"] / (1 if piece == "rest" else STAGES) for piece in pieces}),
        "left_out": left_out,
        "notes": list(work.notes),
        "versions": all_versions(),
    }


def usable(steps: dict[str, Contestant]) -> tuple[dict[str, Contestant], list[dict[str, str]]]:
    """The contestants that can do the work, and why the others cannot."""
    left_out = []
    for name, step in list(steps.items()):
        try:
            first_call(step)
        except (TypeError, UserWarning) as error:
            print(f"left out: {name}: {error}", flush=True)
            left_out.append({"contestant": name, "why": str(error)})
            del steps[name]
    return steps, left_out


def first_call(step: Contestant) -> float:
    """Seconds of the first call; a compiled contestant that falls back to eager mode fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*runs? eagerly")
        started = time.perf_counter()
        step()
        return time.perf_counter() - started


def judge(work: Work, steps: dict[str, Contestant]) -> list[dict[str, Any]]:
    """A row for each contestant: how far off it is, and how often it evaluates f."""
    exact = on_torch.reference(work)
    rows = []
    for name, step in steps.items():
        row: dict[str, Any] = {"contestant": name, "compiles": step.compiles}
        if not isinstance(step, Plain):
            row["nfe"], row["nfe_backward"] = step.counts()
            row["error"] = float((step.answer() - exact).norm() / exact.norm())
        rows.append(row)
    return rows


def limits(rows: list[dict[str, Any]], ms: dict[str, float]) -> dict[str, Any]:
    """What the evaluations of f alone would take that our eager rows make, in milliseconds, f being eager."""
    counts = {row["contestant"]: (row["nfe"], row["nfe_backward"]) for row in rows if "nfe" in row}
    out: dict[str, Any] = {f"{piece} ms": value for piece, value in ms.items()}
    if "f and backward" not in ms:
        return {**out, **{name: counts[name][0] * ms["f"] for name in ("odenets, per sample", "odenets")}}
    nfe, replayed = counts["odenets Checkpointed"]
    forward, both = ms["f"], ms["f and backward"]
    out["odenets Checkpointed"] = nfe * forward + replayed * both
    # Of the evaluations of a direct solve only those of accepted steps have a backward pass.
    out["odenets Direct"] = nfe * forward + replayed * (both - forward)
    return out


def first_step(name: str, contestant: str, cache: Path) -> float:
    """Seconds of a process's first training step, its compilation included, imports not."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    tempfile.tempdir = str(cache)  # where PyTorch keeps precompiled headers, whatever its cache
    jax.config.update("jax_compilation_cache_dir", str(cache / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return first_call(contestants(name)[contestant])
