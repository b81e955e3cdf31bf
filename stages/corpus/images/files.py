"""Decode what a record names: a file of any kind, or a folder with a volume.

A folder holds either the DICOM files of one series, or images (PNG, JPEG and so on), one a slice,
in the order of the numbers in their names. A TIFF or GIF file with several images is its first one,
unless questions are about several slices, or name some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from PIL import Image

from stages.core.iteration.import_lock import IMPORT_LOCK
from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom, Resize, Volume
from stages.corpus.dicom.headers.preamble import is_dicom
from stages.corpus.images.decoding import Decoded, decode, resize_by_pillow
from stages.corpus.images.file_pages import decode_pages, may_have_pages
from stages.corpus.quarantine.image_errors import ImageError, file_place, located
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.volumes.signatures import is_nifti

if TYPE_CHECKING:
    from stages.corpus.volumes.stacks import FrameStack

_ONE_FRAME: Final = Volume(
    plane="acquired", frames=1, selection="uniform", window=None, max_images=1
)


def decode_files(
    contents: Sequence[bytes],
    settings: Resize,
    dicom: Dicom,
    volume: Volume = _ONE_FRAME,
    *,
    names: Sequence[str] = (),
    folder: bool = False,
    stacked: bool = False,
) -> Decoded:
    """Decode an image from one file of any kind, or from a folder with a volume.

    Args:
        contents: The files.
        settings: Size and filter, and what other kinds of files than DICOM need.
        dicom: Which frame `image` is, windows and limits, of other volumes too.
        volume: Which slices `frames` are. By default, those that were stored, in their order.
        names: Of the files, for messages about one of a folder; without them their numbers.
        folder: Whether the files are the slices of a volume.
        stacked: Whether a question shows several slices or names one, so that their order matters
            and is checked; always where `volume` asks for several.

    Raises ImageError with the reason.
    """
    max_pixels = settings.max_megapixels * 10**6
    stacked = stacked or volume.several
    # accessed once: a lazy sequence fetches on each access
    first = contents[0]
    # Check for DICOM first: a file can be DICOM and another kind at once, and its header may flag
    # burned-in text, which must not be overlooked.
    if is_dicom(first):
        # imports pydicom and its decoders, which a corpus without DICOM does not need
        with IMPORT_LOCK:
            from stages.corpus.volumes.stacks import read_dicom_stack

        files = contents if folder else [first]
        return _decode_stack(
            read_dicom_stack(files, dicom, volume, max_pixels, stacked=stacked, names=names),
            settings,
        )
    if folder and len(contents) > 1:
        return _decode_folder(contents, settings, dicom, volume, names)
    if is_nifti(first):
        # imports pydicom, for its windows, and nibabel, which few corpora need
        with IMPORT_LOCK:
            from stages.corpus.volumes.stacks import read_nifti_stack

        return _decode_stack(read_nifti_stack(first, dicom, volume, max_pixels), settings)
    if stacked and may_have_pages(first):
        return decode_pages(first, settings, dicom, volume)
    return decode(first, settings)


def _decode_stack(stack: FrameStack, settings: Resize) -> Decoded:
    def resize_frame(index: int) -> Image.Image:
        frame = Image.fromarray(stack.frames[index]).convert("RGB")
        return resize_by_pillow(frame, settings)

    frames = LazySequence(len(stack.frames), resize_frame)
    return Decoded(
        image=frames[stack.representative],
        width=stack.width,
        height=stack.height,
        mode=stack.mode,
        frames=frames if len(frames) > 1 else (),
        representative=stack.representative,
        tags=stack.tags,
    )


def _decode_folder(
    contents: Sequence[bytes],
    settings: Resize,
    dicom: Dicom,
    volume: Volume,
    names: Sequence[str],
) -> Decoded:
    """A volume whose slices are image files: nothing is known of it but their order."""
    if len(contents) > dicom.max_frames:
        raise ImageError(
            f"too many files in a folder: {len(contents)}, the limit is {dicom.max_frames}"
            " (dicom.max_frames)",
            Reason.IMAGE_TOO_LARGE,
        )
    if volume.plane != "acquired":
        raise ImageError(
            f"a folder of images, whose planes are not known: volume.plane {volume.plane} needs"
            " DICOM or NIfTI",
            Reason.IMAGE_VOLUME,
        )

    def place(index: int) -> str:
        return file_place(names, index, len(contents))

    def read_slice(index: int) -> Decoded:
        content = contents[index]
        if is_dicom(content) or is_nifti(content):
            raise ImageError(
                f"files of several kinds in one folder: {place(0)} is neither DICOM nor NIfTI, and"
                f" {place(index)} is: name a folder of one kind",
                Reason.IMAGE_SERIES,
            )
        return located(place(index), lambda: decode(content, settings))

    middle = len(contents) // 2 if dicom.frame == "middle" else 0
    decoded = read_slice(middle)
    size = decoded.width, decoded.height

    def read_frame(index: int) -> Image.Image:
        frame = read_slice(index)
        if (frame.width, frame.height) != size:
            raise ImageError(
                f"images of several sizes in one folder: {place(middle)}, {size[0]} x {size[1]},"
                f" and {place(index)}, {frame.width} x {frame.height}",
                Reason.IMAGE_SERIES,
            )
        return frame.image

    return Decoded(
        image=decoded.image,
        width=decoded.width,
        height=decoded.height,
        mode=decoded.mode,
        frames=LazySequence(len(contents), read_frame),
        representative=middle,
    )
