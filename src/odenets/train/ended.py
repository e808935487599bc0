"""How a training ends before its time."""

from pathlib import Path


class NonFiniteLoss(ArithmeticError):
    """The loss, or a weight, became NaN or infinite. The message names the epoch and the step."""


class Interrupted(KeyboardInterrupt):
    """Training was told to stop (Ctrl-C, SIGTERM) and did so after a whole step; the message says how to go on.

    It is a `KeyboardInterrupt`, so that an `except Exception` around one of many runs does not start the
    next. `checkpoint` is the folder to resume from, or None where `fit` had no folder.
    """

    def __init__(self, message: str, checkpoint: Path | None):
        super().__init__(message)
        self.checkpoint = checkpoint

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (*self.args, self.checkpoint)
