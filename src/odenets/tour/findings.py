"""Sections 5 to 7: heartbeats, advantages and disadvantages, the definitions of the appendix."""

from collections.abc import Mapping
from typing import Any

import torch

from odenets import figures
from odenets.data.beats import CLASS_NAMES, CLASSES
from odenets.experiments.result import Picture
from odenets.figures import Line
from odenets.nn import count_parameters
from odenets.tour.lesson import FAILS, HOLDS, Lesson, Names, Shown, table


def _heartbeats(names: Names) -> Shown:
    found, always = names["found"], names["always"]
    rows = [
        (name, count_parameters(network), history.final.nfe, history.final.test_loss, history.final.test_accuracy)
        for (name, history), network in zip(found.items(), names["pair"])
    ]
    (_, large, _, _, right), (_, small, nfe, _, other) = rows
    epochs = len(found["ODE-Net"].records)
    ahead = sum(a < b for a, b in zip(*(found[name].column("test_loss") for name in ("ODE-Net", "ResNet"))))
    seconds = torch.arange(187) / 120  # the rate of the rows
    beats = {name: Line(seconds, beat) for name, beat in zip(CLASSES, names["beats"])}
    curves = {name: Line(range(1, epochs + 1), history.column("test_loss")) for name, history in found.items()}
    return Shown(
        f"What it shows: the document's two networks at work, from beats to classes. The ODE-Net has "
        f"{small / large:.0%} of the ResNet's parameters, takes {nfe:.0f} evaluations of f a pass, and after {epochs} "
        f"epochs is right for {other:.1%} of the test, the ResNet for {right:.1%}; calling every beat normal is right "
        f"for {always:.1%}. Its test loss is the lower one after {ahead} of {epochs} epochs. What it does not show: "
        "anything about hearts, for these beats are synthetic, and one seed settles nothing. The experiment trains 20 "
        "epochs on the MIT-BIH records, with seeds and the trivial answers beside, and also on patients that no "
        "network has seen.",
        tables=(
            table(
                "Synthetic beats, test set",
                ("network", "parameters", "evaluations of f", "cross entropy", "accuracy"),
                [*rows, ("always N", None, None, None, always)],
            ),
        ),
        pictures=(
            Picture(
                "beats",
                "A beat of each class",
                "The first synthetic beat of each class, from one R peak to beyond the next. "
                f"{', '.join(map(' '.join, zip(CLASSES, CLASS_NAMES)))}.",
                figures.lines(beats, "time in seconds", "signal, from 0 to 1"),
            ),
            Picture(
                "beats-learned",
                "Test loss by epoch (the document's figures 9 and 10)",
                "Cross entropy on the test beats after each epoch.",
                figures.lines(curves, "epoch", "cross entropy in nats", marked=True),
            ),
        ),
    )


HEARTBEATS = Lesson(
    "5",
    "Real data: heartbeats",
    "Five classes of heartbeats. Both networks have the same head and tail; between them the ResNet has six residual "
    "blocks and the ODE-Net one field.",
    (),
    """
    import torch
    from odenets.data.ecg import load_ecg
    from odenets.nn import twins
    from odenets.train import TrainConfig, fit

    torch.manual_seed(0)
    data = load_ecg("synthetic")                                # load_ecg() takes the real records where it can
    train, test = (data.train.x[:4000], data.train.y[:4000]), (data.test.x[:1000], data.test.y[:1000])
    pair, config = twins(187, 5, verbose=False), TrainConfig(epochs=10, lr=0.1, momentum=0.9)
    found = {name: fit(network, torch.nn.functional.cross_entropy, train, test, config, progress=False)
             for name, network in zip(("ResNet", "ODE-Net"), pair)}
    always = (test[1] == 0).float().mean().item()
    beats = [data.train.x[data.train.y == k][0] for k in range(5)]
    """,
    _heartbeats,
    claim="Test cross entropy 0.10 (ResNet) and 0.09 (ODE-Net), accuracy 97.5 % for both; the ODE-Net learns faster.",
    more="odenets run ecg",
)


def _series(names: Names) -> Shown:
    error, steps = float(names["error"]), names["grid_error"]
    return Shown(
        f"The state of an ODE is there at every time: from the same solve, {len(names['t'])} irregular times come out "
        "to "
        f"{error:.0e}. A recurrent network that counts observations instead of time sees the same numbers for other "
        f"gaps: taking them as evenly spaced is wrong by {float(steps):.2f} here. What that is worth in prediction is "
        "an "
        "experiment of its own.",
        HOLDS if error < 1e-4 else FAILS,
        pictures=(
            Picture(
                "irregular",
                "A solution at irregular times",
                "Forty observation times drawn at random; each gets its state from one solve.",
                figures.lines(
                    {
                        "state at the observations": Line(names["t"], names["z"][:, 0]),
                        "cos t": Line(names["fine"], names["fine"].cos()),
                    },
                    "time t",
                    "z₁(t)",
                    marked=True,
                    level="cos t",
                ),
            ),
        ),
    )


SERIES = Lesson(
    "6.1",
    "Advantage: time series at irregular times",
    "A recurrent network has one layer an observation and no time between. The state of an ODE-Net is defined at every "
    "time, so it can be asked for wherever there is an observation.",
    (),
    """
    import torch
    from odenets import solve

    torch.manual_seed(0)
    t = torch.cat([torch.zeros(1), torch.rand(39).sort().values * 10]).double()
    swing = lambda t, z: torch.stack([z[1], -z[0]])
    z = solve(swing, torch.tensor([1.0, 0.0], dtype=torch.float64), t, rtol=1e-7, atol=1e-7).ys
    error = (z[:, 0] - t.cos()).abs().max()

    even = torch.linspace(0, float(t[-1]), len(t), dtype=torch.float64)      # what counting observations assumes
    grid_error, fine = (z[:, 0] - even.cos()).abs().max(), torch.linspace(0, 10, 401)
    """,
    _series,
    claim="The hidden state can be evaluated at every time t, so irregular time series are no difficulty.",
)


def _gradient_descent(names: Names) -> Shown:
    return Shown(
        f"The solver takes the place of the layers, not of gradient descent: the {names['count']} parameters below "
        "were "
        f"learned by gradient descent through the solver (loss {names['losses'][0]:.3f} before, "
        f"{names['losses'][-1]:.4f} "
        "after). The century of theory is real, and pays in the forward pass: orders, error control, dense output.",
        FAILS,
    )


SOLVER = Lesson(
    "6.2",
    "Advantage: a century of solvers",
    "Everything known about solving equations is at hand: high order, steps chosen by an estimate of the error, "
    "implicit "
    "methods for stiff equations.",
    (),
    """
    import torch
    from odenets.nn import MLPField, ODEBlock

    torch.manual_seed(0)
    block, x = ODEBlock(MLPField(2, (16,))), torch.randn(64, 2)
    goal = torch.stack([x[:, 0] * 1.5, x[:, 1] - 0.5], 1)
    optimizer, losses = torch.optim.Adam(block.parameters(), lr=0.01), []
    for _ in range(100):
        loss = (block(x) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    count = sum(p.numel() for p in block.parameters())
    """,
    _gradient_descent,
    claim="ODE solvers can be used instead of gradient descent.",
    more="odenets run order",
)


def _robust(names: Names) -> Shown:
    sizes, kept = names["sizes"], names["kept"]
    lines = {name: Line(sizes, [100 * value for value in values]) for name, values in kept.items()}
    apart = max(kept, key=lambda name: kept[name][-1])
    return Shown(
        f"Two small networks, one seed: under the largest noise the {apart} keeps more of its answers "
        f"({', '.join(f'{name} {100 * values[-1]:.0f} %' for name, values in kept.items())}). One run settles nothing. "
        "The "
        "experiment has convolutional networks, attacks with and without gradients, and seeds; later work found that "
        "an "
        "adaptive solver can hide its gradient, and with it weakness.",
        tables=(
            table(
                "Right answers, %, under noise",
                ("network", *(f"σ = {size:g}" for size in sizes)),
                [(name, *(100 * value for value in values)) for name, values in kept.items()],
            ),
        ),
        pictures=(
            Picture(
                "robust",
                "Accuracy under Gaussian noise",
                "Digits of scikit-learn, pixels in [0, 1], noise on the test pictures.",
                figures.lines(lines, "standard deviation of the noise", "right, %", marked=True),
            ),
        ),
    )


ROBUST = Lesson(
    "6.3",
    "Advantage: robustness",
    "Trajectories of an ODE do not cross, so a small change of the input should stay a small change. Whether that "
    "makes "
    "a trained network robust is a question to be measured.",
    (),
    """
    import torch
    from odenets.data.images import load_images
    from odenets.nn import twins

    torch.manual_seed(0)
    digits, sizes, kept = load_images("digits"), [0.0, 0.1, 0.2, 0.3, 0.4], {}
    (x, y), (test_x, test_y) = digits.train, digits.test
    for name, network in zip(("ResNet", "ODE-Net"), twins(64, 10, width=32, depth=2, activation="tanh", verbose=False)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
        for batch in torch.cat([torch.randperm(len(x)) for _ in range(20)]).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch].flatten(1)), y[batch]).backward()
            optimizer.step()
        noisy = [(test_x + size * torch.randn(test_x.shape)).flatten(1) for size in sizes]
        kept[name] = [(network(z).argmax(1) == test_y).float().mean().item() for z in noisy]
    """,
    _robust,
    claim="ODE-Nets are very robust against perturbed data compared to regular networks.",
    more="odenets run robustness",
)


def _memory(names: Names) -> Shown:
    steps, kept = names["steps"], names["kept"]
    lines = {name: Line(steps, [n / 1024 for n in values]) for name, values in kept.items()}
    constant = [name for name, values in kept.items() if values[-1] <= 1.1 * values[0]]
    growing = [name for name in kept if name not in constant]
    return Shown(
        f"Between {steps[0]} and {steps[-1]} steps the memory that a solve keeps for its backward pass is constant for "
        f"{', '.join(constant) or 'none'} and grows for {', '.join(growing) or 'none'}. Solving the state backward, as "
        "the "
        "document has it, is one of the constant ways and not the most exact: the experiment shows what is lost.",
        HOLDS if "Backsolve" in constant else FAILS,
        pictures=(
            Picture(
                "memory-kept",
                "What the backward pass keeps",
                "KiB of tensors kept by one solve, a state of 8 KiB, over the number of RK4 steps.",
                figures.lines(lines, "steps", "KiB kept", log="xy", marked=True),
            ),
        ),
    )


MEMORY = Lesson(
    "6.4",
    "Advantage: constant memory",
    "A ResNet keeps the output of every layer for the backward pass. The adjoint method keeps the last state and "
    "solves "
    "for the others backward in time; there are ways between the two.",
    (),
    """
    import torch
    from odenets import Backsolve, Checkpointed, Direct, Fixed, Reversible, solve

    torch.manual_seed(0)
    W, x = torch.randn(32, 32).div(8).requires_grad_(), torch.randn(64, 32)
    steps, kept = [8, 32, 128, 512], {}
    adjoints = {"Direct": Direct(), "Checkpointed": Checkpointed(activations=0), "Backsolve": Backsolve(),
                "Checkpointed(memory=8)": Checkpointed(memory=8), "Reversible": Reversible()}
    f = lambda t, z: torch.tanh(z @ W)
    for name, adjoint in adjoints.items():
        for n in steps:
            sizes = {}
            keep = lambda tensor: sizes.setdefault(tensor.data_ptr(), tensor.nbytes) and tensor
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                solve(f, x, [0.0, 1.0], method="rk4", controller=Fixed(steps=n), adjoint=adjoint)
            kept.setdefault(name, []).append(sum(sizes.values()))
    """,
    _memory,
    claim="ODE-Nets can be trained with memory constant in the number of evaluations of f.",
    more="odenets run memory",
)


def _named(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _slower(names: Names) -> Shown:
    rows = names["rows"]
    chosen = names["tuning"].chosen
    return Shown(
        f"A tighter tolerance costs evaluations, and so do larger weights: at the tightest {rows[-1][1]} before and "
        f"{rows[-1][2]} after they have grown, so training can make a layer slower. Nothing of it has to be guessed: "
        f"`odenets.tune` measures, and here it takes {_named(chosen.options)} with {chosen.nfe:g} evaluations of f.",
        HOLDS if rows[-1][2] > rows[0][2] and rows[-1][2] > rows[-1][1] else FAILS,
        tables=(table("A layer before and after its weights have grown", ("rtol", "nfe, new", "nfe, grown"), rows),),
    )


SLOWER = Lesson(
    "6.5",
    "Disadvantages: slower training, more hyper-parameters",
    "The solver decides how many evaluations of f a batch takes, and takes more as the dynamics get harder. Solver and "
    "tolerance have to be chosen.",
    (),
    """
    import torch, copy
    from odenets import tune
    from odenets.nn import MLPField, ODEBlock

    torch.manual_seed(0)
    field, x, rows = MLPField(8, (32,)), torch.randn(32, 8), []
    grown = copy.deepcopy(field)
    for p in grown.parameters():
        p.data *= 4
    for rtol in (1e-2, 1e-4, 1e-6):
        blocks = [ODEBlock(f.double(), rtol=rtol, atol=rtol) for f in (field, grown)]
        nfe = [(block(x.double()), block.stats.nfe)[1] for block in blocks]
        rows.append((f"{rtol:g}", *nfe))
    tuning = tune(ODEBlock(grown), x.double(), compile=False, verbose=False)
    """,
    _slower,
    claim="ODE-Nets train more slowly, and a solver and its tolerance have to be chosen.",
    more="odenets run tolerance",
)


def _definitions(names: Names) -> Shown:
    rows = names["rows"]
    good = all(abs(a - b) <= 1e-5 * max(1, abs(b)) for _, a, b in rows) and names["convex"] and names["lipschitz"]
    return Shown(
        "Each definition is a line of code; the numbers on the left come from the definition, those on the right from "
        "automatic differentiation.",
        HOLDS if good else FAILS,
        tables=(table("Definitions 3 and 6", ("", "by the definition", "by autograd"), rows),),
    )


APPENDIX = Lesson(
    "7",
    "Appendix: the definitions",
    "Partial derivative (3), Taylor's formula (4, see 3.4), convexity (5), the chain rule (6), a Lipschitz gradient "
    "(7).",
    (
        r"\frac{\partial f}{\partial x_i}(a) = \lim_{h\to 0}\frac{f(\ldots, a_i+h, \ldots)-f(a)}{h}",
        r"f(tx_1+(1-t)x_2) \leq tf(x_1)+(1-t)f(x_2)",
        r"\frac{\partial f\circ g}{\partial x} = \left(\frac{\partial f}{\partial x}\circ "
        r"g\right)\frac{\partial g}{\partial x}",
    ),
    """
    import torch
    from torch.func import grad

    D, h = torch.float64, 1e-7
    f, g = lambda x: x[0] ** 2 * torch.sin(x[1]), lambda u: torch.stack([u.exp(), 3 * u])
    a, u = torch.tensor([1.5, 0.5], dtype=D), torch.tensor(0.3, dtype=D)
    partial = (f(a + torch.tensor([h, 0.0], dtype=D)) - f(a)) / h                       # 3
    chain = grad(f)(g(u)) @ torch.autograd.functional.jacobian(g, u)                       # 6
    rows = [("∂f/∂x₁", partial.item(), grad(f)(a)[0].item()),
            ("∂(f∘g)/∂u", chain.item(), grad(lambda u: f(g(u)))(u).item())]

    x, y, s = torch.randn(1000, dtype=D), torch.randn(1000, dtype=D), torch.rand(1000, dtype=D)
    soft = torch.nn.functional.softplus
    convex = bool((soft(s * x + (1 - s) * y) <= s * soft(x) + (1 - s) * soft(y)).all())   # 5
    lipschitz = bool(((x.sigmoid() - y.sigmoid()).abs() <= 0.25 * (x - y).abs()).all())   # 7, L = 1/4
    """,
    _definitions,
)

LESSONS = (HEARTBEATS, SERIES, SOLVER, ROBUST, MEMORY, SLOWER, APPENDIX)
