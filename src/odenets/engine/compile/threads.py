"""How many threads run a compiled loop: where there is little to share, one.

A product of small matrices that two threads share takes as long as the slower one of them, on busy cores thousands of
times as long as on one thread. PyTorch's own elementwise kernels are shared from 32,768 numbers on; these follow them.
"""

import contextlib
from collections.abc import Iterator

import torch

SHARED = 16_384  # numbers that a thread gets at least of a loop over the elements, as in PyTorch's own kernels
_LITTLE = 2**21  # floating-point operations of f's products: some 50 µs of one thread


def is_little(operations: float, kind: str) -> bool:
    """Whether so many operations are few for one thread of a device of that kind."""
    return kind == "cpu" and operations <= _LITTLE


@contextlib.contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Let this thread of the process compute alone, where that is wanted; then what was set holds again."""
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
