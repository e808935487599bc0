"""Configs of experiments: a field is an option with a default and a sentence, and the command line is made of them."""

import dataclasses
from collections.abc import Collection
from typing import Any

from odenets import support
from odenets.adjoint import Adjoint, Backsolve, Checkpointed, Direct, Interpolated, Reversible
from odenets.arguments import shown
from odenets.controller import PID, Fixed
from odenets.methods import METHODS

ADJOINTS: dict[str, Adjoint] = {
    "direct": Direct(),
    "checkpointed": Checkpointed(),
    "interpolated": Interpolated(),
    "backsolve": Backsolve(),
    "reversible": Reversible(),
}


def option(default: Any, help: str, choices: Collection[str] = ()) -> Any:
    """A field of a Config: its default, the sentence that `--help` shows, and the values it may have."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": tuple(choices)})


def check_choices(config: Any) -> None:
    """Refuse a value that is none of its option's choices.

    Raises:
        ValueError: Naming the option, the value and what is allowed.
    """
    for item in dataclasses.fields(config):
        allowed, value = item.metadata.get("choices", ()), getattr(config, item.name)
        if allowed and value not in allowed:
            raise ValueError(f"`{item.name}` must be one of {', '.join(allowed)}; got {shown(value)}")


def check_at_least(config: Any, **lowest: int) -> None:
    """Refuse a number below its lowest value, and NaN; None passes.

    Raises:
        ValueError: Naming the option, the value and the lowest one.
    """
    for name, low in lowest.items():
        value = getattr(config, name)
        if value is not None and not value >= low:
            raise ValueError(f"`{name}` must be at least {low}, got {value}")


def solver_options(config: Any) -> dict[str, Any]:
    """The options of `ODEBlock` that a config with `method`, `rtol`, `atol`, `dt`, `adjoint` and `compile` asks for.

    Raises:
        ValueError: A step or tolerance that no solve could have, no `dt` for a method that cannot adapt its steps, or
            `compile` with what does not compile.
    """
    if config.compile:
        _check_compiled(config.method, config.adjoint)
    common = {"method": config.method, "adjoint": ADJOINTS[config.adjoint], "compile": config.compile}
    if config.dt is not None:
        return {**common, "controller": Fixed(dt=config.dt)}
    if not METHODS[config.method].adaptive:
        raise ValueError(f"`method` {config.method!r} cannot adapt its steps: give their size, `dt`, for example 0.1")
    # The controller itself and not its tolerances: it refuses wrong ones here, before anything is trained.
    return {**common, "controller": PID(rtol=config.rtol, atol=config.atol)}


def _check_compiled(method: str, adjoint: str) -> None:
    """Refuse what does not compile, naming what does."""

    def goes(method: str, adjoint: str) -> bool:
        controller = PID() if METHODS[method].varies else Fixed(steps=1)
        request = support.Request(METHODS[method], controller, ADJOINTS[adjoint], compile=True)
        return next(support.clashes(request), None) is None

    adjoints = [name for name in ADJOINTS if goes("euler", name)]
    if adjoint not in adjoints:
        raise ValueError(f"`compile` goes with `adjoint` {' or '.join(adjoints)}, got {adjoint!r}")
    if not goes(method, adjoint):
        raise ValueError(f"`compile` goes with explicit Runge–Kutta methods, got `method` {method!r}")
