"""Stage `resize@<modality>`: every picture of a modality decoded once, as an RGB PNG of the size the policies see.

    python -m stages.resize ct

A picture that cannot be decoded sends each of its records to quarantine; the others get `image` (a path that opens
from the project's root), `source_size` (width and height as seen, so that enlarged pictures can be told),
`source_mode`, and the hashes by which stage splits finds copies, `pixel_hash` and `perceptual_hash`. A record of a DICOM file or
series also gets `dicom`, what is passed on of the header, and `frames`, the paths of all frames in order, where there are several.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, overload

from stages import layout
from stages.cli import run_stage
from stages.corpus.archive import IMAGES
from stages.corpus.dicom import modality_slug
from stages.corpus.hashes import perceptual_hash, pixel_hash
from stages.corpus.images import Decoded, ImageError, decode_files
from stages.corpus.modalities import MODALITIES
from stages.corpus.quarantine import Row, write_quarantine
from stages.corpus.records import read_kept
from stages.errors import InputError
from stages.outputs import whole_directory, write_json
from stages.params import Dicom, Resize, load_params
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
    settings, dicom = params.resize, params.dicom
    records = read_kept(layout.corpus(slug) / "records.json", _REMEDY)
    with whole_directory(layout.images(slug)) as folder, whole_directory(layout.frames(slug)) as frames:
        work = partial(_resize, slug=slug, folder=folder, frames=frames, settings=settings, dicom=dicom)
        facts = _resize_all(slug, sorted({record.image_path for record in records}), work)
    kept, rows = [], []
    for record in records:
        fact = facts[record.image_path]
        if isinstance(fact, str):
            rows.append(Row(record.place, record.image_path, f"the image cannot be used: {fact}"))
        else:
            kept.append({**record.fields, "image": f"{layout.images(slug).as_posix()}/{_png_name(record.image_path)}", **fact})
    write_json(layout.records(slug), kept)
    account = layout.QUARANTINE / "resize" / f"{slug}.json"
    write_quarantine(account, f"resize@{slug}", len(records), len(kept), rows, provenance({"resize": settings, "dicom": dicom}))
    print(f"resize {slug}: read {len(records)} records of {len(facts)} images, kept {len(kept)}, quarantined {len(rows)}")
    if unflagged := sum(
        isinstance(fact, dict) and "BurnedInAnnotation" not in fact.get("dicom", {"BurnedInAnnotation": None}) for fact in facts.values()
    ):
        print(f"resize {slug}: {unflagged} of these images are DICOM and do not say whether text is burned into them")


def _png_name(image_path: str) -> str:
    """Images/a/b.jpg -> a/b.jpg.png: the old suffix stays, because a/b.jpg and a/b.bmp may be two pictures."""
    return f"{image_path.removeprefix(IMAGES)}.png"


def _resize_all(slug: str, names: list[str], work: Callable[[str], _Fact]) -> dict[str, _Fact]:
    """What `work` gives for each of these paths."""
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes, resizes and encodes without the interpreter's lock
    try:
        done = pool.map(work, names)
        return dict(zip(names, counted(done, len(names), slug, "image"), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _resize(name: str, slug: str, folder: Path, frames: Path, settings: Resize, dicom: Dicom) -> _Fact:
    """The picture of a path as a PNG file under `folder`, its frames, if it has several, under `frames`."""
    try:
        source = layout.corpus(slug) / name
        picture = decode_files(_Files(source), settings.size, settings.resample, dicom, folder=source.is_dir())
        if why := _contradiction(picture, slug):
            return why
        listed = _write_frames(picture, frames / name.removeprefix(IMAGES))
    except ImageError as error:
        return str(error)
    target = folder / _png_name(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.image.save(target, compress_level=_PNG_LEVEL)
    fact: dict[str, Any] = {
        "source_size": [picture.width, picture.height],
        "source_mode": picture.mode,
        "pixel_hash": pixel_hash(picture.image),
        "perceptual_hash": perceptual_hash(picture.image),
    }
    if picture.tags is not None:
        fact["dicom"] = picture.tags.as_fields()
    if listed:
        fact["frames"] = [(layout.frames(slug) / path.relative_to(frames)).as_posix() for path in listed]
    return fact


def _contradiction(picture: Decoded, slug: str) -> str | None:
    """Why the modality of the record cannot be believed; None if the header says the same, or nothing that is known."""
    if picture.tags is None or modality_slug(picture.tags.modality) in (None, slug):
        return None
    return f"modality_type is {MODALITIES[slug]!r}, but the DICOM header says {picture.tags.modality!r}"


def _write_frames(picture: Decoded, folder: Path) -> list[Path]:
    """All frames of a picture that has several as PNG files, none if one of them is damaged (ImageError)."""
    written = []
    try:
        for number, frame in enumerate(picture.frames, start=1):
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{number:04d}.png")
            frame.save(written[-1], compress_level=_PNG_LEVEL)
    except ImageError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


class _Files(Sequence[bytes]):
    """The content of the file at a path, or of the files in a folder, sorted; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._paths = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        try:
            return self._paths[index].read_bytes()
        except FileNotFoundError:
            raise InputError(f"{self._paths[index]} is missing, though a record names it: {_REMEDY}") from None


if __name__ == "__main__":
    run_stage(main)
