"""The command line: `odenets list`, and `odenets run EXPERIMENT` with the fields of its Config as flags."""

import dataclasses
import inspect
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table as Grid

import odenets
from odenets.data.errors import DataError
from odenets.experiments import EXPERIMENTS, Experiment
from odenets.experiments.result import Result, Table
from odenets.files import RunFolderError, open_run_folder
from odenets.report import grid, write_result
from odenets.solution import SolveError
from odenets.train import CheckpointError, Interrupted, NonFiniteLoss

app = typer.Typer(help="ODE-Nets for PyTorch: run the experiments.", no_args_is_help=True, add_completion=False)
run_app = typer.Typer(help="Run an experiment; its results land in one folder.", no_args_is_help=True)
app.add_typer(run_app, name="run")

_EXPECTED = (DataError, RunFolderError, CheckpointError, NonFiniteLoss, SolveError, ValueError)
# Where a run looks and how it is shown: neither changes its result, so a resumed run may have others.
_MAY_CHANGE = ("epochs", "checkpoint_every", "data_dir")


def main() -> None:
    """Entry point of the `odenets` command."""
    app()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"odenets {odenets.__version__}")
        raise typer.Exit


@app.command("list")
def list_experiments() -> None:
    """List the experiments and the methods."""
    experiments = Grid("experiment", "what it shows", title="odenets run …", title_justify="left")
    for experiment in EXPERIMENTS.values():
        experiments.add_row(experiment.name, experiment.summary)
    methods = Grid("method", "order", "adaptive", title="--method …", title_justify="left")
    for method in odenets.METHODS.values():
        methods.add_row(method.name, str(method.order), "yes" if method.adaptive else "no")
    console = Console()
    console.print(experiments)
    console.print(methods)


def _command(experiment: Experiment) -> Callable[..., None]:
    """A command whose options are the fields of the experiment's Config."""

    def command(out: Path | None, resume: bool, threads: int, quiet: bool, **options: Any) -> None:
        try:
            config = experiment.config(**options)
        except ValueError as error:
            _stop(str(error))
        torch.set_num_threads(threads)
        _run(experiment, config, out or Path("runs") / experiment.name, resume, quiet)

    hints = typing.get_type_hints(experiment.config)
    parameters = [_option(item, hints[item.name]) for item in dataclasses.fields(experiment.config)]
    common = inspect.signature(_common).parameters.values()
    command.__signature__ = inspect.Signature([*parameters, *common])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*parameters, *common)}
    command.__doc__ = experiment.summary
    return command


def _option(item: dataclasses.Field, annotation: Any) -> inspect.Parameter:
    choices = item.metadata["choices"]
    text = item.metadata["help"] + (f" One of: {', '.join(choices)}." if choices else "")
    annotated = Annotated[annotation, typer.Option(help=text)]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=annotated)


def _common(
    *,
    out: Annotated[Path | None, typer.Option(help="Run folder; otherwise runs/<experiment>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    # Small networks wait longer for a second thread than it saves them.
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """The options that every experiment has; only its signature is used."""


def _run(experiment: Experiment, config: Any, out: Path, resume: bool, quiet: bool) -> None:
    started = time.perf_counter()
    try:
        folder = open_run_folder(
            out, {"experiment": experiment.name, **dataclasses.asdict(config)}, resume, _MAY_CHANGE
        )
        result = experiment.run(config, folder, resume=resume, progress=not quiet)
        report = write_result(result, folder)
    except Interrupted as stop:
        print(f"\n{stop}\nTo go on: odenets run {experiment.name} … --out {out} --resume", file=sys.stderr)
        raise typer.Exit(130) from stop
    except _EXPECTED as error:
        _stop(str(error))
    _show(result)
    print(f"\nReport: {report.resolve()}   ({time.perf_counter() - started:.0f} s)")


def _stop(message: str) -> typing.NoReturn:
    print(f"odenets: {message}", file=sys.stderr)
    raise typer.Exit(1)


def _show(result: Result) -> None:
    """The answer and the first table of each section, in the terminal."""
    console = Console()
    if result.synthetic:
        console.print(f"[bold reverse] SYNTHETIC DATA [/] {result.source}\n")
    console.print(result.lead, highlight=False)
    for section in result.sections:
        console.print()
        console.print(_terminal_table(section.title, section.tables[0]))


def _terminal_table(section: str, table: Table) -> Grid:
    cells = grid(table)
    out = Grid(title=f"{section}: {table.title}", title_justify="left", caption=table.note, caption_justify="left")
    for head in cells["head"]:
        out.add_column(head.text, justify="right" if head.number else "left")
    for row in cells["rows"]:
        out.add_row(*(cell.text for cell in row))
    return out


for _experiment in EXPERIMENTS.values():
    run_app.command(_experiment.name)(_command(_experiment))
