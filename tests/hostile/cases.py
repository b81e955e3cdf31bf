"""What a hostile input is, and what it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.corpus.quarantine.reasons import CorpusFault, Reason

End = Literal["refused", "quarantined", "kept"]
"""refused: stage download stops and names it; quarantined: its records are, and all others are
kept; kept: it does no harm.
"""


@dataclass(frozen=True)
class Case:
    """A class of hostile input: its bytes, fate, refusal code, and what the message must name."""

    content: bytes
    end: End
    code: Reason | CorpusFault | None = None
    named: str = ""
