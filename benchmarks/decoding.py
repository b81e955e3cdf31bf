"""Decoder benchmark: CPU time and distance from Pillow's full-resolution images.

The figures of docs/ingest-images.md.

    python -m benchmarks.decoding [--json FILE]

Phantoms of 512 to 2048 pixels with noise of 4 grey levels, as JPEG and PNG, in colours and grey,
each decoded to 384x384 by one thread; and two images that are hard on filters: thin white lines on
black, and pure noise. Then PNG encoders of the result. Milliseconds are of CPU time, the least of
several, taken by turns: what else the machine does weighs on all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyvips
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from stages.core.outputs import write_json
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.images.decoding import decode, encode
from stages.corpus.sample.phantoms import draw, sample_phantom

SIDES: Final = ((512, 512), (1024, 768), (1500, 1200), (2048, 2048))
TURNS: Final = 7
_SIZE: Final = 384
_NOISE: Final = 4.0
_BICUBIC: Final = Image.Resampling.BICUBIC


def main() -> None:
    """Measure, print tables, write the JSON."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--json", type=Path, help="write what was measured to this file")
    given = arguments.parse_args()
    made = {"decoders": measure_decoders(files(SIDES), TURNS), "encoders": measure_encoders(TURNS)}
    for name, rows in made.items():
        columns = list(next(iter(rows.values())))
        table = Table(name, *columns)
        for row, cells in rows.items():
            table.add_row(
                row,
                *(f"{cells[column]['ms']:.1f} ms {cells[column]['other']}" for column in columns),
            )
        Console(width=200).print(table)
    if given.json:
        write_json(given.json, {**made, "turns": TURNS, "provenance": collect_provenance({})})


def files(sides: tuple[tuple[int, int], ...]) -> dict[str, bytes]:
    """Name -> file, of every kind and size."""
    found = {}
    for side in sides:
        image = scan(side)
        for colour, shown in (("colour", image), ("grey", image.convert("L"))):
            for kind, options in (("JPEG", {"quality": 90}), ("PNG", {"compress_level": 3})):
                found[f"{kind} {colour} {side[0]}x{side[1]}"] = _saved(shown, kind, **options)
    large = sides[-1]
    noise = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (large[1], large[0], 3), dtype=np.uint8)
    )
    found["JPEG noise"], found["PNG lines"] = (
        _saved(noise, "JPEG", quality=90),
        _saved(lines(large), "PNG"),
    )
    return found


def scan(side: tuple[int, int]) -> Image.Image:
    """A phantom under grain."""
    rng = np.random.default_rng(3)
    drawn = draw(sample_phantom(rng, "fundus"), (512, 512), rng).resize(side, _BICUBIC)
    noise = rng.standard_normal((side[1], side[0], 1), dtype=np.float32) * _NOISE
    return Image.fromarray(np.clip(np.asarray(drawn) + noise, 0, 255).astype(np.uint8))


def lines(side: tuple[int, int]) -> Image.Image:
    """White lines of two pixels on black."""
    image, rng = Image.new("RGB", side), np.random.default_rng(4)
    for _ in range(300):
        ImageDraw.Draw(image).line(
            [int(rng.integers(each)) for each in (*side, *side)], fill=(255, 255, 255), width=2
        )
    return image


def measure_decoders(contents: Mapping[str, bytes], turns: int) -> dict[str, dict[str, Any]]:
    """File -> way -> its milliseconds, and grey levels from Pillow on average."""
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
        name: _by_turns({way: _call(make, content) for way, make in ways.items()}, turns, _apart)
        for name, content in contents.items()
    }


def measure_encoders(turns: int) -> dict[str, dict[str, Any]]:
    """Image -> way to write it -> its milliseconds, and its kilobytes."""
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
    shown = {"colour": scan((1024, 768)), "grey": scan((1024, 768)).convert("L").convert("RGB")}
    small = {name: image.resize((_SIZE, _SIZE), _BICUBIC) for name, image in shown.items()}
    return {
        name: _by_turns(
            {way: _call(make, image) for way, make in ways.items()},
            turns,
            lambda content, _: f"{len(content) / 1e3:.0f} kB",
        )
        for name, image in small.items()
    }


def _by_turns(
    ways: Mapping[str, Callable[[], Any]], turns: int, other: Callable[[Any, Any], str]
) -> dict[str, Any]:
    """Way -> least CPU milliseconds (all threads), and `other` of its and the first result."""
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(turns):
        for name, way in ways.items():
            start = time.process_time()
            way()
            least[name] = min(least[name], (time.process_time() - start) * 1e3)
    first = next(iter(ways.values()))()
    return {
        name: {"ms": round(least[name], 2), "other": other(way(), first)}
        for name, way in ways.items()
    }


def _apart(image: Image.Image, wanted: Image.Image) -> str:
    return f"{np.abs(np.asarray(image, dtype=float) - np.asarray(wanted)).mean():.2f}"


def _call(way: Callable[[Any], Any], given: Any) -> Callable[[], Any]:
    return lambda: way(given)


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
    opened, factor = _opened(content), 1
    while (
        opened.get("vips-loader").startswith("jpeg")
        and factor < 8
        and min(opened.width, opened.height) >= 4 * factor * _SIZE
    ):
        factor *= 2
    return _image(_opened(content, shrink=factor) if factor > 1 else opened, _widths_first)


def _image(opened: pyvips.Image, resize: Callable[[pyvips.Image], pyvips.Image]) -> Image.Image:
    made = resize(opened)
    pixels = np.frombuffer(made.write_to_memory(), dtype=np.uint8).reshape(
        made.height, made.width, made.bands
    )
    return Image.fromarray(pixels.squeeze()).convert("RGB")


def _png(image: Image.Image, level: int, line_filter: str) -> bytes:
    made = pyvips.Image.new_from_memory(
        image.tobytes(), image.width, image.height, 3, "uchar"
    ).copy(interpretation="srgb")
    content: bytes = made.pngsave_buffer(compression=level, filter=line_filter, keep="none")
    return content


if __name__ == "__main__":
    main()
