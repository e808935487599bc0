"""The methods by their names: which scheme, and with which options."""

import warnings
from dataclasses import fields, replace
from typing import Any

from odenets.methods import RungeKutta, tableaus
from odenets.torchdiffeq.adams import AdamsBashforth, AdamsBashforthMoulton
from odenets.torchdiffeq.adaptive import Adaptive
from odenets.torchdiffeq.call import Call
from odenets.torchdiffeq.grid import Grid, Implicit
from odenets.torchdiffeq.scipy_solver import Scipy
from odenets.torchdiffeq.solvers import Own
from odenets.torchdiffeq.watch import warn_of_silence
from odenets.torchdiffeq.words import brief, listed

# torchdiffeq estimates the error of dopri5 by another formula of order 4 than the usual one:
# Shampine, "Some practical Runge–Kutta formulas", Math. Comp. 46 (1986).
_DOPRI5 = replace(
    tableaus.DOPRI5,
    b_error=(
        35 / 384 - 1951 / 21600,
        0.0,
        500 / 1113 - 22642 / 50085,
        125 / 192 - 451 / 720,
        -2187 / 6784 + 12231 / 42400,
        11 / 84 - 649 / 6300,
        -1 / 60,
    ),
)
ADAPTIVE: dict[str, RungeKutta] = {
    "dopri8": tableaus.DOPRI8,
    "dopri5": _DOPRI5,
    "tsit5": tableaus.TSIT5,
    "bosh3": tableaus.BOSH3,
    "fehlberg2": replace(tableaus.FEHLBERG2, b_error=(-1 / 512, 0.0, 1 / 512, 0.0)),  # as there: see its comment
    "adaptive_heun": tableaus.HEUN,
}
FIXED: dict[str, RungeKutta] = {
    "euler": tableaus.EULER,
    "midpoint": tableaus.MIDPOINT,
    "heun2": tableaus.HEUN,
    "heun3": tableaus.HEUN3,
    "rk4": tableaus.RK4_38,
}
IMPLICIT: dict[str, RungeKutta] = {method.name: method for method in tableaus.IMPLICIT}
ADAMS: dict[str, type] = {
    "explicit_adams": AdamsBashforth,
    "implicit_adams": AdamsBashforthMoulton,
    "fixed_adams": AdamsBashforthMoulton,
}
NAMES = (*ADAPTIVE, *FIXED, *IMPLICIT, *ADAMS, "scipy_solver")

SOLVERS: dict[str, type] = {}  # torchdiffeq's table, into which programs put classes of their own; see `_impl.odeint`
BUILT_IN: dict[str, type] = {}  # what stands there of itself

_KINDS: dict[str, Any] = {
    **dict.fromkeys(ADAPTIVE, Adaptive),
    **dict.fromkeys(FIXED, Grid),
    **dict.fromkeys(IMPLICIT, Implicit),
    "scipy_solver": Scipy,
}


def resolve(call: Call) -> Call:
    """The call with the scheme of its method.

    Raises:
        TypeError, ValueError: If there is no such method, or an option has a value that is not allowed.
    """
    scheme = find_scheme(call.name, {**call.options, "norm": call.norm}, call.rtol, call.atol, "method")
    warn_of_silence(call.func, call.name, scheme.callbacks)
    return replace(call, scheme=scheme)


def find_scheme(name: Any, options: dict[str, Any], rtol: Any, atol: Any, argument: str) -> Any:
    """The scheme of that name with those options; `argument` is what errors call the name.

    Raises:
        TypeError, ValueError: If there is no such method, or an option has a value that is not allowed.
    """
    if not isinstance(name, str):
        raise TypeError(f"`{argument}` must be the name of a method, got {brief(name)}")
    own = SOLVERS.get(name) if SOLVERS.get(name) is not BUILT_IN.get(name) else ADAMS.get(name)
    if own is not None:
        return Own(own, rtol, atol, {key: value for key, value in options.items() if key != "norm"})
    kind = _KINDS.get(name)
    if kind is None:
        raise ValueError(
            f"`{argument}` must be one of {', '.join(dict.fromkeys((*NAMES, *SOLVERS)))}; got {brief(name)}"
        )
    known = {f.name for f in fields(kind) if f.name not in ("method", "rtol", "atol")}
    unknown = sorted(set(options) - known - {"norm"}, key=str)
    if unknown:
        warnings.warn(
            f"method {name!r} ignores the unknown options {listed(unknown)}; known are {', '.join(sorted(known))}",
            stacklevel=4,
        )
    given = {key: value for key, value in options.items() if key in known}
    method = {**ADAPTIVE, **FIXED, **IMPLICIT}.get(name)
    return kind(**({} if method is None else {"method": method}), rtol=rtol, atol=atol, **given)
