"""Stage `resize@<modality>`: decode every image once, as an RGB PNG of the policies' input size.

    python -m stages.resize ct

An image that cannot be decoded sends each of its records to quarantine; the others get `image` (the
path by which stages/corpus/dataset/image_store.py opens it), `source_size` (width and height as
seen, so that upscaled images can be told), `source_mode`, `brightness`, and the hashes by which
stage splits finds copies, `pixel_hash` and `perceptual_hash`. A record of a DICOM file or series
also gets `dicom`, what is passed on of the header, and `frames`, the paths of all frames in order,
where there are several.

What was made before of the same bytes by the same settings is taken from a cache outside of DVC's
outputs.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.cli import run_stage
from stages.core.errors import InputError
from stages.core.outputs import atomic_directory, read_json_lines, write_json_lines
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.hash_cache import CORPUS_CHANGED
from stages.corpus.archives.source import Corpus, open_corpus
from stages.corpus.dataset.paths import IMAGES, image_files
from stages.corpus.images.image_cache import ImageCache
from stages.corpus.images.resizer import ImageResizer, ImageResult, ImageSource, png_name
from stages.corpus.quarantine.image_errors import ImageError, UnreadError
from stages.corpus.quarantine.ledger import Row, write_quarantine
from stages.corpus.quarantine.limits import check_refused
from stages.corpus.records.records import Record, iterate_records, refuse
from stages.taxonomy import MODALITIES

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""

CACHE: Final = layout.SCRATCH / "images"

_REMEDY = "run `dvc repro download`"


def main() -> None:
    """Write data/images, data/frames, data/records and data/quarantine/resize of a modality."""
    arguments = argparse.ArgumentParser(prog="python -m stages.resize", description=__doc__)
    arguments.add_argument("modality", help=", ".join(MODALITIES))
    slug = arguments.parse_args().modality
    if slug not in MODALITIES:
        raise InputError(f"unknown modality {slug!r}; known: {', '.join(MODALITIES)}")
    params = load_params()
    # records are read twice rather than held: at full scale they would take more memory than all
    # else
    records = layout.corpus_records(slug)
    paths = Counter(record.image_path for record in iterate_records(records, _REMEDY))
    known = read_hashes(layout.corpus_images(slug))
    read = paths.total()
    sources = Sources(paths, known)
    path = Path(params.corpus.archive)
    if not path.exists():
        raise InputError(
            f"{path} (corpus.archive), in which the images lie, is missing: run `dvc pull data.dvc`"
        )
    with (
        open_corpus(path, params.corpus.limits) as corpus,
        closing(ImageCache(CACHE, round(params.cache.images_gb * 1e9))) as cache,
        atomic_directory(layout.images(slug)) as images,
        atomic_directory(layout.frames(slug)) as frames,
    ):
        maker = ImageResizer(
            slug, sources, partial(_fetch, corpus, known), params.resize, params.dicom, cache
        )
        facts = maker.write_shards(images, frames)
    sets: list[str] = []
    rows: list[Row] = []

    def usable() -> Iterator[dict[str, Any]]:
        for record in iterate_records(records, _REMEDY):
            fact = facts[record.image_path]
            if isinstance(fact, ImageError):
                rows.append(
                    refuse(
                        record, record.image_path, f"the image cannot be used: {fact}", fact.reason
                    )
                )
            else:
                sets.append(record.dataset)
                yield _kept(record, fact, slug)

    write_json_lines(layout.records(slug), usable())
    account = layout.QUARANTINE / "resize" / f"{slug}.parquet"
    facts_of_run = collect_provenance({"resize": params.resize, "dicom": params.dicom})
    taken = write_quarantine(account, f"resize@{slug}", read, sets, rows, facts_of_run)
    check_refused(taken, params.quarantine, account, str(layout.corpus(slug)))
    print(
        f"resize {slug}: read {read} records of {len(facts)} images ({maker.decoded_count}"
        f" of them decoded), kept {len(sets)}, quarantined {len(rows)}"
    )
    _tell_unflagged(slug, facts)


def read_hashes(path: Path) -> dict[str, bytes]:
    """Image file -> SHA-256, from a file of stage download.

    Raises InputError if it is missing, not JSON Lines, or a line lacks `file` or `sha256`.
    """
    hashes = {}
    for number, entry in enumerate(read_json_lines(path, _REMEDY), start=1):
        try:
            hashes[entry["file"]] = bytes.fromhex(entry["sha256"])  # half the bytes of its digits
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number} names no image file with its sha256 ({error!r}): {_REMEDY}"
            ) from error
    return hashes


class Sources(Mapping[str, ImageSource]):
    """image_path -> its files, as stage download found them; made when it is asked for."""

    def __init__(self, paths: Iterable[str], known: Mapping[str, bytes]) -> None:
        """`known`: file -> SHA-256. InputError if an image has no files."""
        self._paths, self._known, self._names = sorted(paths), known, sorted(known)
        for path in self._paths:
            if not image_files(self._names, path):
                raise InputError(
                    f"{path} is in no images.jsonl, though a record names it: {_REMEDY}"
                )

    def __getitem__(self, path: str) -> ImageSource:
        """The files of an image."""
        files = image_files(self._names, path)
        return ImageSource(
            tuple((name, self._known[name].hex()) for name in files), path not in self._known
        )

    def __iter__(self) -> Iterator[str]:
        """The images, sorted."""
        return iter(self._paths)

    def __len__(self) -> int:
        """How many images."""
        return len(self._paths)


def _fetch(corpus: Corpus, known: Mapping[str, bytes], name: str) -> bytes:
    """The file's bytes, which are those that stage download saw.

    UnreadError if they are damaged since, or were when it did not look.
    """
    try:
        content = corpus.fetch(name)
    except KeyError:
        raise InputError(f"{corpus.path}: {name!r} is missing: {CORPUS_CHANGED}") from None
    except DamagedMemberError as error:
        raise UnreadError(f"it cannot be read from the corpus: {error.why}") from error
    if hashlib.sha256(content).digest() != known[name]:
        raise InputError(f"{corpus.path}: {name!r} has other bytes: {CORPUS_CHANGED}")
    return content


def _kept(record: Record, fact: Mapping[str, Any], slug: str) -> dict[str, Any]:
    """The record with what is known of its image."""
    fields = {
        **record.fields,
        "image": f"{layout.images(slug).as_posix()}/{png_name(record.image_path)}",
        **fact,
    }
    if "frames" in fact:
        folder = f"{layout.frames(slug).as_posix()}/{record.image_path.removeprefix(IMAGES)}"
        fields["frames"] = [f"{folder}/{number:04d}.png" for number in range(1, fact["frames"] + 1)]
    return fields


def _tell_unflagged(slug: str, facts: Mapping[str, ImageResult]) -> None:
    dicom = [
        fact["dicom"]
        for fact in facts.values()
        if not isinstance(fact, ImageError) and "dicom" in fact
    ]
    if unflagged := sum("BurnedInAnnotation" not in tags for tags in dicom):
        print(
            f"resize {slug}: {unflagged} of these images are DICOM and do not say whether text is"
            " burned into them"
        )


if __name__ == "__main__":
    run_stage(main)
