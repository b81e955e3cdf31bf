"""Images of a TIFF or GIF file as slices of a volume or frames of a clip.

Pages of a TIFF that are reduced copies of others (NewSubfileType, as in a pyramid) or masks are no
slices. Grey of more than 8 bits has one range for all slices, so that these can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from PIL import Image, ImageOps

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom, Resize, Volume
from stages.corpus.images.decoding import SIGNATURES, decode
from stages.corpus.images.gif_layout import GIF_SIGNATURES, read_gif_layout
from stages.corpus.images.pillow_images import (
    Decoded,
    check_size,
    grey_range,
    is_deep,
    open_image,
    resize_by_pillow,
    tiff_pages,
    to_rgb,
    undamaged,
)
from stages.corpus.quarantine.image_errors import ImageError, located
from stages.corpus.quarantine.reasons import Reason

Result = TypeVar("Result")

_NEW_SUBFILE_TYPE: Final = 254
_REDUCED_OR_MASK: Final = 0b101
"""Bits of NewSubfileType (TIFF 6.0): a page that is a smaller copy of another, or a mask of it."""


def may_have_pages(content: bytes) -> bool:
    """Whether a file is of a kind whose images can be slices: TIFF or GIF."""
    return content.startswith((*SIGNATURES["TIFF"], *SIGNATURES["GIF"]))


def decode_pages(content: bytes, settings: Resize, dicom: Dicom, volume: Volume) -> Decoded:
    """Decode a file that `may_have_pages` with all its images as frames.

    `image` is the first one, exactly as of a question about one image; a file with a single image
    is that image. Limits: dicom.max_frames, dicom.max_total_pixels. Raises ImageError, naming the
    frame.
    """
    pages = undamaged(lambda: _Pages(content, settings, dicom.max_frames))
    count = len(pages.indices)
    if count == 1:
        return decode(content, settings)
    if volume.plane != "acquired":
        raise ImageError(
            f"a file of several images, whose planes are not known: volume.plane {volume.plane}"
            " needs DICOM or NIfTI",
            Reason.IMAGE_VOLUME,
        )
    first = decode(content, settings.model_copy(update={"frames": "first"}))
    if first.width * first.height * count > dicom.max_total_pixels:
        raise ImageError(
            f"too many pixels: {first.width} x {first.height} in {count} frames, the limit is"
            f" {dicom.max_total_pixels} (dicom.max_total_pixels)",
            Reason.IMAGE_TOO_LARGE,
        )
    pages.share_range()
    return replace(first, frames=LazySequence(count, pages.frame))


class _Pages:
    """Images of an open file, one in memory at a time.

    Access them in order: Pillow reads a GIF from its start again for an earlier frame.
    """

    def __init__(self, content: bytes, settings: Resize, max_frames: int) -> None:
        """Find them without decoding; ImageError if they are too many."""
        self._settings = settings
        self._opened = open_image(content, settings)
        self._size: tuple[int, int] | None = None
        if content.startswith(GIF_SIGNATURES):
            layout = read_gif_layout(content, max_frames)
            self.indices: Sequence[int] = range(max(len(layout.extents), 1))
            is_complete = layout.is_complete or len(self.indices) == 1
            # Pillow allocates what a frame covers before its size can be checked
            widths, heights = zip(self._opened.size, *layout.extents, strict=True)
            check_size(max(widths), max(heights), settings)
        else:
            self.indices = list(islice(_slices_of_tiff(self._opened), max_frames + 1))
            is_complete = True
        if len(self.indices) > max_frames:
            raise ImageError(
                f"too many images in a file: more than {max_frames} (dicom.max_frames)",
                Reason.IMAGE_TOO_LARGE,
            )
        if not is_complete:
            raise ImageError(
                f"truncated or damaged: it ends in frame {len(self.indices)}, or after it"
            )

    def share_range(self) -> None:
        """Scale deep grey of all images by one range, from the lowest to the highest of theirs."""
        deep_grey = self._settings.deep_grey
        if deep_grey not in ("range", "percentiles") or self._opened.format == "GIF":
            return
        ranges: list[tuple[float, float]] = []
        for index, page in enumerate(self.indices):
            self._opened.seek(page)  # reads its header, and so its mode
            if is_deep(self._opened):
                ranges.append(self._located(index, partial(self._range, index)))
        if ranges:
            shared = [min(low for low, _ in ranges), max(high for _, high in ranges)]
            self._settings = self._settings.model_copy(update={"deep_grey": shared})

    def frame(self, index: int) -> Image.Image:
        """A frame, (size, size) RGB; ImageError, with its number, if it is damaged."""
        return self._located(index, partial(self._resized, index))

    def _located(self, index: int, work: Callable[[], Result]) -> Result:
        return located(f"frame {index + 1} of {len(self.indices)}", partial(undamaged, work))

    def _range(self, index: int) -> tuple[float, float]:
        return grey_range(self._page(index), self._settings.deep_grey)

    def _resized(self, index: int) -> Image.Image:
        page = to_rgb(self._page(index), self._settings)
        return resize_by_pillow(page, self._settings)

    def _page(self, index: int) -> Image.Image:
        """An image, upright and decoded."""
        self._opened.seek(self.indices[index])
        check_size(self._opened.width, self._opened.height, self._settings)
        page = ImageOps.exif_transpose(self._opened)
        if self._size is None:
            self._size = page.size
        if page.size != self._size:
            sizes = " and ".join(f"{width} x {height}" for width, height in (self._size, page.size))
            raise ImageError(f"images of several sizes in one file: {sizes}", Reason.IMAGE_SERIES)
        return page


def _slices_of_tiff(opened: Image.Image) -> Iterator[int]:
    """Indices of the first page and of others that are neither reduced copies nor masks."""
    for page in tiff_pages(opened):
        kind = getattr(opened, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0)
        if page == 0 or not kind & _REDUCED_OR_MASK:
            yield page
