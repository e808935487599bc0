"""What somebody else's compiler leaves alone. Importing it imports PyTorch's compiler."""

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.symbolic_convert import InstructionTranslator


@torch.compiler.disable(
    reason="an implicit method iterates by values, some adjoints have their own backward pass, and adaptive steps "
    "have compiled loops of their own"
)
def outside(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function, called between two graphs."""
    return function(*args, **kwargs)


@torch.compiler.assume_constant_result
def graph_may_end() -> bool:
    """Whether what is traced now may be several graphs: not with `fullgraph=True`, nor where it is exported."""
    translator: Any = InstructionTranslator.current_tx()
    return not (translator.one_graph or translator.error_on_graph_break)


@torch.compiler.assume_constant_result
def graph_becomes_code() -> bool:
    """Whether PyTorch's own compiler gets the graph that is traced now."""
    compiler: Any = InstructionTranslator.current_tx().output.compiler_fn
    return getattr(getattr(compiler, "_torchdynamo_orig_backend", compiler), "compiler_name", None) == "inductor"
