"""Sections 2.6 and 2.7: a ResNet is Euler's method with step 1; layers that are given by an equation."""

from odenets import figures
from odenets.experiments.result import Picture
from odenets.figures import Line
from odenets.tour.lesson import FAILS, HOLDS, Lesson, Names, Shown, table


def _euler(names: Names) -> Shown:
    resnet, euler = names["resnet"].detach(), names["euler"].detach()
    gap = float((resnet - euler).abs().max())
    gradients = zip(names["by_resnet"], names["by_euler"])
    gradient_gap = max(float((a - b).abs().max()) for a, b in gradients)
    rows = [(f"x{i}", a, b, abs(a - b)) for i, (a, b) in enumerate(zip(resnet[0].tolist(), euler[0].tolist()), 1)]
    size = float(resnet.abs().max())
    return Shown(
        f"Outputs differ by {gap:.1e} and gradients by {gradient_gap:.1e}: the two are one computation, to rounding.",
        HOLDS if gap <= 1e-12 * size and gradient_gap <= 1e-10 else FAILS,
        tables=(table("One input through six layers", ("feature", "ResNet", "Euler, h = 1", "difference"), rows),),
    )


EULER = Lesson(
    "2.6",
    "Residual networks",
    "A residual layer adds what it computes to what it got. So a ResNet whose layers share one function makes, step by "
    "step, what Euler's method with step 1 makes of dx/dt = f(t, x). The worked problem of this section, x³ + 0.1x, is "
    "under 4.4.",
    (r"x_{k+1} = x_k + f_k(x_k)", r"x_{k+1} = x_k + h\,f(t_k, x_k)"),
    """
    import torch
    from odenets import Fixed
    from odenets.nn import MLPField, ODEBlock

    torch.manual_seed(0)
    field, x = MLPField(4, (16,)).double(), torch.randn(8, 4, dtype=torch.float64)
    resnet = x
    for k in range(6):                                          # six layers
        resnet = resnet + field(torch.tensor(float(k)), resnet)
    block = ODEBlock(field, t=(0.0, 6.0), method="euler", controller=Fixed(dt=1.0))
    euler = block(x)

    parameters = list(field.parameters())
    by_resnet = torch.autograd.grad(resnet.square().sum(), parameters)
    by_euler = torch.autograd.grad(euler.square().sum(), parameters)
    """,
    _euler,
    claim="x(k+1) = x(k) + f(x(k)) is the formula of Euler's method for h = 1.",
    more="odenets run cubic",
)


def _implicit(names: Names) -> Shown:
    xs, ys, slopes, closed = (names[name].detach() for name in ("x", "y", "slope", "closed"))
    residual, error = float(names["residual"].detach().abs().max()), float((slopes - closed).abs().max())
    return Shown(
        f"Newton's method satisfies the condition to {residual:.1e}. The implicit function theorem gives the "
        "derivative "
        f"from the solution alone, whatever found it: it differs from the closed form by {error:.1e}.",
        HOLDS if residual < 1e-10 and error < 1e-10 else FAILS,
        pictures=(
            Picture(
                "implicit-layer",
                "A layer given by a condition",
                "The y with y + y³ = x, and its derivative 1/(1 + 3y²).",
                figures.lines({"y(x)": Line(xs, ys), "dy/dx": Line(xs, slopes)}, "x", "y, dy/dx"),
            ),
        ),
    )


IMPLICIT = Lesson(
    "2.7",
    "Implicit layers",
    "A layer can also be given by a condition that its output has to satisfy, and be found by any solver. An ODE-Net "
    "is "
    "such a layer: its condition is a Cauchy problem.",
    (
        r"\mathrm{find}\ y\ \mathrm{with}\ g(x, y) = 0",
        r"\frac{\partial y}{\partial x} = "
        r"-\left(\frac{\partial g}{\partial y}\right)^{-1}\frac{\partial g}{\partial x}",
    ),
    """
    import torch

    g = lambda x, y: y + y**3 - x                    # y is defined by g(x, y) = 0
    x = torch.linspace(-3, 3, 121, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y = torch.zeros_like(x)
        for _ in range(50):                          # Newton's method, elementwise
            y = y - g(x, y) / (1 + 3 * y**2)
    residual = g(x, y)

    y = y.requires_grad_()
    d_x, d_y = torch.autograd.grad(g(x, y).sum(), (x, y))
    slope, closed = -d_x / d_y, 1 / (1 + 3 * y**2)
    """,
    _implicit,
    claim="Instead of the operations of a layer one can specify the condition that its output satisfies.",
    more="odenets run implicit",
)

LESSONS = (EULER, IMPLICIT)
