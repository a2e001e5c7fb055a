"""`python -m sayso` is the same as `sayso`."""

from sayso.cli.commands import main

main()
