"""Ten seeds of an experiment, divided among processes; the numbers of the pages.

Run it:  python benchmarks/study.py cubic        (about 2 minutes on 2 cores; writes results/cubic.json)
         python benchmarks/study.py ecg          (about an hour on 2 cores; needs the real records: ODENETS_DATA)
         python benchmarks/study.py ecg-time --jobs 1 --seeds 1        (4 minutes; nothing else may run beside it)
         python benchmarks/study.py ecg-fast --jobs 1 --seeds 3        (2 minutes; nothing else may run beside it)
         python benchmarks/study.py ecg-rk4 --jobs 1 --seeds 5         (4 to 8 minutes; nothing else may run beside it)
A stopped study goes on where it was. Times are those of ecg-time alone: processes side by side disturb each other.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import load_model
from torch import nn

from odenets.data.ecg import load_ecg
from odenets.experiments import cubic, ecg
from odenets.files import write_atomically
from odenets.train import evaluate

ROOT = Path(__file__).parent.parent
Count = Annotated[int, typer.Option(min=1)]
OPTIONS = {
    "cubic": ("cubic",),
    "ecg": ("ecg", "--data", "mitdb", "--split", "both", "--pair", "both"),
    "ecg-time": ("ecg", "--data", "mitdb", "--pair", "both", "--no-baselines"),
    "ecg-fast": ("ecg", "--data", "mitdb", "--no-baselines", "--method", "midpoint", "--dt", "1"),
    "ecg-rk4": ("ecg", "--data", "mitdb", "--no-baselines", "--method", "rk4", "--dt", "1"),
}
app = typer.Typer()


def run_share(name: str, seeds: range, folder: Path, extra: tuple[str, ...]) -> subprocess.Popen:
    """Start `odenets run` on some of the seeds, or go on with it."""
    command = [sys.executable, "-m", "odenets", "run", *OPTIONS[name], *extra, "--quiet", "--out", str(folder)]
    command += ["--seed", str(seeds.start), "--seeds", str(len(seeds))]
    if (folder / "config.json").exists():
        command.append("--resume")
    return subprocess.Popen(command)


def merge(name: str, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """One result from those of the shares, with the statistics over all seeds."""
    runs = sorted((row for s in summaries for row in s["summary"]["runs"]), key=lambda row: row["seed"])
    out: dict[str, Any] = {"source": summaries[0]["source"], "versions": summaries[0]["versions"]}
    if name == "cubic":
        return {**out, "table": cubic.summarise(runs), "runs": runs}
    if name in ("ecg-fast", "ecg-rk4"):
        return {**out, "table": ecg.summarise(runs, synthetic=False), "runs": runs}
    if name == "ecg-time":
        return {**out, "table": ecg.summarise(runs, synthetic=False)}
    baselines = next(s["summary"]["baselines"] for s in summaries if len(s["summary"]["baselines"]) == 4)
    return {
        **out,
        "table": ecg.summarise(runs, any(s["synthetic"] for s in summaries)),
        "differences": ecg.differences(runs),
        "classes": ecg.class_means(runs, baselines),
        "baselines": baselines,
        "runs": [{k: v for k, v in row.items() if k != "seconds"} for row in runs],
    }


def solver_errors(folder: Path, runs: list[dict[str, Any]]) -> None:
    """Add to each ODE-Net's row its test loss when the same weights are solved by dopri5 at 1e-6."""
    test = load_ecg("mitdb", "random").test
    for row in runs:
        if row["network"] == ecg.ODENET:
            config = ecg.Config(method="dopri5", rtol=1e-6, atol=1e-6)
            model = ecg.network(ecg.ODENET, config, row["seed"])
            load_model(model, folder / f"odenet-seed{row['seed']}.safetensors")
            row["exact_test_loss"], _ = evaluate(model, nn.functional.cross_entropy, test.x, test.y)


@app.command()
def main(
    experiment: str, seeds: Count = 10, jobs: Count = 2, out: Path | None = None, work: Path | None = None
) -> None:
    """Run the seeds in `jobs` processes and write results/<experiment>.json."""
    if experiment not in OPTIONS:
        raise typer.BadParameter(f"`experiment` must be one of {', '.join(OPTIONS)}; got {experiment!r}")
    jobs = min(jobs, seeds)
    work = work or ROOT / "runs" / "study" / experiment
    bounds = [seeds * i // jobs for i in range(jobs + 1)]
    shares = [range(a, b) for a, b in itertools.pairwise(bounds)]
    folders = [work / f"seeds-{share.start}-{share.stop - 1}" for share in shares]
    first_only = [() if i == 0 or experiment != "ecg" else ("--no-baselines",) for i in range(jobs)]
    processes = [run_share(experiment, *task) for task in zip(shares, folders, first_only)]
    failed = [share for share, process in zip(shares, processes) if process.wait() != 0]
    if failed:
        raise SystemExit(f"the processes of seeds {failed} failed; run the same command again to go on")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    if experiment in ("ecg-fast", "ecg-rk4"):
        for folder, summary in zip(folders, summaries):
            solver_errors(folder, summary["summary"]["runs"])
    path = out or ROOT / "results" / f"{experiment}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(merge(experiment, summaries), indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    app()
