"""Contrast of resized images: what counts as blank, for data tests and for leakage."""

from __future__ import annotations

from typing import Final

BLANK_CONTRAST: Final = 1.0
"""Standard deviation of the grey levels below which an image or a frame is blank."""
