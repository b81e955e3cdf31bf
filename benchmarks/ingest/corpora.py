"""Generated corpora: images of all sizes with OmniMedVQA's form and number of questions."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.ingest.images import SIZES, encoded, smooth
from stages.core.params import shipped_taxonomy

DRAWN: Final = 40
"""Distinct images; the others are copies with another comment in the file, so no cache has them."""
_NOISE: Final = 3.0
_WORDS: Final = (
    *("what", "which", "is", "seen", "shown", "in", "the", "this", "image", "picture"),
    *("of", "area", "organ", "tissue", "finding", "type", "kind", "grade", "most", "likely"),
)


def large(number: int) -> Iterator[tuple[str, bytes]]:
    """(name, file): alternating PNG and JPEG, sides of 512 to 2048 pixels, one in four grey."""
    files = []
    for index in range(min(DRAWN, number)):
        rng = np.random.default_rng([1, index])
        width, height = (int(side) for side in rng.integers(*SIZES, size=2, endpoint=True))
        image = smooth(width, height, rng, _NOISE, grey=index % 4 == 3)
        if index % 2:
            files.append(encoded(image, "JPEG", quality=90))
        else:
            files.append(encoded(image, "PNG", compress_level=1))
    for index in range(number):
        suffix = ("png", "jpg")[index % DRAWN % 2]
        content = with_comment(files[index % DRAWN], f"number {index}")
        yield f"Set {index % 5}/{index:06d}.{suffix}", content


def small(number: int, side: int = 64) -> Iterator[tuple[str, bytes]]:
    """(name, file): small PNG files, all different."""
    rng = np.random.default_rng(2)
    base = np.asarray(smooth(side, side, rng, _NOISE, grey=True)).copy()
    for index in range(number):
        base[0, :4] = list(index.to_bytes(4, "little"))
        content = encoded(Image.fromarray(base), "PNG", compress_level=1)
        yield f"Set {index % 5}/{index:06d}.png", content


def with_comment(content: bytes, text: str) -> bytes:
    """A JPEG or PNG file with a comment inserted."""
    if content.startswith(b"\xff\xd8"):
        segment = b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text.encode()
        return content[:2] + segment + content[2:]
    # after the 8-byte signature and the 25-byte IHDR chunk
    body = b"tEXtComment\0" + text.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]


def record(index: int, image: str, slug: str = "ct") -> dict[str, Any]:
    """A question with OmniMedVQA's fields and about its length."""
    rng = np.random.default_rng([3, index])
    taxonomy = shipped_taxonomy()
    kinds = [taxonomy.question_types.name(slug) for slug in taxonomy.question_types]
    kind = kinds[index % len(kinds)]
    words = [_WORDS[at] for at in rng.integers(0, len(_WORDS), 12)]
    options = {
        f"option_{letter}": f"{letter.lower()} {words[at]} {index % 97} {words[-at]}"
        for at, letter in enumerate("ABCD", start=1)
    }
    return {
        "dataset": image.partition("/")[0],
        "question_id": f"{slug}_{index:06d}",
        "question_type": kind,
        "question": f"{' '.join(words).capitalize()}?",
        "gt_answer": options["option_" + "ABCD"[int(rng.integers(4))]],
        "image_path": f"Images/{image}",
        **options,
        "modality_type": taxonomy.modalities.name(slug),
    }


def write_corpus(path: Path, images: Iterator[tuple[str, bytes]]) -> None:
    """Write a zip in OmniMedVQA's layout with one CT question per image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index, (name, content) in enumerate(images):
            archive.writestr(f"Images/{name}", content)
            records.append(record(index, name))
        archive.writestr("QA_information/Open-access/Sets.json", json.dumps(records))
