"""What goes with what: one table, from which the checks of `solve`, their errors and the page in the docs are made."""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NamedTuple

from odenets.adjoint import Adjoint, Backsolve, Checkpointed, Direct, Interpolated, Reversible
from odenets.arguments import shown
from odenets.controller import PID, Controller
from odenets.methods import Method, RungeKutta


class Place(Enum):
    """Where a solve is called."""

    PLAIN = "nowhere in particular"
    TRANSFORM = "a transform of `torch.func`, or forward mode"
    RECORDED = "`linearize` or `make_fx`, which record no loop that ends by values"
    GRAPH = "the graph of `torch.compile`, `torch.export` or ONNX"
    CUDA_GRAPH = "a CUDA graph, which captures no solve that reads values on its way"


class Request(NamedTuple):
    """What is asked for of a solve."""

    method: Method
    controller: Controller
    adjoint: Adjoint
    per_sample: bool = False
    dense: bool = False
    compile: bool = False
    place: Place = Place.PLAIN
    event: bool = False
    own_times: bool = False  # each sample its own
    own_stops: bool = False
    progress: bool = False

    @property
    def backward(self) -> "Request | None":
        """The solve that the adjoint makes backward, where it makes one."""
        if not isinstance(self.adjoint, Backsolve | Interpolated):
            return None
        how = self.adjoint.how(self.method, self.controller)
        return self._replace(method=how.method, controller=how.controller)


class Feature(NamedTuple):
    """Something that can be asked for."""

    text: Callable[[Request], str]  # as its asker wrote it
    asked: Callable[[Request], bool]
    name: str  # in the docs


def _adjoint(kind: type) -> Feature:
    name = f"`adjoint={kind.__name__}()`"
    return Feature(lambda r: f"`adjoint={shown(r.adjoint)}`", lambda r: isinstance(r.adjoint, kind), name)


def _flag(name: str) -> Feature:
    text = f"`{name}=True`"
    return Feature(lambda r: text, lambda r: getattr(r, name), text)


def _place(place: Place) -> Feature:
    name = place.value.partition(", which")[0]
    return Feature(lambda r: place.value, lambda r: r.place is place, name)


def _controller(adaptive: bool, name: str) -> Feature:
    def text(r: Request) -> str:
        return f"`controller={type(r.controller).__name__}(...)`"

    return Feature(text, lambda r: r.controller.adaptive is adaptive, name)


def _method(asked: Callable[[Method], bool], what: str, name: str) -> Feature:
    return Feature(lambda r: f"`method` {r.method.name!r}, which {what},", lambda r: asked(r.method), name)


ADAPTIVE = _controller(True, "`controller=PID(...)`")
FIXED = _controller(False, "`controller=Fixed(...)`")
NO_ESTIMATE = _method(lambda m: not m.adaptive, "has no error estimate", "a method without an error estimate")
OTHER_FAMILY = _method(
    lambda m: not isinstance(m, RungeKutta), "is no Runge–Kutta method", "a method of another family than Runge–Kutta"
)
BY_COMPONENT = Feature(
    lambda r: "`rtol` or `atol` for each component",
    lambda r: isinstance(r.controller, PID) and r.controller.by_component,
    "`rtol`, `atol` for each component",
)
NORM = Feature(
    lambda r: f"`norm={shown(getattr(r.controller, 'norm', None))}`",
    lambda r: isinstance(r.controller, PID) and r.controller.norm is not None,
    "`norm=...` of `PID`",
)
NO_SUM = _method(
    lambda m: not (isinstance(m, RungeKutta) or m.remembers),
    "is neither a Runge–Kutta nor a multistep method",
    "a method of another family than Runge–Kutta and multistep",
)
VARIES = _method(lambda m: m.varies, "chooses its order by its error", "a method of variable order")
REMEMBERS = _method(lambda m: m.remembers, "is made of the steps before it", "a multistep method")
ITERATES = _method(lambda m: m.iterates, "is implicit and iterates", "an implicit method")
OWN_TIMES = Feature(lambda r: "`t` of shape (batch, T)", lambda r: r.own_times, "`t` of shape (batch, T)")
OWN_STOPS = Feature(lambda r: "`stops` or `jumps` in rows", lambda r: r.own_stops, "`stops`, `jumps` in rows")
PER_SAMPLE, DENSE, COMPILE = _flag("per_sample"), _flag("dense"), _flag("compile")
PROGRESS = Feature(lambda r: "`progress`", lambda r: r.progress, "`progress=...`")
EVENT = Feature(lambda r: "`event`", lambda r: r.event, "`event=Event(...)`")
OWN_EVENT = Feature(
    lambda r: "`event` with `per_sample=True`",
    lambda r: r.event and r.per_sample,
    "`event=Event(...)` with `per_sample=True`",
)
ADJOINTS = {kind: _adjoint(kind) for kind in (Checkpointed, Direct, Interpolated, Backsolve, Reversible)}
BACKWARD_WITHOUT_SUM = Feature(
    lambda r: f"a backward solve by {NO_SUM.text(r.backward or r)}",
    lambda r: r.backward is not None and NO_SUM.asked(r.backward),
    f"a backward solve by {NO_SUM.name}",
)
RECORDED, GRAPH, CUDA_GRAPH = map(_place, (Place.RECORDED, Place.GRAPH, Place.CUDA_GRAPH))


class Clash(NamedTuple):
    """Two things that do not go together."""

    one: Feature
    other: Feature
    remedy: str
    error: type[Exception] = TypeError


_TIMES = "pass the times that are wanted in `t`, or leave one out"
_STEPS = "pass a method such as 'rk4' and `controller=Fixed(steps=n)`, without `compile` and `event`"
_RECORDED = "pass `controller=Fixed(...)` and an explicit method without `event`, or use `torch.func.jvp`"
_EXACT = "pass `adjoint=Checkpointed()` or `Direct()`, or leave {} out"
_EACH = "leave `per_sample` out, or pass a method such as 'tsit5'"
_INEXACT = (Interpolated, Backsolve, Reversible)
CLASHES = (
    Clash(PER_SAMPLE, NO_ESTIMATE, _EACH),
    Clash(NO_ESTIMATE, ADAPTIVE, "pass `controller=Fixed(dt=...)` or `Fixed(steps=...)`, or another method"),
    Clash(VARIES, FIXED, "pass `controller=PID(...)`, or a method of one order such as 'abm4'"),
    Clash(PER_SAMPLE, FIXED, "fixed steps are the same for all samples: leave it out, or pass `controller=PID(...)`"),
    Clash(PER_SAMPLE, ITERATES, "pass an explicit method, or leave `per_sample` out"),
    Clash(PER_SAMPLE, REMEMBERS, "pass a Runge–Kutta method such as 'tsit5', or leave `per_sample` out"),
    *(
        Clash(PER_SAMPLE, ADJOINTS[kind], "pass `adjoint=Checkpointed()`, or leave `per_sample` out")
        for kind in (Direct, Interpolated, Backsolve, Reversible)
    ),
    Clash(OTHER_FAMILY, ADJOINTS[Reversible], "pass `adjoint=Checkpointed(memory=...)`, or a method such as 'rk4'"),
    *(
        Clash(BACKWARD_WITHOUT_SUM, ADJOINTS[kind], "pass `method='tsit5'` to the adjoint")
        for kind in (Interpolated, Backsolve)
    ),
    Clash(COMPILE, DENSE, _TIMES),
    Clash(OWN_EVENT, DENSE, _TIMES),
    *(Clash(feature, PROGRESS, "leave one out") for feature in (PER_SAMPLE, COMPILE)),
    *(Clash(COMPILE, ADJOINTS[kind], _EXACT.format("`compile`")) for kind in _INEXACT),
    Clash(COMPILE, ITERATES, "pass an explicit method, or leave `compile` out"),
    Clash(COMPILE, VARIES, "pass a Runge–Kutta method such as 'tsit5', or leave `compile` out"),
    Clash(COMPILE, BY_COMPONENT, "pass numbers, or leave `compile` out"),
    Clash(COMPILE, NORM, "leave one out"),
    *(Clash(DENSE, ADJOINTS[kind], _EXACT.format("`dense`")) for kind in _INEXACT),
    *(Clash(feature, RECORDED, _RECORDED, NotImplementedError) for feature in (ADAPTIVE, ITERATES, EVENT)),
    *(Clash(feature, CUDA_GRAPH, _STEPS, RuntimeError) for feature in (ADAPTIVE, ITERATES, COMPILE, EVENT)),
    Clash(DENSE, GRAPH, "pass the times that are wanted in `t`"),
    *(
        Clash(feature, GRAPH, "leave it to `torch.compile`, which calls the solve between two graphs, or pass another")
        for feature in (
            OWN_TIMES,
            OWN_STOPS,
            ITERATES,
            VARIES,
            BY_COMPONENT,
            NORM,
            EVENT,
            PROGRESS,
            *(ADJOINTS[k] for k in _INEXACT),
        )
    ),
)


# Each thing that can be asked for has a bit, so that a solve asks for each of them once.
_FEATURES = tuple(dict.fromkeys(feature for clash in CLASHES for feature in (clash.one, clash.other)))
_ASKED = tuple((1 << i, feature.asked) for i, feature in enumerate(_FEATURES))
_PAIRS = tuple((1 << _FEATURES.index(clash.one) | 1 << _FEATURES.index(clash.other), clash) for clash in CLASHES)


def clashes(request: Request) -> Iterator[Clash]:
    """The rules that what is asked for breaks."""
    found = 0
    for bit, asked in _ASKED:
        if asked(request):
            found |= bit
    return (clash for pair, clash in _PAIRS if found & pair == pair)


def check(request: Request) -> None:
    """Refuse what does not go together.

    Raises:
        TypeError, NotImplementedError, RuntimeError: With both, and what to write instead.
    """
    _refuse(request)
    if request.backward is not None:
        _refuse(request.backward)


def _refuse(request: Request) -> None:
    """The same of this solve alone."""
    for clash in clashes(request):
        raise clash.error(f"{clash.one.text(request)} does not go with {clash.other.text(request)}: {clash.remedy}")


def fits_a_graph(request: Request) -> bool:
    """Whether the solve can be part of somebody else's graph."""
    return not any(clash.other is GRAPH and clash.one is not DENSE for clash in clashes(request))


def goes(**asked: Any) -> bool:
    """Whether all of that goes together: the fields of a `Request`."""
    return next(clashes(Request(**asked)), None) is None
