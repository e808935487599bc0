"""`torchdiffeq._impl.rk_common`."""

from odenets.torchdiffeq.solvers import rk4_alt_step_func as rk4_alt_step_func
