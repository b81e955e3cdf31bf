"""Result of a doctor check. Checks only look: nothing changes until a fix is applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
"""warning: works, but not as well as it could; problem: something fails, or will."""


@dataclass(frozen=True)
class Finding:
    """Result of one check: `what` is the case and why it matters, `remedy` what to do about it.

    `fix` applies the remedy where that loses nothing, and returns what it did.
    """

    check: str
    level: Level
    what: str
    remedy: str = ""
    fix: Callable[[], str] | None = None
