"""The same training steps by two versions of odenets, in turn: what a change costs or saves.

Run it:  python benchmarks/changed.py CHECKOUT           (of the version before; about ten minutes on one core)
It writes results/changed.json. Each version has processes of its own, which take turns. What is compared is the least
processor time of a step, which other work on the machine disturbs least; torchdiffeq's `odeint`, the same for both,
stands beside and says how much is noise.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torchdiffeq
import typer
from torch import Tensor

import odenets
from measure import ONE_THREAD, least, use_one_core
from odenets.experiments.result import versions
from odenets.files import write_atomically
from works import METHOD, WORKS, Work, make

HERE = Path(__file__).parent
WAYS: dict[str, dict[str, Any]] = {
    "Checkpointed": {},
    "Direct": {"adjoint": odenets.Direct()},
    "Backsolve": {"adjoint": odenets.Backsolve()},
    "per sample": {"per_sample": True},
    "compiled": {"compile": True},
}
PEER = "torchdiffeq odeint"
TURNS, SECONDS = 60, 20.0  # steps of each way in a process, at most, and for how long


def main(before: Path, rounds: int = 4, only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Time both versions, `rounds` processes of each for every work."""
    use_one_core()
    report: dict[str, Any] = {}
    for name in only or WORKS:
        runs: dict[str, list[Any]] = {"before": [], "after": []}
        for _ in range(rounds):
            for which, root in (("before", before), ("after", HERE.parent)):
                runs[which].append(_in_process(root, name))
        report[name] = _ratios(runs)
        print(name, json.dumps(report[name]), flush=True)
        _keep(report, rounds, before)


def _keep(report: dict[str, Any], rounds: int, before: Path) -> None:
    commits = {which: _commit(root) for which, root in (("before", before), ("after", HERE.parent))}
    result = {"rounds": rounds, "commits": commits, "versions": versions(), "works": report}
    write_atomically(HERE.parent / "results" / "changed.json", json.dumps(result, indent=1) + "\n")


def _ratios(runs: dict[str, list[Any]]) -> dict[str, Any]:
    """For each way its least time, before and after, and the evaluations of f."""
    rows = {}
    for way in runs["before"][0]["ms"]:
        ms = {which: min(x["ms"][way] for x in of) for which, of in runs.items()}
        counts = {which: of[0]["nfe"].get(way, 0) for which, of in runs.items()}
        rows[way] = {"ratio": ms["after"] / ms["before"], "ms": ms, "nfe": counts}
    return rows


def _in_process(root: Path, name: str) -> Any:
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, __file__, "--work", name]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def time_one(name: str) -> dict[str, Any]:
    """In a process of its own: milliseconds of a training step, and evaluations of f."""
    torch.set_num_threads(1)
    work = make(name)
    steps = {way: _step(work, _ours(work, options)) for way, options in WAYS.items()}
    peer = _step(work, lambda y0: cast(Tensor, torchdiffeq.odeint(work.network.field, y0, _times(work), **_how(work))))
    steps[PEER] = peer
    for step in steps.values():
        step()
    best = least(steps, TURNS, SECONDS)
    counts = {}
    for way, options in WAYS.items():
        stats = odenets.solve(work.network.field, work.y0, work.times, **_options(work, options)).stats
        counts[way] = stats.nfe
    return {"ms": best, "nfe": counts}


def _times(work: Work) -> Tensor:
    return torch.tensor(work.times, dtype=work.dtype)


def _how(work: Work) -> dict[str, Any]:
    return {"method": METHOD, "rtol": work.rtol, "atol": work.atol}


def _options(work: Work, options: dict[str, Any]) -> dict[str, Any]:
    return {**_how(work), **options}


def _ours(work: Work, options: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return lambda y0: odenets.solve(work.network.field, y0, work.times, **_options(work, options)).ys


def _step(work: Work, solve: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    network, loss = work.network, work.loss

    def step() -> None:
        if loss is None:
            with torch.no_grad():
                solve(work.y0)
            return
        ys = solve(network.head(work.x))
        out = network.tail(ys[-1] if work.last else ys)
        torch.autograd.grad(loss(out, work.target), [p for p in network.parameters() if p.requires_grad])

    return step


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(time_one(sys.argv[2])))
    else:
        typer.run(main)
