"""The command `med-r1`: every task of a user, operator or researcher, with help and completion.

A command declares its parameters, imports its module only when it runs and calls a plain function,
so that `med-r1 --help` needs neither torch nor Prefect nor DVC. `med-r1` runs the code of the
checkout that it was installed from; `python -m flows` runs that of the working directory.
"""

from __future__ import annotations

from collections.abc import Sequence

from flows.command_line import data, operate, results, run  # noqa: F401 - register their commands
from flows.command_line.application import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, by default that of the process's arguments, and exit."""
    app(arguments, prog_name="med-r1")
