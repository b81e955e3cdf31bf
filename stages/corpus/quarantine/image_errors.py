"""Why an image cannot be used: an error of its own module, because all kinds of decoder raise it."""

from __future__ import annotations

from stages.corpus.quarantine.reasons import Reason


class ImageError(ValueError):
    """An image that cannot be decoded; the message is the reason, without the file's name, `reason`
    its code.
    """

    def __init__(self, why: str, reason: Reason = Reason.IMAGE_DAMAGED) -> None:
        """Keep the code beside the words."""
        super().__init__(why)
        self.reason = reason


class UnreadError(ImageError):
    """An image whose bytes could not be had: nothing is known of the image, so that this is no
    result to remember.
    """
