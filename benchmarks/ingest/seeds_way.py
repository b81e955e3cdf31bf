"""The resize of this project's seed as a baseline: Pillow in threads, one Arrow table in memory.

python -m benchmarks.ingest.seeds_way FOLDER OUT
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from stages.core.cores import available_cores


def resized(path: Path) -> Image.Image:
    """One image, resized with Pillow's default filter."""
    with Image.open(path) as opened:
        return opened.convert("RGB").resize((384, 384))


def main(folder: Path, out: Path) -> None:
    """Resize all images of a folder, and save them as a dataset."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(available_cores()) as pool:
        images = list(pool.map(resized, paths))
    features = Features({"image": ImageFeature()})
    Dataset.from_dict({"image": images}, features=features).save_to_disk(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
