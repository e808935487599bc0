"""The private modules of torchdiffeq, as far as programs use them and they can be served truthfully.

Nothing of odenets is made of these: they are for code that imports `torchdiffeq._impl...`.
"""

from odenets.torchdiffeq._impl.adjoint import odeint_adjoint as odeint_adjoint
from odenets.torchdiffeq._impl.odeint import odeint as odeint
from odenets.torchdiffeq._impl.odeint import odeint_dense as odeint_dense
from odenets.torchdiffeq._impl.odeint import odeint_event as odeint_event
