"""Sections 2.1 to 2.5: networks, losses, back-propagation, gradient descent, vanishing gradients."""

import torch

from odenets import figures
from odenets.experiments.result import Picture
from odenets.figures import Line
from odenets.tour.lesson import FAILS, HOLDS, PARTLY, Lesson, Names, Shown, table


def _networks(names: Names) -> Shown:
    z = names["z"].detach()
    panels = {
        "σ(z)": {name: Line(z, value.detach()) for name, value in names["values"].items()},
        "σ′(z)": {name: Line(z, slope) for name, slope in names["slopes"].items()},
    }
    largest = {name: float(slope.max()) for name, slope in names["slopes"].items()}
    layers = table(
        "A forward pass, layer by layer",
        ("layer", "output"),
        [(type(part).__name__, ", ".join(f"{v:.4f}" for v in value)) for part, value in names["layers"]],
    )
    losses = table("Three losses of ŷ = 0.8 for y = 1", ("loss", "value"), names["losses"].items())
    return Shown(
        f"The slope of the sigmoid is nowhere above {largest['sigmoid']:.2f}, those of tanh and ReLU nowhere above "
        f"{largest['tanh']:.0f}: this is what makes gradients shrink on their way back through many layers.",
        tables=(layers, losses),
        pictures=(
            Picture(
                "activations",
                "Activations and their slopes",
                "Sigmoid, tanh and ReLU above, their derivatives below.",
                figures.line_panels(panels, "z", "value", share_y=False),
            ),
        ),
    )


NETWORKS = Lesson(
    "2.1",
    "Neural networks",
    "A feed-forward network applies one layer after the other: a linear map, then an activation that makes it more "
    "than "
    "linear. A loss says how far its prediction is from what was seen.",
    (
        r"h = \sigma(Wx + b)",
        r"\mathrm{sigmoid}(z) = \frac{1}{1+e^{-z}}, \quad \tanh(z) = \frac{e^z - e^{-z}}{e^z + e^{-z}}, "
        r"\quad \mathrm{ReLU}(z) = \max(0, z)",
        r"(y-\hat{y})^2, \quad |y-\hat{y}|, \quad 1_{\{y \neq \hat{y}\}}",
    ),
    """
    import torch
    from odenets.nn import MLP

    torch.manual_seed(0)
    z = torch.linspace(-4, 4, 161, requires_grad=True)
    values = {name: getattr(torch, name)(z) for name in ("sigmoid", "tanh", "relu")}
    slopes = {name: torch.autograd.grad(value.sum(), z)[0] for name, value in values.items()}

    network, x, layers = MLP((2, 3, 1), "tanh"), torch.tensor([0.5, -1.0]), []
    for part in network:
        x = part(x)
        layers.append((part, x.tolist()))

    y, y_hat = torch.tensor(1.0), torch.tensor(0.8)
    losses = {"square": (y - y_hat) ** 2, "absolute": (y - y_hat).abs(), "zero-one": (y != y_hat).float()}
    """,
    _networks,
)


def _backward(names: Names) -> Shown:
    shared, anew, products = names["shared"], names["anew"], names["products"]
    worst = max(float((a - b).abs().max()) for a, b in zip(shared, anew))
    slope, up, down = (float(names[name]) for name in ("slope", "up", "down"))
    saddle = slope == 0 and up > 0 > down
    return Shown(
        f"One layer at a time, {len(shared) - 1} layers take {products['shared']} products with a Jacobian; from the "
        f"end to each layer anew they take {products['anew']}, for gradients that differ by {worst:g}. The document "
        "says besides that a point where the partial derivatives are 0 is a local extremum. That "
        f"{'does not hold' if saddle else 'is not refuted here'}: the gradient of f(x, y) = x² − y² at 0 is {slope:g}, "
        f"and a step of 0.1 along x changes f by {up:+.2f}, one along y by {down:+.2f}. 0 is a saddle point.",
        PARTLY if saddle and worst < 1e-12 and products["shared"] < products["anew"] else FAILS,
    )


BACKWARD = Lesson(
    "2.2",
    "Back propagation",
    "The gradient of a loss with respect to every parameter comes from the chain rule. Taken layer by layer from the "
    "end, each factor is used once.",
    (
        r"\frac{\partial L}{\partial h_{k}} = \frac{\partial L}{\partial h_{k+1}}\,"
        r"\frac{\partial h_{k+1}}{\partial h_{k}}",
    ),
    """
    import torch
    from functools import reduce
    from itertools import accumulate

    torch.manual_seed(0)
    h, end, jacobians = torch.randn(4).double(), torch.randn(4).double(), []     # end: ∂L/∂h of the last layer
    for W in torch.randn(10, 4, 4).double():
        h = torch.tanh(W @ h)
        jacobians.insert(0, (1 - h**2)[:, None] * W)                              # the last layer's first

    shared = [*accumulate(jacobians, torch.matmul, initial=end)]                   # one layer at a time
    anew = [reduce(torch.matmul, jacobians[:k], end) for k in range(11)]           # from the end to each layer
    products = {"shared": len(shared) - 1, "anew": sum(range(11))}

    f = lambda p: p[0] ** 2 - p[1] ** 2
    slope, up, down = torch.func.grad(f)(torch.zeros(2)).norm(), f((0.1, 0.0)), f((0.0, 0.1))
    """,
    _backward,
    claim="The gradient is computed one layer at a time, backward from the last, which avoids redundant calculations. "
    "Where the partial derivatives are 0 there is a local extremum.",
)


def _example(names: Names) -> Shown:
    by_hand, by_autograd = names["by_hand"], names["by_autograd"]
    rows = [
        (name, _numbers(value), _numbers(by_autograd[name]), (value - by_autograd[name]).abs().max().item())
        for name, value in by_hand.items()
    ]
    worst = max((value - by_autograd[name]).abs().max().item() for name, value in by_hand.items())
    return Shown(
        f"All eight formulas give what automatic differentiation gives; the largest difference is {worst:.1e}.",
        HOLDS if worst < 1e-12 else FAILS,
        tables=(
            table(
                "The document's formulas and automatic differentiation",
                ("∂L/∂…", "formula", "autograd", "difference"),
                rows,
            ),
        ),
        pictures=(
            Picture(
                "computation-graph",
                "The computation graph (the document's figure 2)",
                "Values flow to the right, from x to the loss; derivatives flow back along the same arrows.",
                figures.graph(
                    {"x": (0, 0), "w¹, b¹": (0, -1), "z": (1, 0), "h": (2, 0), "w², b²": (2, -1), "ŷ": (3, 0)}
                    | {"y": (3, -1), "L": (4, 0)},
                    [("x", "z"), ("w¹, b¹", "z"), ("z", "h"), ("h", "ŷ"), ("w², b²", "ŷ"), ("ŷ", "L"), ("y", "L")],
                ),
            ),
        ),
    )


def _numbers(x: torch.Tensor) -> str:
    return ", ".join(f"{value:.4f}" for value in x.flatten().tolist())


EXAMPLE = Lesson(
    "2.3",
    "Back-propagation, worked out",
    "For a network with one hidden layer the gradient of the loss is eight lines, each of which uses those before.",
    (
        r"z = w^{(1)}x + b^{(1)}, \quad h = \sigma(z), \quad \hat{y} = w^{(2)}h + b^{(2)}, "
        r"\quad L = \frac{1}{2}\Vert\hat{y}-y\Vert_2^2",
        r"\frac{\partial L}{\partial L} = 1, \quad "
        r"\frac{\partial L}{\partial \hat{y}} = \frac{\partial L}{\partial L}(\hat{y}-y), \quad "
        r"\frac{\partial L}{\partial w^{(2)}} = \frac{\partial L}{\partial \hat{y}}h^T, \quad "
        r"\frac{\partial L}{\partial b^{(2)}} = \frac{\partial L}{\partial \hat{y}}",
        r"\frac{\partial L}{\partial h} = (w^{(2)})^T\frac{\partial L}{\partial \hat{y}}, \quad "
        r"\frac{\partial L}{\partial z} = \frac{\partial L}{\partial h}\circ\sigma'(z), \quad "
        r"\frac{\partial L}{\partial w^{(1)}} = \frac{\partial L}{\partial z}x^T, \quad "
        r"\frac{\partial L}{\partial b^{(1)}} = \frac{\partial L}{\partial z}",
    ),
    """
    import torch

    torch.manual_seed(0)
    x, y = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    w1, w2 = torch.randn(2, 2, 2, dtype=torch.float64).requires_grad_()
    b1, b2 = torch.randn(2, 2, dtype=torch.float64).requires_grad_()
    z = w1 @ x + b1
    h = torch.sigmoid(z)
    y_hat = w2 @ h + b2
    loss = (y_hat - y).square().sum() / 2

    d_y = y_hat - y
    d_h = w2.T @ d_y
    d_z = d_h * h * (1 - h)
    by_hand = {"L": torch.ones_like(loss), "ŷ": d_y, "w²": d_y[:, None] @ h[None], "b²": d_y,
               "h": d_h, "z": d_z, "w¹": d_z[:, None] @ x[None], "b¹": d_z}
    by_autograd = dict(zip(by_hand, torch.autograd.grad(loss, (loss, y_hat, w2, b2, h, z, w1, b1))))
    """,
    _example,
    claim="The eight formulas are the partial derivatives of the loss with regard to the parameters and all between.",
)


def _descent(names: Names) -> Shown:
    k, gaps = torch.arange(1, 101), names["gaps"]
    lines = {f"η = {rate:g}/L": Line(k, gap) for rate, gap in gaps.items()}
    bound = names["bound"]
    falls = all(bool((gap[1:] <= gap[:-1] + 1e-12 * gap[0]).all()) for rate, gap in gaps.items() if rate <= 1)
    within = bool((gaps[1.0] <= bound).all())
    printed, gap = float(names["printed"]), float(names["gap_of_example"])
    return Shown(
        f"With η ≤ 1/L the values {'never rise' if falls else 'rise somewhere'} and stay "
        f"{'below' if within else 'not below'} ‖x₀ − x*‖²/(2ηk); with η above 2/L they "
        f"{'grow' if gaps[2.05][-1] > gaps[2.05][0] else 'shrink'}. The theorem as printed, without the square, is "
        f"{'false' if gap > printed else 'not broken by this example'}: for f(x) = x²/2, x₀ = 100 and η = 0.5 it "
        f"promises f(x₁) ≤ {printed:.0f}, and f(x₁) is {gap:.0f}.",
        PARTLY if falls and within and gap > printed else FAILS,
        pictures=(
            Picture(
                "descent",
                "Gradient descent on least squares",
                "How far f(x_k) is above its minimum, for four step sizes η in units of 1/L, and the bound for 1/L.",
                figures.lines(
                    {**lines, "bound for η = 1/L": Line(k, bound)},
                    "step k",
                    "f(x_k) − f(x*)",
                    log="xy",
                    level="bound for η = 1/L",
                ),
            ),
        ),
    )


DESCENT = Lesson(
    "2.4",
    "Gradient descent",
    "Step after step against the gradient. For a convex function with an L-Lipschitz gradient (definition 7 calls the "
    "function itself so) theorem 2 bounds how far the values are above the minimum.",
    (
        r"x_{k+1} = x_k - \eta\,\nabla f(x_k)",
        r"f(x_k) \leq f(x^*) + \frac{\Vert x_0-x^*\Vert_2^2}{2\eta k} \quad \mathrm{for} \quad \eta \leq 1/L",
    ),
    """
    import torch

    torch.manual_seed(0)
    A, b = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    H = A.T @ A                                    # the Hessian of f(x) = |Ax − b|²/2
    L, best = torch.linalg.eigvalsh(H)[-1], torch.linalg.lstsq(A, b[:, None]).solution[:, 0]
    f = lambda x: (A @ x - b).square().sum() / 2

    gaps = {}
    for rate in (0.25, 1.0, 1.9, 2.05):            # step sizes in units of 1/L
        x, values = torch.zeros(5, dtype=torch.float64), []
        for k in range(100):
            x = x - rate / L * (A.T @ (A @ x - b))
            values.append(f(x) - f(best))
        gaps[rate] = torch.stack(values)
    bound = best.square().sum() * L / (2 * torch.arange(1, 101))

    gap_of_example, printed = (100 - 0.5 * 100) ** 2 / 2, 100 / (2 * 0.5 * 1)    # f(x) = x²/2, x₀ = 100, η = 0.5
    """,
    _descent,
    claim="For a convex L-Lipschitz function and a step size of at most 1/L, f(x_k) ≤ f(x*) + ‖x₀ − x*‖/(2ηk) "
    "(theorem 2).",
    more="odenets run descent",
)


def _vanishing(names: Names) -> Shown:
    depths, norms = names["depths"], names["norms"]
    lines = {
        f"{kind}, {activation}": Line(depths, value)
        for (kind, activation), value in norms.items()
        if kind != "ODE-Net" or activation == "tanh"
    }
    there = depths.index(32)
    plain, residual = (norms[kind, "sigmoid"][there] / norms[kind, "sigmoid"][0] for kind in ("plain", "ResNet"))
    ode = norms["ODE-Net", "tanh"]
    grown = norms["ResNet", "relu"][-1] / norms["ResNet", "relu"][0]
    return Shown(
        f"From depth {depths[0]} to depth {depths[there]} the gradient at the first layer of a plain network with "
        f"sigmoids changes by a factor of {plain:.0e}, that of a ResNet by {residual:.1f}. The document adds that a "
        "ResNet "
        f"avoids exploding gradients too; with ReLUs, at depth {depths[-1]}, it has grown by {grown:.0e}. The gradient "
        "of "
        f"an ODE-Net solved with as many steps changes by {max(ode) / min(ode):.2f}: more steps solve one equation "
        "better. "
        "Over a long time an adjoint can explode as well: see the experiment.",
        FAILS if plain > 1e-6 or residual < 1e-3 else PARTLY if grown > 100 else HOLDS,
        pictures=(
            Picture(
                "vanishing-gradient",
                "The gradient at the first layer",
                "Its norm over the depth, at PyTorch's initial weights; for the ODE-Net over the number of Euler "
                "steps.",
                figures.lines(lines, "depth", "norm of ∂L/∂x", log="xy", marked=True),
            ),
        ),
    )


VANISHING = Lesson(
    "2.5",
    "Vanishing and exploding gradients",
    "The chain rule multiplies one factor a layer. Where the factors are below one, the gradient of an early layer is "
    "too small to learn by; where they are above one, it explodes.",
    (
        r"\frac{\partial L}{\partial h_0} = \frac{\partial L}{\partial h_n}\,\prod_{k=1}^{n} "
        r"\mathrm{diag}(\sigma'(z_k))\,W_k",
    ),
    """
    import torch
    from odenets import Fixed
    from odenets.nn import MLP, MLPField, ODEBlock
    from odenets.nn.models import ResidualBlock

    def gradient(network):
        x = torch.ones(1, 16, requires_grad=True)
        return torch.autograd.grad(network(x).sum(), x)[0].double().norm().item()

    depths, norms = [2, 4, 8, 16, 32, 64, 128], {}
    for name in ("sigmoid", "tanh", "relu"):
        torch.manual_seed(0)
        plain = [MLP([16] * (n + 1), name, last=True) for n in depths]
        residual = [torch.nn.Sequential(*(ResidualBlock(16, name) for _ in range(n))) for n in depths]
        norms["plain", name], norms["ResNet", name] = [*map(gradient, plain)], [*map(gradient, residual)]
    field = MLPField(16, (), "tanh")
    norms["ODE-Net", "tanh"] = [gradient(ODEBlock(field, method="euler", controller=Fixed(steps=n))) for n in depths]
    """,
    _vanishing,
    claim="Multiplying several numbers below one makes the gradient decrease exponentially with the depth.",
    more="odenets run depth",
)

LESSONS = (NETWORKS, BACKWARD, EXAMPLE, DESCENT, VANISHING)
