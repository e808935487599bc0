"""One training step beside every peer, and its memory. Read `works`, `contest` and `curves` for what is done.

Run it:  make bench                                 (all of it, about 25 minutes on one core, and the README's tables)
         python benchmarks/bench.py run --only ecg  (one work, a few minutes; the others in the file stay)
It needs the extra `bench`. Results go to results/: bench.json, bench-memory.json, gradients.json and multistep.json.
How time grows is measured by scale.py.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from contest import contest, first_step
from curves import ALL, STEPS, USUAL, memory
from gradients import OUTPUTS, costs, equations, errors, evaluations
from measure import all_versions, in_fresh_process, use_one_core
from multistep import evaluations as at_equal_errors
from odenets.experiments.result import versions
from odenets.files import write_atomically
from works import METHOD, WORKS

RESULTS = Path(__file__).parent.parent / "results"
NOTES = [
    "One process a work, one core, one thread. In each round every contestant has one turn of about 20 ms, at least "
    "one call, after half as many calls that are not timed, since a training loop finds the caches as it left them; "
    "medians and quartiles over the rounds of a call's mean time.",
    "A training step is zero_grad, forward, loss, backward and SGD. The rate is 0, so that each does the same work.",
    "Errors are those of the gradient of all parameters (forward alone: of the output), relative, in the 2-norm, "
    "against torchdiffeq's odeint in float64 at tolerances of 1e-10 where nothing else is said.",
    "The same method and tolerances give each contestant its own step sizes: controllers and first steps differ.",
    "torchode has its own steps for each sample in every work, without its counts and without gradients through step "
    "sizes, which makes it faster. Compiled is its `solve`: torch.compile(solver), as in its README, compiles nothing.",
    "torchdiffeq cannot be compiled whole (aten._unique2); with a compiled field it was slower on ecg, cubic and "
    "convolution.",
    "diffrax has the whole step in one jit, weights and data on the device, every adjoint that fits, and as many "
    "checkpoints as steps as one more row. `max_steps` is near the steps that are needed, which helps it. It does not "
    "raise on failure, since the callback for that keeps JAX from caching on disk. None of six XLA flags sped it up. "
    "Its counts are those of calls at run time, per sample those that follow from its number of steps.",
    "PyTorch contestants run in a Python training loop; JAX's step is one call. That is how each is used.",
    "First steps are those of a fresh process on one core, imports left out: cold with empty caches on disk, warm with "
    "those of the cold one. Left out to save minutes: torchode compiled, which on ecg took 41 s cold and 4 s warm.",
]
FIRST_STEPS = (
    *("odenets Checkpointed, compiled", "odenets, per sample, compiled"),
    *("diffrax RecursiveCheckpoint", "diffrax, per sample", "ResNet twin, compiled"),
)
Rounds = Annotated[int, typer.Option(min=2)]
app = typer.Typer()


@app.command()
def run(rounds: Rounds = 15, only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Time the works, each in a process of its own; the results of other works in the file stay."""
    unknown = set(only or ()) - set(WORKS)
    if unknown:
        raise typer.BadParameter(f"`--only` must be one of {', '.join(WORKS)}; got {sorted(unknown)[0]!r}")
    use_one_core()
    path = RESULTS / "bench.json"
    works = json.loads(path.read_text())["works"] if path.exists() and only else {}
    for name in only or WORKS:
        result = in_fresh_process(contest, name, rounds)
        add_first_steps(name, result)
        show(name, result)
        works[name] = result
    ordered = {key: works[key] for key in WORKS if key in works}
    write(path, {"method": METHOD, "notes": NOTES, "works": ordered})  # at the end: a stopped run changes no result


def add_first_steps(name: str, result: dict[str, Any]) -> None:
    """To the rows of `FIRST_STEPS`: how long the first step takes."""
    for row in result["rows"]:
        if row["contestant"] in FIRST_STEPS:
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    row[f"first_{kind}"] = in_fresh_process(first_step, name, row["contestant"], Path(cache))


@app.command()
def gpu(rounds: Rounds = 15, only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Time the works on a CUDA GPU; the machine's processor may use all of its cores."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # else JAX takes three quarters of the GPU's memory
    works = {}
    for name in only or WORKS:
        works[name] = in_fresh_process(contest, name, rounds, "cuda")
        show(name, works[name])
        write(RESULTS / "bench-gpu.json", {"method": METHOD, "works": works})


@app.command("memory")
def memory_() -> None:
    """Measure the peak memory of a training step while the steps grow."""
    use_one_core()
    rows = {name: in_fresh_process(memory, name) for name in ALL}
    what = "peak resident memory of one training step beyond that before it, in bytes; the field of ecg, rk4, float32"
    usual = {"batch": USUAL["batch"], "width": USUAL["width"]}
    report = {"what": what, **usual, "steps": STEPS, "bytes": rows, "versions": all_versions()}
    write(RESULTS / "bench-memory.json", report)


@app.command()
def gradients(rounds: Rounds = 15) -> None:
    """Measure the errors, evaluations and times of every adjoint's gradient."""
    use_one_core()
    report = {
        "errors": in_fresh_process(errors),
        "evaluations": in_fresh_process(evaluations),
        "costs": in_fresh_process(costs, rounds),
        "equations": in_fresh_process(equations, rounds),
        **{"outputs": OUTPUTS, "rounds": rounds, "versions": all_versions()},
    }
    write(RESULTS / "gradients.json", report)


@app.command()
def multistep() -> None:
    """Count what one-step and multistep methods take to the same error, and write results/multistep.json."""
    write(RESULTS / "multistep.json", {"versions": versions(), **at_equal_errors()})


def show(name: str, result: dict[str, Any]) -> None:
    print(f"{name}: {result['what']}")
    for row in result["rows"]:
        numbers = {key: f"{value:.3g}" for key, value in row.items() if isinstance(value, float)}
        print(f"  {row['contestant']:<40} {numbers} {row.get('nfe', '')} + {row.get('nfe_backward', '')}")
    print(f"  limits {result['limits']}", flush=True)


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    app()
