"""What the memory experiment measures: bytes of a training step, and states and gradients got by solving backward."""

import math
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from odenets.adjoint import Adjoint, Backsolve, Checkpointed, Direct, Interpolated, Reversible
from odenets.controller import Fixed
from odenets.data.images import small_digits
from odenets.experiments.driver import Row
from odenets.experiments.training import step
from odenets.nn import MLPField, ODEBlock, ODENet
from odenets.nn.models import ResidualBlock
from odenets.solution import SolveError
from odenets.solve import solve
from odenets.tuning.measure import difference, flat, saved_bytes

RESNET = "ResNet"
ADJOINTS: Mapping[str, Adjoint] = {
    "Direct": Direct(),
    "Checkpointed": Checkpointed(activations=0),  # the states alone
    "Checkpointed, 10 states": Checkpointed(memory=10),
    "Interpolated": Interpolated(),
    "Backsolve": Backsolve(),
    "Reversible": Reversible(),
}
WIDTH, BATCH = 64, 128
DECAY, SETTLING, TRAINED = "decay", "settling", "trained on digits"
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
BACKWARD = ("Checkpointed", "Interpolated", "Backsolve", "Reversible")  # whose gradients are compared
_REPEATS = 3
_MOST_STEPS = 1000  # a solve that needs more is called failed: forward no more than 200 are taken


# --- memory ----------------------------------------------------------------------------------------------------------


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at once and were made under it, forward and backward passes alike."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(out):
            if isinstance(x, Tensor):
                self._see(x.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._alive:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[place]

        self._alive[place] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def memory_row(name: str, evaluations: int) -> Row:
    """A training step with that many evaluations of f: Euler's steps, or residual blocks with weights of their own."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, WIDTH)
    layer = _layer(name, evaluations)
    given = (x, *layer.parameters())

    def once() -> None:
        layer(x).square().mean().backward()

    once()  # so that the gradients are there
    kept = saved_bytes(lambda: layer(x).square().mean(), given)
    with PeakBytes() as bytes_of:
        once()
    row = {"adjoint": name, "evaluations": evaluations, "kept": kept, "peak": bytes_of.peak}
    return {
        **row,
        "seconds": min(_seconds(once) for _ in range(_REPEATS)),
        "parameters": sum(p.numel() for p in given[1:]),
    }


def _layer(name: str, evaluations: int) -> nn.Module:
    if name == RESNET:
        return nn.Sequential(*(ResidualBlock(WIDTH, "tanh") for _ in range(evaluations)))
    field = MLPField(WIDTH, time="none", bias=False)
    return ODEBlock(field, method="euler", controller=Fixed(steps=evaluations), adjoint=ADJOINTS[name])


def _seconds(work: Callable[[], None]) -> float:
    begun = time.process_time()  # of the processor, which other programs lengthen less
    work()
    return time.process_time() - begun


# --- the way back ----------------------------------------------------------------------------------------------------


class Decay(nn.Module):
    """y' = −r θ y with θ = 1: distances shrink by e^(−r)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.theta = rate, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * self.theta * y

    def exact(self, y0: Tensor) -> Tensor:
        """y(1)."""
        return y0 * torch.exp(-self.rate * self.theta)


class Settling(Decay):
    """y' = r/2 (θ y − y³) with θ = 1, which settles at ±√θ: distances there shrink by e^(−r)."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate / 2 * (self.theta * y - y**3)

    def exact(self, y0: Tensor) -> Tensor:
        """By separation of variables, for y² (a logistic equation)."""
        rest = (self.theta / y0**2 - 1) * torch.exp(-self.rate * self.theta)
        return y0.sign() * torch.sqrt(self.theta / (1 + rest))


def starts() -> Tensor:
    """(16, 1), on both sides of 0 and of where `Settling` settles."""
    y = torch.linspace(0.3, 1.7, 8, dtype=torch.float64)
    return torch.cat([y, -y])[:, None]


def trained_field(epochs: int) -> tuple[Any, Tensor]:
    """The field of an ODE-Net trained on digits, and the states that 64 of them start from; both in float64."""
    torch.manual_seed(0)
    pixels, y = small_digits()
    x = pixels / 16
    model = ODENet(nn.Linear(64, 16), MLPField(16, (32,)), nn.Linear(16, 10), rtol=1e-3, adjoint=Direct())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            step(optimizer, nn.functional.cross_entropy(model(x[batch]), y[batch]))
    model = model.double()
    return model.block.field, model[0](x[:64].double()).detach()


def problem(name: str, rate: float, epochs: int) -> tuple[Any, Tensor]:
    """A field on [0, 1] and its starts."""
    if name == TRAINED:
        return trained_field(epochs)
    return (Decay if name == DECAY else Settling)(rate), starts()


def way_back(name: str, rate: float, epochs: int) -> Row:
    """For each tolerance: the error of y(0) solved backward from y(1), and that of each adjoint's gradient.

    The gradient is that of the mean of y(1)² to y0 and the field's parameters, in float64, beside the exact one. That
    of `Decay` itself decays below every tolerance, so there only the state is solved back.
    """
    field, y0 = problem(name, rate, epochs)
    found: dict[str, Any] = {"problem": name, "rate": rate, "tolerances": list(TOLERANCES)}
    found["back"] = [_back(field, y0, tolerance) for tolerance in TOLERANCES]
    if name == DECAY:
        return found
    wanted = [y0.requires_grad_(), *field.parameters()]
    exact = _exact_gradient(field, y0, wanted)
    for adjoint in BACKWARD:
        errors = [_gradient_error(field, y0, wanted, exact, adjoint, tolerance) for tolerance in TOLERANCES]
        found[f"gradient {adjoint}"] = errors
    return found


def _exact_gradient(field: Any, y0: Tensor, wanted: list[Tensor]) -> Tensor:
    if isinstance(field, Decay):
        end = field.exact(y0)
    else:
        end = solve(field, y0, (0.0, 1.0), rtol=1e-12, atol=1e-12, adjoint=Direct()).ys[-1]
    return _gradient(end, wanted)


def _gradient(end: Tensor, wanted: list[Tensor]) -> Tensor:
    grads = torch.autograd.grad(end.square().mean(), wanted, allow_unused=True)
    return flat([torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads)])


@torch.no_grad()
def _back(field: Any, y0: Tensor, tolerance: float) -> float | None:
    """‖y(0) solved backward − y(0)‖ / ‖y(0)‖; None where the solve back fails."""
    options = {"rtol": tolerance, "atol": tolerance, "on_failure": "status", "max_steps": _MOST_STEPS}
    end = solve(field, y0, (0.0, 1.0), **options).ys[-1]
    back = solve(field, end, (1.0, 0.0), **options)
    error = difference(flat([y0]), flat([back.ys[-1]]))
    return error if back.failure is None and math.isfinite(error) else None


def _gradient_error(
    field: Any, y0: Tensor, wanted: list[Tensor], exact: Tensor, adjoint: str, tolerance: float
) -> float | None:
    """The relative error of the gradient; None where a solve fails."""
    options = {"rtol": tolerance, "atol": tolerance, "max_steps": _MOST_STEPS}
    try:
        end = solve(field, y0, (0.0, 1.0), adjoint=ADJOINTS[adjoint], **options).ys[-1]
        error = difference(exact, _gradient(end, wanted))
    except SolveError:
        return None
    return error if math.isfinite(error) else None
