"""What the tolerance experiment measures: one training of an ODE-Net under some settings, and what it then is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from odenets.adjoint import Checkpointed
from odenets.controller import Fixed
from odenets.data.ecg import load_ecg
from odenets.data.images import small_digits
from odenets.experiments.driver import Quantity, Row, means
from odenets.nn import MLPField, ODEBlock, ODENet, ResNet
from odenets.nn.models import ResidualBlock
from odenets.progress import no_progress
from odenets.solution import SolveError
from odenets.train import NonFiniteLoss, TrainConfig, evaluate, fit
from odenets.tuning.diagnose import diagnose
from odenets.tuning.measure import method_text, steps_text
from odenets.tuning.tune import tune

WIDTH, HIDDEN, BLOCKS = 32, 64, 6
RESNET, TUNED = "ResNet", "chosen by tune"
FINE = {"method": "tsit5", "rtol": 1e-6, "atol": 1e-6}
_TUNING_SECONDS = 3.0


@dataclass(frozen=True)
class Setting:
    """One way to train: options of the ODE layer, weights of the regularisers, and weight decay."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    regularise: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0


def adaptive(method: str, tolerance: float) -> Setting:
    return Setting(f"{method} {tolerance:g}", {"method": method, "rtol": tolerance, "atol": tolerance})


def fixed(method: str, steps: int) -> Setting:
    return Setting(f"{method}, {steps} steps", {"method": method, "controller": Fixed(steps=steps)})


PLAIN = adaptive("tsit5", 1e-3)


def _penalised(name: str, **weights: float) -> Setting:
    decay = weights.pop("decay", 0.0)
    return replace(PLAIN, name=name, regularise=weights, weight_decay=decay)


PENALTIES = (
    _penalised("kinetic 0.01", kinetic=0.01),
    _penalised("jacobian 0.01", jacobian=0.01),
    _penalised("both", kinetic=0.01, jacobian=0.01),
    _penalised("weight decay 0.1", decay=0.1),
)


@dataclass(frozen=True)
class Problem:
    """Inputs (n, features) and classes (n,) for training and test, and where they are from."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    source: str
    synthetic: bool = False

    @property
    def outputs(self) -> int:
        return int(self.train[1].max()) + 1

    @property
    def commonest(self) -> float:
        """The test error of always naming the most frequent class."""
        return 1 - float((self.test[1] == self.train[1].mode().values).double().mean())


@cache
def load(data: str, samples: int) -> Problem:
    """The digits of scikit-learn, or heartbeats; at most so many for training and half as many for test."""
    if data == "digits":
        pixels, y = small_digits()
        x = pixels / 16
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y, cut = x[order], y[order], len(x) * 2 // 3
        train, test = (x[:cut], y[:cut]), (x[cut:], y[cut:])
        source, synthetic = "The 1,797 digits that come with scikit-learn, two thirds of them for training.", False
    else:
        beats = load_ecg("auto", "random", progress=no_progress)
        train, test = _mixed(beats.train.x, beats.train.y), _mixed(beats.test.x, beats.test.y)
        source, synthetic = beats.source, beats.synthetic
    first, few = (slice(n) for n in (samples, samples // 2))
    return Problem((train[0][first], train[1][first]), (test[0][few], test[1][few]), source, synthetic)


def problem_row(data: str, samples: int) -> Row:
    """What is said of a problem without its data."""
    problem = load(data, samples)
    return {"source": problem.source, "synthetic": problem.synthetic, "commonest": problem.commonest}


def _mixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], y[order].long()


def network(problem: Problem, setting: Setting, seed: int) -> nn.Module:
    """Linear layer, ODE layer (or residual blocks with about as many weights) and linear layer."""
    torch.manual_seed(seed)
    head, tail = nn.Linear(problem.train[0].shape[1], WIDTH), nn.Linear(WIDTH, problem.outputs)
    if setting.name == RESNET:
        return ResNet(head, [ResidualBlock(WIDTH, "tanh") for _ in range(BLOCKS)], tail)
    names = tuple(setting.regularise)
    return ODENet(head, MLPField(WIDTH, (HIDDEN,)), tail, regularise=names, adjoint=Checkpointed(), **setting.options)


def train_row(data: str, samples: int, epochs: int, setting: Setting, seed: int) -> Row:
    """Train, and measure; where the training fails, the row says how."""
    problem = load(data, samples)
    model = network(problem, setting, seed)
    row = {"setting": setting.name, "seed": seed, "chosen": None, "failure": None}
    begun = time.perf_counter()
    if setting.name == TUNED:
        row["chosen"] = _tuned(model, problem)
    row["tuning"] = time.perf_counter() - begun
    config = TrainConfig(
        epochs=epochs,
        lr=5e-3,
        optimizer="adamw",
        batch_size=64,
        seed=seed,
        weight_decay=setting.weight_decay,
        device="cpu",
    )
    _warm_up()
    loss, begun = partial(_loss, model, setting.regularise), time.process_time()
    try:
        history = fit(model, loss, problem.train, problem.test, config, progress=False)
    except (NonFiniteLoss, SolveError) as error:
        return {**row, "failure": f"{type(error).__name__}: {str(error).partition('.')[0]}"}
    seconds = time.process_time() - begun  # of the processor, which other programs do not lengthen
    last = history.final
    backward = [x for x in history.column("nfe_backward") if x is not None]
    return {
        **row,
        "test_loss": last.test_loss,
        "test_error": 1 - (last.test_accuracy or 0.0),
        "seconds": seconds,
        "nfe": last.nfe,
        "nfe_backward": backward[-1] if backward else None,
        "nfe_first": history.records[0].nfe,
        "nfe_by_epoch": history.column("nfe"),
        **(_as_ode(model, problem, last.test_loss) if last.nfe is not None else {}),
    }


@cache
def _warm_up() -> None:
    """Train something tiny, so that what the first training of a process imports and loads is in no measured time."""
    data = torch.zeros(2, 1), torch.zeros(2, 1)
    config = TrainConfig(epochs=1, lr=0.1, optimizer="adamw", batch_size=2, device="cpu")
    fit(nn.Linear(1, 1), nn.functional.mse_loss, data, data, config, progress=False)


def _loss(model: nn.Module, weights: Mapping[str, float], outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy, with the regularisers in training; in evaluation mode there are none."""
    loss = nn.functional.cross_entropy(outputs, y)
    costs = _block(model).regularisation if weights else {}
    return loss + sum(weights[name] * cost.mean() for name, cost in costs.items())


def _block(model: nn.Module) -> ODEBlock:
    return next(part for part in model.modules() if isinstance(part, ODEBlock))


def _tuned(model: nn.Module, problem: Problem) -> str:
    """Give the untrained network the settings that `tune` finds for a batch; returns them in words."""
    x, y = (part[:64] for part in problem.train)
    loss = partial(nn.functional.cross_entropy, target=y)
    tuning = tune(model, x, loss=loss, compile=False, seconds=_TUNING_SECONDS, verbose=False)
    tuning.apply(model)
    adjoint = type(tuning.options.get("adjoint", Checkpointed())).__name__
    return f"{method_text(tuning.options)}, {steps_text(tuning.options)}, {adjoint}"


def _as_ode(model: nn.Module, problem: Problem, loss: float) -> dict[str, Any]:
    """What becomes of the test loss when the network is solved to 1e-6, and what `diagnose` says of its field."""
    found = diagnose(model.train(), problem.test[0][:64], points=3, verbose=False)
    block = _block(model)
    own, block.solve_options = block.solve_options, {**FINE, "adjoint": Checkpointed()}
    try:
        fine = evaluate(model, nn.functional.cross_entropy, *problem.test)[0]
    except SolveError:
        fine = None
    block.solve_options = own
    return {
        "fine_loss": fine,
        "change": None if fine is None else abs(fine - loss) / loss,
        "lipschitz": found.lipschitz,
        "stiffness": found.stiffness,
        "output_change": max(found.finer.value, found.other.value) if not found.finer.note + found.other.note else None,
        "reconstruction": found.reconstruction,
    }


# --- what many seeds say ---------------------------------------------------------------------------------------------

QUANTITIES = {
    "test_error": Quantity("test_error", "test error, %", 2, 100),
    "test_loss": Quantity("test_loss", "test loss", 3),
    "nfe": Quantity("nfe", "nfe", 1),
    "nfe_backward": Quantity("nfe_backward", "nfe backward", 1),
    "nfe_first": Quantity("nfe_first", "nfe, first epoch", 1),
    "seconds": Quantity("seconds", "processor seconds", 2),
    "change": Quantity("change", "test loss, solved to 1e-6, changes by %", 2, 100),
    "output_change": Quantity("output_change", "output changes by %", 2, 100),
    "lipschitz": Quantity("lipschitz", "Lipschitz constant", 2),
    "reconstruction": Quantity("reconstruction", "error of the start solved backward", 1, 1, True),
}


def summary_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over the seeds, and what `tune` chose."""
    found = means(rows, ["setting"], list(QUANTITIES.values()))
    for line in found:
        mine = [row for row in rows if row["setting"] == line["setting"]]
        line["failed"] = sum(row["failure"] is not None for row in mine)
        line["chosen"] = ", ".join(dict.fromkeys(row["chosen"] for row in mine if row["chosen"])) or None
    return found
