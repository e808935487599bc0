"""The parameters of an ODE from observed trajectories: `fit_trajectory`.

`given` checks the data, `field` has the model with other parameters, `shooting` solves, `strategies` lead to the right
minimum, `least_squares` and `descent` go down to it, `result` is what comes back.
"""

from odenets.fitting.fit import fit_trajectory as fit_trajectory
from odenets.fitting.result import TrajectoryFit as TrajectoryFit
from odenets.fitting.told import FitAdvance as FitAdvance
