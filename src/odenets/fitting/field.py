"""The model that is fitted: its parameters as one vector, and copies of it that have different ones."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.arguments import refuse_class, shown

_SAME = 1e-6  # relative, of what a row of a batch and that row alone may differ by


class Model:
    """A vector field with parameters, by name. It is never written into: `at` and `copies` are others.

    Args:
        model: A module f(t, y), or a function f(t, y, **parameters).
        parameters: The function's parameters, name → start; None for a module.

    Raises:
        TypeError, ValueError: If it is none, or has nothing to fit.
    """

    def __init__(self, model: Any, parameters: Mapping[str, Any] | None) -> None:
        self.model, self.is_module = model, isinstance(model, nn.Module)
        refuse_class("model", model)
        if not callable(model):
            raise TypeError(f"`model` must be a module or a function f(t, y), got {shown(model)}")
        if self.is_module and parameters is not None:
            raise TypeError("`parameters` would be ignored beside a module, whose own are fitted: leave it out")
        self.start = _of_module(model) if isinstance(model, nn.Module) else _of_function(parameters)
        self.dtype = next(iter(self.start.values())).dtype
        self.shapes = {name: value.shape for name, value in self.start.items()}

    @property
    def size(self) -> int:
        """How many numbers are fitted."""
        return sum(value.numel() for value in self.start.values())

    def vector(self) -> Tensor:
        """The start, (P,) in float64."""
        return torch.cat([value.detach().to("cpu", torch.float64).flatten() for value in self.start.values()])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector (..., P) as name → value of its shape."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()], -1)
        return {name: x.reshape((*x.shape[:-1], *shape)) for (name, shape), x in zip(self.shapes.items(), parts)}

    def at(self, vector: Tensor, dtype: torch.dtype | None = None) -> Any:
        """The model with these parameters: a copy of the module, or a `Bound` function."""
        values = {name: value.to(dtype or self.dtype, copy=True) for name, value in self.named(vector).items()}
        if not self.is_module:
            return Bound(self.model, values)
        other = copy.deepcopy(self.model)
        other = other.cpu() if dtype is None else other.to("cpu", dtype)
        own = dict(other.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        return other

    def leaves(self, field: Any) -> list[Tensor]:
        """The parameters of a model that `at` made, in order, to be trained."""
        own = field.parameters if isinstance(field, Bound) else dict(field.named_parameters())
        return [own[name].requires_grad_() for name in self.shapes]

    def vector_of(self, field: Any) -> Tensor:
        """Those parameters, (P,) in float64."""
        return torch.cat([leaf.detach().to("cpu", torch.float64).flatten() for leaf in self.leaves(field)])

    def copies(self, count: int) -> "Copies":
        """So many copies in float64."""
        return Copies(self, [self.at(self.vector(), torch.float64) for _ in range(count)])


def _of_module(module: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {
        name: value for name, value in module.named_parameters() if value.requires_grad and value.numel()
    }
    if not found:
        names = [name for name, _ in module.named_parameters()]
        has = f"its parameters {', '.join(names[:3])} do not require grad" if names else "it has no parameters"
        raise ValueError(f"`model` must have parameters that require grad, and {has}: write model.requires_grad_()")
    return found


def _of_function(parameters: Mapping[str, Any] | None) -> dict[str, Tensor]:
    if not isinstance(parameters, Mapping) or not parameters:
        raise TypeError(
            "`parameters` must be given where `model` is a function: a dict of names and first values, passed as "
            f"f(t, y, name=value, ...); got {shown(parameters)}"
        )
    found = {}
    for name, value in parameters.items():
        tensor = torch.as_tensor(value)
        if tensor.dtype.is_complex or tensor.dtype == torch.bool or not tensor.isfinite().all():
            raise ValueError(f"`parameters[{name!r}]` must be finite real numbers, got {shown(value)}")
        is_tensor = isinstance(value, Tensor) and tensor.is_floating_point()
        found[name] = tensor if is_tensor else tensor.to(torch.float64)
    return found


class Bound:
    """A function with its parameters: f(t, y) = function(t, y, **parameters)."""

    def __init__(self, function: Callable[..., Tensor], parameters: dict[str, Tensor]) -> None:
        self.function, self.parameters = function, parameters

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.function(t, y, **self.parameters)


class Copies:
    """Copies of one model, each with parameters of its own."""

    def __init__(self, model: Model, fields: Sequence[Any]) -> None:
        self.model, self.fields = model, fields

    def write(self, vectors: Tensor) -> None:
        """Give the i-th copy the i-th of the parameters (copies, P)."""
        for field, vector in zip(self.fields, vectors):
            if isinstance(field, Bound):
                field.parameters = self.model.named(vector)
                continue
            own = dict(field.named_parameters())
            with torch.no_grad():
                for name, value in self.model.named(vector).items():
                    own[name].copy_(value)


def check_rows(field: Callable[[Tensor, Tensor], Tensor], t: tuple[float, float], y: Tensor) -> None:
    """Refuse a field that does not make each row of its value from that row of y, and of t of shape (batch, 1).

    Args:
        y: Two rows, (2, n).

    Raises:
        ValueError: With what to write instead.
    """
    times = torch.tensor(t, dtype=y.dtype)[:, None]
    wanted = (
        f"`model` must be f(t, y) with y of shape (batch, {y.shape[1]}) and t of shape () or (batch, 1), and make each "
        "row from its own: write y[:, :1] or y.unbind(-1) for a component, beside t the former"
    )
    with torch.no_grad():
        try:
            together = field(times, y)
            alone = torch.cat([field(times[i, 0], y[i : i + 1]) for i in (0, 1)])
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{wanted}. It raised {type(error).__name__}: {shown(str(error))}") from error
    if together.shape != y.shape or alone.shape != y.shape:
        raise ValueError(f"{wanted}. It returned the shape {tuple(together.shape)} for two rows")
    finite = together.isfinite() & alone.isfinite()
    apart = (together - alone).abs() > _SAME * (together.abs() + alone.abs() + 1e-12 * together[finite].abs().sum())
    if (apart & finite).any():
        raise ValueError(f"{wanted}. Its rows alone are others than in a batch")
