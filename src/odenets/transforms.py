"""Which of torch's function transforms are active: forward mode, `torch.func.grad`, `jvp`, `vmap` and what they make.

Under a transform a tensor carries more than a `torch.autograd.Function` gets to see: its tangent, or a value for each
entry that `vmap` maps over. `solve` asks here, once, and then runs the loop itself under the transform.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

# torch.func has no public way to ask; these are the names that its own Python code uses.
_FUNCTORCH: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


def is_wrapped(x: Tensor) -> bool:
    """Whether x belongs to a transform of `torch.func`, which keeps its values inside."""
    return _FUNCTORCH.is_functorch_wrapped_tensor(x)


def active() -> bool:
    """Whether the code that runs now is being transformed, or runs in a level of forward mode."""
    return _FUNCTORCH.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def carries_derivative(x: Tensor) -> bool:
    """Whether x carries a tangent, or a transform differentiates by it, whichever of those that are nested."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return True
    innermost = _FUNCTORCH.peek_interpreter_stack()
    if innermost is None:
        return False
    if _FUNCTORCH.maybe_get_level(x) == innermost.level():
        if x.requires_grad:
            return True
        x = _FUNCTORCH.get_unwrapped(x)
    with temporarily_pop_interpreter_stack():
        return carries_derivative(x)


def is_differentiated(x: Tensor) -> bool:
    """Whether derivatives by x are wanted: of a backward pass, of forward mode or of a transform."""
    return (x.requires_grad and torch.is_grad_enabled()) or carries_derivative(x)


def is_mapped(x: Tensor) -> bool:
    """Whether `vmap` maps over x."""
    while is_wrapped(x):
        if _FUNCTORCH.is_batchedtensor(x):
            return True
        x = _FUNCTORCH.get_unwrapped(x)
    return False


def unwrapped(x: Tensor) -> Tensor:
    """The values of x, with the axes that `vmap` maps over among its own."""
    while is_wrapped(x):
        x = _FUNCTORCH.get_unwrapped(x)
    return x


def value_of(x: Tensor) -> float:
    """The one value of x, read by the host; where `vmap` maps over it, the largest, so that all share what follows."""
    return unwrapped(x).max().item() if is_wrapped(x) else x.item()


def values_of(x: Tensor) -> list[float]:
    """The values of a vector, as `value_of` reads them."""
    if is_wrapped(x):
        return [value_of(value) for value in x.unbind()]
    return x.tolist()


def all_finite(x: Tensor) -> bool:
    """Whether all of it is finite; while operations are recorded or captured, nobody looks."""
    return is_recorded() or is_captured(x) or bool(torch.isfinite(unwrapped(x)).all())


def is_recorded() -> bool:
    """Whether the operations that run now are written down as a graph: `torch.func.linearize`, `make_fx`."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def is_captured(x: Tensor) -> bool:
    """Whether what is done with x is put into a CUDA graph, in which nothing can be read."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def refuse_in_backward(cotangents: Iterable[Tensor | None], remedy: str) -> None:
    """Refuse a backward pass whose cotangents carry what it would lose.

    Raises:
        NotImplementedError: Naming the transforms, and the remedy.
    """
    if any(bar is not None and _is_transformed(bar) for bar in cotangents):
        raise NotImplementedError(
            "this backward pass cannot run under `is_grads_batched=True`, `jacobian(vectorize=True)`, `vmap` or "
            f"forward mode that began after the solve: {remedy}, or solve inside the transform"
        )


def _is_transformed(x: Tensor) -> bool:
    wrapped = is_wrapped(x) or _FUNCTORCH.is_legacy_batchedtensor(x)
    return wrapped or carries_derivative(x)
