"""TIFF and GIF files with several images: one image, or slices where these are asked for."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence, TiffImagePlugin

from stages.corpus.images.decoding import Decoded, ImageError, decode
from stages.corpus.images.files import decode_files
from stages.corpus.images.gif_layout import read_gif_layout
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import resize_settings
from tests.corpus.images.test_decoders import saved
from tests.dicoms import settings
from tests.volumes import volume_settings

SMALL = resize_settings(size=16)
SIZE = (20, 24)
COUNT = 5


def noise(seed: int, dtype: str = "uint8", top: int = 255) -> NDArray[Any]:
    levels = np.random.default_rng(seed).integers(0, top, SIZE)
    return levels.astype(dtype)


def pages(mode: str = "L") -> list[Image.Image]:
    return [Image.fromarray(noise(seed)).convert(mode) for seed in range(COUNT)]


def stack(kind: str, images: list[Image.Image], **options: Any) -> bytes:
    return saved(images[0], kind, save_all=True, append_images=images[1:], **options)


def tiff(images: list[Image.Image], kinds: dict[int, int] | None = None, **options: Any) -> bytes:
    """A TIFF; `kinds`: page -> its NewSubfileType."""
    buffer = BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer) as writer:
        for index, image in enumerate(images):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[254] = (kinds or {}).get(index, 0)
            image.save(writer, "TIFF", tiffinfo=tags, **options)
            writer.newFrame()
    return buffer.getvalue()


def decoded(content: bytes, *, resize: Any = SMALL, dicom: Any = None, **volume: Any) -> Decoded:
    asked = volume_settings(**({"frames": 3} | volume))
    return decode_files([content], resize, dicom or settings(), asked)


def refusal(content: bytes, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        list(decoded(content, **options).frames)
    return caught.value


def levels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


FILES: dict[str, Callable[[], bytes]] = {
    "grey gif": lambda: stack("GIF", pages()),
    "gif of colours": lambda: stack("GIF", pages("RGB")),
    "see-through gif": lambda: stack("GIF", pages("RGBA"), transparency=0, disposal=2),
    "tiff": lambda: stack("TIFF", pages()),
    "tiff of colours": lambda: stack("TIFF", pages("RGB"), compression="tiff_lzw"),
    "see-through tiff": lambda: stack("TIFF", pages("RGBA")),
    "tiff with a palette": lambda: stack("TIFF", [each.convert("P") for each in pages("RGB")]),
    "tiff of 16 bits": lambda: stack(
        "TIFF", [Image.fromarray(noise(seed, "uint16", 1000 * seed + 9)) for seed in range(COUNT)]
    ),
    "tiff of real numbers": lambda: stack(
        "TIFF", [Image.fromarray(noise(seed, "float32")) for seed in range(COUNT)]
    ),
    "animated png": lambda: stack("PNG", pages()),
    "animated webp": lambda: stack("WEBP", pages("RGB")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_question_about_one_image_sees_what_it_always_saw(name: str) -> None:
    content = FILES[name]()
    alone = decode(content, SMALL)
    for changes in ({}, {"plane": "coronal"}, {"window": [10.0, 20.0]}):
        image = decode_files([content], SMALL, settings(), volume_settings(**changes))
        assert image.image.tobytes() == alone.image.tobytes()
        assert not image.frames
    # where a stack is asked for, `image` is that image all the same
    assert decoded(content).image.tobytes() == alone.image.tobytes()


@pytest.mark.parametrize("name", ["animated png", "animated webp"])
def test_other_animations_are_one_image_always(name: str) -> None:
    assert not decoded(FILES[name]()).frames


@pytest.mark.parametrize("name", [name for name in FILES if "tiff" in name and "16" not in name])
def test_pages_are_what_files_of_their_own_would_be(name: str) -> None:
    fixed = resize_settings(size=16, deep_grey=[0.0, 255.0])
    content = FILES[name]()
    image = decoded(content, resize=fixed)
    assert (len(image.frames), image.representative, image.pages) == (COUNT, 0, COUNT)
    assert (image.width, image.height) == SIZE[::-1]
    with Image.open(BytesIO(content)) as opened:
        for index, page in enumerate(ImageSequence.Iterator(opened)):
            alone = decode(saved(page.copy(), "TIFF"), fixed)
            assert image.frames[index].tobytes() == alone.image.tobytes()


def test_frames_of_a_gif_are_drawn_upon_each_other() -> None:
    # of the second frame on, only what changes is stored
    first = Image.fromarray(noise(1))
    images = [first]
    for number in range(1, 4):
        images.append(images[-1].copy())
        images[-1].putpixel((number, number), 255)
    content = stack("GIF", images)
    assert {*read_gif_layout(content, 9).extents} != {SIZE[::-1]}
    image = decoded(content, resize=resize_settings(size=24, resample="nearest"))
    for index, expected in enumerate(images):
        shown = levels(image.frames[index].resize(expected.size, Image.Resampling.NEAREST))
        assert abs(shown[index, index].astype(int) - levels(expected)[index, index]).max() <= 1


@pytest.mark.parametrize("name", ["grey gif", "see-through gif", "tiff", "tiff of 16 bits"])
def test_frames_may_be_accessed_in_any_order(name: str) -> None:
    image = decoded(FILES[name]())
    in_order = [frame.tobytes() for frame in image.frames]
    assert len({*in_order}) == COUNT
    for index in (3, 0, 4, 4, 1, 0):
        assert image.frames[index].tobytes() == in_order[index]


def test_reduced_copies_and_masks_of_a_tiff_are_no_slices() -> None:
    images = pages()
    small = images[1].resize((5, 6))
    content = tiff([images[0], small, images[2], images[3]], {1: 1, 3: 4})
    image = decoded(content)
    assert len(image.frames) == 2
    alone = decode(saved(images[2], "TIFF"), SMALL)
    assert image.frames[1].tobytes() == alone.image.tobytes()
    pyramid = tiff([images[0], small, images[0].resize((2, 3))], {1: 1, 2: 1})
    assert not decoded(pyramid).frames
    assert (
        decoded(pyramid).image.tobytes() == decode(saved(images[0], "TIFF"), SMALL).image.tobytes()
    )


@pytest.mark.parametrize("deep_grey", ["range", "percentiles"])
@pytest.mark.parametrize("dtype", ["uint16", "float32", "int32"])
def test_deep_slices_share_one_range(deep_grey: str, dtype: str) -> None:
    dark, bright = (np.full(SIZE, level, dtype) for level in (100, 900))
    dark[0, 0], bright[0, 0] = 0, 1000
    content = stack("TIFF", [Image.fromarray(dark), Image.fromarray(bright)])
    resize = resize_settings(size=24, resample="nearest", deep_grey=deep_grey)
    image = decoded(content, resize=resize)
    assert np.median(levels(image.frames[0])) < 60
    assert np.median(levels(image.frames[1])) > 200


def test_a_range_of_the_settings_holds_for_all_slices() -> None:
    images = [Image.fromarray(np.full(SIZE, level, np.uint16)) for level in (1000, 3000, 9000)]
    for deep_grey, expected in (([0.0, 6000.0], [42, 128, 255]), ("depth", [4, 12, 35])):
        resize = resize_settings(size=16, deep_grey=deep_grey)
        image = decoded(stack("TIFF", images), resize=resize)
        found = [int(levels(frame)[0, 0, 0]) for frame in image.frames]
        assert found == pytest.approx(expected, abs=1)


def test_pages_are_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6
    images = pages()
    content = stack("TIFF", images, exif=exif)
    alone = decode(content, SMALL)
    image = decoded(content)
    assert (image.width, image.height) == (alone.width, alone.height)
    assert image.frames[0].tobytes() == alone.image.tobytes()


# --- what is refused


def damaged_page(index: int) -> bytes:
    """A TIFF with other bytes in the packed pixels of a page."""
    content = bytearray(stack("TIFF", pages("RGB"), compression="tiff_adobe_deflate"))
    with Image.open(BytesIO(bytes(content))) as opened:
        opened.seek(index)
        start = opened.tag_v2[273][0]  # type: ignore[attr-defined]
        content[start : start + 30] = b"\xff" * 30
    return bytes(content)


def frame_starts(content: bytes) -> dict[int, int]:
    """Index of each frame of a GIF but the first -> where it begins, with its extension."""
    starts = [at for at in range(len(content)) if content.startswith(b"!\xf9\x04", at)]
    return dict(enumerate(starts[-COUNT + 1 :], start=1))


def damaged_gif(index: int) -> bytes:
    """A GIF with codes of a frame that stand for nothing."""
    content = bytearray(stack("GIF", pages()))
    at = content.index(b",", frame_starts(bytes(content))[index] + 8)
    table = 3 << ((content[at + 9] & 7) + 1) if content[at + 9] & 0x80 else 0
    data = at + 10 + table + 2
    content[data : data + 40] = b"\xff" * 40
    return bytes(content)


@pytest.mark.parametrize("index", [1, 3])
@pytest.mark.parametrize("make", [damaged_page, damaged_gif])
def test_a_damaged_frame_is_named_and_costs_no_question_about_the_first(
    make: Callable[[int], bytes], index: int
) -> None:
    content = make(index)
    error = refusal(content)
    assert error.reason is Reason.IMAGE_DAMAGED
    assert f"frame {index + 1} of {COUNT}" in str(error)
    assert decode_files([content], SMALL, settings()).image.size == (16, 16)


def test_a_page_that_is_not_a_number_is_named() -> None:
    images = [noise(seed, "float32") for seed in range(COUNT)]
    images[2][3, 4] = np.nan
    content = stack("TIFF", [Image.fromarray(each) for each in images])
    for deep_grey in ("range", [0.0, 255.0]):
        error = refusal(content, resize=resize_settings(size=16, deep_grey=deep_grey))
        assert f"frame 3 of {COUNT}" in str(error)


@pytest.mark.parametrize("name", ["grey gif", "gif of colours", "tiff", "tiff of colours"])
@pytest.mark.filterwarnings("ignore")  # Pillow's, of truncated TIFF
def test_a_truncated_file_is_never_a_shorter_stack(name: str) -> None:
    content = FILES[name]()
    whole = [frame.tobytes() for frame in decoded(content).frames]
    reasons: list[Reason] = []
    for end in {*range(20, len(content), 97), *range(len(content) - 30, len(content))}:
        try:
            # only the end of the last header of a TIFF can be done without
            assert [frame.tobytes() for frame in decoded(content[:end]).frames] == whole
        except ImageError as error:
            reasons.append(error.reason)
    assert {*reasons} == {Reason.IMAGE_DAMAGED}
    assert len(reasons) > 30


def test_a_gif_truncated_between_two_frames_is_refused() -> None:
    content = stack("GIF", pages())
    error = refusal(content[: frame_starts(content)[3]])
    assert error.reason is Reason.IMAGE_DAMAGED
    assert "frame 3" in str(error)


def test_pages_of_several_sizes_are_refused_with_the_frame() -> None:
    images = [*pages()[:3], Image.fromarray(noise(9)[:-1])]
    error = refusal(stack("TIFF", images))
    assert error.reason is Reason.IMAGE_SERIES
    assert "frame 4 of 4" in str(error)
    assert "24 x 20 and 24 x 19" in str(error)


@pytest.mark.parametrize("name", ["grey gif", "tiff"])
@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        ({"max_frames": COUNT - 1}, "dicom.max_frames"),
        ({"max_total_pixels": COUNT * 20 * 24 - 1}, "dicom.max_total_pixels"),
    ],
)
def test_limits_of_volumes_hold(name: str, limits: dict[str, int], setting: str) -> None:
    error = refusal(FILES[name](), dicom=settings(**limits))
    assert error.reason is Reason.IMAGE_TOO_LARGE
    assert setting in str(error)
    allowed = {limit: value + 1 for limit, value in limits.items()}
    assert len(decoded(FILES[name](), dicom=settings(**allowed)).frames) == COUNT


def test_no_plane_is_cut_through_pages() -> None:
    error = refusal(FILES["tiff"](), plane="axial")
    assert error.reason is Reason.IMAGE_VOLUME
    assert "volume.plane axial" in str(error)
    one = saved(pages()[0], "TIFF")
    assert not decoded(one, plane="axial").frames


@pytest.mark.parametrize("name", ["grey gif", "tiff"])
def test_files_of_several_images_that_are_refused_can_be_stacks(name: str) -> None:
    refusing = resize_settings(size=16, frames="refuse")
    with pytest.raises(ImageError) as caught:
        decode_files([FILES[name]()], refusing, settings())
    assert caught.value.reason is Reason.IMAGE_FRAMES
    assert len(decoded(FILES[name](), resize=refusing).frames) == COUNT


# --- the layout of a GIF


def test_the_layout_is_that_of_pillow() -> None:
    for name in ("grey gif", "gif of colours", "see-through gif"):
        content = FILES[name]()
        layout = read_gif_layout(content, 100)
        assert layout.is_complete
        with Image.open(BytesIO(content)) as opened:
            assert len(layout.extents) == opened.n_frames  # type: ignore[attr-defined]
        assert not read_gif_layout(content[:-1], 100).is_complete
        assert len(read_gif_layout(content, 2).extents) == 3
        for end in range(len(content) - 1):
            assert not read_gif_layout(content[:end], 100).is_complete


def test_a_frame_beyond_the_limit_of_pixels_is_refused_before_it_is_allocated() -> None:
    content = bytearray(stack("GIF", pages()[:2], disposal=2))
    second = content.rindex(b",\0\0\0\0")
    content[second + 5 : second + 9] = struct.pack("<HH", 65_000, 65_000)
    error = refusal(bytes(content))
    assert error.reason is Reason.IMAGE_TOO_LARGE
    assert decode_files([bytes(content)], SMALL, settings()).image.size == (16, 16)
    first = content.index(b",\0\0\0\0")
    content[first + 5 : first + 9] = struct.pack("<HH", 65_000, 65_000)
    for asked in (1, 3):
        assert refusal(bytes(content), frames=asked).reason is Reason.IMAGE_TOO_LARGE
