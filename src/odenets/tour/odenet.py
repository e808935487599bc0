"""Sections 4.1 to 4.4: from the ResNet to the ODE-Net, its forward pass, the adjoint method, x³ + 0.1x."""

import torch

from odenets import figures
from odenets.experiments.result import Picture
from odenets.figures import Line
from odenets.tour.lesson import FAILS, HOLDS, PARTLY, Lesson, Names, Shown, table


def _solvers(names: Names) -> Shown:
    errors = names["errors"]
    lines = {name: Line([nfe for nfe, _ in row], [error for _, error in row]) for name, row in errors.items()}
    at = {name: min(row, key=lambda pair: abs(pair[0] - 64))[1] for name, row in errors.items()}
    best = min(at, key=lambda name: at[name])
    adams = at["Adams–Bashforth–Moulton"]
    return Shown(
        f"With about 64 evaluations of f the error is {at['Euler']:.0e} with Euler's method, which is what a ResNet "
        "makes, "
        f"{at['RK4']:.0e} with RK4, {adams:.0e} with a linear multistep method and {at['dopri5']:.0e} with dopri5: "
        f"any solver will do, and here {best} is the best buy.",
        HOLDS if adams < at["Euler"] else FAILS,
        pictures=(
            Picture(
                "solvers",
                "One ODE-Net, four solvers",
                "Error of the output against evaluations of f, for a field with random weights.",
                figures.lines(lines, "evaluations of f", "error of z(1)", log="xy", marked=True),
            ),
        ),
    )


SOLVERS = Lesson(
    "4.1",
    "From the ResNet to the ODE-Net",
    "If the layers of a ResNet are steps of Euler's method, a better solver of the same equation is a better network "
    "of "
    "the same parameters. The layers become one field f and a time that runs from t₀ to t_N.",
    (r"\frac{\partial z}{\partial t}(t) = f(z(t), t; \theta), \quad z(t_0) = x",),
    """
    import torch
    from odenets import Fixed, solve
    from odenets.nn import MLPField
    from odenets.torchdiffeq import odeint

    torch.manual_seed(0)
    field, x = MLPField(4, (16,)).double().requires_grad_(False), torch.randn(8, 4, dtype=torch.float64)
    exact = solve(field, x, [0.0, 1.0], rtol=1e-12, atol=1e-12).ys[-1]
    kinds = {"Euler": ("euler", 1), "RK4": ("rk4", 4), "dopri5": ("dopri5", 6)}
    errors = {name: [] for name in (*kinds, "Adams–Bashforth–Moulton")}
    for n in (4, 8, 16, 32, 64):
        for name, (method, cost) in kinds.items():
            z = solve(field, x, [0.0, 1.0], method=method, controller=Fixed(steps=n)).ys[-1]
            errors[name].append((n * cost, (z - exact).norm().item()))
        z = odeint(field, x, torch.linspace(0, 1, n + 1, dtype=torch.float64), method="implicit_adams")[-1]
        errors["Adams–Bashforth–Moulton"].append((n * 2, (z - exact).norm().item()))
    """,
    _solvers,
    claim="The same equation can be solved by a more precise method, such as a linear multistep method.",
    more="odenets run order",
)


def _forward(names: Names) -> Shown:
    rows = names["rows"]
    ratio = names["lipschitz"]
    gap = float(names["gap"])
    return Shown(
        f"The solver reaches what it is asked for, and says what it cost. Of the two remarks the second does not hold: "
        f"the theorem asks for a Lipschitz constant, and the largest |σ(a) − σ(b)|/|a − b| of ReLU is {ratio:.3f}. "
        f"An ODE-Net with ReLU has its one solution: two solvers agree to {gap:.0e}.",
        PARTLY if ratio <= 1 + 1e-9 and gap < 1e-4 else FAILS,
        tables=(table("What tolerance buys", ("rtol", "evaluations of f", "error of z(1)"), rows),),
    )


FORWARD = Lesson(
    "4.2",
    "Forward pass",
    "The layer is implicit: its output is the solution of a Cauchy problem at t_N, by whatever solver. Instead of a "
    "number "
    "of layers it has a tolerance.",
    (r"z(t_N) = z(t_0) + \int_{t_0}^{t_N} f(z(t), t; \theta)\,dt",),
    """
    import torch
    from odenets.nn import MLPField, ODEBlock

    torch.manual_seed(0)
    field, x = MLPField(4, (16,)).double(), torch.randn(8, 4, dtype=torch.float64)
    exact, rows = ODEBlock(field, t=(0.0, 10.0), rtol=1e-12, atol=1e-12)(x), []
    for rtol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8):
        block = ODEBlock(field, t=(0.0, 10.0), rtol=rtol, atol=rtol)
        error = (block(x) - exact).norm().item()
        rows.append((f"{rtol:g}", block.stats.nfe, error))

    a, b = torch.randn(2, 100_000, dtype=torch.float64)
    lipschitz = ((a.relu() - b.relu()).abs() / (a - b).abs()).max().item()
    kinked = MLPField(4, (16,), "relu").double()
    one, other = (ODEBlock(kinked, method=m, rtol=1e-7, atol=1e-7)(x) for m in ("tsit5", "bosh3"))
    gap = (one - other).norm().item()
    """,
    _forward,
    claim="Any ODE solver makes the forward pass. With ReLU the theorem of existence cannot be applied, since ReLU "
    "is not differentiable at 0.",
    more="odenets run uniqueness",
)


_WHERE = {  # the derivatives shown: which input, and where in it
    "z₁(t₀)": (0, 0),
    "z₂(t₀)": (0, 1),
    "θ₁₁": (1, (0, 0)),
    "θ₁₂": (1, (0, 1)),
    "θ₂₁": (1, (1, 0)),
    "θ₂₂": (1, (1, 1)),
    "t₀": (2, 0),
    "t_N": (2, -1),
}


def _adjoint(names: Names) -> Shown:
    loss, inputs = names["loss"], [names[name].clone().requires_grad_() for name in ("z0", "W", "seen")]
    by_autograd = torch.autograd.grad(loss(*inputs), inputs)
    rows = []
    for name, (i, at) in _WHERE.items():
        up, down = ([x.detach().clone() for x in inputs] for _ in range(2))
        up[i][at] += 1e-5
        down[i][at] -= 1e-5
        difference = (loss(*up) - loss(*down)).item() / 2e-5
        rows.append((name, names["by_adjoint"][i][at].item(), by_autograd[i][at].item(), difference))
    worst = max(abs(a - b) / max(abs(b), 1e-12) for _, a, b, _ in rows)
    times, z, t_back, a = (names[name] for name in ("t", "z", "t_back", "a"))
    panels = {
        "z(t), solved forward": {"z₁": Line(times, z[:, 0]), "z₂": Line(times, z[:, 1])},
        "a(t), solved backward": {"a₁": Line(t_back, a[:, 0]), "a₂": Line(t_back, a[:, 1])},
    }
    return Shown(
        f"Equation (6), solved backward with a jump of ∂L/∂z(tᵢ) at every observation, gives the gradients of z₀, θ "
        "and "
        f"the times; the largest relative difference from autograd is {worst:.0e}.",
        HOLDS if worst < 1e-5 else FAILS,
        tables=(
            table(
                "The components of the augmented adjoint",
                ("derivative of L by", "adjoint equation", "autograd", "finite difference"),
                rows,
            ),
        ),
        pictures=(
            Picture(
                "adjoint",
                "State and adjoint (the document's figure 6)",
                "The state forward, the adjoint backward. It jumps at the observations, t = 1, 2 and 3, by the "
                "derivative "
                "of the loss there.",
                figures.line_panels(panels, "time t", "value", share_y=False),
            ),
        ),
    )


ADJOINT = Lesson(
    "4.3",
    "Backward pass: the adjoint method",
    "How the loss depends on the state at every time is itself the solution of an equation, solved from the end to the "
    "start. Integrals along it are the gradients of the parameters and of the times. Where the loss sees the state in "
    "between, the adjoint jumps.",
    (
        r"a(t) = \frac{\partial L}{\partial z(t)}, \quad \frac{\partial a(t)}{\partial t} = "
        r"-a(t)\,\frac{\partial f(z(t), t, \theta)}{\partial z(t)}",
        r"\frac{\partial L}{\partial \theta} = -\int_{t_N}^{t_0} "
        r"a(t)\,\frac{\partial f(z(t), t, \theta)}{\partial \theta}\,dt, "
        r"\quad \frac{\partial L}{\partial t_N} = a(t_N)\,f(z(t_N), t_N, \theta)",
    ),
    """
    import torch
    from odenets import Direct, solve

    D, tight = torch.float64, {"rtol": 1e-10, "atol": 1e-10}
    W, z0 = torch.tensor([[0.1, 2.0], [-2.0, 0.1]], dtype=D), torch.tensor([1.0, 0.0], dtype=D)
    f = lambda t, z, W: torch.tanh(z @ W.T)
    seen = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=D)                  # the loss sees z(1), z(2), z(3)
    loss = lambda z0, W, seen: (solve(f, z0, seen, args=(W,), adjoint=Direct(), **tight).ys[1:] - 0.5).square().sum()

    forward = solve(f, z0, seen, args=(W,), dense=True, **tight)
    def backward(t, s):                                                 # (a, a_θ), equations (6) and (7)
        z, a = forward(t).requires_grad_(), s[:2]
        w = W.clone().requires_grad_()
        with torch.enable_grad():
            d_z, d_w = torch.autograd.grad(f(t, z, w) @ a, (z, w))
        return -torch.cat([d_z, d_w.flatten()])
    s, pieces = torch.zeros(6, dtype=D), []
    for i in (3, 2, 1):
        s = s + torch.cat([2 * (forward.ys[i] - 0.5), torch.zeros(4, dtype=D)])   # the jump
        part = solve(backward, s, torch.linspace(i, i - 1, 41, dtype=D), **tight).ys
        pieces.append(part)
        s = part[-1]

    t, t_back = torch.linspace(0, 3, 121, dtype=D), torch.cat([torch.linspace(i, i - 1, 41) for i in (3, 2, 1)])
    z, a = forward(t), torch.cat(pieces)[:, :2]
    end = forward.ys[3]
    by_time = torch.stack([-s[:2] @ f(0, z0, W), 2 * (end - 0.5) @ f(3, end, W)])
    by_adjoint = s[:2], s[2:].reshape(2, 2), by_time
    """,
    _adjoint,
    claim="The adjoint method gives the gradient of every input of a Cauchy problem, with any solver; with "
    "observations in between it is repeated for each interval.",
)


def _cubic(names: Names) -> Shown:
    x, truth = names["grid"][:, 0], names["truth"][:, 0]
    curves, errors = names["curves"], names["errors"]
    return Shown(
        f"After 200 steps of Adam, for one seed, the mean squared error out of sample is {errors['ResNet']:.2f} "
        "(ResNet) and "
        f"{errors['ODE-Net']:.2f} (ODE-Net). The document's 4.673 and 7.72 come from one run each by plain gradient "
        "descent; which network is nearer changes from seed to seed.",
        pictures=(
            Picture(
                "cubic",
                "Both networks (the document's figure 8)",
                "Ten noisy points, x³ + 0.1x, both networks, and below how far each is from the function.",
                figures.regression_comparison(x, truth, curves, names["x"][:, 0], names["y"][:, 0]),
            ),
        ),
    )


CUBIC = Lesson(
    "4.4",
    "A simple example",
    "Both networks learn x³ + 0.1x from ten noisy points between −2.5 and 2.5, with one hidden layer of 20 neurons and "
    "tanh.",
    (r"h(x) = x^3 + 0.1x",),
    """
    import torch
    from odenets.nn import MLPField, ODEBlock
    from odenets.nn.models import FieldSteps

    torch.manual_seed(0)
    x, grid = torch.linspace(-2.5, 2.5, 10)[:, None], torch.linspace(-2.5, 2.5, 101)[:, None]
    y, truth, curves, errors = x**3 + 0.1 * x + torch.randn(10, 1), grid**3 + 0.1 * grid, {}, {}
    networks = {"ResNet": FieldSteps(MLPField(1, (20,)), 3), "ODE-Net": ODEBlock(MLPField(1, (20,)), rtol=1e-3)}
    for name, network in networks.items():
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            (network(x) - y).square().mean().backward()
            optimizer.step()
        curves[name] = network(grid)[:, 0].detach()
        errors[name] = (curves[name] - truth[:, 0]).square().mean().item()
    """,
    _cubic,
    claim="With these parameters the ResNet is slightly better: 4.673 against 7.72.",
    more="odenets run cubic --seeds 10",
)

LESSONS = (SOLVERS, FORWARD, ADJOINT, CUBIC)
