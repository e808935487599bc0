"""The one training loop, on accelerate: `fit` trains any network, `evaluate` measures it."""

from odenets.extra import experiments_extra
from odenets.files import RunFolderError

with experiments_extra("`odenets.train`"):
    from odenets.train.batches import epoch_order
    from odenets.train.checkpoint import CheckpointError
    from odenets.train.config import DEVICES, OPTIMIZERS, PRECISIONS, TrainConfig
    from odenets.train.ended import Interrupted, NonFiniteLoss
    from odenets.train.evaluation import Loss, accuracy, evaluate
    from odenets.train.history import EpochRecord, History, read_metrics
    from odenets.train.loop import fit

__all__ = [
    "DEVICES",
    "OPTIMIZERS",
    "PRECISIONS",
    "CheckpointError",
    "EpochRecord",
    "History",
    "Interrupted",
    "Loss",
    "NonFiniteLoss",
    "RunFolderError",
    "TrainConfig",
    "accuracy",
    "epoch_order",
    "evaluate",
    "fit",
    "read_metrics",
]
