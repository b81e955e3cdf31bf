"""Parse and check as many records as OmniMedVQA has; write the input of stage splits.

Run by benchmarks.ingest.

python -m benchmarks.ingest.questions make FOLDER
python -m benchmarks.ingest.questions read FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.ingest.corpora import record
from stages.core import layout
from stages.core.outputs import write_json_lines
from stages.core.params import shipped_taxonomy
from stages.corpus.records.records import read_record_files

RECORDS: Final = 89_000
IMAGES: Final = 82_000

_FILE: Final = "questions.json"


def make(folder: Path) -> None:
    """Write a question file of all modalities, and its records as after stage resize."""
    modalities = shipped_taxonomy().modalities
    slugs = list(modalities)
    records = []
    for index in range(RECORDS):
        image = index % IMAGES
        slug = slugs[image % len(slugs)]
        records.append(record(index, f"{slug} set {image % 5}/{image:06d}.png", slug))
    (folder / _FILE).write_text(json.dumps(records), encoding="utf-8")
    for slug in slugs:
        own = (each for each in records if modalities.slug_of[each["modality_type"]] == slug)
        write_json_lines(folder / layout.records(slug), (_resized(each, slug) for each in own))


def _resized(raw: dict[str, Any], slug: str) -> dict[str, Any]:
    """A record with the metadata of an image that has no duplicate."""
    image = f"{layout.images(slug).as_posix()}/{raw['image_path'].removeprefix('Images/')}.png"
    return {
        **raw,
        "image": image,
        "source_size": [512, 400],
        "source_mode": "L",
        "brightness": [100.0, 50.0],
        "pixel_hash": hashlib.sha256(f"pixels{image}".encode()).hexdigest(),
        "perceptual_hash": hashlib.sha256(f"looks{image}".encode()).hexdigest(),
    }


def read(folder: Path) -> None:
    """Read and check the question file; print the seconds."""
    content = (folder / _FILE).read_bytes()
    start = time.perf_counter()
    reading = read_record_files([(_FILE, content)], shipped_taxonomy())
    seconds = time.perf_counter() - start
    if len(reading.records) != RECORDS:
        raise SystemExit(
            f"only {len(reading.records)} of {RECORDS} records were accepted: {reading.rows[:3]}"
        )
    print(json.dumps(seconds))


if __name__ == "__main__":
    {"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
