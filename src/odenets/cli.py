"""The command line: `odenets list`, `odenets tour`, and `odenets run EXPERIMENT` with its Config's fields as flags."""

import dataclasses
import inspect
import shlex
import shutil
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch

import odenets
from odenets.extra import experiments_extra

with experiments_extra("the command `odenets`"):
    import typer
    from rich.console import Console
    from rich.table import Table as Grid
    from typer.core import TyperGroup

    from odenets.data.errors import DataError
    from odenets.experiments import EXPERIMENTS, Experiment
    from odenets.files import RunFolderError, free_run_folder, lock_folder, open_run_folder
    from odenets.progress import say
    from odenets.solution import SolveError
    from odenets.train import CheckpointError, NonFiniteLoss


class _Experiments(TyperGroup):
    """The commands of `odenets run`; an unknown one is refused like an unknown value of any option."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            _stop(f"`experiment` must be one of {', '.join(self.commands)}; got {args[0]!r}")
        return super().resolve_command(ctx, args)


app = typer.Typer(help="ODE-Nets for PyTorch: run the experiments.", no_args_is_help=True, add_completion=False)
run_app = typer.Typer(cls=_Experiments, help="Run an experiment; its results land in one folder.", no_args_is_help=True)
app.add_typer(run_app, name="run")

_EXPECTED = (DataError, RunFolderError, CheckpointError, NonFiniteLoss, SolveError, ValueError)
# What a resumed run may have otherwise: it may go on for longer, save more often, and find its data elsewhere.
_MAY_CHANGE = ("epochs", "checkpoint_every", "data_dir")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"odenets {odenets.__version__}")
        raise typer.Exit


@app.command("list")
def list_experiments() -> None:
    """List the experiments and the methods."""
    experiments = Grid("experiment", "what it shows", title="odenets run EXPERIMENT", title_justify="left")
    for experiment in EXPERIMENTS.values():
        experiments.add_row(experiment.name, experiment.summary)
    methods = Grid("method", "order", "steps", "kind", title="--method METHOD", title_justify="left")
    for method in odenets.METHODS.values():
        kind = "implicit" if isinstance(method, odenets.ImplicitRungeKutta) else "explicit"
        methods.add_row(method.name, str(method.order), "adaptive" if method.adaptive else "fixed (--dt)", kind)
    console = Console()
    console.print(experiments)
    console.print(methods)


@app.command("tour")
def make_tour(
    section: Annotated[
        str | None, typer.Argument(help="A section of the document, such as 2.5, or 2 for all of it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; otherwise runs/tour.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """The document as one page: every section's idea, formula, code, figure, and what became of its claim."""
    from odenets import tour  # noqa: PLC0415 — Matplotlib takes seconds to import

    started = time.perf_counter()
    torch.set_num_threads(threads)
    folder = out or Path("runs") / ("tour" if section is None else f"tour-{section}")
    try:
        tour.find(section)
        with lock_folder(folder):
            made_before = (folder / "config.json").exists()
            open_run_folder(folder, {"experiment": "tour", "section": section}, made_before)
            _show(tour.make(section, progress=not quiet), folder, quiet, started)
    except KeyboardInterrupt as stop:
        raise typer.Exit(130) from stop
    except _EXPECTED as error:
        _stop(str(error))


def _show(result: Any, folder: Path, quiet: bool, started: float) -> None:
    """Write the report and say in the terminal what is in it."""
    if not quiet:
        say("Writing the report …")
    from odenets.report import write_result  # noqa: PLC0415 — Matplotlib takes seconds to import
    from odenets.terminal import show  # noqa: PLC0415

    report = write_result(result, folder)
    show(result)
    print(f"\nReport: {report.resolve()}   ({time.perf_counter() - started:.0f} s)")


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


_FEW = 8  # choices that are named in the help, which has a narrow column for them


def _option(item: dataclasses.Field, annotation: Any) -> inspect.Parameter:
    choices = item.metadata["choices"]
    named = ", ".join(choices) if len(choices) <= _FEW else "those that `odenets list` shows"
    text = item.metadata["help"] + (f" One of: {named}." if choices else "")
    annotated = Annotated[annotation, typer.Option(help=text)]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=annotated)


def _common(
    *,
    out: Annotated[Path | None, typer.Option(help="Run folder; otherwise that of its name in runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    # Small networks wait longer for a second thread than it saves them.
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """The options that every experiment has; only its signature is used."""


def _run(experiment: Experiment, config: Any, out: Path, resume: bool, quiet: bool) -> None:
    if not quiet:
        say(f"odenets run {experiment.name}, into {out}")
    try:
        with lock_folder(out):
            _run_in(out, experiment, config, resume, quiet)
    except RunFolderError as error:
        _stop(str(error))


def _run_in(out: Path, experiment: Experiment, config: Any, resume: bool, quiet: bool) -> None:
    started = time.perf_counter()
    saved = {"experiment": experiment.name, **dataclasses.asdict(config)}
    folder = open_run_folder(out, saved, resume, _MAY_CHANGE)
    try:
        result = experiment.run(config, folder, resume=resume, progress=not quiet)
        _show(result, folder, quiet, started)
    except KeyboardInterrupt as stop:  # `Interrupted` too, which says what it saved
        print(f"\n{stop}".rstrip() + f"\nTo go on: {_command_to_go_on()}", file=sys.stderr)
        raise typer.Exit(130) from stop
    except _EXPECTED as error:
        if not resume:
            free_run_folder(folder)
        _stop(str(error))


def _command_to_go_on() -> str:
    """The command that was given, with `--resume`; it works in the same folder as it is."""
    program, *arguments = sys.argv
    name = Path(program).name
    if name == "__main__.py":
        called = [sys.executable, "-m", "odenets"]
    else:
        called = [name if shutil.which(name) == program else program]
    resume = [] if "--resume" in arguments else ["--resume"]
    return shlex.join([*called, *arguments, *resume])


def _stop(message: str) -> typing.NoReturn:
    print(f"odenets: {message}", file=sys.stderr)
    raise typer.Exit(1)


for _experiment in EXPERIMENTS.values():
    run_app.command(_experiment.name)(_command(_experiment))
