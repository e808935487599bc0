"""torchdiffeq's functions, made of the solver of odenets: existing code changes its import and nothing else.

Arguments, method names, options, callbacks and results are those of torchdiffeq 0.2.5, with the methods that came
after it; what is meant to differ is listed in docs/torchdiffeq.md. `install()` serves `import torchdiffeq` of code
that cannot be edited. In new code use `odenets.solve`, which says more and compiles.
"""

from odenets.torchdiffeq import _impl as _impl
from odenets.torchdiffeq.interface import odeint as odeint
from odenets.torchdiffeq.interface import odeint_adjoint as odeint_adjoint
from odenets.torchdiffeq.interface import odeint_dense as odeint_dense
from odenets.torchdiffeq.interface import odeint_event as odeint_event
from odenets.torchdiffeq.serve import install as install

__version__ = "0.2.5"  # of the torchdiffeq that this stands for
