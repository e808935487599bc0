"""Deep equilibrium networks on digits, their explicit twins, and what autograd keeps of both.

The network is z = tanh(W z + U x + b) between two linear layers, with z solved for or made by so many repetitions; the
source is Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019.
"""

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odenets.experiments.digits import QUARTER, digits
from odenets.experiments.driver import Row
from odenets.experiments.training import accuracy, step
from odenets.extra import experiments_extra
from odenets.nn.implicit import ImplicitLayer, ImplicitStats
from odenets.nn.models import count_parameters
from odenets.nn.roots import ImplicitError

EXPLICIT = "explicit, {} deep"
EQUILIBRIUM, BOUNDED, TRIVIAL = "equilibrium", "equilibrium, ‖W‖ ≤ 0.9", "logistic regression"
BOUND = 0.9  # of ‖W‖, with which h changes less than z, so that it has one fixed point (Banach)
DEPTHS = (1, 2, 4, 8, 16, 32)  # of the explicit twins; one weight matrix in all layers
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BATCH = 128
LONG = 500  # layers, far beyond all that is trained


class Plan(NamedTuple):
    """How the networks of a run are made and trained."""

    width: int
    epochs: int
    method: str
    tol: float


class Cell(nn.Module):
    """h(x, z) = tanh(W z + b + x): what is repeated, or what is solved for z = h(x, z)."""

    def __init__(self, width: int, bounded: bool = False) -> None:
        super().__init__()
        self.linear, self.bounded = nn.Linear(width, width), bounded

    def weight(self) -> Tensor:
        """W, made once for all repetitions: its norm costs more than they do."""
        weight = self.linear.weight
        return weight / torch.clamp(torch.linalg.matrix_norm(weight, 2) / BOUND, min=1.0) if self.bounded else weight

    def forward(self, x: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(z, weight, self.linear.bias) + x)


class Network(nn.Module):
    """A linear layer, the cell repeated `layers` times from zero (0: until nothing changes), a linear layer."""

    def __init__(self, plan: Plan, layers: int, bounded: bool = False) -> None:
        super().__init__()
        self.head, self.tail = nn.Linear(64, plan.width), nn.Linear(plan.width, 10)
        self.cell = Cell(plan.width, bounded)
        self.plan, self.layers = plan, layers
        self.stats: ImplicitStats | None = None

    def state(self, images: Tensor) -> Tensor:
        """z, (batch, width)."""
        x, weight = self.head(images), self.cell.weight()
        if self.layers == 0:
            how = {"method": self.plan.method, "tol": self.plan.tol}
            layer = ImplicitLayer(lambda x, z: self.cell(x, z, weight) - z, **how)
            z, self.stats = layer(x), layer.stats
            return z
        z = torch.zeros_like(x)
        for _ in range(self.layers):
            z = self.cell(x, z, weight)
        return z

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.state(images))


def trained(name: str, layers: int, plan: Plan, seed: int) -> Row:
    """One network after training; where no equilibrium is found, what the layer said, and what it was before."""
    images, labels, test, truth = digits(seed, QUARTER)
    torch.manual_seed(seed)
    net = Network(plan, layers, bounded=name == BOUNDED)
    row: dict[str, Any] = {"network": name, "layers": layers, "seed": seed, "parameters": count_parameters(net)}
    optimizer, started, effort = torch.optim.Adam(net.parameters(), lr=3e-3), time.process_time(), []
    right, done = None, 0
    try:
        for _ in range(plan.epochs):
            for some in torch.randperm(len(labels)).split(BATCH):
                step(optimizer, nn.functional.cross_entropy(net(images[some]), labels[some]))
                if net.stats is not None:
                    effort.append((net.stats.iterations, net.stats.products or 0))
            right, done = accuracy(net, test, truth), done + 1
    except ImplicitError as error:
        return row | {"failed": str(error), "lost": 1.0, "lost_in": done + 1, "lost_at": right}
    row["seconds"] = time.process_time() - started  # of the processor, whatever else runs on it; there is one thread
    if effort:
        row["iterations"], row["products"] = (sum(x) / len(effort) for x in zip(*effort))
    net.layers = LONG
    return row | {"lost": 0.0, "accuracy": right, "accuracy_on": accuracy(net, test, truth)}


def trivial(seed: int) -> Row:
    """Logistic regression on the same images."""
    with experiments_extra("the baseline"):
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 — seconds to import

    images, labels, test, truth = (part.numpy() for part in digits(seed, QUARTER))
    started = time.process_time()
    model = LogisticRegression(max_iter=1000).fit(images, labels)
    seconds = time.process_time() - started
    right = float(model.score(test, truth))
    return {"network": TRIVIAL, "seed": seed, "parameters": 650, "accuracy": right, "seconds": seconds}


def memory(plan: Plan, seed: int) -> Row:
    """Bytes kept for the backward pass of a batch, of the twins by layers and of the equilibrium by iterations."""
    images = digits(seed, QUARTER)[0][:BATCH]
    explicit, implicit = [], []
    for layers in (*DEPTHS, 64):
        torch.manual_seed(seed)
        explicit.append((layers, kept_bytes(Network(plan, layers), images)))
    for tol in TOLERANCES:
        torch.manual_seed(seed)
        net = Network(plan._replace(tol=tol), 0)
        size = kept_bytes(net, images)
        implicit.append((net.stats.iterations if net.stats else 0, size))
    return {"explicit": explicit, "implicit": implicit}


def kept_bytes(net: Network, images: Tensor) -> int:
    """Bytes of the different tensors that autograd saves in a forward pass, without the parameters."""
    weights, sizes = {p.data_ptr() for p in net.parameters()}, {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            sizes[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = net(images)  # lives until all is counted, so that no address comes twice
    return sum(sizes.values()) if out.requires_grad else 0
