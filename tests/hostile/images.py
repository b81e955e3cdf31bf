"""Images that are corrupt, declare false sizes, or are other files as well."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from stages.corpus.quarantine.reasons import Reason
from tests.hostile.cases import Case, bad_image, harmless

SIZE = (64, 48)


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Noise over a slope, which no codec compresses to a few bytes."""
    noise = np.random.default_rng(1).integers(0, 40, (size[1], size[0], 3))
    slope = np.linspace(0, 200, size[0])[None, :, None]
    return Image.fromarray(np.rint(noise + slope).astype(np.uint8))


def encode(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"", before: bytes = b""
) -> bytes:
    """A PNG of any declared size and kind, with chunks `before` its compressed pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + before
        + chunk(b"IDAT", zlib.compress(data, 9))
        + chunk(b"IEND", b"")
    )


def rows(width: int, height: int) -> bytes:
    return (b"\0" + b"\x80" * width) * height


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF with one directory of (tag, type, count, value)."""
    count = struct.pack("<H", len(entries))
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + count + directory + struct.pack("<I", following) + data


def zip_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive jpeg": ("JPEG", {"quality": 90, "progressive": True}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {"quality": 90}),
    "gif": ("GIF", {}),
}


def too_large(content: bytes) -> Case:
    return bad_image(content, Reason.IMAGE_TOO_LARGE)


def not_an_image(content: bytes) -> Case:
    return bad_image(content, Reason.IMAGE_FORMAT)


def _truncated() -> dict[str, Case]:
    cases = {}
    for name, (kind, settings) in _KINDS.items():
        content = encode(scene(), kind, **settings)
        for tenths in range(1, 10):
            part = content[: len(content) * tenths // 10]
            cases[f"{name} truncated at {tenths}/10"] = bad_image(part)
    return cases


def _sizes() -> dict[str, Case]:
    gif = encode(scene(), "GIF")
    bmp = encode(scene(), "BMP")
    jpeg = encode(scene(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    huge = struct.pack("<ii", 65_000, 65_000)
    huge_tiff = tiff(
        [
            *((256, 4, 1, 65_000), (257, 4, 1, 65_000), (258, 3, 1, 8)),
            *((262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 100)),
        ]
    )
    return {
        "nothing": bad_image(b"", Reason.IMAGE_EMPTY),
        "one byte": not_an_image(b"\x89"),
        "zeros": not_an_image(bytes(5000)),
        "one pixel": harmless(encode(Image.new("RGB", (1, 1), "red"), "PNG")),
        "a line": harmless(png(60_000, 2, data=rows(60_000, 2))),
        "a column": harmless(png(2, 60_000, data=rows(2, 60_000))),
        "a png of 3.6 gigapixels": too_large(png(60_000, 60_000)),
        "a png of 16 million gigapixels": bad_image(png(2**31 - 1, 2**31 - 1)),
        "a png without width": bad_image(png(0, 10)),
        "a gif whose screen has no height, but its image has": harmless(
            gif[:8] + b"\0\0" + gif[10:]
        ),
        "a bmp that declares 4 gigapixels": too_large(bmp[:18] + huge + bmp[26:]),
        "a tiff that declares 4 gigapixels": too_large(huge_tiff),
        "a jpeg that declares 4 gigapixels": too_large(
            jpeg[:frame] + struct.pack(">HH", 65_000, 65_000) + jpeg[frame + 4 :]
        ),
    }


def _other_formats() -> dict[str, Case]:
    jpeg = encode(scene(), "JPEG")
    pickle = b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    return {
        "a text": not_an_image(b"This is a text." * 100),
        "a page": not_an_image(b"<!doctype html><script>alert(1)</script>"),
        "svg": not_an_image(svg),
        "postscript": not_an_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n"),
        "pdf": not_an_image(b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF"),
        "pdf with a jpeg in it": not_an_image(b"%PDF-1.7\nstream\n" + jpeg + b"endstream"),
        "a zip": not_an_image(zip_of("a.png")),
        "an executable": not_an_image(b"\x7fELF" + bytes(500)),
        "jpeg 2000": not_an_image(encode(scene(), "JPEG2000")),
        "icon": not_an_image(encode(scene((32, 32)), "ICO")),
        "a pickle": not_an_image(pickle),
        "png followed by a zip": harmless(encode(scene(), "PNG") + zip_of("evil.py")),
        "jpeg followed by a page": harmless(jpeg + b"<script>alert(1)</script>"),
        "gif that is a script": harmless(encode(scene(), "GIF") + b"/*\n*/=1;alert(1)"),
        "a jpeg named png": harmless(jpeg),
    }


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def _pngs() -> dict[str, Case]:
    image = encode(scene(), "PNG")
    header = image[:33]
    long_text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    short_palette = chunk(b"PLTE", b"\0\0\0\xff\xff\xff")
    pixels = rows(8, 8)
    return {
        "png with a wrong header checksum": bad_image(_flip(image, 29)),
        "png with a wrong pixel": bad_image(_flip(image, len(image) // 2)),
        "png without pixels": bad_image(header + chunk(b"IEND", b"")),
        "png with fewer rows": bad_image(png(64, 48, data=rows(64, 20))),
        "png with an unknown colour": bad_image(png(8, 8, colour=5, data=pixels)),
        "png of 3 bits": bad_image(png(8, 8, depth=3, data=pixels)),
        "png with a text of 100 MB": harmless(png(8, 8, data=pixels, before=long_text)),
        "png with pixels that never end": harmless(png(8, 8, data=bytes(100_000_000))),
        "png with a broken colour profile": harmless(
            header + chunk(b"iCCP", b"x\0\0garbage") + image[33:]
        ),
        "png with colours missing from its palette": harmless(
            png(8, 8, colour=3, data=pixels, before=short_palette)
        ),
    }


def _jpegs() -> dict[str, Case]:
    jpeg = encode(scene(), "JPEG", quality=90)
    middle = len(jpeg) // 2
    exif = b"\xff\xe1" + struct.pack(">H", 22) + b"Exif\0\0garbagegarbage"
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 99
    return {
        "jpeg with a broken colour profile": harmless(
            encode(scene(), "JPEG", icc_profile=b"garbage" * 50)
        ),
        "jpeg with broken exif": harmless(jpeg[:2] + exif + jpeg[2:]),
        "jpeg of an unknown orientation": harmless(encode(scene(), "JPEG", exif=orientation)),
        "jpeg with a comment of 64 KB": harmless(
            jpeg[:2] + b"\xff\xfe\xff\xff" + bytes(65_533) + jpeg[2:]
        ),
        "jpeg with an end in its middle": bad_image(jpeg[:middle] + b"\xff\xd9" + jpeg[middle:]),
        "jpeg with stray bytes": bad_image(jpeg[:20] + b"\0\0\0" + jpeg[20:]),
        "jpeg without tables": bad_image(b"\xff\xd8" + jpeg[jpeg.index(b"\xff\xc0") :]),
    }


def _tiffs() -> dict[str, Case]:
    size = [(256, 4, 1, 8), (257, 4, 1, 8)]
    kind = [(258, 3, 1, 8), (262, 3, 1, 1)]

    def with_pixel(value: float) -> bytes:
        pixels = np.full(SIZE[::-1], 1.0, np.float32)
        pixels[3, 4] = value
        return encode(Image.fromarray(pixels), "TIFF")

    return {
        "tiff with a pixel that is not a number": bad_image(with_pixel(np.nan)),
        "tiff with an infinite pixel": bad_image(with_pixel(np.inf)),
        "tiff whose directory follows itself": bad_image(tiff(size, following=8)),
        "tiff with a billion strips": bad_image(tiff([*size, *kind, (273, 4, 2**30, 8)])),
        "tiff whose pixels are beyond its end": bad_image(
            tiff([*size, *kind, (273, 4, 1, 2**31), (279, 4, 1, 64)])
        ),
    }


def _animations() -> dict[str, Case]:
    settings = {"save_all": True, "append_images": [Image.new("RGB", SIZE)], "duration": 10}
    return {
        f"animated {kind.lower()}": harmless(encode(scene(), kind, **settings))
        for kind in ("GIF", "WEBP", "PNG")
    }


IMAGES: dict[str, Case] = {
    **_truncated(),
    **_sizes(),
    **_other_formats(),
    **_pngs(),
    **_jpegs(),
    **_tiffs(),
    **_animations(),
}
