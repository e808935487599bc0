"""Regularisers of an ODE layer's field: what its trajectories cost, integrated beside the state.

Source: Finlay, Jacobsen, Nurbekyan and Oberman, "How to train your neural ODE: the world of Jacobian and kinetic
regularization", ICML 2020, section 3.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.nn.derivative import called, with_pullback
from odenets.nn.leading import controlled_by_leading
from odenets.solution import Solution
from odenets.solve import solve

REGULARISERS = ("kinetic", "jacobian")


def check_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names of regularisers as a tuple, each once.

    Raises:
        ValueError: If one is unknown or there twice.
    """
    known = isinstance(names, str) or (isinstance(names, Iterable) and all(isinstance(name, str) for name in names))
    found = () if not known else (names,) if isinstance(names, str) else tuple(names)
    if not known or set(found) - set(REGULARISERS) or len(set(found)) < len(found):
        raise ValueError(f"`regularise` must be among {', '.join(REGULARISERS)}, each once; got {shown(names)}")
    return found


def solve_regularised(
    field: "Integrands", y0: Tensor, t: Any, options: dict[str, Any]
) -> tuple[Solution, Tensor, dict[str, Tensor]]:
    """Solve for the state, which has passed `check_state`, with the integrals of the regularisers beside it.

    The integrals are columns of the state that the solver sees, (batch, size of a sample + number of regularisers),
    so every adjoint differentiates them. They take no part in the error control: nothing depends on them, so an error
    in them does not grow, and the steps, the evaluations of f and the output stay those of the solve without them.

    Returns:
        The solution, the states (len(t), *y0.shape), and each integral, (batch,).
    """
    batch, size = len(y0), math.prod(y0.shape[1:])
    state = torch.cat([y0.reshape(batch, size), y0.new_zeros(batch, len(field.names))], dim=1)
    # One probe for the whole solve: with a new one at every evaluation there would be no function to integrate.
    probe = y0.new_empty(0)
    if "jacobian" in field.names:
        probe = 2 * torch.randint(2, y0.shape, dtype=y0.dtype, device=y0.device) - 1
    args = (probe, *options.get("args", ()))
    options = {**controlled_by_leading(options, size, "regularise"), "args": args}
    solution = solve(field, state, t, **options)
    forward = (solution.ts[-1] - solution.ts[0]).detach().sign().to(y0.dtype)  # the integrals are over |dt|
    ys, sums = solution.ys[..., :size], forward * solution.ys[-1, :, size:]
    return solution, ys.reshape(len(ys), *y0.shape), dict(zip(field.names, sums.unbind(dim=1)))


def check_state(y0: Any) -> None:
    if not isinstance(y0, Tensor):
        raise TypeError(f"`regularise` needs a tensor for input, got {shown(y0)}: write torch.cat(...) of several")
    if y0.dim() < 2 or not y0.is_floating_point():
        raise ValueError(
            "`regularise` needs a real input with samples along the first axis and at least one more, got "
            f"{y0.dtype} of shape {tuple(y0.shape)}: write x[None] for one sample"
        )


@dataclass(eq=False)
class Integrands:
    """The field with what the regularisers integrate beside it, for states of which a sample has `shape`."""

    field: Callable[..., Tensor]
    names: tuple[str, ...]
    shape: tuple[int, ...]

    def __call__(self, t: Tensor, state: Tensor, probe: Tensor, *args: Any) -> Tensor:
        size = state.shape[1] - len(self.names)
        z = state[:, :size].reshape(len(state), *self.shape)
        t = t.reshape(-1, *(1,) * len(self.shape)) if t.dim() else t
        if "jacobian" in self.names:
            dz, pull = with_pullback(lambda z: called(self.field, t, z, args), z)
            found = {"kinetic": dz, "jacobian": pull(probe)}
        else:
            found = {"kinetic": called(self.field, t, z, args)}
        columns = [found[name].reshape(len(state), size).square().sum(dim=1, keepdim=True) for name in self.names]
        dz = found["kinetic"].reshape(len(state), size)
        return torch.cat([dz, *columns], dim=1)
