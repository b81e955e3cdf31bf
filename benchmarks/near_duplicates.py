"""Near-duplicate benchmark: find copies among many images without comparing all pairs.

The figures of docs/splits.md.

    python -m benchmarks.near_duplicates [--json FILE]

Random hashes, a tenth of them copies of others a few bits away. Memory is the most the process has
held, hashes included.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stages.core.outputs import write_json
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.images.hashes import BITS
from stages.corpus.splitting.groups import GroupedImage, group_images

SIZES = (82_000, 820_000)
"""Images: as many as OmniMedVQA has, and ten times as many."""


def main() -> None:
    """Measure, print a table, write the JSON."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.near_duplicates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--json", type=Path, help="write what was measured to this file")
    given = arguments.parse_args()
    distance = load_params().splits.near_duplicates or 0
    rows = [measure(size, distance) for size in SIZES]
    table = Table("images", "copies planted", "groups of two found", "seconds", "memory, MiB")
    for row in rows:
        table.add_row(
            *(
                f"{row[column]:,.1f}" if column == "seconds" else f"{row[column]:,}"
                for column in row
            )
        )
    Console().print(table)
    if given.json:
        write_json(
            given.json,
            {
                "distance": distance,
                "rows": rows,
                "cores": os.cpu_count(),
                "provenance": collect_provenance({}),
            },
        )


def measure(size: int, distance: int) -> dict[str, Any]:
    """Group `size` images; a tenth of them differs from another one in up to `distance` bits."""
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
    for row, number in enumerate(
        rng.integers(0, distance + 1, copies).tolist(), start=size - copies
    ):
        bits[row, rng.choice(BITS, number, replace=False)] ^= 1
    packed = np.packbits(bits, axis=1)
    return [
        GroupedImage(f"{index:07d}", str(index), row.tobytes().hex())
        for index, row in enumerate(packed)
    ]


if __name__ == "__main__":
    main()
