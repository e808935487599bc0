"""The figures of the pages, drawn from the committed results; each follows the reader's theme."""

from matplotlib import rc_context
from matplotlib.figure import Figure

from odenets.figures import NETWORKS, PALETTE, STYLE, Look, themed_svg
from pages.speed import PEERS, WORKS, best
from pages.text import load


def speed() -> str:
    """Time of one training step of every work, the best way of each library, as SVG."""
    works = load("bench")["works"]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.1), layout="constrained")
        axes = figure.add_subplot(
            xscale="log", xlabel="milliseconds for one training step, on one core: less is better"
        )
        for place, (library, (colour, _, marker)) in enumerate(LIBRARIES.items()):
            ms = [best(work, library) for work in works.values()]
            large = 9 if library == "odenets" else 7
            style = {"color": colour, "marker": marker, "markersize": large, "linestyle": "none", "zorder": 9 - place}
            axes.plot(ms, range(len(ms)), label=PEERS.get(library, library), **style)
        axes.set_yticks(range(len(works)), [WORKS[name] for name in works])
        axes.set_ylim(len(works) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside upper right", ncols=len(LIBRARIES))
    return themed_svg(figure)


def memory() -> str:
    """Peak memory against the number of steps, as SVG."""
    result = load("bench-memory")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="steps (layers of the ResNet)", ylabel="MiB")
        for name, values in sorted(result["bytes"].items(), key=lambda item: -item[1][-1]):
            look = MEMORY_LOOKS.get(name)
            if look is not None:
                colour, dash, marker = look
                mebibytes = [max(value, 2**16) / 2**20 for value in values]  # a page or so is not worth a decade
                axes.plot(result["steps"], mebibytes, color=colour, linestyle=dash, marker=marker, label=name)
        axes.set_xticks(result["steps"], [f"{n:,}" for n in result["steps"]])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title("Peak memory of a training step")
        figure.legend(loc="outside right center")
    return themed_svg(figure)


def energy() -> str:
    """The error of a planet's energy against the orbits, as SVG."""
    result = load("energy")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="orbits", ylabel="largest error in an orbit")
        for name, row in result["methods"].items():
            colour, dash, _ = ENERGY_LOOKS[name]
            axes.plot(range(1, result["orbits"] + 1), row["errors"], color=colour, linestyle=dash, label=name)
        axes.set_title("Relative error of the energy, at equally many evaluations of f")
        figure.legend(loc="outside lower center", ncols=3)
    return themed_svg(figure)


def _ink(name: str) -> str:
    return PALETTE[name].light


LIBRARIES = {
    "odenets": Look(_ink("odenet"), "", "o"),
    "torchdiffeq": Look(_ink("slate"), "", "s"),
    "torchode": Look(_ink("umber"), "", "^"),
    "diffrax": Look(_ink("target"), "", "D"),
}
MEMORY_LOOKS: dict[str, Look] = {
    "odenets Direct": Look(_ink("umber"), "-.", "^"),
    "torchdiffeq odeint": Look(_ink("muted"), "-.", "x"),
    "odenets Interpolated": Look(_ink("plum"), (0, (5, 1, 1, 1, 1, 1)), "v"),
    "ResNet of as many layers": NETWORKS["ResNet"],
    "odenets Checkpointed": Look(_ink("odenet"), "-", "o"),
    "odenets Checkpointed(memory=10)": Look(_ink("odenet"), "--", "o"),
    "odenets Reversible": Look(_ink("target"), "-", "D"),
    "odenets Backsolve": Look(_ink("data"), ":", "P"),
    "torchdiffeq odeint_adjoint": Look(_ink("muted"), ":", "x"),
}
ENERGY_LOOKS: dict[str, Look] = {
    "leapfrog": Look(_ink("target"), "-", "o"),
    "blanes_moan4": Look(_ink("odenet"), "--", "s"),
    "rk4": Look(_ink("umber"), "-.", "^"),
}
