"""Random reads of resized images from several storage formats, as in training.

    python -m benchmarks.ingest.reading make FOLDER
    python -m benchmarks.ingest.reading read FOLDER

Run by benchmarks.ingest.storage in its own process, so that one measurement's imports do not affect
another. All files are in the page cache, as are most of OmniMedVQA's 12 GB on a training host: this
measures the storage format, not the disk.
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
"""Standard deviation in grey levels, for a PNG of about 150 kB."""

Fetch = Callable[[int], bytes]


def make(folder: Path) -> None:
    """Write the same images as files, zip shards, Parquet and Arrow (Hugging Face datasets)."""
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
        path = folder / f"{first // PER_SHARD}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as shard:
            for number in range(first, min(first + PER_SHARD, IMAGES)):
                shard.writestr(f"set/{number}.png", contents[number])
    rows = [{"bytes": content, "path": None} for content in contents]
    # 100 rows per group, as the datasets library writes images
    table = pa.table({"image": pa.array(rows)})
    pq.write_table(table, folder / "table.parquet", row_group_size=100, compression="none")
    features = Features({"image": ImageFeature()})
    Dataset.from_dict({"image": rows}, features=features).save_to_disk(folder / "arrow")


def read(folder: Path) -> dict[str, Any]:
    """Median milliseconds per image of each format, interleaved: bytes alone, and decoded."""
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
    read_times: dict[str, list[float]] = {name: [] for name in ways}
    decoded_times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(1 + REPEATS):
        for name, fetch in fetches.items():
            # Parquet reads a whole group per row: a tenth of the images suffices
            sample = order[: IMAGES // 10] if name.startswith("Parquet") else order
            read_ms = _milliseconds(fetch, sample, decode=False)
            decoded_ms = _milliseconds(fetch, sample, decode=True)
            if repeat:  # the first is a warm-up
                read_times[name].append(read_ms)
                decoded_times[name].append(decoded_ms)
    size = sum(path.stat().st_size for path in (folder / "files").iterdir()) / IMAGES
    return {
        "images": IMAGES,
        "image_bytes": round(size),
        "ways": {
            name: {
                "read_ms": statistics.median(read_times[name]),
                "decoded_ms": statistics.median(decoded_times[name]),
            }
            for name in ways
        },
    }


def _milliseconds(fetch: Fetch, order: list[int], *, decode: bool) -> float:
    start = time.perf_counter()
    for number in order:
        content = fetch(number)
        if decode:
            Image.open(BytesIO(content)).convert("RGB").load()
    return (time.perf_counter() - start) / len(order) * 1e3


def _files(folder: Path) -> Fetch:
    return lambda number: (folder / "files" / f"{number}.png").read_bytes()


def _zipfile(folder: Path) -> Fetch:
    shards = [zipfile.ZipFile(folder / f"{index}.zip") for index in range(IMAGES // PER_SHARD)]
    return lambda number: shards[number // PER_SHARD].read(f"set/{number}.png")


def _offsets(folder: Path) -> Fetch:
    handles = []
    locations = {}
    for index in range(IMAGES // PER_SHARD):
        path = folder / f"{index}.zip"
        handles.append(os.open(path, os.O_RDONLY))
        with zipfile.ZipFile(path) as shard:
            for info in shard.infolist():
                # local header: 30 bytes and the name; zipfile writes no extra field for small
                # members
                start = info.header_offset + 30 + len(info.filename.encode())
                locations[int(Path(info.filename).stem)] = index, start, info.file_size

    def fetch(number: int) -> bytes:
        index, start, size = locations[number]
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

    dataset = load_from_disk(str(folder / "arrow")).cast_column("image", ImageFeature(decode=False))
    return lambda number: dataset[number]["image"]["bytes"]


if __name__ == "__main__":
    target = Path(sys.argv[2])
    if sys.argv[1] == "make":
        make(target)
    else:
        print(json.dumps(read(target)))
