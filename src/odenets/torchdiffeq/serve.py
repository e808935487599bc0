"""`import torchdiffeq` of code that cannot be edited."""

import importlib
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = "odenets.torchdiffeq"
_SERVED = ("odeint", "odeint_adjoint", "odeint_event", "odeint_dense", "__version__", "_impl", "__doc__")


def install() -> None:
    """From now on `import torchdiffeq`, anywhere in this process, gives `odenets.torchdiffeq`.

    Its private modules too, as far as `odenets.torchdiffeq._impl` has them. Nothing on disk changes, and torchdiffeq
    need not be installed. Calling it again changes nothing.

    When to use: at the start of a program, before it imports a package that imports torchdiffeq. When not: in code of
    your own, which changes its import instead; in a library, whose users it would take by surprise.

    Raises:
        RuntimeError: If torchdiffeq itself has been imported already: what holds its functions would keep them.
    """
    present = sys.modules.get("torchdiffeq")
    if getattr(present, "__served_by__", None) == _PACKAGE:
        return
    if present is not None:
        raise RuntimeError(
            f"torchdiffeq has been imported already, from {getattr(present, '__file__', 'somewhere')}, and what "
            "imported it would go on with it: call `odenets.torchdiffeq.install()` first"
        )
    own = importlib.import_module(_PACKAGE)
    _serve("torchdiffeq", {name: getattr(own, name) for name in _SERVED})
    sys.modules["torchdiffeq._impl"] = own._impl
    for found in pkgutil.iter_modules(own._impl.__path__):
        module = importlib.import_module(f"{_PACKAGE}._impl.{found.name}")
        sys.modules[f"torchdiffeq._impl.{found.name}"] = module


def _serve(name: str, contents: dict[str, object]) -> None:
    """A module of that name, found by `import`, with those contents and no files of its own."""
    module = ModuleType(name)
    module.__dict__.update(contents)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__dict__["__served_by__"] = _PACKAGE
    sys.modules[name] = module
