"""A hostile input and its expected outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

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


COUNT: Final = 40
"""Slices of most volumes."""


@dataclass(frozen=True)
class VolumeCase:
    """A question about volumes: what it names, the files, and what becomes of it."""

    files: dict[str, bytes]
    """Path below the question's own folder -> content; "": the folder itself is a file."""
    reason: Reason | None
    """None if the question is kept."""
    items: tuple[str, ...] = ()
    """What the refusal names; {} stands for the question's folder."""
    slices: tuple[int, ...] = ()
    images: tuple[str, ...] = ()
    """Paths below the folder that it lists as several images; empty: the folder is the image."""
    shown: int | None = None
    """Images that a kept question shows."""


def bad_volume(content: bytes, reason: Reason = Reason.IMAGE_DAMAGED, *items: str) -> VolumeCase:
    """A file whose question is quarantined."""
    return VolumeCase({"": content}, reason, items)


def good_volume(content: bytes, shown: int = 4) -> VolumeCase:
    """A file whose question is kept."""
    return VolumeCase({"": content}, None, shown=shown)


def folder(
    contents: list[bytes], reason: Reason | None = None, *items: str, suffix: str = "dcm"
) -> VolumeCase:
    """A folder of files, numbered from 1."""
    files = {f"{number}.{suffix}": each for number, each in enumerate(contents, start=1)}
    return VolumeCase(files, reason, items, shown=None if reason else 4)
