"""Irregular time series: the batch of them, how to make one, and how to scale it."""

from odenets.series.batch import Series as Series
from odenets.series.batch import collate as collate
from odenets.series.forms import from_arrays as from_arrays
from odenets.series.forms import from_pypots as from_pypots
from odenets.series.forms import from_torchcde as from_torchcde
from odenets.series.forms import to_pypots as to_pypots
from odenets.series.forms import to_torchcde as to_torchcde
from odenets.series.losses import gaussian_nll as gaussian_nll
from odenets.series.losses import masked_mse as masked_mse
from odenets.series.scaling import Scaling as Scaling
from odenets.series.table import from_long as from_long
