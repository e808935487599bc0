"""`python -m odenets`: the same as the `odenets` command."""

from odenets.cli import main

main()
