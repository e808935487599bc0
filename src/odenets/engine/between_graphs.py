"""What somebody else's compiler leaves alone. Importing it imports PyTorch's compiler."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(reason="an implicit method iterates by values, and some adjoints have their own backward pass")
def outside(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function, called between two graphs."""
    return function(*args, **kwargs)
