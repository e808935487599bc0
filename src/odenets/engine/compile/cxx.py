"""The C++ compiler at work while Python goes on: one program is compiled while the next is traced."""

import contextlib
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from torch._inductor import codecache, config

from odenets.engine.compile.failing import or_not_compiled

# A precompiled header takes as long to make as to do without in so many programs.
_WITHOUT_HEADER = 2
_made = itertools.count()


class Awaited:
    """A function of a library that is still being compiled."""

    def __init__(self, get: Callable[[], Callable[..., Any]]) -> None:
        self.get, self.function = get, None

    def there(self) -> Callable[..., Any]:
        """The function, waited for.

        Raises:
            NotCompiled: If there is none.
        """
        if self.function is None:
            with or_not_compiled():
                self.function = self.get()
        return self.function

    def __call__(self, *arguments: Any) -> Any:
        return (self.function or self.there())(*arguments)


def settle(awaited: list[Awaited]) -> None:
    """Wait for all of these, and forget them.

    Raises:
        NotCompiled: If something cannot be compiled.
    """
    while awaited:
        awaited.pop().there()


@contextlib.contextmanager
def in_background(awaited: list[Awaited]) -> Iterator[None]:
    """Let PyTorch's compiler hand its C++ to a thread, and not wait; what is to be waited for is added to these."""

    def load(*arguments: Any, **options: Any) -> Awaited:
        awaited.append(Awaited(_load(*arguments, **options)))
        return awaited[-1]

    with mock.patch.object(codecache.CppWrapperCodeCache, "load_pybinding", load):
        yield


class _AbsentError(Exception):
    """There is no such library yet."""


def _absent(_: Any) -> NoReturn:
    raise _AbsentError


def _load(*arguments: Any, **options: Any) -> Callable[[], Callable[..., Any]]:
    """What waits for a function of a library, and gives it."""
    cache = codecache.CppWrapperCodeCache
    try:  # a library that is there needs no header, and to find a header takes half a second
        with config.patch(cpp_cache_precompile_headers=False):
            return cache.load_pybinding_async(*arguments, submit_fn=_absent, **options)
    except _AbsentError:
        precompiled = next(_made) >= _WITHOUT_HEADER or _has_headers()
        with config.patch(cpp_cache_precompile_headers=precompiled):
            return cache.load_pybinding_async(*arguments, submit_fn=_pool().submit, **options)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="odenets-cxx")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its threads, and would wait for ever


def _has_headers() -> bool:
    folder = Path(codecache._HEADER_DIR)
    return folder.is_dir() and any(folder.rglob("*.gch"))


def vectors_are_known() -> bool:
    """Whether the processor's vector instructions need no trial: PyTorch's own kernels tell which there are."""
    return sys.platform == "linux" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
