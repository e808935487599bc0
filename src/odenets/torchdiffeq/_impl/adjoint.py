"""`torchdiffeq._impl.adjoint`."""

import torch
from torch import nn

from odenets.torchdiffeq import interface
from odenets.torchdiffeq.interface import odeint as odeint
from odenets.torchdiffeq.interface import odeint_adjoint as odeint_adjoint
from odenets.torchdiffeq.schemes import SOLVERS as SOLVERS


def find_parameters(module: nn.Module) -> list[torch.Tensor]:
    """The parameters of a module, those of a replica of `DataParallel` too."""
    return list(interface.find_parameters(module))
