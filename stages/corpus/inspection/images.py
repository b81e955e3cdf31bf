"""Decoding of a corpus's images for the check, as stage resize decodes them."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.params import Params
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import Corpus
from stages.corpus.images.decoding import ImageError
from stages.corpus.images.files import decode_files
from stages.corpus.images.frames import FrameFacts, Slices, describe_frames, wanted_frames
from stages.corpus.images.resizer import ImageResult, check_modality, describe
from stages.corpus.images.shown import add_images
from stages.corpus.inspection.findings import Findings
from stages.corpus.quarantine.advice import DUPLICATE_IMAGES
from stages.corpus.records.records import Record, refuse
from stages.corpus.records.texts import RefusedRecord

_STORE: Final = Path("resized")
"""Where the images would lie; nothing is written."""


class _DecodedImage(NamedTuple):
    """Path, digest of its bytes, and why it cannot be used: at all, or in one modality."""

    path: str
    digest: bytes = b""
    error: ImageError | None = None
    modality_errors: Mapping[str, ImageError] = {}
    metadata: dict[str, Any] = {}  # noqa: RUF012  # a tuple's default
    """As stage resize adds to a record."""
    frames: Mapping[int, FrameFacts] = {}
    """Those of a volume that questions show."""


def decodable(
    corpus: Corpus,
    records: list[Record],
    files: Mapping[str, list[str]],
    params: Params,
    findings: Findings,
) -> list[Record]:
    """Records whose images can be decoded, as after stage resize; notes images of the same bytes.

    Their `image` is the path in the corpus. `files`: image path -> its files, several for a series.
    """
    paths = sorted(files)
    modalities: dict[str, set[str]] = defaultdict(set)
    slices: dict[str, set[Slices]] = defaultdict(set)
    for record in records:
        for path in record.image_paths:
            modalities[path].add(record.modality)
            slices[path].add(record.slices)

    def decode_image(path: str) -> _DecodedImage:
        return _decode(corpus, path, files[path], modalities[path], slices[path], params)

    results: dict[str, dict[str, ImageResult]] = defaultdict(dict)
    frames: dict[str, Mapping[int, FrameFacts]] = {}
    first: dict[bytes, str] = {}
    threads = os.cpu_count() or 1
    decoded = prefetch(decode_image, paths, threads=threads, budget=threads + 1)
    for image in counted(decoded, len(paths), "check", "image"):
        for slug in modalities[image.path]:
            error = image.error or image.modality_errors.get(slug)
            results[slug][image.path] = error or image.metadata
        frames[image.path] = image.frames
        original = image.path if image.error else first.setdefault(image.digest, image.path)
        if original != image.path:
            findings.note(DUPLICATE_IMAGES, image.path, original, "the same bytes as this one")
    usable = []
    for record in records:
        try:
            fields = add_images(record, results[record.modality], frames, _STORE, params.volume)
        except RefusedRecord as refusal:
            findings.refuse(refuse(record, refusal.what, refusal.why, refusal.reason))
        else:
            usable.append(replace(record, fields=fields | {"image": record.image_path}))
    return usable


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
    try:
        contents = [corpus.fetch(name) for name in names]
        for content in contents:
            digest.update(content)
        image = decode_files(
            contents,
            params.resize,
            params.dicom,
            params.volume,
            folder=names != [path],
            slices_named=any(slices),
        )
        wanted = wanted_frames(len(image.frames), params.volume, slices) if image.frames else ()
        frames = describe_frames(image.frames, wanted)
        for slug in modalities:
            try:
                check_modality(image, params.taxonomy.modalities.categories[slug])
            except ImageError as error:
                wrong[slug] = error
    except ImageError as error:
        return _DecodedImage(path, error=error)
    except DamagedMemberError as error:
        return _DecodedImage(path, error=ImageError(str(error)))
    metadata = describe(image)
    if image.frames:
        metadata["frames"] = len(image.frames)
    return _DecodedImage(path, digest.digest()[:16], None, wrong, metadata, frames)
