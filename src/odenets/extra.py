"""What a plain installation does not have: a missing package is said with the extra that brings it."""

import contextlib
from collections.abc import Iterator

__all__ = ["MissingExtra", "experiments_extra"]


class MissingExtra(ModuleNotFoundError):
    """A package of an extra that is not installed; `name` is the module's."""


@contextlib.contextmanager
def experiments_extra(what: str) -> Iterator[None]:
    """In the block, which imports what `what` (such as "`odenets.train`") needs, a missing package is a `MissingExtra`.

    Modules of odenets itself that are missing stay what they are: a mistake of ours, or of whoever typed the name.
    """
    try:
        yield
    except MissingExtra:
        raise
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module == "odenets":
            raise
        raise MissingExtra(
            f"{what} needs `{module}`, which a plain installation of odenets does not bring: "
            "pip install 'odenets[experiments]'",
            name=error.name,
        ) from None
