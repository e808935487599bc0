"""What can go wrong with data on disk or on the way to it."""

__all__ = ["DataError", "NoNetwork"]


class DataError(ValueError):
    """Data that is missing, damaged or not what it should be. The message names the file and the remedy."""


class NoNetwork(DataError):
    """A download that failed because nothing could be reached, as opposed to a server that said no."""
