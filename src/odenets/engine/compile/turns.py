"""One thread at a time: PyTorch's compiler takes what another one traces meanwhile for its own."""

import os
import threading
from contextlib import AbstractContextManager
from typing import Any

_lock = threading.RLock()


def in_turn() -> AbstractContextManager[Any]:
    """What a thread is in while it traces or compiles."""
    return _lock


def _renew() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)  # who held it is not there
