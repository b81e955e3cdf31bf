"""Secrets of the environment, which nothing that leaves this machine may hold."""

from __future__ import annotations

import os
import re
from typing import Final

_SECRET: Final = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY")
_SHORTEST: Final = 12
"""Characters of a secret that is looked for: a shorter one may stand anywhere by chance."""


def held_secret(content: bytes) -> str | None:
    """The variable whose value stands in `content`, by the names that variables with secrets have; None if there is none."""
    for name, value in sorted(os.environ.items()):
        if _SECRET.search(name.upper()) and len(value) >= _SHORTEST and value.encode() in content:
            return name
    return None
