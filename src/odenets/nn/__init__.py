"""Layers and models, plain `torch.nn.Module`s."""

from odenets.nn.block import ODEBlock as ODEBlock
from odenets.nn.cnf import CNF as CNF
from odenets.nn.field import ACTIVATIONS as ACTIVATIONS
from odenets.nn.field import MLPField as MLPField
from odenets.nn.field import activation as activation
from odenets.nn.implicit import ImplicitLayer as ImplicitLayer
from odenets.nn.implicit import ImplicitStats as ImplicitStats
from odenets.nn.models import MLP as MLP
from odenets.nn.models import ODENet as ODENet
from odenets.nn.models import ResNet as ResNet
from odenets.nn.models import Twins as Twins
from odenets.nn.models import count_parameters as count_parameters
from odenets.nn.models import twins as twins
from odenets.nn.roots import ImplicitError as ImplicitError
from odenets.nn.series import GRUD as GRUD
from odenets.nn.series import MTAN as MTAN
from odenets.nn.series import ODERNN as ODERNN
from odenets.nn.series import GapGRU as GapGRU
from odenets.nn.series import LatentODE as LatentODE
from odenets.nn.series import NeuralCDE as NeuralCDE
from odenets.nn.squash import ConcatSquashField as ConcatSquashField
