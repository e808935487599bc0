"""A compiler that gives up, and in which words."""

import contextlib
from collections.abc import Iterator


class NotCompiled(Exception):
    """f, or this machine, cannot be compiled; the text says why."""


@contextlib.contextmanager
def or_not_compiled() -> Iterator[None]:
    """Turn whatever the compiler runs into into `NotCompiled`."""
    try:
        yield
    except Exception as error:  # whatever a compiler can run into; the caller says it and goes on eagerly
        raise NotCompiled(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """The first lines of an error of the tracer or the compiler, without its advice to developers."""
    text = str(error).strip().split("\n\n")[0]
    return " ".join(line.strip() for line in text.splitlines()[:6])[:600] or type(error).__name__
