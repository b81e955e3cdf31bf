"""Run commands of `med-r1` in the process of a test."""

from __future__ import annotations

import sys
from typing import Final

import pytest

from flows.command_line import main

MED_R1: Final = (sys.executable, "-m", "flows")
"""`med-r1` in a subprocess; the repository is on PYTHONPATH or the working directory."""


def med_r1(*arguments: object) -> int:
    """Exit code of `med-r1 ARGUMENTS`."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)
