"""Display form of slugs and shares, in plain ASCII."""

from __future__ import annotations

from typing import Final

AXIS_LABELS: Final = {"modality": "modality", "task": "question type"}
LONGEST: Final = 500
"""Characters of a completion that are printed."""
_NAMES: Final = {"ct": "CT", "mri": "MRI", "x-ray": "X-ray", "oct": "OCT"}
_STORED_DIGITS: Final = 4
"""Decimals of shares in metrics.json; rounding starts from there, so that a number is the same
everywhere.
"""
_METHODS: Final = {"sft": "SFT"}
VARIANT_LABELS: Final = {
    "as_asked": "as asked",
    "shuffled": "images exchanged",
    "blank": "black images",
    "removed": "one image removed",
    "reordered": "images reordered",
    "middle": "middle image alone",
    "no_context": "without context",
    "other_context": "context exchanged",
}
"""What a variant of a question shows."""


def label(slug: str) -> str:
    """Display name of a modality, question type, checkpoint or the base."""
    method, _, cell = slug.partition("-")
    if method in _METHODS and cell:
        return f"{label(cell)}, {_METHODS[method]}"
    return _NAMES.get(slug, slug.replace("-", " ").capitalize())


def percent(share: float | None, digits: int = 1) -> str:
    """0.583 as "58.3"; None as a dash."""
    return "-" if share is None else f"{100 * round(share, _STORED_DIGITS):.{digits}f}"


def signed(share: float | None, digits: int = 1) -> str:
    """0.141 as "+14.1"; None as a dash."""
    return "-" if share is None else f"{100 * round(share, _STORED_DIGITS) + 0.0:+.{digits}f}"


def p_value(p: float | None) -> str:
    """0.0312 as "0.031", 2e-9 as "<0.001"; None as a dash."""
    if p is None:
        return "-"
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.995 else "1"


def clip(text: str) -> str:
    """Truncate a long text and append the number of missing characters."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"
