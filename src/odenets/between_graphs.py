"""A solve that somebody else's compiler leaves alone."""

from typing import Any

import torch

from odenets.solution import Solution
from odenets.solve import solve


@torch.compiler.disable(reason="an implicit method iterates until it has converged")
def solve_outside(*args: Any, **kwargs: Any) -> Solution:
    """`solve`, between two graphs."""
    return solve(*args, **kwargs)
