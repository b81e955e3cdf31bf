"""`python -m flows`: the command `med-r1` where it is not installed, from the root of a checkout."""

from flows.command_line import main

main()
