"""f as the solvers call it: counted, its result checked and owned, its input safe from it."""

import sys

import torch
from torch import Tensor

from odenets.methods import Field
from odenets.problem import Problem
from odenets.returned import in_dtype_of, refuse_shape
from odenets.solution import Stats
from odenets.transforms import is_recorded, is_wrapped


class CountedField:
    """A vector field that counts its evaluations and refuses a result of another shape or dtype.

    A solver keeps the results of several evaluations and the states they were made at. So a result whose memory
    something else refers to (a buffer that f fills again, a row of a cache, an array of NumPy) is copied, and an f that
    changes y in place gets a copy of y. Where f returns something new nothing is copied; `fresh` says that it always
    does.
    """

    def __init__(self, f: Field, stats: Stats, fresh: bool = False) -> None:
        self.f = f
        self.stats = stats
        self.fresh = fresh
        # A tracer shows no references; compilers drop what is spare.
        self._seen = torch.compiler.is_compiling() or is_recorded()
        self._spoils: bool | None = None  # whether f changes y in place; None before the first evaluation has shown it

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.stats.nfe += 1
        if self.fresh:
            return checked(self.f(t, y), t, y)
        if self._seen:
            return checked(self.f(t, y.clone()).clone(), t, y)
        out = self._evaluate(t, y)
        if _is_shared(out):
            out = out.clone()
        return checked(out, t, y)

    def _evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        if self._spoils:
            return self.f(t, y.clone())
        given = y.clone() if self._spoils is None else y
        version = _version(given)
        out = self.f(t, given)
        changed = _version(given) != version
        if self._spoils is None:
            # NumPy changes memory without a word to PyTorch, so on the CPU the numbers are compared.
            self._spoils = changed or (_is_plain_cpu(given) and not torch.equal(given, y))
        elif changed:
            raise ValueError("`f` changes y in place, but not at its first evaluation: write `y = y.clone()` first")
        return out


class FieldInPieces(CountedField):
    """The f of a problem, counted, as it is between two of its jumps: those that lie around the time last entered."""

    def __init__(self, problem: Problem, stats: Stats, t: float, fresh: bool = False) -> None:
        self.problem, self.piece = problem, problem.piece(t)
        super().__init__(problem.field_in(self.piece), stats, fresh)

    def enter(self, t: float, backward: bool = False) -> bool:
        """Take f as it is in a step that begins at t; whether that is another piece."""
        piece = self.problem.piece(t, backward) if self.problem.jumps else 0
        if piece == self.piece:
            return False
        self.piece, self.f = piece, self.problem.field_in(piece)
        return True


def evaluate_at_start(problem: Problem, y0: Tensor) -> Tensor:
    """f(t0, y0); y0 is `problem.y0`, or a copy of it outside of autograd."""
    return FieldInPieces(problem, problem.stats, 0.0)(problem.field_time(0.0), y0)


def checked(out: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """f(t, y), of y's shape and dtype.

    Raises:
        ValueError, TypeError: If it is of another; the text says how to mend it.
    """
    if out.shape != y.shape:
        refuse_shape(out, t, y)
    if out.device != y.device:
        raise ValueError(f"`f` must return a tensor on y's device {y.device}, returned one on {out.device}")
    return in_dtype_of(y, out)


def _version(y: Tensor) -> int:
    """How often y has been changed in place; always 0 in inference mode, which does not count."""
    return 0 if y.is_inference() else y._version


def _is_plain_cpu(y: Tensor) -> bool:
    return y.device.type == "cpu" and not is_wrapped(y)


def _is_shared(out: Tensor) -> bool:
    """Whether something else refers to a tensor that the caller holds in one variable, or to its memory."""
    tensors, memory = _references(out)
    is_view = out._base is not None
    new = _NEW_VIEW if is_view else _NEW
    if memory > new[1]:
        return True
    # A tracer may hold references of its own to what is handed through calls, at times when it did not at the import.
    return tensors > new[0] and (is_view or tensors - new[0] > _references_of_calls() - _CALLS)


def _references(out: Tensor) -> tuple[int, int]:
    """How many refer to a tensor (of a view: to the tensor that it is a view of), and to its memory."""
    tensor = out if out._base is None else out._base
    # Autograd keeps results too, and takes care of changes in place; transforms of functions have no memory to share.
    if out.requires_grad or is_wrapped(out):
        return sys.getrefcount(tensor), 0
    storage = out.untyped_storage()
    if not storage.resizable():  # NumPy's, or that of a file
        return sys.getrefcount(tensor), sys.maxsize
    return sys.getrefcount(tensor), torch._C._storage_Use_Count(storage._cdata)  # private, but nothing else tells


def _references_of_new(view: bool) -> tuple[int, int]:
    """The counts where nothing else refers to it: versions of Python count differently."""
    with torch.inference_mode(False), torch.no_grad():
        out = torch.zeros(1).neg()[0] if view else torch.zeros(1).neg()
    return _through_a_call(out)


def _through_a_call(out: Tensor) -> tuple[int, int]:
    return _references(out)


def _references_of_calls() -> int:
    """How many refer to an object that is handed on through two calls, as `_references` and its caller do."""
    return _handed_on(object())


def _handed_on(one: object) -> int:
    return _counted(one)


def _counted(one: object) -> int:
    return sys.getrefcount(one)


_NEW, _NEW_VIEW, _CALLS = _references_of_new(view=False), _references_of_new(view=True), _references_of_calls()
