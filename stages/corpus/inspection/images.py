"""Decoding of a corpus's images for the check, as stage resize decodes them."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.params import Params
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import Corpus
from stages.corpus.images.decoding import ImageError, decode_files
from stages.corpus.images.resizer import check_modality, describe
from stages.corpus.inspection.findings import Findings
from stages.corpus.quarantine.advice import DUPLICATE_IMAGES
from stages.corpus.records.records import Record, refuse


class _DecodedImage(NamedTuple):
    """Path, digest of its bytes, and why it cannot be used: at all, or in one modality."""

    path: str
    digest: bytes = b""
    error: ImageError | None = None
    modality_errors: Mapping[str, ImageError] = {}
    metadata: Mapping[str, Any] = {}
    """As stage resize adds to a record."""


def decodable(
    corpus: Corpus,
    records: list[Record],
    files: Mapping[str, list[str]],
    params: Params,
    findings: Findings,
) -> tuple[list[Record], dict[str, Mapping[str, Any]]]:
    """Records whose image can be decoded, and image -> metadata; notes images of the same bytes.

    `files`: image path -> its files, several for a DICOM series.
    """
    paths = sorted(files)
    modalities: dict[str, set[str]] = defaultdict(set)
    for record in records:
        modalities[record.image_path].add(record.modality)

    def decode_image(path: str) -> _DecodedImage:
        return _decode(corpus, path, files[path], modalities[path], params)

    errors: dict[tuple[str, str], ImageError] = {}
    metadata: dict[str, Mapping[str, Any]] = {}
    first: dict[bytes, str] = {}
    threads = os.cpu_count() or 1
    decoded = prefetch(decode_image, paths, threads=threads, budget=threads + 1)
    for image in counted(decoded, len(paths), "check", "image"):
        for slug in modalities[image.path]:
            if error := image.error or image.modality_errors.get(slug):
                errors[image.path, slug] = error
        metadata[image.path] = image.metadata
        original = image.path if image.error else first.setdefault(image.digest, image.path)
        if original != image.path:
            findings.note(DUPLICATE_IMAGES, image.path, original, "the same bytes as this one")
    usable = []
    for record in records:
        if error := errors.get((record.image_path, record.modality)):
            why = f"the image cannot be used: {error}"
            findings.refuse(refuse(record, record.image_path, why, error.reason))
        else:
            usable.append(record)
    return usable, metadata


def _decode(
    corpus: Corpus, path: str, names: list[str], modalities: Collection[str], params: Params
) -> _DecodedImage:
    """Decode an image with all its frames, and compare its header with the records' modalities."""
    digest = hashlib.sha256()
    wrong = {}
    try:
        contents = [corpus.fetch(name) for name in names]
        for content in contents:
            digest.update(content)
        image = decode_files(contents, params.resize, params.dicom, folder=names != [path])
        for _ in image.frames:  # each is decoded on access
            pass
        for slug in modalities:
            try:
                check_modality(image, params.taxonomy.modalities.categories[slug])
            except ImageError as error:
                wrong[slug] = error
    except ImageError as error:
        return _DecodedImage(path, error=error)
    except DamagedMemberError as error:
        return _DecodedImage(path, error=ImageError(str(error)))
    return _DecodedImage(path, digest.digest()[:16], None, wrong, describe(image))
