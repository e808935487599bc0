"""`torchdiffeq._impl.fixed_grid`: the methods with fixed steps as classes to build on."""

from odenets.torchdiffeq.schemes import FIXED
from odenets.torchdiffeq.solvers import TableauSolver


class Euler(TableauSolver):
    order, method = 1, FIXED["euler"]


class Midpoint(TableauSolver):
    order, method = 2, FIXED["midpoint"]


class Heun2(TableauSolver):
    order, method = 2, FIXED["heun2"]


class Heun3(TableauSolver):
    order, method = 3, FIXED["heun3"]


class RK4(TableauSolver):
    order, method = 4, FIXED["rk4"]
