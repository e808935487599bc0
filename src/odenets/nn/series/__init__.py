"""Models of irregular time series: plain modules that take a `Series` and answer at any times."""

from odenets.nn.series.cde import NeuralCDE as NeuralCDE
from odenets.nn.series.latent import LatentODE as LatentODE
from odenets.nn.series.mtan import MTAN as MTAN
from odenets.nn.series.recurrent import GRUD as GRUD
from odenets.nn.series.recurrent import ODERNN as ODERNN
from odenets.nn.series.recurrent import GapGRU as GapGRU
