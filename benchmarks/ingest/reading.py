"""Random reads of resized images from several kinds of files, as in training.

Run by benchmarks.ingest.storage.

    python -m benchmarks.ingest.reading make FOLDER
    python -m benchmarks.ingest.reading read FOLDER

A process of its own, so that what one measurement loads does not weigh on another. Everything is in
the page cache, as most of OmniMedVQA's 12 GB are on a training host: what is measured is what the
form of storage costs, not the disk.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.ingest.images import encoded, smooth

IMAGES: Final = 2_000
PER_SHARD: Final = 500
REPEATS: Final = 3
_NOISE: Final = 2.0
"""Grey levels: with it a PNG has about 150 kB."""

Fetch = Callable[[int], bytes]


def make(folder: Path) -> None:
    """The same images as files, zip shards, Parquet and Arrow (Hugging Face datasets)."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    contents = []
    for number in range(IMAGES):
        rng = np.random.default_rng([3, number])
        contents.append(encoded(smooth(384, 384, rng, _NOISE, grey=False), "PNG", compress_level=3))
    (folder / "files").mkdir()
    for number, content in enumerate(contents):
        (folder / "files" / f"{number}.png").write_bytes(content)
    for first in range(0, IMAGES, PER_SHARD):
        with zipfile.ZipFile(
            folder / f"{first // PER_SHARD}.zip", "w", zipfile.ZIP_STORED
        ) as shard:
            for number in range(first, min(first + PER_SHARD, IMAGES)):
                shard.writestr(f"set/{number}.png", contents[number])
    table = pa.table(
        {"image": pa.array([{"bytes": content, "path": None} for content in contents])}
    )
    # 100 rows a group, as the datasets library writes images
    pq.write_table(table, folder / "table.parquet", row_group_size=100, compression="none")
    features = Features({"image": ImageFeature()})
    Dataset.from_dict(
        {"image": [{"bytes": content, "path": None} for content in contents]}, features=features
    ).save_to_disk(folder / "arrow")


def read(folder: Path) -> dict[str, Any]:
    """Milliseconds an image of each way in turn, medians: bytes alone, and decoded to pixels."""
    ways: dict[str, Callable[[Path], Fetch]] = {
        "plain files": _files,
        "zip shards, os.pread at known offsets": _offsets,
        "zip shards, zipfile": _zipfile,
        "Arrow (datasets)": _arrow,
        "Parquet, row groups of 100": _parquet,
    }
    order = list(range(IMAGES))
    random.Random(1).shuffle(order)  # noqa: S311  (an order, no secret)
    fetches = {name: way(folder) for name, way in ways.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(1 + REPEATS):
        for name, fetch in fetches.items():
            # a group of rows is read for each row: a tenth of the images is enough to see it
            chosen = order[: IMAGES // 10] if name.startswith("Parquet") else order
            both = (
                _milliseconds(fetch, chosen, decoded=False),
                _milliseconds(fetch, chosen, decoded=True),
            )
            if repeat:
                taken[name].append(both)
    size = sum(path.stat().st_size for path in (folder / "files").iterdir()) / IMAGES
    return {
        "images": IMAGES,
        "image_bytes": round(size),
        "ways": {
            name: {
                "read_ms": statistics.median(bare for bare, _ in both),
                "decoded_ms": statistics.median(whole for _, whole in both),
            }
            for name, both in taken.items()
        },
    }


def _milliseconds(fetch: Fetch, order: list[int], *, decoded: bool) -> float:
    start = time.perf_counter()
    for number in order:
        content = fetch(number)
        if decoded:
            Image.open(BytesIO(content)).convert("RGB").load()
    return (time.perf_counter() - start) / len(order) * 1e3


def _files(folder: Path) -> Fetch:
    return lambda number: (folder / "files" / f"{number}.png").read_bytes()


def _zipfile(folder: Path) -> Fetch:
    shards = [zipfile.ZipFile(folder / f"{index}.zip") for index in range(IMAGES // PER_SHARD)]
    return lambda number: shards[number // PER_SHARD].read(f"set/{number}.png")


def _offsets(folder: Path) -> Fetch:
    handles, places = [], {}
    for index in range(IMAGES // PER_SHARD):
        path = folder / f"{index}.zip"
        handles.append(os.open(path, os.O_RDONLY))
        with zipfile.ZipFile(path) as shard:
            for info in shard.infolist():
                # a local header has 30 bytes, then the name; zipfile writes no extra field for
                # members of this size
                start = info.header_offset + 30 + len(info.filename.encode())
                places[int(Path(info.filename).stem)] = index, start, info.file_size

    def fetch(number: int) -> bytes:
        index, start, size = places[number]
        return os.pread(handles[index], size, start)

    return fetch


def _parquet(folder: Path) -> Fetch:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(folder / "table.parquet")
    return lambda number: (
        table.read_row_group(number // 100).column(0)[number % 100]["bytes"].as_py()
    )


def _arrow(folder: Path) -> Fetch:
    from datasets import Image as ImageFeature
    from datasets import load_from_disk

    kept = load_from_disk(str(folder / "arrow")).cast_column("image", ImageFeature(decode=False))
    return lambda number: kept[number]["image"]["bytes"]


if __name__ == "__main__":
    doing, where = sys.argv[1], Path(sys.argv[2])
    if doing == "make":
        make(where)
    else:
        print(json.dumps(read(where)))
