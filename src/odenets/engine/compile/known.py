"""Which of PyTorch's compilers the compiled loops are known to work with, and whether it starts on this machine."""

import functools
import os
import warnings
from typing import Any

import torch

from odenets.engine.compile.failing import reason_of

_KNOWN = ("2.13",)  # the torches on which the tests of the compiled loops have been seen to pass


@functools.cache  # so that it warns once
def compiler() -> Any:
    """What compiles; None, with a warning, where this torch's compiler is not one that is known, or does not start."""
    if not torch.__version__.startswith(tuple(f"{release}." for release in _KNOWN)):
        warnings.warn(
            f"`compile=True` is known to work with torch {' and '.join(_KNOWN)}, and this is {torch.__version__}: "
            "solves run eagerly; install that, or leave `compile` out",
            stacklevel=6,
        )
        return None
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 — takes seconds
        from torch._inductor.runtime.cache_dir_utils import cache_dir  # noqa: PLC0415 — the same

        from odenets.engine.compile import trace  # noqa: PLC0415 — so does this

        get_cpp_compiler()
        if not os.access(folder := cache_dir(), os.W_OK):
            raise PermissionError(f"{folder!r} is not writable")
    except OSError as error:  # it makes its folder when it is imported
        return _none(f"PyTorch's compiler cannot use its folder ({error})", "set TORCHINDUCTOR_CACHE_DIR to one it can")
    except Exception as error:  # whatever looking for a program can run into
        return _none(f"there is no C++ compiler ({reason_of(error)})", "install one, such as g++")
    return trace


def _none(why: str, remedy: str) -> None:
    warnings.warn(f"`compile=True`: {why}, so solves run eagerly: {remedy}, or leave `compile` out", stacklevel=7)
