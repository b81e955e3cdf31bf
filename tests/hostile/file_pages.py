"""TIFF and GIF files with several images that are corrupt, bombs, or no stack."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import Image

from stages.corpus.quarantine.reasons import Reason
from tests.hostile.cases import COUNT, VolumeCase, bad_volume, good_volume
from tests.hostile.images import encode


def _frames(count: int = COUNT, size: tuple[int, int] = (12, 10)) -> list[Image.Image]:
    rng = np.random.default_rng(9)
    levels = rng.integers(0, 255, (count, *size), dtype=np.uint8)
    return [Image.fromarray(each) for each in levels]


def _animated(kind: str, frames: list[Image.Image], **options: Any) -> bytes:
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def _resized(content: bytes, frame: int, width: int, height: int) -> bytes:
    """A GIF with a frame of another size, of those that cover the screen."""
    start = b"," + struct.pack("<4H", 0, 0, 10, 12)
    parts = content.split(start)
    declared = b"," + struct.pack("<4H", 0, 0, width, height)
    return start.join(parts[: frame + 1]) + declared + start.join(parts[frame + 1 :])


def _tiff_chain(pages: int) -> bytes:
    """A TIFF of pages that share the pixels of the first."""
    entries = [
        *((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8)),
        *((262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 64)),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + 64
    parts = [b"II*\0", struct.pack("<I", start), bytes(range(64))]
    for page in range(1, pages + 1):
        following = start + page * (len(directory) + 4) if page < pages else 0
        parts += [directory, struct.pack("<I", following)]
    return b"".join(parts)


def _pages() -> dict[str, VolumeCase]:
    gif = _animated("GIF", _frames(), disposal=2)
    tiff = _animated("TIFF", _frames())
    large = Reason.IMAGE_TOO_LARGE
    broken = bytearray(_animated("TIFF", _frames(), compression="tiff_adobe_deflate"))
    with Image.open(BytesIO(bytes(broken))) as opened:
        opened.seek(16)
        strip = opened.tag_v2[273][0]  # type: ignore[attr-defined]
    broken[strip : strip + 20] = b"\xff" * 20
    cases = {
        "a gif": good_volume(gif),
        "a tiff": good_volume(tiff),
        "a tiff whose pages share their pixels": good_volume(_tiff_chain(COUNT)),
        "a gif whose first frame is a bomb": bad_volume(_resized(gif, 0, 65_000, 65_000), large),
        "a gif whose last frame is a bomb": bad_volume(
            _resized(gif, COUNT - 1, 65_000, 65_000), large
        ),
        "a gif whose frames are a bomb together": bad_volume(
            _resized(_resized(gif, 3, 65_000, 12), 6, 10, 65_000), large
        ),
        "a gif of a frame that is a line": bad_volume(_resized(gif, 5, 65_000, 1)),
        "a gif of 3,000 frames": bad_volume(
            _animated("GIF", _frames(3000, (2, 2)), disposal=2), large, "dicom.max_frames"
        ),
        "a tiff of 3,000 pages": bad_volume(_tiff_chain(3000), large, "dicom.max_frames"),
        "a tiff of 50,000 pages": bad_volume(_tiff_chain(50_000), large, "dicom.max_frames"),
        "a gif without its end": bad_volume(gif[:-1], Reason.IMAGE_DAMAGED, f"frame {COUNT}"),
        "a damaged page": bad_volume(bytes(broken), Reason.IMAGE_DAMAGED, f"frame 17 of {COUNT}"),
        "pages of several sizes": bad_volume(
            _animated("TIFF", [*_frames(4), *_frames(1, (11, 10))]),
            Reason.IMAGE_SERIES,
            "frame 5 of 5",
        ),
        "a page of a gif that it lacks": VolumeCase(
            {"": gif}, Reason.IMAGE_SLICE, (str(COUNT + 1),), slices=(COUNT + 1,)
        ),
        "a slice of an animation that is no stack": VolumeCase(
            {"": _animated("PNG", _frames())}, Reason.IMAGE_SLICE, slices=(2,)
        ),
    }
    for tenths in range(1, 10):
        cases[f"gif stack truncated at {tenths}/10"] = bad_volume(gif[: len(gif) * tenths // 10])
        cases[f"tiff stack truncated at {tenths}/10"] = bad_volume(tiff[: len(tiff) * tenths // 10])
    return cases


PAGES: Final[dict[str, VolumeCase]] = _pages()
