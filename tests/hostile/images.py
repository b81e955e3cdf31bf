"""Images that are broken, lie about themselves or are something else besides."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from stages.corpus.quarantine.reasons import Reason
from tests.hostile.cases import Case

SIZE = (64, 48)


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Noise over a slope, so that no coder gets away with a few bytes."""
    noise = np.random.default_rng(1).integers(0, 40, (size[1], size[0], 3))
    slope = np.linspace(0, 200, size[0])[None, :, None]
    return Image.fromarray(np.rint(noise + slope).astype(np.uint8))


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"", before: bytes = b""
) -> bytes:
    """A PNG of any claim: its header, chunks before its pixels, and packed pixels."""
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
    directory = (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack("<I", following)
    )
    return b"II*\0" + struct.pack("<I", 8) + directory + data


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


def _cut() -> dict[str, Case]:
    found = {}
    for name, (kind, settings) in _KINDS.items():
        content = saved(scene(), kind, **settings)
        for tenths in range(1, 10):
            found[f"{name} cut at {tenths}/10"] = Case(
                content[: len(content) * tenths // 10], "quarantined", Reason.IMAGE_DAMAGED
            )
    return found


def _sizes() -> dict[str, Case]:
    gif = saved(scene(), "GIF")
    return {
        "nothing": Case(b"", "quarantined", Reason.IMAGE_EMPTY),
        "one byte": Case(b"\x89", "quarantined", Reason.IMAGE_FORMAT),
        "zeros": Case(bytes(5000), "quarantined", Reason.IMAGE_FORMAT),
        "one pixel": Case(saved(Image.new("RGB", (1, 1), "red"), "PNG"), "kept"),
        "a line": Case(png(60_000, 2, data=rows(60_000, 2)), "kept"),
        "a column": Case(png(2, 60_000, data=rows(2, 60_000)), "kept"),
        "a png of 3.6 gigapixels": Case(png(60_000, 60_000), "quarantined", Reason.IMAGE_TOO_LARGE),
        "a png of 16 million gigapixels": Case(
            png(2**31 - 1, 2**31 - 1), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "a png without width": Case(png(0, 10), "quarantined", Reason.IMAGE_DAMAGED),
        "a gif whose screen has no height, but its image has": Case(
            gif[:8] + b"\0\0" + gif[10:], "kept"
        ),
        "a bmp that claims 4 gigapixels": Case(
            saved(scene(), "BMP")[:18]
            + struct.pack("<ii", 65_000, 65_000)
            + saved(scene(), "BMP")[26:],
            "quarantined",
            Reason.IMAGE_TOO_LARGE,
        ),
        "a tiff that claims 4 gigapixels": Case(
            tiff(
                [
                    (256, 4, 1, 65_000),
                    (257, 4, 1, 65_000),
                    (258, 3, 1, 8),
                    (262, 3, 1, 1),
                    (273, 4, 1, 8),
                    (279, 4, 1, 100),
                ]
            ),
            "quarantined",
            Reason.IMAGE_TOO_LARGE,
        ),
        "a jpeg that claims 4 gigapixels": Case(
            _jpeg_of(65_000, 65_000), "quarantined", Reason.IMAGE_TOO_LARGE
        ),
    }


def _jpeg_of(width: int, height: int) -> bytes:
    content = saved(scene(), "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def _other_things() -> dict[str, Case]:
    image = saved(scene(), "PNG")
    return {
        "a text": Case(b"This is a text." * 100, "quarantined", Reason.IMAGE_FORMAT),
        "a page": Case(
            b"<!doctype html><script>alert(1)</script>", "quarantined", Reason.IMAGE_FORMAT
        ),
        "svg": Case(
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            "quarantined",
            Reason.IMAGE_FORMAT,
        ),
        "postscript": Case(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n",
            "quarantined",
            Reason.IMAGE_FORMAT,
        ),
        "pdf": Case(
            b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", "quarantined", Reason.IMAGE_FORMAT
        ),
        "pdf with a jpeg in it": Case(
            b"%PDF-1.7\nstream\n" + saved(scene(), "JPEG") + b"endstream",
            "quarantined",
            Reason.IMAGE_FORMAT,
        ),
        "a zip": Case(zip_of("a.png"), "quarantined", Reason.IMAGE_FORMAT),
        "an executable": Case(b"\x7fELF" + bytes(500), "quarantined", Reason.IMAGE_FORMAT),
        "jpeg 2000": Case(saved(scene(), "JPEG2000"), "quarantined", Reason.IMAGE_FORMAT),
        "icon": Case(saved(scene((32, 32)), "ICO"), "quarantined", Reason.IMAGE_FORMAT),
        "a pickle": Case(
            b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
            "quarantined",
            Reason.IMAGE_FORMAT,
        ),
        "png with a zip behind it": Case(image + zip_of("evil.py"), "kept"),
        "jpeg with a page behind it": Case(
            saved(scene(), "JPEG") + b"<script>alert(1)</script>", "kept"
        ),
        "gif that is a script": Case(saved(scene(), "GIF") + b"/*\n*/=1;alert(1)", "kept"),
        "a jpeg called png": Case(saved(scene(), "JPEG"), "kept"),
    }


def _insides() -> dict[str, Case]:
    image, jpeg = saved(scene(), "PNG"), saved(scene(), "JPEG", quality=90)
    header = image[:33]
    broken = bytearray(image)
    broken[29] ^= 0xFF
    pixels = bytearray(image)
    pixels[len(pixels) // 2] ^= 0xFF
    nan = np.full(SIZE[::-1], 1.0, np.float32)
    nan[3, 4] = np.nan
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    animated = {"save_all": True, "append_images": [Image.new("RGB", SIZE)], "duration": 10}
    return {
        "png with a wrong header checksum": Case(
            bytes(broken), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "png with a wrong pixel": Case(bytes(pixels), "quarantined", Reason.IMAGE_DAMAGED),
        "png without pixels": Case(
            header + chunk(b"IEND", b""), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "png with fewer rows": Case(
            png(64, 48, data=rows(64, 20)), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "png with an unknown colour": Case(
            png(8, 8, colour=5, data=rows(8, 8)), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "png of 3 bits": Case(
            png(8, 8, depth=3, data=rows(8, 8)), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "png with a text of 100 MB": Case(
            png(
                8,
                8,
                data=rows(8, 8),
                before=chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)),
            ),
            "kept",
        ),
        "png with pixels that never end": Case(png(8, 8, data=bytes(100_000_000)), "kept"),
        "png with a broken colour profile": Case(
            header + chunk(b"iCCP", b"x\0\0garbage") + image[33:], "kept"
        ),
        "jpeg with a broken colour profile": Case(
            saved(scene(), "JPEG", icc_profile=b"garbage" * 50), "kept"
        ),
        "jpeg with broken exif": Case(
            jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 22) + b"Exif\0\0garbagegarbage" + jpeg[2:],
            "kept",
        ),
        "jpeg turned in a way there is not": Case(saved(scene(), "JPEG", exif=exif), "kept"),
        "jpeg with a comment of 64 KB": Case(
            jpeg[:2] + b"\xff\xfe\xff\xff" + bytes(65_533) + jpeg[2:], "kept"
        ),
        "jpeg with an end in its middle": Case(
            jpeg[: len(jpeg) // 2] + b"\xff\xd9" + jpeg[len(jpeg) // 2 :],
            "quarantined",
            Reason.IMAGE_DAMAGED,
        ),
        "jpeg with bytes that belong to nothing": Case(
            jpeg[:20] + b"\0\0\0" + jpeg[20:], "quarantined", Reason.IMAGE_DAMAGED
        ),
        "jpeg without tables": Case(
            b"\xff\xd8" + jpeg[jpeg.index(b"\xff\xc0") :], "quarantined", Reason.IMAGE_DAMAGED
        ),
        "tiff of which a pixel is no number": Case(
            saved(Image.fromarray(nan), "TIFF"), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "tiff of which a pixel is infinite": Case(
            saved(Image.fromarray(np.where(np.isnan(nan), np.inf, nan).astype(np.float32)), "TIFF"),
            "quarantined",
            Reason.IMAGE_DAMAGED,
        ),
        "tiff whose directory comes back to itself": Case(
            tiff([(256, 4, 1, 8), (257, 4, 1, 8)], following=8), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "tiff with a billion strips": Case(
            tiff(
                [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 2**30, 8)]
            ),
            "quarantined",
            Reason.IMAGE_DAMAGED,
        ),
        "tiff whose pixels lie beyond its end": Case(
            tiff(
                [
                    (256, 4, 1, 8),
                    (257, 4, 1, 8),
                    (258, 3, 1, 8),
                    (262, 3, 1, 1),
                    (273, 4, 1, 2**31),
                    (279, 4, 1, 64),
                ]
            ),
            "quarantined",
            Reason.IMAGE_DAMAGED,
        ),
        "animated gif": Case(saved(scene(), "GIF", **animated), "kept"),
        "animated webp": Case(saved(scene(), "WEBP", **animated), "kept"),
        "animated png": Case(saved(scene(), "PNG", **animated), "kept"),
        "palette with colours that are not there": Case(
            png(8, 8, colour=3, data=rows(8, 8), before=chunk(b"PLTE", b"\0\0\0\xff\xff\xff")),
            "kept",
        ),
    }


IMAGES: dict[str, Case] = {**_cut(), **_sizes(), **_other_things(), **_insides()}
