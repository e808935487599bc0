"""The command `odenets`, and `python -m odenets`."""

import sys

from odenets.extra import MissingExtra


def main() -> None:
    """Entry point: one line where the command line's own packages are missing, and 130 for Ctrl-C at any time."""
    try:
        from odenets.cli import app  # noqa: PLC0415 — so that what it needs can be missing

        app()
    except MissingExtra as error:
        sys.exit(f"odenets: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
