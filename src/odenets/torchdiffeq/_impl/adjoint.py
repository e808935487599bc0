"""`torchdiffeq._impl.adjoint`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.controller import rms
from odenets.torchdiffeq import interface
from odenets.torchdiffeq.call import Split
from odenets.torchdiffeq.interface import odeint as odeint
from odenets.torchdiffeq.interface import odeint_adjoint as odeint_adjoint
from odenets.torchdiffeq.schemes import SOLVERS as SOLVERS


def find_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters of a module, those of a replica of `DataParallel` too."""
    return list(interface.find_parameters(module))


def handle_adjoint_norm_(
    adjoint_options: dict[str, Any], shapes: Sequence[Any] | None, state_norm: Callable[[Tensor], Any]
) -> None:
    """Put into the options the norm of an augmented state (t, y, adjoint of y, adjoints of the parameters).

    By default the largest of their norms; "seminorm" leaves the parameters out; a function is called with that tuple,
    of a y that was a tuple with its parts. Nothing of odenets calls this.

    Args:
        shapes: Those of the tensors of a tuple y; None where it is a tensor.
        state_norm: The norm of the flat y.
    """
    given: Any = adjoint_options.get("norm")

    def largest(augmented: Sequence[Tensor]) -> Any:
        t, y, adjoint, *params = augmented
        sizes = [t.abs(), state_norm(y), state_norm(adjoint), *(map(rms, params) if given is None else ())]
        return max(sizes)

    def of_parts(augmented: Sequence[Tensor]) -> Any:
        t, y, adjoint, *params = augmented
        return given((t, *split(y), *split(adjoint), *params))

    if given is None or given == "seminorm":
        adjoint_options["norm"] = largest
    elif shapes is not None:
        split = Split(tuple(map(torch.Size, shapes)))
        adjoint_options["norm"] = of_parts
