"""Errors of image decoders, in a module of their own because every decoder raises them."""

from __future__ import annotations

from stages.corpus.quarantine.reasons import Reason


class ImageError(ValueError):
    """An image that cannot be decoded: `reason` is the code, the message omits the file name."""

    def __init__(self, why: str, reason: Reason = Reason.IMAGE_DAMAGED) -> None:
        super().__init__(why)
        self.reason = reason


class UnreadError(ImageError):
    """Image bytes that could not be read: nothing is known of the image, so nothing is cached."""
