"""`tune`: the solver settings that are the fastest for an ODE layer at an error that does not show in the loss."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.adjoint import Adjoint, Checkpointed, Direct
from odenets.arguments import count, number, shown
from odenets.methods import Method, find
from odenets.tuning.measure import goes, left_as_it_was
from odenets.tuning.reference import Lab, reference
from odenets.tuning.search import Limits, Search, ladders
from odenets.tuning.tuned import Tuning


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
    limits = Limits(tolerance, 10 * tolerance if gradient_tolerance is None else gradient_tolerance)
    _check(limits, methods, tolerances, steps, adjoints, rounds, compile)
    lab = Lab(block, batch, loss)
    with left_as_it_was(lab) as state:
        search = Search(lab, state, limits, reference(lab, state, tolerance), timer, rounds, seconds)
        search.try_present()
        for ladder in ladders(methods, tolerances, steps, lab):
            search.climb(ladder, lab.possible(adjoints))
        search.time(search.finalists())
        if compile is not False:
            search.compile_best(verbose, loud=compile is True)
    tuning = Tuning(tuple(search.rows), search.choice(compile), search.reference.text, *limits)
    if verbose:
        print(tuning)
    return tuning


def _check(
    limits: Limits,
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
