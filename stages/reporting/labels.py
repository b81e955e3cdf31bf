"""How slugs and shares are written for readers, in plain ASCII."""

from __future__ import annotations

from typing import Final

_NAMES: Final = {"ct": "CT", "mri": "MRI", "x-ray": "X-ray", "oct": "OCT"}


def label(slug: str) -> str:
    """The name of a modality, a question type or the base, for headings and tables."""
    return _NAMES.get(slug, slug.replace("-", " ").capitalize())


def percent(share: float | None, digits: int = 1) -> str:
    """0.583 as "58.3"; a missing one as a dash."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def signed(share: float, digits: int = 1) -> str:
    """0.141 as "+14.1"."""
    return f"{100 * share:+.{digits}f}"
