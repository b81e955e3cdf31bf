"""Decoder benchmark: CPU time and distance from Pillow's full-resolution images.

The figures of docs/ingest-images.md.

    python -m benchmarks.decoding [--quick] [--json FILE]

Phantoms of 512 to 2048 pixels with noise of 4 grey levels, as JPEG and PNG, in colour and grey,
each decoded to 384x384 by one thread, and two images that are hard for filters: thin white lines on
black, and pure noise. Then PNG encoders of the result. Milliseconds are the minimum CPU time of
several interleaved runs, so that other load on the machine affects all decoders alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final

import numpy as np
import pyvips
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from stages.core.outputs import write_json
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.images.decoding import decode, encode
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.phantoms import sample_phantom

SIDES: Final = ((512, 512), (1024, 768), (1500, 1200), (2048, 2048))
TURNS: Final = 7
_SIZE: Final = 384
_NOISE: Final = 4.0
_BICUBIC: Final = Image.Resampling.BICUBIC


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = build_parser("decoding", __doc__, quick="files of 1024x768 pixels, 3 runs of each")
    arguments = parser.parse_args()
    sides, turns = (SIDES[1:2], 3) if arguments.quick else (SIDES, TURNS)
    results = {
        "decoders": measure_decoders(files(sides), turns),
        "encoders": measure_encoders(turns),
    }
    for name, rows in results.items():
        table = Table(name, *next(iter(rows.values())))
        for row, cells in rows.items():
            texts = [f"{cell['ms']:.1f} ms {cell['other']}" for cell in cells.values()]
            table.add_row(row, *texts)
        Console(width=200).print(table)
    if arguments.json:
        write_json(
            arguments.json, {**results, "turns": turns, "provenance": collect_provenance({})}
        )


def files(sides: tuple[tuple[int, int], ...]) -> dict[str, bytes]:
    """Name -> image file, for all formats and sizes."""
    contents = {}
    for side in sides:
        colour = scan(side)
        for name, image in (("colour", colour), ("grey", colour.convert("L"))):
            size = f"{side[0]}x{side[1]}"
            contents[f"JPEG {name} {size}"] = _saved(image, "JPEG", quality=90)
            contents[f"PNG {name} {size}"] = _saved(image, "PNG", compress_level=3)
    width, height = sides[-1]
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    contents["JPEG noise"] = _saved(Image.fromarray(noise), "JPEG", quality=90)
    contents["PNG lines"] = _saved(lines((width, height)), "PNG")
    return contents


def scan(side: tuple[int, int]) -> Image.Image:
    """A phantom with Gaussian noise."""
    rng = np.random.default_rng(3)
    drawn = draw(sample_phantom(rng, "fundus"), (512, 512), rng).resize(side, _BICUBIC)
    noise = rng.standard_normal((side[1], side[0], 1), dtype=np.float32) * _NOISE
    return Image.fromarray(np.clip(np.asarray(drawn) + noise, 0, 255).astype(np.uint8))


def lines(side: tuple[int, int]) -> Image.Image:
    """White lines, two pixels wide, on black."""
    image = Image.new("RGB", side)
    rng = np.random.default_rng(4)
    for _ in range(300):
        ends = [int(rng.integers(each)) for each in (*side, *side)]
        ImageDraw.Draw(image).line(ends, fill=(255, 255, 255), width=2)
    return image


def measure_decoders(contents: Mapping[str, bytes], turns: int) -> dict[str, dict[str, Any]]:
    """File -> decoder -> milliseconds, and mean distance from Pillow's image in grey levels."""
    settings = load_params().resize
    ways: dict[str, Callable[[bytes], Image.Image]] = {
        "Pillow": _pillow,
        "Pillow, draft and reducing_gap": _draft,
        "libvips, heights first": lambda content: _image(
            _opened(content), lambda v: v.reduce(v.width / _SIZE, v.height / _SIZE, kernel="cubic")
        ),
        "libvips, widths first": lambda content: _image(_opened(content), _widths_first),
        "libvips, shrink on load": _shrunk,
        "stages.corpus.images.decoding": lambda content: decode(content, settings).image,
    }
    return {
        name: _interleave(ways, content, turns, _mean_distance)
        for name, content in contents.items()
    }


def measure_encoders(turns: int) -> dict[str, dict[str, Any]]:
    """Image -> encoder -> milliseconds and kilobytes."""
    ways: dict[str, Callable[[Image.Image], bytes]] = {
        "Pillow's default": lambda image: _saved(image, "PNG"),
        "Pillow, level 3": lambda image: _saved(image, "PNG", compress_level=3),
        "libvips 1, sub": lambda image: _png(image, 1, "sub"),
        "libvips 3, none": lambda image: _png(image, 3, "none"),
        "libvips 3, sub": lambda image: _png(image, 3, "sub"),
        "libvips 3, up": lambda image: _png(image, 3, "up"),
        "libvips 6, sub": lambda image: _png(image, 6, "sub"),
        "stages.corpus.images.decoding": encode,
    }
    image = scan((1024, 768))
    images = {"colour": image, "grey": image.convert("L").convert("RGB")}
    return {
        name: _interleave(
            ways,
            image.resize((_SIZE, _SIZE), _BICUBIC),
            turns,
            lambda content, _: f"{len(content) / 1e3:.0f} kB",
        )
        for name, image in images.items()
    }


def _interleave(
    ways: Mapping[str, Callable[[Any], Any]],
    source: Any,
    turns: int,
    other: Callable[[Any, Any], str],
) -> dict[str, Any]:
    """Way -> minimum CPU milliseconds (all threads), and `other` of its and the first result."""
    fastest = dict.fromkeys(ways, float("inf"))
    for _ in range(turns):
        for name, way in ways.items():
            start = time.process_time()
            way(source)
            fastest[name] = min(fastest[name], (time.process_time() - start) * 1e3)
    first = next(iter(ways.values()))(source)
    return {
        name: {"ms": round(fastest[name], 2), "other": other(way(source), first)}
        for name, way in ways.items()
    }


def _mean_distance(image: Image.Image, reference: Image.Image) -> str:
    return f"{np.abs(np.asarray(image, dtype=float) - np.asarray(reference)).mean():.2f}"


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pillow(content: bytes) -> Image.Image:
    with Image.open(BytesIO(content)) as opened:
        return opened.convert("RGB").resize((_SIZE, _SIZE), _BICUBIC)


def _draft(content: bytes) -> Image.Image:
    with Image.open(BytesIO(content)) as opened:
        opened.draft(opened.mode, (2 * _SIZE, 2 * _SIZE))
        return opened.convert("RGB").resize((_SIZE, _SIZE), _BICUBIC, reducing_gap=3.0)


def _opened(content: bytes, **options: Any) -> pyvips.Image:
    return pyvips.Image.new_from_buffer(
        content, "", access="sequential", fail_on="warning", **options
    )


def _widths_first(opened: pyvips.Image) -> pyvips.Image:
    return opened.reduceh(opened.width / _SIZE, kernel="cubic").reducev(
        opened.height / _SIZE, kernel="cubic"
    )


def _shrunk(content: bytes) -> Image.Image:
    opened = _opened(content)
    factor = 1
    if opened.get("vips-loader").startswith("jpeg"):
        while factor < 8 and min(opened.width, opened.height) >= 4 * factor * _SIZE:
            factor *= 2
    return _image(_opened(content, shrink=factor) if factor > 1 else opened, _widths_first)


def _image(opened: pyvips.Image, resize: Callable[[pyvips.Image], pyvips.Image]) -> Image.Image:
    resized = resize(opened)
    pixels = np.frombuffer(resized.write_to_memory(), dtype=np.uint8)
    shaped = pixels.reshape(resized.height, resized.width, resized.bands)
    return Image.fromarray(shaped.squeeze()).convert("RGB")


def _png(image: Image.Image, level: int, line_filter: str) -> bytes:
    pixels = pyvips.Image.new_from_memory(
        image.tobytes(), image.width, image.height, 3, "uchar"
    ).copy(interpretation="srgb")
    content: bytes = pixels.pngsave_buffer(compression=level, filter=line_filter, keep="none")
    return content


if __name__ == "__main__":
    main()
