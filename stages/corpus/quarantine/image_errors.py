"""Why an image cannot be used.

An error of its own module, because all kinds of decoder raise it.
"""

from __future__ import annotations

from stages.corpus.quarantine.reasons import Reason


class ImageError(ValueError):
    """An image that cannot be decoded.

    The message is the reason without the file name, `reason` its code.
    """

    def __init__(self, why: str, reason: Reason = Reason.IMAGE_DAMAGED) -> None:
        """Keep the code beside the words."""
        super().__init__(why)
        self.reason = reason


class UnreadError(ImageError):
    """Image bytes that could not be read.

    Nothing is known of the image, so nothing may be cached.
    """
