"""How one step is made. Each family is a file; `METHODS` maps a name to a frozen method object."""

from odenets.arguments import shown
from odenets.methods.base import Bars as Bars
from odenets.methods.base import Carry as Carry
from odenets.methods.base import Differentiable as Differentiable
from odenets.methods.base import Field as Field
from odenets.methods.base import Judged as Judged
from odenets.methods.base import Method as Method
from odenets.methods.base import NotConverged as NotConverged
from odenets.methods.base import Past as Past
from odenets.methods.base import Pull as Pull
from odenets.methods.base import Remade as Remade
from odenets.methods.base import Step as Step
from odenets.methods.base import slopes_of as slopes_of
from odenets.methods.explicit import ExplicitRungeKutta as ExplicitRungeKutta
from odenets.methods.implicit import ImplicitRungeKutta as ImplicitRungeKutta
from odenets.methods.multistep import MULTISTEP
from odenets.methods.multistep import Adams as Adams
from odenets.methods.multistep import VariableAdams as VariableAdams
from odenets.methods.newton import HALVES as HALVES
from odenets.methods.newton import rounding_of as rounding_of
from odenets.methods.newton import wide as wide
from odenets.methods.runge_kutta import RungeKutta as RungeKutta
from odenets.methods.sums import Known as Known
from odenets.methods.sums import Since as Since
from odenets.methods.sums import Time as Time
from odenets.methods.sums import combine as combine
from odenets.methods.sums import filled as filled
from odenets.methods.sums import real_dtype as real_dtype
from odenets.methods.sums import stage_times as stage_times
from odenets.methods.symplectic import SYMPLECTIC
from odenets.methods.symplectic import Splitting as Splitting
from odenets.methods.tableaus import EXPLICIT, IMPLICIT

METHODS: dict[str, Method] = {method.name: method for method in (*EXPLICIT, *IMPLICIT, *MULTISTEP, *SYMPLECTIC)}
ANY_SYSTEM = tuple(name for name, method in METHODS.items() if not method.halves)  # those that solve whatever f is


def find(method: str | Method, wanted: str = "`method` must be one of") -> Method:
    """The method of that name, or the method itself; `wanted` begins the error where there is none."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"{wanted} {', '.join(METHODS)}, or an object; got {shown(method)}")
    return METHODS[method]
