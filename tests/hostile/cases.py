"""A hostile input and its expected outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.corpus.quarantine.reasons import CorpusFault, Reason

End = Literal["refused", "quarantined", "kept"]
"""refused: stage download stops; quarantined: only the records concerned; kept: it is harmless."""


@dataclass(frozen=True)
class Case:
    """A class of hostile input: its bytes, outcome, refusal code, and what the message names."""

    content: bytes
    end: End
    code: Reason | CorpusFault | None = None
    item: str = ""


def harmless(content: bytes) -> Case:
    """An input whose records are kept."""
    return Case(content, "kept")


def bad_image(content: bytes, reason: Reason = Reason.IMAGE_DAMAGED) -> Case:
    """An image whose records are quarantined."""
    return Case(content, "quarantined", reason)
