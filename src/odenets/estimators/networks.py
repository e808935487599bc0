"""The networks that an estimator makes by name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from odenets.arguments import count, shown
from odenets.nn.series import GRUD, MTAN, ODERNN, GapGRU, NeuralCDE

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ode_rnn": ODERNN,
    "gru": GapGRU,
    "gru_d": GRUD,
    "cde": NeuralCDE,
    "mtan": MTAN,
}
SOLVERS = ("ode_rnn", "cde")  # those that take options of `solve`


def make_network(
    model: Any,
    channels: int,
    outputs: int,
    hidden: Any,
    static: int,
    solve_options: Mapping[str, Any] | None,
    seed: int,
) -> nn.Module:
    """A network of `model`, a name or a function `model(channels, outputs, hidden, static=static, **solve_options)`.

    Its weights depend on the seed alone, and torch's random numbers go on as if it had not been made.

    Raises:
        TypeError, ValueError: If it cannot be made.
    """
    if solve_options and model in set(NETWORKS) - set(SOLVERS):
        names = " and ".join(map(repr, SOLVERS))
        raise ValueError(f"`solve_options` are for models with a solver, {names}; leave them out of model={model!r}")
    make: Any = NETWORKS.get(model) if isinstance(model, str) else model
    if make is None or isinstance(make, nn.Module) or not callable(make):
        raise ValueError(
            f"`model` must be one of {', '.join(map(repr, NETWORKS))}, or a function (channels, outputs, hidden, "
            f"static=...) that returns a new module, got {shown(model)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = make(channels, outputs, count("hidden", hidden), static=static, **(solve_options or {}))
        return network
