"""How one step is made. Each family is a file; `METHODS` maps a name to a frozen method object."""

from odenets.methods.runge_kutta import METHODS as METHODS
from odenets.methods.runge_kutta import ExplicitRungeKutta as ExplicitRungeKutta
from odenets.methods.runge_kutta import Field as Field
from odenets.methods.runge_kutta import Linearize as Linearize
from odenets.methods.runge_kutta import Pull as Pull
from odenets.methods.runge_kutta import Step as Step
from odenets.methods.runge_kutta import combine as combine
from odenets.methods.runge_kutta import find as find
from odenets.methods.runge_kutta import real_dtype as real_dtype
from odenets.methods.runge_kutta import stage_times as stage_times
