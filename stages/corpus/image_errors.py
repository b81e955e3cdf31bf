"""Why a picture cannot be used: an error of its own module, because both kinds of decoder raise it."""

from __future__ import annotations


class ImageError(ValueError):
    """A picture that cannot be decoded; the message is the reason, without the file's name."""
