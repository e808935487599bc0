"""Write docs/tour.md and docs/figures/tour/: the tour as a page of the docs.

Run it:  python benchmarks/tour_page.py      (runs every lesson: about two minutes on one core)
"""

import torch
import typer

from odenets import tour
from odenets.figures import themed_svg
from odenets.files import write_atomically
from pages.text import ROOT
from pages.tour import page

FIGURES = ROOT / "docs" / "figures" / "tour"


def main() -> None:
    """Run every lesson, and write the page and its figures."""
    torch.set_num_threads(1)
    result = tour.make()
    FIGURES.mkdir(exist_ok=True)
    drawn = {FIGURES / f"{picture.name}.svg": themed_svg(picture.figure) for picture in result.pictures()}
    for path in set(FIGURES.glob("*.svg")) - set(drawn):
        path.unlink()
    for path, svg in drawn.items():
        write_atomically(path, svg)
    write_atomically(ROOT / "docs" / "tour.md", page(result))


if __name__ == "__main__":
    typer.run(main)
