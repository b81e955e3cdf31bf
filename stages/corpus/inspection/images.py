"""Decoding of a corpus's images for the check, as stage resize decodes them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.core.cores import available_cores
from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.params import Params
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import Corpus
from stages.corpus.images.decoding import ImageError
from stages.corpus.images.facts import ImageFacts
from stages.corpus.images.files import decode_files
from stages.corpus.images.frames import Slices, describe_frames, wanted_frames
from stages.corpus.images.resizer import ImageResult, check_modality, describe
from stages.corpus.images.shown import add_images
from stages.corpus.inspection.findings import Findings
from stages.corpus.inspection.slices import VolumeSlices
from stages.corpus.inspection.volumes import FoundVolume, VolumeFacts, stored_plane
from stages.corpus.quarantine.advice import DUPLICATE_IMAGES
from stages.corpus.records.patients import ids_of_file, refuse_mixed_patients
from stages.corpus.records.records import Reading, Record, refuse
from stages.corpus.records.texts import RefusedRecord

_STORE: Final = Path("resized")
"""Where the images would lie; nothing is written."""


class _DecodedImage(NamedTuple):
    """Path, digest of its bytes, and why it cannot be used: at all, or in one modality."""

    path: str
    digest: bytes = b""
    error: ImageError | None = None
    modality_errors: Mapping[str, ImageError] = {}
    metadata: dict[str, Any] = {}  # noqa: RUF012  # never changed
    """As stage resize adds to a record."""
    frames: Mapping[int, ImageFacts] = {}
    """Those of a volume that questions show."""
    patients: Mapping[str, bytes] = {}
    """File -> hashed PatientID, of DICOM files."""
    volume: FoundVolume | None = None
    """None if it is a single image."""


class Decodable(NamedTuple):
    """Records whose images can be decoded, and the volumes among these, by image path."""

    records: list[Record]
    volumes: Mapping[str, VolumeFacts]


def decodable(
    corpus: Corpus,
    records: list[Record],
    files: Mapping[str, list[str]],
    params: Params,
    findings: Findings,
    slices: VolumeSlices,
) -> Decodable:
    """Records whose images can be decoded, as after stage resize; notes images of the same bytes.

    Their `image` is the path in the corpus. `files`: image path -> its files, several for a series;
    `slices` counts the questions about volumes.
    """
    images = _decode_all(corpus, records, files, params, findings)
    reading = Reading(len(records), records, [])
    reading = refuse_mixed_patients(reading, files, images.patients)
    for row in reading.rows:
        findings.refuse(row)
    usable = []
    for record in reading.records:
        results = images.results[record.modality]
        try:
            fields = add_images(record, results, images.frames, _STORE, params.volume)
        except RefusedRecord as refusal:
            findings.refuse(refuse(record, refusal.what, refusal.why, refusal.reason))
            slices.add(record, images.volumes, usable=False)
        else:
            slices.add(record, images.volumes, usable=True)
            usable.append(replace(record, fields=fields | {"image": record.image_path}))
    return Decodable(usable, {path: each.facts for path, each in images.volumes.items()})


@dataclass
class _Images:
    """What decoding found, by image path; of modalities, by their slug first."""

    results: dict[str, dict[str, ImageResult]] = field(default_factory=lambda: defaultdict(dict))
    frames: dict[str, Mapping[int, ImageFacts]] = field(default_factory=dict)
    patients: dict[str, bytes] = field(default_factory=dict)
    """File -> hashed PatientID."""
    volumes: dict[str, FoundVolume] = field(default_factory=dict)
    """Those of several slices or frames."""


def _decode_all(
    corpus: Corpus,
    records: list[Record],
    files: Mapping[str, list[str]],
    params: Params,
    findings: Findings,
) -> _Images:
    """Decode the images of all records, each once; notes those of the same bytes."""
    modalities: dict[str, set[str]] = defaultdict(set)
    slices: dict[str, set[Slices]] = defaultdict(set)
    for record in records:
        for path in record.image_paths:
            modalities[path].add(record.modality)
            slices[path].add(record.slices)

    def decode_image(path: str) -> _DecodedImage:
        return _decode(corpus, path, files[path], modalities[path], slices[path], params)

    images = _Images()
    first: dict[bytes, str] = {}
    paths = sorted(files)
    threads = available_cores()
    decoded = prefetch(decode_image, paths, threads=threads, budget=threads + 1)
    for image in counted(decoded, len(paths), "check", "image"):
        for slug in modalities[image.path]:
            error = image.error or image.modality_errors.get(slug)
            images.results[slug][image.path] = error or image.metadata
        images.frames[image.path] = image.frames
        images.patients |= image.patients
        if image.volume is not None:
            images.volumes[image.path] = image.volume
        original = image.path if image.error else first.setdefault(image.digest, image.path)
        if original != image.path:
            findings.note(DUPLICATE_IMAGES, image.path, original, "the same bytes as this one")
    return images


def _decode(
    corpus: Corpus,
    path: str,
    names: list[str],
    modalities: Collection[str],
    slices: Collection[Slices],
    params: Params,
) -> _DecodedImage:
    """Decode an image with all its frames, and compare its header with the records' modalities."""
    digest = hashlib.sha256()
    wrong = {}
    patients: dict[str, bytes] = {}
    volume = None
    try:
        contents = [corpus.fetch(name) for name in names]
        for name, content in zip(names, contents, strict=True):
            digest.update(content)
            if (patient := ids_of_file(content).patient) is not None:
                patients[name] = patient
        image = decode_files(
            contents,
            params.resize,
            params.dicom,
            params.volume,
            names=names,
            folder=names != [path],
            stacked=any(slices),
        )
        frames = {}
        if image.frames:
            wanted = wanted_frames(len(image.frames), params.volume, slices)
            frames = describe_frames(image.frames, wanted)
            plane = stored_plane(contents, len(image.frames), params.dicom)
            facts = VolumeFacts(len(image.frames), plane)
            volume = FoundVolume(facts, image.representative)
        for slug in modalities:
            try:
                check_modality(image, params.taxonomy.modalities.categories[slug])
            except ImageError as error:
                wrong[slug] = error
    except ImageError as error:
        return _DecodedImage(path, error=error, patients=patients)
    except DamagedMemberError as error:
        return _DecodedImage(path, error=ImageError(str(error)), patients=patients)
    metadata = describe(image)
    if image.frames:
        metadata["frames"] = len(image.frames)
    return _DecodedImage(
        path, digest.digest()[:16], None, wrong, metadata, frames, patients, volume
    )
