"""A folder of image files is a volume, in the order of the numbers in their names."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stages.corpus.images.decoding import Decoded, ImageError
from stages.corpus.images.files import decode_files
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import resize_settings
from tests.corpus.images.test_decoders import saved
from tests.dicoms import file, ramp, settings
from tests.volumes import volume_settings

SMALL = resize_settings(size=8)


def level(value: int, size: tuple[int, int] = (12, 10), kind: str = "PNG") -> bytes:
    return saved(Image.fromarray(np.full(size, value, dtype=np.uint8)), kind)


def decoded(*contents: bytes, frame: str = "middle", **changes: object) -> Decoded:
    options = settings(frame=frame, max_frames=8)
    return decode_files(list(contents), SMALL, options, volume_settings(**changes), folder=True)


def brightest(image: Decoded) -> list[int]:
    return [int(np.asarray(frame).max()) for frame in image.frames]


@pytest.mark.parametrize(("frame", "shown"), [("middle", 30), ("first", 10)])
def test_the_files_are_its_frames_and_one_stands_for_them(frame: str, shown: int) -> None:
    image = decoded(level(10), level(20), level(30, kind="BMP"), level(40), frame=frame)
    assert brightest(image) == [10, 20, 30, 40]
    assert int(np.asarray(image.image).max()) == shown
    assert image.frames[image.representative].tobytes() == image.image.tobytes()
    assert (image.width, image.height) == (10, 12)


def test_a_folder_of_one_file_is_that_image() -> None:
    image = decoded(level(10))
    assert not image.frames


@pytest.mark.parametrize(
    ("contents", "reason", "words"),
    [
        ([level(1), level(2), level(3, (12, 11))], Reason.IMAGE_SERIES, "file 3 of 3, 11 x 12"),
        ([level(1), b"no image", level(3)], Reason.IMAGE_FORMAT, "file 2 of 3"),
        ([level(1), level(2), level(3)[:-20]], Reason.IMAGE_DAMAGED, "file 3 of 3"),
        ([level(1), b"", level(3)], Reason.IMAGE_EMPTY, "file 2 of 3"),
        ([level(1), file(ramp(), Modality="MR")], Reason.IMAGE_SERIES, "file 2 of 2"),
        ([level(1)] * 9, Reason.IMAGE_TOO_LARGE, "9, the limit is 8"),
    ],
)
def test_a_folder_that_is_no_volume_is_refused_with_the_file(
    contents: list[bytes], reason: Reason, words: str
) -> None:
    with pytest.raises(ImageError) as error:
        list(decoded(*contents).frames)
    assert error.value.reason == reason
    assert words in str(error.value)


def test_slices_cannot_be_cut_across_where_no_plane_is_known() -> None:
    with pytest.raises(ImageError, match=r"volume\.plane coronal needs DICOM or NIfTI"):
        decoded(level(1), level(2), plane="coronal")
