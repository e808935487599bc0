"""The command line: `odenets list`, `tour`, `fit`, `predict`, and `run EXPERIMENT`, whose Config's fields are flags."""

import contextlib
import dataclasses
import inspect
import shlex
import shutil
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch

import odenets
from odenets.extra import experiments_extra
from odenets.methods import ANY_SYSTEM, find

with experiments_extra("the command `odenets`"):
    import typer
    from rich.console import Console
    from rich.table import Table as Grid
    from typer.core import TyperGroup

    from odenets.data.errors import DataError
    from odenets.experiments import EXPERIMENTS, Experiment
    from odenets.experiments.combined import Part, combine
    from odenets.experiments.result import Result
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

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")]
# Small networks wait longer for a second thread than it saves them.
Threads = Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


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
    experiments.add_row("all", "Every experiment in its small form (--small), and one report of all.")
    methods = Grid("method", "order", "steps", "kind", title="--method METHOD", title_justify="left")
    for method in map(find, ANY_SYSTEM):
        kind = "implicit" if method.iterates else "multistep" if method.remembers else "explicit"
        order = f"1 to {method.order}" if method.varies else str(method.order)
        methods.add_row(method.name, order, "adaptive" if method.adaptive else "fixed (--dt)", kind)
    console = Console()
    console.print(experiments)
    console.print(methods)


@app.command("tour")
def make_tour(
    section: Annotated[
        str | None, typer.Argument(help="A section of the document, such as 2.5, or 2 for all of it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page; otherwise runs/tour, or runs/tour-SECTION.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """The document as one page: every section's idea, formula, code, figure, and what became of its claim."""
    from odenets import tour  # noqa: PLC0415 — Matplotlib takes seconds to import

    started = perf_counter()
    torch.set_num_threads(threads)
    folder = out or Path("runs") / ("tour" if section is None else f"tour-{section}")
    try:
        tour.find(section)
        with lock_folder(folder):
            made_before = (folder / "config.json").exists()
            open_run_folder(folder, {"experiment": "tour", "section": section}, made_before)
            result = tour.make(section, progress=not quiet)
            _write(result, folder, quiet)
            _show(result, folder, started)
    except KeyboardInterrupt as stop:
        raise typer.Exit(130) from stop
    except _EXPECTED as error:
        _stop(str(error))


@app.command("fit")
def fit_series(
    file: Annotated[Path, typer.Argument(help="A CSV file with a line for each sample and time.")],
    id: Annotated[str, typer.Option(help="The column that names the sample of a line.")],
    time: Annotated[str, typer.Option(help="The column of times: numbers or dates.")],
    target: Annotated[str, typer.Option(help="The column of outcomes, one value for a sample.")],
    outcomes: Annotated[
        Path | None, typer.Option(help="A CSV file with the outcomes, one line for each sample.")
    ] = None,
    static: Annotated[
        list[str] | None, typer.Option(help="A column that holds at any time, numbers or a few words; repeatable.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option(help="A column of measurements; repeatable. Otherwise all others.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Of dates: s, min, h or d.")] = "h",
    task: Annotated[str, typer.Option(help="auto, classification or regression.")] = "auto",
    model: Annotated[str, typer.Option(help="ode_rnn, gru, gru_d, cde or mtan.")] = "ode_rnn",
    hidden: Annotated[int, typer.Option(min=1, help="Width of the network's state.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="At most so many passes over the data.")] = 100,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without progress that end the training.")] = 15,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 64,
    test_fraction: Annotated[float, typer.Option(help="The share of samples that is only tested on.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal results.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the model and its report; otherwise runs/fit-FILE.")
    ] = None,
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Train a network on irregular time series in a CSV file, test it, and keep it in a folder with a report."""
    from odenets.tabular import Columns, FitOptions, fit_file  # noqa: PLC0415 — scikit-learn takes seconds to import

    started = perf_counter()
    torch.set_num_threads(threads)
    folder = out or Path("runs") / f"fit-{file.stem}"
    network = {
        "model": model, "hidden": hidden, "epochs": epochs, "patience": patience, "lr": lr, "batch_size": batch_size,
    }  # fmt: skip
    with _one_line():
        columns = Columns(id, time, tuple(values or ()), tuple(static or ()), unit)
        options = FitOptions(columns, target, outcomes, task, test_fraction, seed, network)
        try:
            with lock_folder(folder):
                result = fit_file(file, options, folder, progress=not quiet)
                _write(result, folder, quiet)
        except _EXPECTED:
            with contextlib.suppress(OSError):
                folder.rmdir()  # where it is empty
            raise
        _show(result, folder, started)


@app.command("predict")
def predict_series(
    folder: Annotated[Path, typer.Argument(help="The folder that `odenets fit` wrote.")],
    file: Annotated[Path, typer.Argument(help="A CSV file with the columns of the one that was fitted.")],
    out: Annotated[Path, typer.Option(help="The CSV file to write, a line for each sample.")] = Path("predictions.csv"),
    threads: Threads = 1,
) -> None:
    """Predict the outcomes of the samples in a CSV file."""
    from odenets.tabular import predict_file  # noqa: PLC0415 — scikit-learn takes seconds to import

    torch.set_num_threads(threads)
    with _one_line():
        count = predict_file(folder, file, out)
    print(f"{count:,} samples: {out.resolve()}")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """In the block, what was to be expected ends the command with one line, and a warning is a line, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: say(f"odenets: {message}")
        try:
            yield
        except KeyboardInterrupt as stop:
            raise typer.Exit(130) from stop
        except _EXPECTED as error:
            _stop(str(error))


def _write(result: Result, folder: Path, quiet: bool) -> None:
    """Write the report into the folder."""
    if not quiet:
        say("Writing the report …")
    from odenets.report import write_result  # noqa: PLC0415 — Matplotlib takes seconds to import

    write_result(result, folder)


def _show(result: Result, folder: Path, started: float) -> None:
    """Say in the terminal what is in the report, and where that is."""
    from odenets.terminal import show  # noqa: PLC0415 — Matplotlib takes seconds to import

    show(result)
    print(f"\nReport: {(folder / 'report.html').resolve()}   ({perf_counter() - started:.0f} s)")


def _command(experiment: Experiment) -> Callable[..., None]:
    """A command whose options are the fields of the experiment's Config."""

    def command(
        context: typer.Context, small: bool, out: Path | None, resume: bool, threads: int, quiet: bool, **options: Any
    ) -> None:
        if small:
            options |= {name: value for name, value in experiment.small.items() if not _is_given(context, name)}
        try:
            config = experiment.config(**options)
        except ValueError as error:
            _stop(str(error))
        torch.set_num_threads(threads)
        folder = out or Path("runs") / (experiment.name + "-small" * small)
        if not quiet:
            say(f"odenets run {experiment.name}, into {folder}")
        _run(experiment, config, folder, resume, quiet)

    hints = typing.get_type_hints(experiment.config)
    parameters = [_option(item, hints[item.name]) for item in dataclasses.fields(experiment.config)]
    common = inspect.signature(_common).parameters.values()
    every = [_parameter("context", typer.Context), *parameters, _small_option(experiment.small), *common]
    command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in every}
    command.__doc__ = experiment.summary
    return command


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


_FEW = 8  # choices that are named in the help, which has a narrow column for them


def _option(item: dataclasses.Field, annotation: Any) -> inspect.Parameter:
    choices = item.metadata["choices"]
    named = ", ".join(choices) if len(choices) <= _FEW else "those that `odenets list` shows"
    text = item.metadata["help"] + (f" One of: {named}." if choices else "")
    return _parameter(item.name, Annotated[annotation, typer.Option(help=text)], item.default)


def _small_option(options: Mapping[str, Any]) -> inspect.Parameter:
    """The flag `--small`, with what it stands for."""
    text = (
        f"Seconds instead of minutes: what is not given becomes {' '.join(_flag(*item) for item in options.items())}."
    )
    return _parameter("small", Annotated[bool, typer.Option("--small", help=text)], False)


def _flag(name: str, value: Any) -> str:
    """An option as it is written on the command line."""
    flag = name.replace("_", "-")
    return f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}"


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _common(
    *,
    out: Annotated[Path | None, typer.Option(help="Run folder; otherwise runs/NAME, or runs/NAME-small.")] = None,
    resume: Resume = False,
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """The options that every experiment has; only its signature is used."""


def _run(experiment: Experiment, config: Any, folder: Path, resume: bool, quiet: bool) -> None:
    started = perf_counter()
    try:
        _show(_made(experiment, config, folder, resume, quiet), folder, started)
    except KeyboardInterrupt as stop:  # `Interrupted` too, which says what it saved
        _stop_for_now(stop)
    except _EXPECTED as error:
        _stop(str(error))


def _made(experiment: Experiment, config: Any, folder: Path, resume: bool, quiet: bool) -> Result:
    """Run the experiment and write its report; a failure before anything is kept leaves the folder free."""
    with lock_folder(folder):
        saved = {"experiment": experiment.name, **dataclasses.asdict(config)}
        open_run_folder(folder, saved, resume, experiment.may_change)
        try:
            result = experiment.run(config, folder, resume=resume, progress=not quiet)
            _write(result, folder, quiet)
        except _EXPECTED:
            if not resume:
                free_run_folder(folder)
            raise
        return result


def run_all(
    out: Annotated[Path | None, typer.Option(help="Folder of all of them; otherwise runs/all.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is not done yet.")] = False,
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Every experiment in its small form, in a folder of its own, and one report of all (some minutes)."""
    started = perf_counter()
    torch.set_num_threads(threads)
    folder = out or Path("runs") / "all"
    try:
        with lock_folder(folder):
            open_run_folder(folder, {"experiment": "all"}, resume)
            parts = [_part(name, folder / name, resume, quiet) for name in EXPERIMENTS]
            result = combine(parts)
            _write(result, folder, quiet)
            _show(result, folder, started)
    except KeyboardInterrupt as stop:
        _stop_for_now(stop)
    except RunFolderError as error:
        _stop(str(error))
    if any(isinstance(part.found, str) for part in parts):
        raise typer.Exit(1)


def _part(name: str, folder: Path, resume: bool, quiet: bool) -> Part:
    """One experiment in its small form, or, so that the others are not lost with it, what it failed with."""
    experiment, place = EXPERIMENTS[name], list(EXPERIMENTS).index(name) + 1
    if not quiet:
        say(f"odenets run all, {place} of {len(EXPERIMENTS)}: {name}, into {folder}")
    try:
        config = experiment.config(**experiment.small)
        begun = resume and (folder / "config.json").exists()
        return Part(name, experiment.small, _made(experiment, config, folder, begun, quiet))
    except _EXPECTED as error:
        reason = str(error)
    except Exception as error:  # a bug, which is not hidden: the exit status says it too
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    print(f"odenets: {name} failed: {reason}", file=sys.stderr)
    return Part(name, experiment.small, reason)


def _stop_for_now(stop: KeyboardInterrupt) -> typing.NoReturn:
    """End as Ctrl-C asks, with what it says and the command to go on."""
    print(f"\n{stop}".rstrip() + f"\nTo go on: {_command_to_go_on()}", file=sys.stderr)
    raise typer.Exit(130) from stop


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
run_app.command("all")(run_all)
