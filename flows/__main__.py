"""`python -m flows`: the command `med-r1` from the root of a checkout, not installed."""

from flows.command_line import main

main()
