"""The figures of the experiments: arrays in, one Matplotlib figure out.

Every function takes NumPy arrays, tensors or plain lists and returns a `matplotlib.figure.Figure` that
belongs to nobody: no pyplot, no global figure, nothing to close. `to_svg` and `to_png` turn it into bytes.
"""

from odenets.figures.classification import (
    beats as beats,
)
from odenets.figures.classification import (
    confusion as confusion,
)
from odenets.figures.look import (
    DATA as DATA,
)
from odenets.figures.look import (
    FORMULA_SIZE as FORMULA_SIZE,
)
from odenets.figures.look import (
    NETWORKS as NETWORKS,
)
from odenets.figures.look import (
    PALETTE as PALETTE,
)
from odenets.figures.look import (
    SINGLE as SINGLE,
)
from odenets.figures.look import (
    STYLE as STYLE,
)
from odenets.figures.look import (
    TARGET as TARGET,
)
from odenets.figures.look import (
    Colour as Colour,
)
from odenets.figures.look import (
    Look as Look,
)
from odenets.figures.look import (
    Values as Values,
)
from odenets.figures.look import (
    formula_svg as formula_svg,
)
from odenets.figures.look import (
    network_looks as network_looks,
)
from odenets.figures.look import (
    themed_svg as themed_svg,
)
from odenets.figures.look import (
    to_png as to_png,
)
from odenets.figures.look import (
    to_svg as to_svg,
)
from odenets.figures.look import (
    with_variables as with_variables,
)
from odenets.figures.plots import (
    Line as Line,
)
from odenets.figures.plots import (
    graph as graph,
)
from odenets.figures.plots import (
    line_panels as line_panels,
)
from odenets.figures.plots import (
    lines as lines,
)
from odenets.figures.plots import (
    maps as maps,
)
from odenets.figures.plots import (
    plane as plane,
)
from odenets.figures.plots import (
    series_looks as series_looks,
)
from odenets.figures.regression import (
    Slopes as Slopes,
)
from odenets.figures.regression import (
    flow as flow,
)
from odenets.figures.regression import (
    forecast as forecast,
)
from odenets.figures.regression import (
    regression_comparison as regression_comparison,
)
from odenets.figures.regression import (
    regression_fit as regression_fit,
)
from odenets.figures.training import (
    bars as bars,
)
from odenets.figures.training import (
    errors_by_seed as errors_by_seed,
)
from odenets.figures.training import (
    learning_curves as learning_curves,
)
from odenets.figures.training import (
    loss_over_time as loss_over_time,
)
from odenets.figures.training import (
    metric_over_epochs as metric_over_epochs,
)
from odenets.figures.training import (
    seconds_per_epoch as seconds_per_epoch,
)
from odenets.figures.training import (
    seed_differences as seed_differences,
)
