"""Error control by the leading columns of a state, where the others are integrals that nothing depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from odenets.arguments import shown
from odenets.controller import PID, FirstStep, Norm, Number, Start, rms


@dataclass(frozen=True)
class OfLeading(PID):
    """`PID` that judges the first `size` columns of the state alone."""

    size: int = 0

    def error_ratio(self, y: Tensor, y1: Tensor, error: Tensor, norm: Norm = rms) -> Tensor:
        return PID.error_ratio(self, y, y1, error, self._leading(norm))

    def first_step(self, start: Start) -> FirstStep:
        return PID.first_step(self, start._replace(norm=self._leading(start.norm)))

    def _leading(self, norm: Norm) -> Callable[[Tensor], Number]:
        return lambda x: norm(x[..., : self.size])


def controlled_by_leading(options: dict[str, Any], size: int, why: str) -> dict[str, Any]:
    """Options of a solve with a controller that sees the first `size` columns alone; fixed steps stay as they are.

    Args:
        why: The option that asks for it, for the error.

    Raises:
        TypeError: If the controller is neither `PID` nor one of fixed steps, or has a norm or tolerances for
            each component.
    """
    controller = options.get("controller")
    given = {name: options[name] for name in ("rtol", "atol") if options.get(name) is not None}
    if controller is None:
        controller = PID(**given)
    elif given:
        return options  # which `solve` refuses
    elif type(controller) is not PID:
        if controller.adaptive:
            raise TypeError(f"`{why}` goes with `PID` and with fixed steps, got `controller` {shown(controller)}")
        return options
    if controller.by_component or controller.norm is not None:
        raise TypeError(f"`{why}` needs `rtol` and `atol` that are one number each, and `PID` without `norm`")
    rest = {name: value for name, value in options.items() if name not in ("rtol", "atol", "controller")}
    return {**rest, "controller": OfLeading(**vars(controller), size=size)}
