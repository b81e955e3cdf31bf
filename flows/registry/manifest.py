"""Manifest of a corpus: hashes of its images and questions, and the differences of two manifests.

Built from the records of stage resize. An image is identified by the hash of its pixels as policies
see them: a re-encoded file is the same image, a file replaced under its name is another one. With
the splits, a manifest also lists the images that each checkpoint was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from flows.registry.drift import Drift, Summary, compare, summarise
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import read_json, write_json
from stages.corpus.dataset.split_files import read_split
from stages.corpus.quarantine.ledger import read_quarantine
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import Record, iterate_records
from stages.taxonomy import Taxonomy

_REMEDY: Final = "run `dvc repro resize`"
_DIGITS: Final = 16
"""Hex digits per hash: a collision among 100 million images has a probability of 1 in 3,000."""

Part = Literal["images", "questions"]


@dataclass(frozen=True)
class Manifest:
    """A corpus at one point in time.

    `images`: modality -> path -> hash of the pixels; `questions`: modality -> question id -> hash
    of its content; `read`, `refused`: numbers of records; `unknown`: modality_type -> records
    refused for it; `trained`: axis -> slug -> paths of the images in its train split; `groups`:
    paths of the images of each group of several; `summary`: histograms for drift, {} in manifests
    older than drift detection.
    """

    images: Mapping[str, Mapping[str, str]]
    questions: Mapping[str, Mapping[str, str]]
    read: int
    refused: int
    unknown: Mapping[str, int]
    trained: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    summary: Summary = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """Numbers of images, or questions, that are new, removed, or changed under the same name."""

    added: int
    removed: int
    changed: int

    def __bool__(self) -> bool:
        """Is there any change."""
        return bool(self.added or self.removed or self.changed)


Changes = dict[str, dict[Part, Change]]
"""Modality -> "images" and "questions" -> their change; for all modalities."""


def build_manifest(root: Path, taxonomy: Taxonomy, kind: str | None = None) -> Manifest:
    """Manifest of a workspace's corpus after stage resize, with the splits of `kind` if given.

    InputError if a file is missing or corrupt.
    """
    images: dict[str, dict[str, str]] = {}
    questions: dict[str, dict[str, str]] = {}
    everything: list[Record] = []
    for slug in taxonomy.modalities:
        records = list(iterate_records(root / layout.records(slug), _REMEDY, taxonomy))
        images[slug] = {
            str(record.fields["image"]): str(record.fields["pixel_hash"])[:_DIGITS]
            for record in records
        }
        questions[slug] = {record.question_id: _question_hash(record) for record in records}
        everything += records
    resize_folder = root / layout.QUARANTINE / "resize"
    resize = [read_quarantine(resize_folder / f"{slug}.parquet") for slug in taxonomy.modalities]
    download = read_quarantine(root / layout.QUARANTINE / "download.parquet")
    unknown: dict[str, int] = {}
    for row in download.rows:
        if row.reason == Reason.UNKNOWN_MODALITY:
            unknown[row.what] = unknown.get(row.what, 0) + 1
    refused = sum(len(quarantine.rows) for quarantine in [download, *resize])
    manifest = Manifest(
        images, questions, download.read, refused, unknown, summary=summarise(everything)
    )
    if kind is None:
        return manifest
    trained: dict[str, dict[str, list[str]]] = {}
    for axis in taxonomy.axes:
        trained[axis] = {}
        for path in sorted((root / layout.SPLITS / kind / axis).glob("*/train.json")):
            items = read_split(path)
            trained[axis][path.parent.name] = sorted({str(item["image"]) for item in items})
    groups = read_json(root / layout.SPLITS / "groups.json", "run `dvc repro splits`")
    return replace(manifest, trained=trained, groups=groups)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON."""
    write_json(path, asdict(manifest))


def read_manifest(path: Path) -> Manifest:
    """Read a file of `write_manifest`; InputError if it is not one."""
    try:
        return Manifest(**read_json(path, "promote the champion again"))
    except TypeError as error:
        raise InputError(f"{path} is not a corpus manifest ({error})") from error


def diff(old: Manifest, new: Manifest) -> Changes:
    """Differences between two manifests by modality."""
    return {
        slug: {
            "images": _diff(old.images.get(slug, {}), new.images.get(slug, {})),
            "questions": _diff(old.questions.get(slug, {}), new.questions.get(slug, {})),
        }
        for slug in {**old.images, **new.images}
    }


def changed_modalities(changes: Changes) -> list[str]:
    """The modalities in which anything changed."""
    return [slug for slug, parts in changes.items() if any(parts.values())]


def seen_by_one_policy(old: Manifest, new: Manifest, axis: str, slug: str) -> set[str]:
    """Images of `new` seen in training by exactly one of two policies of the same split.

    One policy was trained on `old`, the other on `new`. An image counts as seen if any image of its
    group was trained on. New data may move an old training image into the test split: a comparison
    on an image that only one policy has seen would be unfair.
    """
    hash_of: dict[str, str] = {}
    for images in new.images.values():
        hash_of.update(images)
    old_hash_of: dict[str, str] = {}
    for images in old.images.values():
        old_hash_of.update(images)
    old_paths = set(old.trained[axis].get(slug, ()))
    new_paths = set(new.trained[axis][slug])
    # the same pixels may have another path in the new corpus
    old_hashes = {old_hash_of[path] for path in old_paths if path in old_hash_of}
    # an image in no group of several is a group of its own
    group_of: dict[str, int | str] = {path: path for path in hash_of}
    for index, paths in enumerate(new.groups):
        group_of.update(dict.fromkeys(paths, index))
    seen_by_old = {
        group_of[path]
        for path, digest in hash_of.items()
        if path in old_paths or digest in old_hashes
    }
    seen_by_new = {group_of[path] for path in hash_of if path in new_paths}
    one_sided = seen_by_old ^ seen_by_new
    return {path for path in hash_of if group_of[path] in one_sided}


def drift(old: Manifest, new: Manifest) -> list[Drift] | None:
    """Drift from `old` to `new`, largest first; None if one of the manifests lacks histograms."""
    return compare(old.summary, new.summary) if old.summary and new.summary else None


def counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Modality -> number of images and of questions."""
    return {
        slug: {"images": len(manifest.images[slug]), "questions": len(manifest.questions[slug])}
        for slug in manifest.images
    }


def _diff(old: Mapping[str, str], new: Mapping[str, str]) -> Change:
    return Change(
        added=len(new.keys() - old.keys()),
        removed=len(old.keys() - new.keys()),
        changed=sum(old[name] != new[name] for name in old.keys() & new.keys()),
    )


def _question_hash(record: Record) -> str:
    """Hash of a question's content: text, options, answer, type, images, and context if any."""
    parts = [record.question, *record.options, record.gold, record.question_type]
    parts += [*record.image_paths, *map(str, record.slices)]
    if record.context is not None:
        parts.append(f"context: {record.context}")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]
