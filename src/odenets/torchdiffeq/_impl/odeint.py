"""`torchdiffeq._impl.odeint`: the functions, and the table of solvers, into which programs put classes of their own."""

from odenets.torchdiffeq._impl import fixed_adams, fixed_grid
from odenets.torchdiffeq._impl.misc import _check_inputs as _check_inputs
from odenets.torchdiffeq._impl.misc import _flat_to_shape as _flat_to_shape
from odenets.torchdiffeq._impl.solvers import ByName
from odenets.torchdiffeq.interface import odeint as odeint
from odenets.torchdiffeq.interface import odeint_dense as odeint_dense
from odenets.torchdiffeq.interface import odeint_event as odeint_event
from odenets.torchdiffeq.schemes import ADAPTIVE, BUILT_IN, IMPLICIT, SOLVERS


def _by_name(name: str) -> type:
    return type(name.title().replace("_", "") + "Solver", (ByName,), {"method": name, "__doc__": ByName.__doc__})


BUILT_IN.update({name: _by_name(name) for name in ADAPTIVE})
BUILT_IN.update(
    euler=fixed_grid.Euler,
    midpoint=fixed_grid.Midpoint,
    heun2=fixed_grid.Heun2,
    heun3=fixed_grid.Heun3,
    rk4=fixed_grid.RK4,
    explicit_adams=fixed_adams.AdamsBashforth,
    implicit_adams=fixed_adams.AdamsBashforthMoulton,
    fixed_adams=fixed_adams.AdamsBashforthMoulton,
)
BUILT_IN.update({name: _by_name(name) for name in (*IMPLICIT, "scipy_solver")})
SOLVERS.update(BUILT_IN)
