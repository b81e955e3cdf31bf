"""Stage `resize@<modality>`: every picture of a modality decoded once, as an RGB PNG of the size the policies see.

    python -m stages.resize ct

A picture that cannot be decoded sends each of its records to quarantine; the others get `image` (a path that opens
from the project's root), `source_size` (width and height as seen, so that enlarged pictures can be told),
`source_mode`, and the hashes by which stage splits finds copies, `pixel_hash` and `perceptual_hash`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from stages import layout
from stages.cli import run_stage
from stages.corpus.archive import IMAGES, DamagedMemberError
from stages.corpus.hashes import perceptual_hash, pixel_hash
from stages.corpus.images import ImageError, decode
from stages.corpus.memo import OTHER_CORPUS
from stages.corpus.modalities import MODALITIES
from stages.corpus.quarantine import Row, write_quarantine
from stages.corpus.records import read_kept
from stages.corpus.source import Corpus, open_corpus
from stages.errors import InputError
from stages.outputs import read_json, whole_directory, write_json
from stages.params import Resize, load_params
from stages.progress import counted
from stages.provenance import provenance

_Fact = dict[str, Any] | str
"""What the records of a picture get to know of it, or why it cannot be used."""

_REMEDY = "run `dvc repro download`"

_PNG_LEVEL = 3
"""zlib level: within a tenth of the size of the default, 6, in less than half its time."""


def main() -> None:
    """Write data/images/<modality>, data/records/<modality>.json and data/quarantine/resize/<modality>.json."""
    arguments = argparse.ArgumentParser(prog="python -m stages.resize", description=__doc__)
    arguments.add_argument("modality", help=", ".join(MODALITIES))
    slug = arguments.parse_args().modality
    if slug not in MODALITIES:
        raise InputError(f"unknown modality {slug!r}; known: {', '.join(MODALITIES)}")
    params = load_params()
    settings = params.resize
    records = read_kept(layout.corpus(slug) / "records.json", _REMEDY)
    known = read_json(layout.corpus(slug) / "images.json", _REMEDY)
    path = Path(params.corpus.archive)
    if not path.exists():
        raise InputError(f"{path} (corpus.archive), in which the images lie, is missing: run `dvc pull data.dvc`")
    with open_corpus(path, params.corpus.limits) as corpus, whole_directory(layout.images(slug)) as folder:
        facts = _resize_all(slug, sorted({record.image_path for record in records}), partial(_fetch, corpus, known), folder, settings)
    kept, rows = [], []
    for record in records:
        fact = facts[record.image_path]
        if isinstance(fact, str):
            rows.append(Row(record.place, record.image_path, f"the image cannot be used: {fact}"))
        else:
            kept.append({**record.fields, "image": f"{layout.images(slug).as_posix()}/{_png_name(record.image_path)}", **fact})
    write_json(layout.records(slug), kept)
    account = layout.QUARANTINE / "resize" / f"{slug}.json"
    write_quarantine(account, f"resize@{slug}", len(records), len(kept), rows, provenance({"resize": settings}))
    print(f"resize {slug}: read {len(records)} records of {len(facts)} images, kept {len(kept)}, quarantined {len(rows)}")


def _png_name(image_path: str) -> str:
    """Images/a/b.jpg -> a/b.jpg.png: the old suffix stays, because a/b.jpg and a/b.bmp may be two pictures."""
    return f"{image_path.removeprefix(IMAGES)}.png"


def _fetch(corpus: Corpus, known: Mapping[str, Mapping[str, Any]], name: str) -> bytes:
    """The picture's bytes, which are those that stage download saw."""
    content = corpus.fetch(name) if name in corpus else b""
    if name not in known or hashlib.sha256(content).hexdigest() != known[name]["sha256"]:
        raise InputError(f"{corpus.path}: {name!r} is not the picture that stage download knows: {OTHER_CORPUS}")
    return content


def _resize_all(slug: str, names: list[str], fetch: Callable[[str], bytes], folder: Path, settings: Resize) -> dict[str, _Fact]:
    """The pictures of these paths as PNG files under `folder`, and a fact for each path."""
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes, resizes and encodes without the interpreter's lock
    try:
        done = pool.map(partial(_resize, fetch=fetch, folder=folder, settings=settings), names)
        return dict(zip(names, counted(done, len(names), slug, "image"), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _resize(name: str, fetch: Callable[[str], bytes], folder: Path, settings: Resize) -> _Fact:
    try:
        picture = decode(fetch(name), settings.size, settings.resample)
    except ImageError as error:
        return str(error)
    except DamagedMemberError as error:
        return f"it cannot be read from the corpus: {error.why}"
    target = folder / _png_name(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.image.save(target, compress_level=_PNG_LEVEL)
    return {
        "source_size": [picture.width, picture.height],
        "source_mode": picture.mode,
        "pixel_hash": pixel_hash(picture.image),
        "perceptual_hash": perceptual_hash(picture.image),
    }


if __name__ == "__main__":
    run_stage(main)
