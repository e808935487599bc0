"""odenets: ODE-Nets (neural ordinary differential equations) for PyTorch."""

from typing import TYPE_CHECKING, Any

from odenets import path as path
from odenets.adjoint import Backsolve as Backsolve
from odenets.adjoint import Checkpointed as Checkpointed
from odenets.adjoint import Direct as Direct
from odenets.adjoint import Interpolated as Interpolated
from odenets.adjoint import Reversible as Reversible
from odenets.advance import Advance as Advance
from odenets.controller import PID as PID
from odenets.controller import Fixed as Fixed
from odenets.event import Event as Event
from odenets.fitting import FitAdvance as FitAdvance
from odenets.fitting import TrajectoryFit as TrajectoryFit
from odenets.fitting import fit_trajectory as fit_trajectory
from odenets.methods import METHODS as METHODS
from odenets.methods import ExplicitRungeKutta as ExplicitRungeKutta
from odenets.methods import ImplicitRungeKutta as ImplicitRungeKutta
from odenets.methods import Splitting as Splitting
from odenets.pullback.reached import LostGradientError as LostGradientError
from odenets.pullback.replay import ReplayError as ReplayError
from odenets.series.batch import Series as Series
from odenets.solution import Solution as Solution
from odenets.solution import SolveError as SolveError
from odenets.solution import Stats as Stats
from odenets.solution import Status as Status
from odenets.solve import solve as solve
from odenets.stepper import Stepper as Stepper
from odenets.tuning.check_gradient import check_gradient as check_gradient
from odenets.tuning.diagnose import diagnose as diagnose
from odenets.tuning.diagnosis import Diagnosis as Diagnosis
from odenets.tuning.tune import tune as tune
from odenets.tuning.tuned import Tuning as Tuning

if TYPE_CHECKING:
    from odenets.estimators import SeriesClassifier as SeriesClassifier
    from odenets.estimators import SeriesForecaster as SeriesForecaster
    from odenets.estimators import SeriesRegressor as SeriesRegressor

__version__ = "0.1.0"

_ESTIMATORS = ("SeriesClassifier", "SeriesForecaster", "SeriesRegressor")


def __getattr__(name: str) -> Any:
    """The estimators, imported when they are first asked for: they need packages that a plain installation lacks."""
    if name in _ESTIMATORS:
        from odenets import estimators  # noqa: PLC0415 — see above

        return getattr(estimators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ESTIMATORS})
