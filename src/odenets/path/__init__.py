"""Inputs u(t) of a vector field: controls, measured signals, the paths of neural CDEs.

A path is a function of time through given values, made of polynomial pieces that are worked out once. An evaluation
finds its piece by bisection and sums up one polynomial. docs/paths.md says which one to take.
"""

from odenets.path.base import Path as Path
from odenets.path.kinds import Constant as Constant
from odenets.path.kinds import CubicHermite as CubicHermite
from odenets.path.kinds import Linear as Linear
from odenets.path.kinds import NaturalCubic as NaturalCubic
from odenets.path.kinds import Rectilinear as Rectilinear
