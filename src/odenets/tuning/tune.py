"""`tune`: the solver settings that are the fastest for an ODE layer at an error that does not show in the loss."""

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odenets.adjoint import Adjoint, Checkpointed, Direct
from odenets.arguments import count, number, shown
from odenets.controller import Fixed
from odenets.engine.compile import told
from odenets.engine.compile.known import compiler
from odenets.methods import Method, find
from odenets.solution import SolveError, Status
from odenets.table import aligned
from odenets.tuning.measure import (
    DEFAULTS,
    Layer,
    State,
    difference,
    flat,
    goes,
    left_as_it_was,
    method_text,
    ratio,
    steps_text,
    the_block,
    to_double,
    to_dtypes,
    value_of,
)

TUNED = ("method", "rtol", "atol", "controller", "adjoint", "compile")

_FAR_SLOWER = 2.0  # times the fewest evaluations of f that suffice: a candidate that needs more is given up
_SLOWER = 1.5  # times the best time: a candidate that takes longer is dropped after the first rounds
_FIRST_ROUNDS = 3
_COMPILED = 2  # how many candidates are compiled: each takes up to a minute


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        options: The options of `ODEBlock` that it stands for.
        loss_error: |loss − reference| / |reference|; NaN where the solve failed.
        gradient_error: ‖gradient − reference‖ / ‖reference‖, over all parameters together; NaN where the solve failed.
        nfe, nfe_backward: Evaluations of f in the forward and in the backward pass (0 with `Direct`).
        admissible: Whether both errors are small enough.
        seconds: Median time of a training step (forward and backward pass); NaN where it was not measured.
        note: What else there is to say: why there are no errors, for example.
        status: How the solve failed; None where it did not.
        present: Whether these are the settings that the layer has now.
    """

    options: dict[str, Any]
    loss_error: float = math.nan
    gradient_error: float = math.nan
    nfe: int = 0
    nfe_backward: int = 0
    admissible: bool = False
    seconds: float = math.nan
    note: str = ""
    status: Status | None = None
    present: bool = False

    @property
    def failed(self) -> bool:
        return math.isnan(self.loss_error)

    @property
    def compiled(self) -> bool:
        return bool(value_of(self.options, "compile"))


@dataclass(frozen=True)
class Tuning:
    """What `tune` found. Printed, it is the table that the choice was made from.

    Attributes:
        rows: All candidates in the order in which they were tried.
        chosen: The fastest admissible one; where none is admissible, the most accurate.
        reference: What the errors are relative to, in words.
        tolerance, gradient_tolerance: The largest errors that are admissible.
    """

    rows: tuple[Row, ...]
    chosen: Row
    reference: str
    tolerance: float
    gradient_tolerance: float

    @property
    def options(self) -> dict[str, Any]:
        """The chosen options, to write `ODEBlock(field, **tuning.options)`."""
        return dict(self.chosen.options)

    def apply(self, block: nn.Module) -> None:
        """Give a module's ODE layer the chosen options; its others, such as `max_steps` and `args`, stay.

        Raises:
            ValueError: If the module does not contain exactly one `ODEBlock`.
        """
        layer = the_block(block, "tune")
        layer.solve_options = {**_others(layer.solve_options), **self.options}

    def __str__(self) -> str:
        head = (
            f"errors relative to {self.reference}; admissible: loss error ≤ {self.tolerance:g}, "
            f"gradient error ≤ {self.gradient_tolerance:g}"
        )
        shown = sorted(self.rows, key=lambda row: (not row.admissible, _or_infinity(row.seconds)))
        return "\n".join([head, *_table(shown, self.chosen), *self._verdict()])

    def _verdict(self) -> Iterator[str]:
        if not self.chosen.admissible:
            yield (
                "No candidate is admissible; marked is the most accurate. Allow larger errors with `tolerance` and "
                "`gradient_tolerance`, or add tighter `tolerances`, or train in float64."
            )
        settings = ", ".join(f"{name}={value!r}" for name, value in self.options.items()) or "the defaults"
        now = next((row.seconds for row in self.rows if row.present), math.nan)
        known = self.chosen.seconds > 0 and now > 0 and not self.chosen.present
        yield f"chosen: {settings}" + (f": {now / self.chosen.seconds:.1f} × as fast as now" if known else "")
        if isinstance(self.chosen.options.get("controller"), Fixed):
            yield (
                "Fixed steps do not follow a field that changes: tune again as it trains, or leave "
                f"{method_text(self.options)} out of `methods`."
            )


@torch.inference_mode(False)  # which has no derivatives
def tune(
    block: nn.Module,
    batch: Tensor | tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    tolerance: float = 1e-3,
    gradient_tolerance: float | None = None,
    compile: bool | None = None,
    methods: Sequence[str | Method] = ("tsit5", "bosh3", "dopri5", "heun", "rk4", "euler"),
    tolerances: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    adjoints: Sequence[Adjoint] = (Checkpointed(), Direct()),
    rounds: int = 20,
    seconds: float = 10.0,
    timer: Callable[[], float] = time.perf_counter,
    verbose: bool = True,
) -> Tuning:
    """Find the method, tolerance and adjoint that are the fastest for an ODE layer at an error that does not show.

    The errors are those of the loss and of its gradient, on one batch, relative to a solve that is as good as exact.
    For each method the loosest tolerance, or the fewest fixed steps, with small enough errors is a candidate; the
    candidates then run training steps in turn, and the one with the smallest median time is chosen.

    When to use: once before a long training, and again when the weights have changed a lot: the field that is solved
    is another one then. When not: for a field that is discontinuous, whose errors say nothing of the next batch.

    The module is left as it was: weights, gradients, buffers, options and random numbers.

    Args:
        block: An `ODEBlock`, or a module that contains exactly one (the whole model: its own loss then decides, and
            what the rest of it costs is part of the times). In training mode or not, as you are going to use it; not
            a wrapper such as `DistributedDataParallel` or `torch.compile`, but what it wraps.
        batch: The input of the module: a tensor, or a tuple of its arguments. Take a real one, of the usual size.
        loss: The loss as a function of the module's output, a scalar; None for the mean square of the output.
        tolerance: The largest relative error of the loss.
        gradient_tolerance: The largest relative error of the gradient of all parameters that require one, taken
            together (of the input, where there are none); None for ten times `tolerance`: 1 % of a gradient is far
            below what a minibatch makes of it, but an error that is the same at each step adds up over a training.
        compile: Whether the solve may be compiled: None to try both and take the faster, True or False to force it.
            Compiling takes up to a minute for each of the two most promising candidates.
        methods: The methods to try. Those without an error estimate take fixed steps.
        tolerances: `rtol` and `atol` of the others, in any order.
        steps: The numbers of fixed steps, in any order.
        adjoints: The adjoints to try. `Direct` keeps what every evaluation of f keeps for its gradient: leave it out
            where memory is scarce.
        rounds: How often each candidate is timed.
        seconds: No round begins after this time; the first three always take place.
        timer: The clock, in seconds.
        verbose: Whether to print the table.

    Returns:
        A `Tuning`, with `options`, `rows` and `apply`.

    Raises:
        ValueError, TypeError: If an argument is not as described.
        SolveError: If even the reference solve fails.
    """
    limits = _Limits(tolerance, 10 * tolerance if gradient_tolerance is None else gradient_tolerance)
    _check(limits, methods, tolerances, steps, adjoints, rounds, compile)
    lab = _Lab(block, batch, loss)
    with left_as_it_was(lab) as state:
        bench = _Bench(lab, state, limits, _reference(lab, state, tolerance), timer, rounds, seconds)
        bench.try_present()
        for ladder in _ladders(methods, tolerances, steps, lab):
            bench.climb(ladder, lab.possible(adjoints))
        bench.time(bench.finalists())
        if compile is not False:
            bench.compile_best(verbose, loud=compile is True)
    tuning = Tuning(tuple(bench.rows), bench.choice(compile), bench.reference.text, *limits)
    if verbose:
        print(tuning)
    return tuning


class _Limits(NamedTuple):
    loss: float
    gradient: float


class _Measured(NamedTuple):
    """The outcome of one training step."""

    loss: float
    gradient: Tensor  # of all wanted tensors, flat, in float64
    reached: tuple[bool, ...]  # which of them have a gradient
    nfe: int
    nfe_backward: int


@dataclass(frozen=True)
class _Reference:
    measured: _Measured
    text: str

    def errors(self, measured: _Measured) -> tuple[float, float]:
        """The relative errors of the loss and of the gradient."""
        exact = self.measured
        return (
            ratio(abs(measured.loss - exact.loss), abs(exact.loss)),
            difference(exact.gradient, measured.gradient),
        )


class _Lab(Layer):
    """A module whose ODE layer runs training steps under any options."""

    def __init__(self, module: nn.Module, batch: Any, loss: Callable[[Any], Tensor] | None) -> None:
        super().__init__(module, batch, "tune")
        block, self.loss = self.block, loss or _mean_square
        self.present = {name: value for name, value in block.solve_options.items() if name in TUNED}
        self.others = {**_others(block.solve_options), "on_failure": "raise"}
        inputs = [x for x in self.tensors if x.is_floating_point() or x.is_complex()]
        self.wanted = [p for p in module.parameters() if p.requires_grad] or [x.requires_grad_() for x in inputs]
        if not self.wanted:
            raise ValueError("`block` has no parameter that requires grad, and `batch` no floating-point tensor")
        self.dtype = self.wanted[0].dtype.to_real() if self.wanted[0].is_complex() else self.wanted[0].dtype

    def step(self, options: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and its gradients; those that the module holds stay as they are."""
        with torch.enable_grad():
            loss = self.loss(self.run({**self.others, **options}))
            if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
                raise ValueError(f"`loss` must return a scalar made from the module's output, returned {shown(loss)}")
            return loss, torch.autograd.grad(loss, self.wanted, allow_unused=True)

    def measure(self, options: dict[str, Any]) -> _Measured:
        loss, grads = self.step(options)
        stats: Any = self.block.stats
        full = [torch.zeros_like(x) if g is None else g for x, g in zip(self.wanted, grads)]
        reached = tuple(g is not None for g in grads)
        return _Measured(float(loss.detach()), flat(full), reached, stats.nfe, stats.nfe_backward or 0)

    def in_float64(self) -> "_Lab":
        """A copy in float64, whose output comes back in the present dtype so that the loss need not know."""
        module = copy.deepcopy(self.module).double()
        back = {torch.float64: self.dtype, torch.complex128: self.dtype.to_complex()}
        batch = pytree.tree_map(to_double, self.batch)
        lab = _Lab(module, batch, lambda out: self.loss(pytree.tree_map(to_dtypes(back), out)))
        lab.others = {**self.others, "args": pytree.tree_map(to_double, self.others.get("args", ()))}
        return lab

    def possible(self, adjoints: Sequence[Adjoint]) -> Sequence[Adjoint]:
        """Those that go with the layer's other options."""
        options = {**self.block.solve_options, "compile": False}
        return [adjoint for adjoint in adjoints if goes({**options, "adjoint": adjoint})] or adjoints


def _reference(lab: _Lab, state: State, tolerance: float) -> _Reference:
    """A solve that is as good as exact: in float64, or where that does not work as tight as the dtype allows.

    Random numbers, of a dropout layer for example, may differ between dtypes: then the module's own is kept.
    """
    rounding = 16 * torch.finfo(lab.dtype).eps
    tight = max(1e-5 * tolerance, 1e-12)
    try:
        state.rewind()
        own = _tight(max(0.1 * tolerance, rounding))
        probe = lab.measure(own)  # raises what is wrong with the module, its batch or its loss
        exact = None
        if lab.dtype != torch.float64 and not state.drawn():
            exact = _in_float64(lab, state, _tight(tight))
        if exact is not None and exact.reached == probe.reached:
            return _checked(exact, f"tsit5 at {tight:g} in float64")
        tight = max(tight, rounding)
        state.rewind()
        return _checked(lab.measure(_tight(tight)), f"tsit5 at {tight:g} in {str(lab.dtype).removeprefix('torch.')}")
    except SolveError as error:
        error.add_note("This was the reference of `odenets.tune`, a solve with tsit5 at a tight tolerance.")
        raise


def _in_float64(lab: _Lab, state: State, options: dict[str, Any]) -> _Measured | None:
    """None where the module cannot be copied, or not be run in float64."""
    state.rewind()
    try:
        return lab.in_float64().measure(options)
    except SolveError:
        raise
    except Exception:  # whatever a module may raise that holds tensors of its own; in its own dtype it has just run
        return None


def _tight(tolerance: float) -> dict[str, Any]:
    return {"method": "tsit5", "rtol": tolerance, "atol": tolerance, "max_steps": DEFAULTS["max_steps"]}


def _checked(measured: _Measured, text: str) -> _Reference:
    if not (math.isfinite(measured.loss) and bool(measured.gradient.isfinite().all())):
        raise ValueError(f"`loss` or its gradient is not finite even with {text}: {measured.loss}")
    return _Reference(measured, text)


Ladder = Sequence[dict[str, Any]]  # options from the cheapest to the most accurate


def _ladders(
    methods: Iterable[str | Method], tolerances: Iterable[float], steps: Iterable[int], lab: _Lab
) -> Iterator[Ladder]:
    finest = torch.finfo(lab.dtype).eps  # tighter tolerances are refused by the controller
    tolerances = [tolerance for tolerance in sorted(tolerances, reverse=True) if tolerance >= finest]
    for method in methods:
        if find(method).adaptive:
            yield [{"method": method, "rtol": tolerance, "atol": tolerance} for tolerance in tolerances]
        elif not lab.others.get("per_sample"):  # which fixed steps do not go with
            yield [{"method": method, "controller": Fixed(steps=n)} for n in sorted(steps)]


@dataclass
class _Bench:
    """The search: candidates are tried for their errors, and those that are accurate enough are timed."""

    lab: _Lab
    state: State
    limits: _Limits
    reference: _Reference
    timer: Callable[[], float]
    rounds: int
    seconds: float
    rows: list[Row] = field(default_factory=list)

    def try_present(self) -> None:
        """Try the settings that the layer has now."""
        attempt = self._try_compiled if self.lab.present.get("compile") else self._try
        self.rows.append(replace(attempt(self.lab.present), present=True))

    def climb(self, ladder: Ladder, adjoints: Sequence[Adjoint]) -> None:
        """Try options of growing accuracy up to the first that are admissible, and on from there with each adjoint."""
        for adjoint in adjoints:
            ladder = self._climb(ladder, adjoint)

    def _climb(self, ladder: Ladder, adjoint: Adjoint) -> Ladder:
        """The rungs from the first admissible one on."""
        for i, options in enumerate(ladder):
            row = self._try({**options, "adjoint": adjoint}, self._budget())
            self.rows.append(row)
            if row.admissible:
                return ladder[i:]
            if row.failed and row.status not in _TIGHTER_HELPS:
                return ()
        return ()

    def _budget(self) -> int:
        """The most evaluations of f that a further candidate may take."""
        enough = [row.nfe for row in self.rows if row.admissible]
        return int(_FAR_SLOWER * min(enough)) if enough else self.reference.measured.nfe

    def _try(self, options: dict[str, Any], budget: int | None = None) -> Row:
        """The errors of a candidate, given up where it takes more evaluations of f than its budget."""
        allowed = self.lab.others.get("max_steps", DEFAULTS["max_steps"])
        evaluations = find(value_of(options, "method")).evaluations
        steps = allowed if budget is None else min(allowed, max(1, budget // evaluations))
        self.state.rewind()
        try:
            measured = self.lab.measure({**options, "max_steps": steps})
        except SolveError as error:
            gave_up = error.status is Status.MAX_STEPS and steps < allowed
            note = f"given up at nfe {error.stats.nfe}" if gave_up else f"{error.status.name} at t = {error.t!r}"
            return Row(options, note=note, status=error.status)
        except torch.OutOfMemoryError:
            return Row(options, note="out of memory")
        errors = self.reference.errors(measured)
        admissible = errors[0] <= self.limits.loss and errors[1] <= self.limits.gradient
        return Row(options, *errors, measured.nfe, measured.nfe_backward, admissible)

    def finalists(self) -> list[int]:
        """The rows that the choice is between: the admissible ones, or else the most accurate."""
        admissible = [i for i, row in enumerate(self.rows) if row.admissible]
        return admissible or [i for i, row in enumerate(self.rows) if row is self._most_accurate(self.rows)]

    def _most_accurate(self, rows: Sequence[Row]) -> Row:
        finished = [row for row in rows if not row.failed]
        if not finished:
            raise ValueError(
                f"no candidate reaches the last time, although {self.reference.text} does: "
                "give other `methods`, tighter `tolerances` or more `steps`"
            )
        loss, gradient = self.limits
        return min(finished, key=lambda row: max(row.loss_error / loss, row.gradient_error / gradient))

    def time(self, indices: Sequence[int]) -> None:
        """Time these rows in turn, so that a change of the machine's speed hits all alike."""
        times: dict[int, list[float]] = {i: [] for i in indices}
        racing, begun = list(indices), self.timer()
        for done in range(1, self.rounds + 1):
            for i in racing:
                times[i].append(self._time_once(self.rows[i].options))
            if done == _FIRST_ROUNDS:
                medians = {i: statistics.median(times[i]) for i in racing}
                racing = [i for i in racing if medians[i] <= _SLOWER * min(medians.values())]
            if done >= _FIRST_ROUNDS and self.timer() - begun > self.seconds:
                break
        for i in indices:
            self.rows[i] = replace(self.rows[i], seconds=statistics.median(times[i]))

    def _time_once(self, options: dict[str, Any]) -> float:
        self.state.rewind()
        self.lab.synchronize()
        begun = self.timer()
        self.lab.step(options)
        self.lab.synchronize()
        return self.timer() - begun

    def compile_best(self, verbose: bool, loud: bool) -> None:
        """Compile the candidates with the fewest evaluations of f, and time them beside the fastest eager one."""
        finalists = self.finalists()
        fastest = min(finalists, key=lambda i: _or_infinity(self.rows[i].seconds))
        contestants = [fastest]
        for options in self._to_compile(finalists):
            if verbose:
                print(f"compiling {method_text(options)}, which takes up to a minute for the first time", flush=True)
            row = self._try_compiled(options)
            self.rows.append(row)
            if row.failed:
                if loud:
                    warnings.warn(f"`compile=True`: {row.note}; `tune` chooses among eager solves", stacklevel=3)
                break
            contestants.append(len(self.rows) - 1)
        if len(contestants) > 1:
            self.time(contestants)

    def _to_compile(self, finalists: Sequence[int]) -> list[dict[str, Any]]:
        rows = [self.rows[i] for i in finalists if _compilable(self.rows[i])]
        rows.sort(key=lambda row: (row.nfe + row.nfe_backward, _or_infinity(row.seconds)))
        different = {_cells(row)[:2]: {**row.options, "compile": True} for row in reversed(rows)}
        return list(reversed(different.values()))[:_COMPILED]

    def _try_compiled(self, options: dict[str, Any]) -> Row:
        """The same for a compiled solve; a failed row where `f` cannot be compiled, which `solve` warns of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            row = self._try(options)
        reasons = [str(w.message).partition("The reason: ")[2] for w in caught]
        for warning, reason in zip(caught, reasons):
            if not reason:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if compiler() is None:
            return Row(options, note="this torch's compiler is not known: see the warning")
        if not told.cannot(self.lab.block.field):
            return row
        return Row(options, note=f"`f` cannot be compiled: {next(filter(None, reasons), 'see the earlier warning')}")

    def choice(self, compile: bool | None) -> Row:
        """The fastest admissible row, or else the most accurate; compiled or not, where there are such."""
        finished = [row for row in self.rows if not row.failed]
        rows = [row for row in finished if compile is None or row.compiled == compile] or finished
        admissible = [row for row in rows if row.admissible]
        if not admissible:
            return self._most_accurate(rows)
        return min(admissible, key=lambda row: _or_infinity(row.seconds))


_TIGHTER_HELPS = (Status.DIVERGED, Status.NON_FINITE_FIELD, Status.NON_FINITE_STATE, Status.NOT_CONVERGED)


def _compilable(row: Row) -> bool:
    return not row.compiled and goes({**row.options, "compile": True})


def _check(
    limits: _Limits,
    methods: Sequence[str | Method],
    tolerances: Sequence[float],
    steps: Sequence[int],
    adjoints: Sequence[Adjoint],
    rounds: int,
    compile: bool | None,
) -> None:
    for name, value in zip(("tolerance", "gradient_tolerance"), limits):
        number(name, value, "above 0", lambda x: x > 0)
    named = {"methods": methods, "tolerances": tolerances, "steps": steps, "adjoints": adjoints}
    for name, values in named.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise TypeError(f"`{name}` must be a sequence with at least one entry, got {shown(values)}")
    for method in methods:
        find(method, "`methods` must be among")
    count("rounds", rounds)
    if compile and not any(goes({"adjoint": adjoint, "compile": True}) for adjoint in adjoints):
        raise TypeError(f"`compile=True` needs `Checkpointed()` or `Direct()` among `adjoints`, got {shown(adjoints)}")


def _others(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in TUNED}


def _mean_square(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"`loss` is needed for a module that returns {type(output).__name__}: a function of its output")
    return output.abs().square().mean()


def _or_infinity(seconds: float) -> float:
    return math.inf if math.isnan(seconds) else seconds


# The table.


_HEAD = ("method", "steps", "adjoint", "loss error", "gradient error", "nfe", "ms", "")
_RIGHT = (3, 4, 5, 6)  # the columns of numbers


def _cells(row: Row) -> tuple[str, ...]:
    remarks = ("as it is now" if row.present else "", row.note)
    return (
        method_text(row.options),
        steps_text(row.options),
        type(value_of(row.options, "adjoint")).__name__ + (", compiled" if row.compiled else ""),
        "" if row.failed else f"{row.loss_error:.1e}",
        "" if row.failed else f"{row.gradient_error:.1e}",
        "" if row.failed else f"{row.nfe} + {row.nfe_backward}",
        "" if math.isnan(row.seconds) else f"{1e3 * row.seconds:.2f}",
        "; ".join(remark for remark in remarks if remark),
    )


def _table(rows: Sequence[Row], chosen: Row) -> list[str]:
    """Aligned lines: a head, and a row each with a mark at the chosen one."""
    lines = aligned([_HEAD, *(_cells(row) for row in rows)], _RIGHT)
    marks = ["", *("→" if row is chosen else "" for row in rows)]
    return [f"{mark:1} {line}".rstrip() for mark, line in zip(marks, lines)]
