"""Which of PyTorch's compilers the compiled loops are known to work with."""

import functools
import warnings
from typing import Any

import torch

_KNOWN = ("2.13",)  # the torches on which the tests of the compiled loops have been seen to pass


@functools.cache  # so that it warns once
def compiler() -> Any:
    """What compiles; None, with a warning, where this torch's compiler is not one that is known."""
    if not torch.__version__.startswith(tuple(f"{release}." for release in _KNOWN)):
        warnings.warn(
            f"`compile=True` is known to work with torch {' and '.join(_KNOWN)}, and this is {torch.__version__}: "
            "solves run eagerly; install that, or leave `compile` out",
            stacklevel=6,
        )
        return None
    from odenets.engine.compile import trace  # noqa: PLC0415 — imports PyTorch's compiler, which takes seconds

    return trace
