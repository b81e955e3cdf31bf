"""Manifest of a corpus: its images and questions, and what it has that another lacks.

Made from the records of stage resize: images are known by the hash of their pixels as policies see
them, so that a file saved again is no new image, and one replaced under its name is. With the
splits, also what each checkpoint was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from flows.registry.drift import Drift, Summary, compare, summarise
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import read_json, write_json
from stages.corpus.dataset.split_files import read_split
from stages.corpus.quarantine.ledger import read_quarantine
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import Record, iterate_records
from stages.taxonomy import AXES, MODALITIES

_REMEDY: Final = "run `dvc repro resize`"
_DIGITS: Final = 16
"""Hex digits kept of a hash: among a hundred million images, two that differ share them with a
chance of one in three thousand.
"""

Part = Literal["images", "questions"]


@dataclass(frozen=True)
class Manifest:
    """A corpus as it was taken.

    `images`: modality -> path -> hash of the pixels; `questions`: modality -> question id -> hash
    of what is asked of which image and of the answer. `read` records were read, `refused` of them
    refused; `unknown`: modality_type -> records refused for it. `trained`: axis -> slug -> paths of
    the images in its train split; `groups`: paths of images that belong together, where there are
    several. `summary`: histograms by which drift is told, {} in manifests of a time before there
    were any.
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
    """How many images, or questions, are new, gone, or other than they were under the same name."""

    added: int
    removed: int
    changed: int

    def __bool__(self) -> bool:
        """Is there any change."""
        return bool(self.added or self.removed or self.changed)


Changes = dict[str, dict[Part, Change]]
"""Modality -> images and questions -> how they changed; all modalities."""


def take_manifest(root: Path, kind: str | None = None) -> Manifest:
    """The corpus of a workspace after stage resize, with the splits of `kind` if given.

    InputError if a file is missing or damaged.
    """
    images: dict[str, dict[str, str]] = {}
    questions: dict[str, dict[str, str]] = {}
    everything: list[Record] = []
    for slug in MODALITIES:
        records = list(iterate_records(root / layout.records(slug), _REMEDY))
        images[slug] = {
            str(record.fields["image"]): str(record.fields["pixel_hash"])[:_DIGITS]
            for record in records
        }
        questions[slug] = {record.question_id: _asked(record) for record in records}
        everything += records
    accounts = [
        read_quarantine(root / layout.QUARANTINE / "resize" / f"{slug}.parquet")
        for slug in MODALITIES
    ]
    download = read_quarantine(root / layout.QUARANTINE / "download.parquet")
    unknown: dict[str, int] = {}
    for row in download.rows:
        if row.reason == Reason.UNKNOWN_MODALITY:
            unknown[row.what] = unknown.get(row.what, 0) + 1
    refused = sum(len(account.rows) for account in [download, *accounts])
    summary = summarise(everything)
    if kind is None:
        return Manifest(images, questions, download.read, refused, unknown, summary=summary)
    trained = {
        axis: {
            slug: sorted(
                {
                    str(item["image"])
                    for item in read_split(root / layout.split(axis, slug, "train", kind))
                }
            )
            for slug in slugs
        }
        for axis, slugs in AXES.items()
    }
    groups = read_json(root / layout.SPLITS / "groups.json", "run `dvc repro splits`")
    return Manifest(images, questions, download.read, refused, unknown, trained, groups, summary)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Keep a manifest as JSON."""
    write_json(path, asdict(manifest))


def read_manifest(path: Path) -> Manifest:
    """What `write_manifest` wrote. InputError if it is no such file."""
    try:
        return Manifest(**read_json(path, "promote the champion again"))
    except TypeError as error:
        raise InputError(f"{path} is not a corpus manifest ({error})") from error


def diff(old: Manifest, new: Manifest) -> Changes:
    """What `new` holds that `old` does not, and the other way round, by modality."""
    return {
        slug: {
            "images": _diff(old.images.get(slug, {}), new.images.get(slug, {})),
            "questions": _diff(old.questions.get(slug, {}), new.questions.get(slug, {})),
        }
        for slug in MODALITIES
    }


def touched(changes: Changes) -> list[str]:
    """The modalities in which anything changed."""
    return [slug for slug, parts in changes.items() if any(parts.values())]


def known_to_one(old: Manifest, new: Manifest, axis: str, slug: str) -> set[str]:
    """Images of `new` known to exactly one of two policies.

    Both were trained on the same split, one of `old`, the other of `new`.

    Known is an image if one of its group was trained on. New data may move an old training image
    into the test: what only one has seen cannot be asked of both.
    """
    hash_of: dict[str, str] = {}
    for images in new.images.values():
        hash_of.update(images)
    before: dict[str, str] = {}
    for images in old.images.values():
        before.update(images)
    taught_old, taught_new = set(old.trained[axis][slug]), set(new.trained[axis][slug])
    seen = {before[path] for path in taught_old if path in before}
    group_of: dict[str, int] = {}
    for at, paths in enumerate(new.groups):
        group_of.update(dict.fromkeys(paths, at))

    def knows(path: str) -> tuple[bool, bool]:
        return path in taught_old or hash_of[path] in seen, path in taught_new

    together: dict[int, list[tuple[bool, bool]]] = {}
    for path in hash_of:
        if path in group_of:
            together.setdefault(group_of[path], []).append(knows(path))
    sides = {
        group: (any(old for old, _ in each), any(new for _, new in each))
        for group, each in together.items()
    }
    unequal = set()
    for path in hash_of:
        by_old, by_new = sides[group_of[path]] if path in group_of else knows(path)
        if by_old != by_new:
            unequal.add(path)
    return unequal


def drift(old: Manifest, new: Manifest) -> list[Drift] | None:
    """Drift from `old` to `new`, largest first; None if one of the manifests lacks histograms."""
    return compare(old.summary, new.summary) if old.summary and new.summary else None


def counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Modality -> how many images and questions."""
    return {
        slug: {"images": len(manifest.images[slug]), "questions": len(manifest.questions[slug])}
        for slug in MODALITIES
    }


def _diff(old: Mapping[str, str], new: Mapping[str, str]) -> Change:
    return Change(
        added=len(new.keys() - old.keys()),
        removed=len(old.keys() - new.keys()),
        changed=sum(old[name] != new[name] for name in old.keys() & new.keys()),
    )


def _asked(record: Record) -> str:
    """Hash of a question's content: words, options, answer, type and image."""
    return _hash(
        [record.question, *record.options, record.gold, record.question_type, record.image_path]
    )


def _hash(parts: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:_DIGITS]
