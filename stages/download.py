"""Stage `download`: check the raw corpus's records and hash their images, by modality.

    python -m stages.download

The corpus that `data.dvc` imported is read in place, without copying it. Unusable records go to
quarantine with the reason. `images.jsonl` lists the image files of the usable ones with SHA-256 and
size, from which DVC sees which modalities new data changes, and stage resize verifies that it reads
the same corpus. Stage resize checks whether the images can be decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.core import layout
from stages.core.cli import run_stage, stage_parser
from stages.core.cores import available_cores
from stages.core.errors import InputError
from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.outputs import atomic_directory, write_json_lines
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.hash_cache import HashCache
from stages.corpus.archives.source import Corpus, open_corpus
from stages.corpus.dicom.headers.preamble import is_dicom
from stages.corpus.quarantine.advice import remedy_of
from stages.corpus.quarantine.ledger import write_quarantine
from stages.corpus.quarantine.limits import check_refused
from stages.corpus.quarantine.locations import write_locations
from stages.corpus.quarantine.reasons import CorpusFault, Reason, RefusedDataError
from stages.corpus.records.patients import (
    FileIds,
    ids_of_file,
    link_patients,
    link_studies,
    refuse_mixed_patients,
)
from stages.corpus.records.reading import find_images, read_questions
from stages.corpus.records.records import PATIENT, STUDY, Reading, Record, refuse

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""

HASH_CACHE: Final = layout.SCRATCH / "corpus" / "hashes"
"""Hashes of images from earlier runs."""
_IN_FLIGHT: Final = 256 * 2**20
"""Maximum bytes of images read but not yet hashed, unless a single image has more."""
_QUEUED: Final = 1024
"""Maximum number of images in the queue."""


def main() -> None:
    """Write data/corpus/<modality> for all, data/locations and data/quarantine/download."""
    stage_parser("download", __doc__).parse_args()
    params = load_params()
    settings = params.corpus
    path = Path(settings.archive)
    if not path.exists():
        raise InputError(
            f"{path} (corpus.archive) is missing: run `dvc repro`, or `dvc pull data.dvc` for the"
            " pinned corpus alone"
        )
    with open_corpus(path, settings.limits) as corpus:
        reading, files = find_images(corpus, read_questions(corpus, params.taxonomy))
        images = _hash_all(corpus, sorted(set(chain.from_iterable(files.values()))))
        reading = _without_corrupt(reading, files, images.errors)
        reading = refuse_mixed_patients(reading, files, images.patients)
        linked = {
            PATIENT: link_patients(reading.records, files, images.patients),
            STUDY: link_studies(reading.records, files, images.studies),
        }
        quarantine_file = layout.QUARANTINE / "download.parquet"
        datasets = [record.dataset for record in reading.records]
        provenance = collect_provenance({"corpus": settings})
        quarantine = write_quarantine(
            quarantine_file, "download", reading.read, datasets, reading.rows, provenance
        )
        write_locations(
            layout.LOCATIONS, ((each.question_id, each.location) for each in reading.records)
        )
        if not reading.records:
            raise RefusedDataError(
                f"{path} contains no usable record: {reading.read} read, all refused; see"
                f" {quarantine_file}",
                CorpusFault.NO_RECORD,
            )
        check_refused(quarantine, params.quarantine, quarantine_file, str(path), remedy_of)
        for slug in params.modalities:
            records = [record for record in reading.records if record.modality == slug]
            records.sort(key=lambda record: record.question_id)
            _write(corpus, slug, records, files, images.hashes, linked)
    print(
        f"download: read {reading.read} records, kept {len(reading.records)}, quarantined"
        f" {len(reading.rows)} ({quarantine_file})"
    )


def _without_corrupt(
    reading: Reading, files: Mapping[str, Sequence[str]], errors: Mapping[str, str]
) -> Reading:
    """The same reading with records of unreadable images (`errors`: file -> reason) refused."""
    records: list[Record] = []
    rows = list(reading.rows)
    for record in reading.records:
        # for several images or a series, the error of the first unreadable file
        paths = record.image_paths
        corrupt = next((path for path in paths if not errors.keys().isdisjoint(files[path])), None)
        if corrupt is None:
            records.append(record)
        else:
            name = next(name for name in files[corrupt] if name in errors)
            which = "the image" if name == corrupt else name
            why = f"{which} cannot be read from the corpus: {errors[name]}"
            rows.append(refuse(record, corrupt, why, Reason.IMAGE_DAMAGED))
    return Reading(reading.read, records, rows)


@dataclass(frozen=True)
class _Images:
    """Image files: SHA-256 of each readable one, error of each other, hashed ids of DICOM."""

    hashes: dict[str, str]
    errors: dict[str, str]
    patients: dict[str, bytes] = field(default_factory=dict)
    studies: dict[str, bytes] = field(default_factory=dict)


class _Hashed(NamedTuple):
    """One image file as read."""

    name: str
    digest: str = ""
    ids: FileIds = FileIds()
    error: str | None = None
    is_dicom: bool = False


def _hash_all(corpus: Corpus, names: Sequence[str]) -> _Images:
    """Hash the images.

    Those in the hash cache are not read. DICOM files are not in it: their patients' ids are kept
    nowhere, so their headers are read each time.
    """
    cache = HashCache(HASH_CACHE)
    hashes = {name: digest for name in names if (digest := cache.get(corpus.fingerprint(name)))}
    new_names = corpus.in_order(name for name in names if name not in hashes)
    images = _Images(hashes, {})
    uncached = set()
    for image in counted(_hash_each(corpus, new_names), len(new_names), "download", "image"):
        if image.error is not None:
            images.errors[image.name] = image.error
            continue
        hashes[image.name] = image.digest
        if image.ids.patient is not None:
            images.patients[image.name] = image.ids.patient
        if image.ids.study is not None:
            images.studies[image.name] = image.ids.study
        if image.is_dicom:
            uncached.add(image.name)
    cache.write({corpus.fingerprint(name): hashes[name] for name in hashes if name not in uncached})
    print(f"download: {len(names)} images, {len(new_names)} read, the others unchanged")
    return images


def _hash_each(corpus: Corpus, names: Sequence[str]) -> Iterator[_Hashed]:
    """Hash images on all cores, in order; memory holds at most _IN_FLIGHT bytes and one image."""

    def hash_image(name: str) -> _Hashed:
        try:
            content = corpus.fetch(name)
        except DamagedMemberError as error:
            return _Hashed(name, error=error.why)
        digest = hashlib.sha256(content).hexdigest()
        return _Hashed(name, digest, ids_of_file(content), is_dicom=is_dicom(content))

    # small images count as larger ones, so that at most _QUEUED are in the queue
    min_weight = _IN_FLIGHT // _QUEUED
    yield from prefetch(
        hash_image,
        names,
        threads=available_cores(),  # reading, unpacking and hashing release the GIL
        budget=_IN_FLIGHT,
        weight=lambda name: max(corpus.size(name), min_weight),
    )


def _write(
    corpus: Corpus,
    slug: str,
    records: list[Record],
    files: Mapping[str, Sequence[str]],
    hashes: Mapping[str, str],
    linked: Mapping[str, Mapping[str, str]],
) -> None:
    """Write records and images of a modality.

    `linked`: field -> image -> the image that stands for its patient or study, instead of an id.
    """
    paths = set(chain.from_iterable(record.image_paths for record in records))
    names = sorted(set(chain.from_iterable(files[path] for path in paths)))
    with atomic_directory(layout.corpus(slug)) as folder:
        write_json_lines(
            folder / layout.corpus_records(slug).name,
            (_without_id(record, linked) for record in records),
        )
        images = (
            {"file": name, "sha256": hashes[name], "size": corpus.size(name)} for name in names
        )
        write_json_lines(folder / layout.corpus_images(slug).name, images)
    print(
        f"download: {slug}: {len(records)} records, {len(names)} image files ->"
        f" {layout.corpus(slug)}"
    )


def _without_id(record: Record, linked: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    fields = {name: value for name, value in record.fields.items() if name not in linked}
    for name, first_of in linked.items():
        if record.image_path in first_of:
            fields[name] = first_of[record.image_path]
    return fields


if __name__ == "__main__":
    run_stage(main)
