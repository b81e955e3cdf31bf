"""Errors of image decoders, in a module of their own because every decoder raises them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from stages.corpus.quarantine.reasons import Reason

Result = TypeVar("Result")


class ImageError(ValueError):
    """An image that cannot be decoded: `reason` is the code.

    The message omits the path that records have of the image; of a folder it names the file.
    """

    def __init__(self, why: str, reason: Reason = Reason.IMAGE_DAMAGED) -> None:
        super().__init__(why)
        self.reason = reason


class UnreadError(ImageError):
    """Image bytes that could not be read, of a file that the message names.

    Nothing is known of the image, so nothing is cached.
    """


def file_place(names: Sequence[str], index: int, count: int, detail: str = "") -> str:
    """A file of several as messages name it; by its number alone where there are no names."""
    number = f"file {index + 1} of {count}{detail}"
    return f"{names[index]} ({number})" if names else number


def located(place: str | Callable[[], str], work: Callable[[], Result]) -> Result:
    """What `work` returns; its ImageError with the place in front: a file, a slice or a frame.

    A place that takes effort to find is given as a function, called only after an error.
    UnreadError passes: it names its file.
    """
    try:
        return work()
    except UnreadError:
        raise
    except ImageError as error:
        failure = error
    # raised outside the handler, so that the error has no other one as its context
    where = place if isinstance(place, str) else place()
    raise ImageError(f"{where}: {failure}", failure.reason)
