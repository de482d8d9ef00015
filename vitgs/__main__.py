"""`python -m vitgs` is `vitgs-bench`."""

from vitgs.cli.app import main

main()
