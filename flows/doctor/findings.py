"""What the doctor looks at. Each check returns what it found; none changes anything by looking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
"""warning: works, but not as it could; problem: something fails, or will."""


@dataclass(frozen=True)
class Finding:
    """What one check found: `what` is the case and means, `remedy` what to do about it.

    `mend` does the remedy where that loses nothing, and returns what it did.
    """

    check: str
    level: Level
    what: str
    remedy: str = ""
    mend: Callable[[], str] | None = None
