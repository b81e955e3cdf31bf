"""Near-duplicate benchmark: find copies among many images without comparing all pairs.

The figures of docs/splits.md.

    python -m benchmarks.near_duplicates [--quick] [--json FILE]

Random hashes, a tenth of them copies of others with a few bits changed. Memory is the peak of the
process, hashes included.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from stages.core.cores import available_cores
from stages.core.outputs import write_json
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.images.hashes import BITS
from stages.corpus.splitting.groups import GroupedImage, group_images

SIZES = (82_000, 820_000)
"""Numbers of images: OmniMedVQA's, and ten times as many."""


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = build_parser("near_duplicates", __doc__, quick=f"{SIZES[0]:,} images only")
    arguments = parser.parse_args()
    distance = load_params().splits.near_duplicates or 0
    sizes = SIZES[:1] if arguments.quick else SIZES
    rows = [measure(size, distance) for size in sizes]
    table = Table("images", "copies planted", "groups of two found", "seconds", "memory, MiB")
    for row in rows:
        seconds = f"{row['seconds']:,.1f}"
        counts = [f"{row[key]:,}" for key in ("images", "planted", "found", "memory_mib")]
        table.add_row(*counts[:3], seconds, counts[3])
    Console().print(table)
    if arguments.json:
        result = {
            "distance": distance,
            "rows": rows,
            "cores": available_cores(),
            "provenance": collect_provenance({}),
        }
        write_json(arguments.json, result)


def measure(size: int, distance: int) -> dict[str, Any]:
    """Group `size` images, a tenth of them copies of others with up to `distance` bits changed."""
    images = _images(size, distance)
    start = time.monotonic()
    groups = group_images(images, distance)
    seconds = time.monotonic() - start
    return {
        "images": size,
        "planted": size // 10,
        "found": size - len(set(groups.values())),
        "seconds": round(seconds, 2),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10,
    }


def _images(size: int, distance: int) -> list[GroupedImage]:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (size, BITS), dtype=np.uint8)
    copies = size // 10
    bits[-copies:] = bits[:copies]
    flips = rng.integers(0, distance + 1, copies).tolist()
    for row, number in enumerate(flips, start=size - copies):
        bits[row, rng.choice(BITS, number, replace=False)] ^= 1
    packed = np.packbits(bits, axis=1)
    return [
        GroupedImage(f"{index:07d}", str(index), row.tobytes().hex())
        for index, row in enumerate(packed)
    ]


if __name__ == "__main__":
    main()
