"""`solve`: check, bring into normal form once, hand to the adjoint, return a `Solution` or raise."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets import support, transforms
from odenets.adjoint import Adjoint, Checkpointed
from odenets.advance import Line, Told, teller
from odenets.arguments import count, given_times, has_rows, refuse_class, shown
from odenets.controller import PID, Controller
from odenets.engine.eager import stand_still
from odenets.engine.engines import Compiled, Eager, Engine, InTensors
from odenets.engine.inline import Inline
from odenets.engine.tensors.chunks import constant
from odenets.event import Event, Watched, events_of
from odenets.given_stops import given_stops, of_all, times_inside
from odenets.interpolate import DenseOutput, OwnDenseOutput
from odenets.methods import Method, find
from odenets.own_events import OwnChain
from odenets.own_times import OwnTimes, read
from odenets.path import Path
from odenets.problem import Problem, Trajectory
from odenets.resolution import check_field, check_times
from odenets.restart import Chain, Happened
from odenets.solution import Occurrences, Solution, SolveError, Stats, Status
from odenets.state import field_of, flatten_state, same

_NOTHING = contextlib.nullcontext()
_FEW_TIMES = 64  # whose copies on a GPU are kept


_ROWS = "; where each sample of `y0` has its own times, a row each, pass `per_sample=True`"


def solve(
    f: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    args: tuple = (),
    *,
    method: str | Method = "tsit5",
    rtol: Any = None,
    atol: Any = None,
    controller: Controller | None = None,
    adjoint: Adjoint = Checkpointed(),  # noqa: B008 — a frozen object
    per_sample: bool = False,
    dense: bool = False,
    stops: Tensor | Sequence[float] = (),
    jumps: Tensor | Sequence[float] = (),
    event: Event | Sequence[Event] | None = None,
    max_steps: int = 16_384,
    on_failure: str = "raise",
    compile: bool = False,
    progress: bool | Told = False,
) -> Solution:
    """Solve the Cauchy problem dy/dt = f(t, y, *args), y(t[0]) = y0 (equation (2) of the introduction).

    Args:
        f: The vector field. Called as `f(t, y, *args)` with t 0-dimensional in y's (real) dtype and y of y0's
            structure; returns the derivative in the same structure, shapes and dtypes.
        y0: The initial state: a floating-point or complex tensor of any shape (it may be empty), or any nest of tuples,
            lists and dicts of such tensors of one dtype and device.
        t: The times, 1-D: the first is the start, the others are where the state is wanted. Increasing or
            decreasing; repeated times are allowed, and where all are one, y0 is the state at each. A tensor (which may
            require grad), or numbers and 0-dimensional tensors (which may too). The solver counts time from the first
            one, so times far from zero lose nothing but what their own dtype, and y's dtype for an f that depends on t,
            cannot hold; that is refused. With `per_sample=True` also (batch, T): each sample its own start, outputs
            and end, all in one direction; a row with fewer times repeats its last one.
        args: Extra arguments of f. Tensors among them, in any nest, get their gradients.
        method: How one step is made: a name in `odenets.METHODS`, of a Runge–Kutta method ("tsit5") or a multistep one
            ("adams", "abm4"), or an object: `ExplicitRungeKutta`, `ImplicitRungeKutta` or `Splitting`.
        rtol, atol: Tolerances of the default controller, `PID`, whose own defaults hold where they are not given:
            numbers, or one for each component of y0.
        controller: How steps are chosen, instead of `rtol` and `atol`: `PID(...)` or `Fixed(...)`.
        adjoint: How the solve is differentiated: `Checkpointed()`, `Direct()`, `Interpolated()`, `Backsolve()` or
            `Reversible()`.
        per_sample: Give each sample, each entry along the first axis of y, its own steps: an easy sample is not
            slowed down by a stiff one, and its answer does not change with its neighbours. f then gets t of shape
            (batch, 1, …, 1), with as many axes as y. See `Stats` and `Solution.statuses`.
        dense: Keep what `solution(t)` needs at any t: s + 1 states a step. With `per_sample=True` s + 2 for each round
            of steps, as many as the sample takes that takes most, and where gradients flow as much again.
        stops: Times that no step passes: a step ends on each that lies inside of the interval. For an f that changes
            fast or has a kink there, and for what no step may jump over. The same for all samples; with
            `per_sample=True` also (batch, K), or a list for each sample: each its own, in any order. What is NaN,
            repeated, or outside of a sample's interval is no stop of it. They are constants to gradients.
        jumps: Such times at which f is discontinuous: a dose, a switch, a pulse however short. Steps before such a time
            get f as it is before it, also at the time itself, and steps behind it begin afresh. The knots and jumps of
            every `odenets.path` among `args` are taken as such times, but inside of somebody else's graph.
        event: What to look for on the way, or several such: `Event(condition)` ends the solve where its condition
            becomes 0; other ones change the state there and go on, or are only noted. See `Event`, and
            `Solution.events`. Then the last time may be infinite.
        max_steps: The most steps, rejected ones included.
        on_failure: "raise" a `SolveError`, or return the partial solution with its "status"; ys is NaN from the
            failure on.
        compile: Compile the whole solve, and its backward pass, once for each shape of y0 without the batch. Other
            tolerances, times, batch sizes and weights compile nothing anew. Where f cannot be traced, or there is no
            C++ compiler, one warning says why and the solve runs eagerly. It goes with `Checkpointed` and `Direct`
            and with explicit methods but "adams".
        progress: Tell how far it is: True writes a line to standard error, where that is a terminal; or a function that
            is called with an `Advance` after each accepted step. What it raises ends the solve.

    Returns:
        A `Solution`. `ys` has shape (T, *y0.shape), in y0's structure.

    Raises:
        SolveError: If the solve does not reach its last time.
        TypeError, ValueError: If an argument is not as described; the text says what would be.
        LostGradientError: If a gradient would be lost: see `Checkpointed`.
    """
    method = find(method)
    controller = controller_of(controller, rtol, atol)
    if not isinstance(on_failure, str) or on_failure not in ("raise", "status"):
        raise ValueError(f'`on_failure` must be "raise" or "status", got {shown(on_failure)}')
    max_steps = count("max_steps", max_steps)
    refuse_class("f", f)
    if not callable(f):
        raise TypeError(f"`f` must be a function f(t, y), got {shown(f)}: the order is solve(f, y0, t)")
    if not isinstance(args, tuple):
        raise TypeError(f"`args` must be a tuple, got {shown(args)}: write `args=(value,)`")
    if not _is_object_with("integrate", adjoint):
        raise TypeError(f"`adjoint` must be an object such as Checkpointed(), got {shown(adjoint)}")
    events, own = events_of(event), per_sample is True and has_rows(t)
    place = _place(y0)
    asked = {"event": bool(events), "own_times": own, "progress": progress is not False}
    asked["own_stops"] = has_rows(stops) or has_rows(jumps)
    request = support.Request(method, controller, adjoint, per_sample, dense, compile, place, **asked)
    if torch.compiler.is_dynamo_compiling():
        from odenets.engine.between_graphs import outside  # noqa: PLC0415 — imports PyTorch's compiler

        apart, compiled = _called_outside(request)
        if apart:
            return outside(
                solve,
                f,
                y0,
                t,
                args,
                method=method,
                controller=controller,
                adjoint=adjoint,
                per_sample=per_sample,
                dense=dense,
                stops=stops,
                jumps=jumps,
                event=event,
                max_steps=max_steps,
                on_failure=on_failure,
                compile=compiled,
                progress=progress,
            )
    flat, unflatten = flatten_state(y0, per_sample, widen=not method.iterates)
    method.check_state(y0)
    if not torch.compiler.is_compiling() and flat.is_inference() and torch.is_grad_enabled():
        flat = flat.clone()  # autograd keeps no tensor that was made in inference mode
    if place is support.Place.GRAPH:
        support.check(request)  # before values are read
    endless = controller.share == 0 and not per_sample and any(e.limit is not None for e in events)
    batch = len(flat) if per_sample else None
    all_jumps, all_stops = [given_stops("jumps", jumps, batch)], [given_stops("stops", stops, batch)]
    rows = read(t, flat) if own else None
    ts, times = _times(t, flat, endless) if rows is None else (rows.ts, rows.latest)
    if rows is None and of_all(all_stops + all_jumps) is None:
        rows = OwnTimes.repeated(ts, times, len(flat))
        times = rows.latest
    stands_still = times[0] == times[-1] and place is not support.Place.GRAPH
    support.check(request._replace(place=support.Place.PLAIN) if stands_still else request)  # which has no loop
    sign = -1.0 if times[-1] < times[0] else 1.0
    origin = times[0]
    span = sign * (times[-1] - origin)
    for path in paths_among(args):
        all_jumps.append(given_stops("jumps", path.jumps, None))
        all_stops.append(given_stops("stops", path.knots, None))
    all_stops += all_jumps
    inside = functools.partial(times_inside, sign=sign, origin=origin, span=span)
    problem = Problem(
        bind=lambda args: field_of(f, args, unflatten, sign),
        args=args,
        f=field_of(f, args, unflatten, sign),
        y0=flat.clone() if dense else flat,  # dense output is made later, when the caller may have changed y0
        t=rows.counted if rows else sign * (ts - origin) if origin or sign < 0 else ts,
        times=[sign * (value - origin) for value in times],
        origin=sign * origin,
        sign=sign,
        method=method,
        controller=controller,
        max_steps=max_steps,
        dense=dense,
        watched=f,
        stops=() if rows else inside(of_all(all_stops) or ()),
        jumps=() if rows else inside(of_all(all_jumps) or ()),
        own=rows.own(all_stops, all_jumps) if rows else None,
        events=tuple(Watched.of(one, args, unflatten, sign, batch) for one in events),
        per_sample=per_sample,
        split=unflatten,
        plain=sign > 0 and unflatten is same,
        told=teller(progress, times[0], times[-1]),
        stats=Stats(),
    )
    of_state = problem.of_state(controller)
    if of_state is not controller:
        problem = replace(problem, controller=of_state)
    check_field(problem)
    ts = t if isinstance(t, Tensor) else ts
    chain = None  # of the solves between events, where there are some
    if events:
        chain = OwnChain(problem) if per_sample else Chain(problem)
    with contextlib.closing(problem.told) if isinstance(problem.told, Line) else _NOTHING:
        if stands_still:
            trajectory = stand_still(problem)
        elif chain is None:
            trajectory = adjoint.integrate(problem, _engine(request))
        else:
            trajectory = chain.solved(adjoint, _engine(request))
    solution = _solution(problem, trajectory, ts, unflatten, on_failure)
    return solution if chain is None else _with_events(solution, problem, chain, unflatten)


def _place(y0: Any) -> support.Place:
    """Where the solve is called."""
    if torch.compiler.is_compiling():
        return support.Place.GRAPH
    if transforms.is_recorded():
        return support.Place.RECORDED
    if transforms.active():
        return support.Place.TRANSFORM
    leaves = (y0,) if isinstance(y0, Tensor) else pytree.tree_leaves(y0)
    captured = any(isinstance(leaf, Tensor) and transforms.is_captured(leaf) for leaf in leaves)
    return support.Place.CUDA_GRAPH if captured else support.Place.PLAIN


def _called_outside(request: support.Request) -> tuple[bool, bool]:
    """Whether a solve in somebody else's graph is called between two graphs, and whether its loops are compiled there.

    Adaptive steps are, wherever the graph may end: the library's own loops are faster than a loop inside the graph, and
    PyTorch differentiates that one in a graph of one piece only.
    """
    from odenets.engine.between_graphs import graph_becomes_code, graph_may_end  # noqa: PLC0415 — as above

    apart = (request.compile or request.controller.adaptive) and graph_may_end()
    loops = request._replace(compile=True, place=support.Place.PLAIN)
    compiled = apart and graph_becomes_code() and not any(support.clashes(loops))
    return apart or not support.fits_a_graph(request), request.compile or compiled


def _engine(request: support.Request) -> Engine:
    """What runs the solve."""
    if request.place is support.Place.GRAPH:
        return Inline()
    is_open = request.place in (support.Place.TRANSFORM, support.Place.RECORDED)
    engine = InTensors(is_open) if request.per_sample else Eager(is_open)
    return Compiled(engine) if request.compile and not is_open else engine


def _solution(
    problem: Problem,
    trajectory: Trajectory,
    ts: Tensor,
    unflatten: Callable[[Tensor], Any],
    on_failure: str,
) -> Solution:
    ys, failure = trajectory.ys, trajectory.failure
    if failure is not None:
        failure = replace(failure, t=problem.caller_time(failure.t, failure.sample), dt=problem.sign * failure.dt)
        if on_failure == "raise":
            raise SolveError(failure, problem.stats)
        missing = len(problem.times) - len(ys)  # none with `per_sample`, where the missing states are NaN already
        ys = torch.cat([ys, ys.new_full((missing, *ys.shape[1:]), math.nan)])
    interpolant = None
    if problem.dense and trajectory.own_dense is not None:
        interpolant = OwnDenseOutput(problem.method, trajectory.own_dense, problem.origins, problem.sign, unflatten)
    elif problem.dense and trajectory.dense is not None:
        interpolant = DenseOutput(problem.method, trajectory.dense, problem.origin, problem.sign, unflatten)
    status = Status.SUCCESS if failure is None else failure.status
    return Solution(ts, unflatten(ys), problem.stats, status, failure, interpolant, trajectory.statuses)


def _with_events(
    solution: Solution, problem: Problem, chain: Chain | OwnChain, unflatten: Callable[[Tensor], Any]
) -> Solution:
    """The solution, with the events of its problem."""
    found = [
        _occurrences(problem, [one for one in chain.happened if one.of == i], unflatten)
        for i in range(len(problem.events))
    ]
    status = Status.EVENT if solution.failure is None and chain.ended else solution.status
    return replace(solution, ts=chain.times(solution.ts), status=status, events=tuple(found))


def _occurrences(problem: Problem, happened: list[Happened], unflatten: Callable[[Tensor], Any]) -> Occurrences:
    """Those of one event; of samples one after the other."""
    sample = None
    if problem.per_sample:
        happened = sorted(happened, key=lambda one: one.sample or 0)
        sample = torch.tensor([one.sample for one in happened], dtype=torch.int64, device=problem.y0.device)
    shape = problem.y0.shape[1:] if problem.per_sample else problem.y0.shape
    origins = [problem.origins if sample is None else problem.origin_of(one.sample) for one in happened]
    t = [problem.sign * (origin + one.t) for origin, one in zip(origins, happened)]
    y = [one.y for one in happened]
    times = torch.stack(t) if t else problem.t.detach().new_empty(0)
    return Occurrences(times, unflatten(torch.stack(y) if y else problem.y0.new_empty((0, *shape))), sample)


def _is_object_with(method: str, value: Any) -> bool:
    """Whether the value has that method; a class, of which an object was forgotten to be made, has not."""
    return not isinstance(value, type) and callable(getattr(value, method, None))


def controller_of(controller: Controller | None, rtol: Any, atol: Any) -> Controller:
    given = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    if controller is not None and given:
        raise TypeError(
            f"{' and '.join(f'`{name}`' for name in given)} would be ignored beside `controller`: "
            "write `controller=PID(rtol=..., atol=...)`, or leave `controller` out"
        )
    controller = controller if controller is not None else PID(**given)
    if not _is_object_with("decide", controller):
        raise TypeError(f"`controller` must be an object such as PID() or Fixed(dt=...), got {shown(controller)}")
    return controller


def paths_among(args: tuple) -> list[Path]:
    """The paths among the extra arguments, whose times can be read."""
    if not args or torch.compiler.is_compiling():
        return []
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Path)]


def _digits(t: Any) -> torch.dtype:
    """The dtype, of PyTorch or of NumPy, whose digits the times have."""
    found = getattr(torch, str(getattr(t, "dtype", "")).removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.float64


def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor; on a GPU, where they are few, from a copy that is there already."""
    if device.type == "cpu" or len(values) > _FEW_TIMES or torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    return constant(values, dtype, device).clone()


def _times(t: Tensor | Sequence[float], y0: Tensor, endless: bool = False) -> tuple[Tensor, list[float]]:
    """The times as a tensor and on the host, checked; where a solve may be `endless`, the last may be infinite."""
    # MPS has no float64; everywhere else times are kept in it, whatever the state's dtype.
    dtype = torch.float32 if y0.device.type == "mps" else torch.float64
    digits = _digits(t)
    t = given_times(t, _ROWS)
    if not isinstance(t, Tensor) and any(isinstance(value, Tensor) for value in t):
        t = torch.stack([torch.as_tensor(value, dtype=dtype, device=y0.device) for value in t])
    if isinstance(t, Tensor):
        if t.is_cuda and transforms.is_captured(t):
            raise RuntimeError("a CUDA graph captures no solve with its times on the GPU: write `t` as numbers")
        t = t.to(dtype)
        ts = t.to(y0.device)
        if transforms.is_mapped(ts):
            raise TypeError(
                "`t` cannot be mapped over by `vmap`: solve for each `t`, or write f's time as t0 + s * (t1 - t0)"
            )
        values = transforms.unwrapped(t.detach()).reshape(-1).tolist()
    else:
        values = [float(value) for value in t]
        ts = _on_device(tuple(values), dtype, y0.device)
    finite = values[:-1] if endless and len(values) > 1 and math.isinf(values[-1]) else values
    if not all(math.isfinite(value) for value in finite):
        raise ValueError(f"`t` must be finite, got {next(v for v in values if not math.isfinite(v))}")
    steps = [b - a for a, b in itertools.pairwise(values)]
    if any(d > 0 for d in steps) and any(d < 0 for d in steps):
        forward = values[-1] >= values[0]
        i = next(i for i, d in enumerate(steps) if d != 0 and (d > 0) != forward)
        raise ValueError(
            f"`t` must be monotone, increasing or decreasing; t[{i}] = {values[i]!r} is followed by "
            f"{values[i + 1]!r}: sort it"
        )
    check_times(finite, steps[: len(finite) - 1], digits)
    return ts, values
