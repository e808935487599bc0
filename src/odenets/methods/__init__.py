"""How one step is made. Each family is a file; `METHODS` maps a name to a frozen method object."""

from odenets.arguments import shown
from odenets.methods.implicit import IMPLICIT
from odenets.methods.implicit import ImplicitRungeKutta as ImplicitRungeKutta
from odenets.methods.newton import NotConverged as NotConverged
from odenets.methods.newton import rounding_of as rounding_of
from odenets.methods.newton import wide as wide
from odenets.methods.runge_kutta import EXPLICIT
from odenets.methods.runge_kutta import ExplicitRungeKutta as ExplicitRungeKutta
from odenets.methods.runge_kutta import Field as Field
from odenets.methods.runge_kutta import Linearize as Linearize
from odenets.methods.runge_kutta import Pull as Pull
from odenets.methods.runge_kutta import RungeKutta as RungeKutta
from odenets.methods.runge_kutta import Since as Since
from odenets.methods.runge_kutta import Step as Step
from odenets.methods.runge_kutta import Time as Time
from odenets.methods.runge_kutta import combine as combine
from odenets.methods.runge_kutta import filled as filled
from odenets.methods.runge_kutta import real_dtype as real_dtype
from odenets.methods.runge_kutta import stage_times as stage_times

METHODS: dict[str, RungeKutta] = {method.name: method for method in (*EXPLICIT, *IMPLICIT)}


def find(method: str | RungeKutta, wanted: str = "`method` must be one of") -> RungeKutta:
    """The method of that name, or the method itself; `wanted` begins the error where there is none."""
    if isinstance(method, RungeKutta):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"{wanted} {', '.join(METHODS)}, or an object; got {shown(method)}")
    return METHODS[method]
