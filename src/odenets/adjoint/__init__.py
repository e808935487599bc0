"""How a solve is differentiated. Each adjoint gets the problem and an engine that solves it; none knows of `solve`.

All give gradients for y0, for every tensor that f reaches, and for every time. The equation numbers are those of
"Introduction to Neural Ordinary Differential Equation" (Della Bona and Dumez, 2021), section 4.3.
"""

from odenets.adjoint.checkpointed import Checkpointed as Checkpointed
from odenets.adjoint.continuous import Backsolve as Backsolve
from odenets.adjoint.continuous import Interpolated as Interpolated
from odenets.adjoint.direct import Adjoint as Adjoint
from odenets.adjoint.direct import Direct as Direct
from odenets.adjoint.reversible import Reversible as Reversible
