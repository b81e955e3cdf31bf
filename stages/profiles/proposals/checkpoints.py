"""Checkpoints of a corpus, with what params.yaml already says of them.

There is one by GRPO for each modality and question type. Existing ones of the same splits keep
their place, `start` and overrides; SFT and joint ones of splits that the corpus has are kept too.
What cannot be kept is listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from stages.core.settings.categories import SFT
from stages.taxonomy import Axes, parse_fold

_DEFAULTS: Final[dict[str, Any]] = {"start": "models/base", "grpo": {}, "sft": {}}
"""Keys of an entry that a person may have set, and what they are else."""

Entries = Mapping[str, Mapping[str, Any]]
"""Name -> entry, as `checkpoints` in params.yaml."""


@dataclass(frozen=True)
class Merged:
    """New checkpoints, and which settings of existing ones are among them or not."""

    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    """Entries with settings of their own, as they are printed."""
    dropped: list[str] = field(default_factory=list)


class _Row(NamedTuple):
    """An existing checkpoint, or the first of several folds."""

    name: str
    axis: str
    slug: str
    entry: Mapping[str, Any]

    @property
    def own(self) -> dict[str, Any]:
        return {
            key: self.entry[key]
            for key, default in _DEFAULTS.items()
            if self.entry.get(key, default) != default
        }

    @property
    def target(self) -> str:
        """Name of the checkpoint without folds."""
        return f"{SFT}{self.slug}" if self.entry.get("method") == "sft" else self.slug

    def __str__(self) -> str:
        return f"{self.name} {json.dumps(self.own)}" if self.own else self.name


def new_checkpoints(axes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """A checkpoint by GRPO for each slug of each axis."""
    checkpoints: dict[str, dict[str, Any]] = {}
    for axis, slugs in axes.items():
        for slug in slugs:
            checkpoints[slug] = {
                "axis": axis,
                "split": slug,
                "method": "grpo",
                "images": f"data/images/{slug}" if axis == "modality" else "data/images",
                "start": _DEFAULTS["start"],
            }
    return checkpoints


def evaluations_of(checkpoints: Entries, existing: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """The evaluations of some checkpoints, and of the base; those that exist keep their order."""
    own = {name: {"axis": each["axis"]} for name, each in checkpoints.items()}
    new: dict[str, dict[str, Any]] = {"base": {"axis": "all"}, **own}
    return {name: new[name] for name in in_existing_order(new, filter(new.get, existing))}


def merge_existing(
    new: Entries, existing: Entries, original: Entries, joint: Mapping[str, Any], axes: Axes
) -> Merged:
    """New checkpoints, of whole splits, with the settings of existing ones.

    Args:
        new: By `new_checkpoints`; those of splits with too little data left out.
        existing: Those in params.yaml.
        original: Those that it has without its profile, for splits of which `existing` has none.
        joint: splits.joint.
        axes: Of the corpus.
    """
    rows = list(_rows(existing))
    known = {(row.axis, row.slug) for row in rows}
    rows += [row for row in _rows(original) if (row.axis, row.slug) not in known]
    trainable = {(each["axis"], each["split"]) for each in new.values()}
    trainable |= {(each["axis"], name) for name, each in joint.items() if _has_parts(each, axes)}
    merged = Merged()
    own_of: dict[str, dict[str, Any]] = {}
    for row in rows:
        matters = bool(row.own) or row.target != row.slug or row.slug in joint
        # of a cross-validation, what its first fold says counts for all
        if (row.axis, row.slug) not in trainable or own_of.get(row.target, row.own) != row.own:
            merged.dropped.extend([str(row)] * matters)
        elif row.target not in own_of:
            own_of[row.target] = row.own
            defaults = new.get(row.target, {**row.entry, "split": row.slug})
            merged.checkpoints[row.target] = {**defaults, **row.own}
            merged.kept.extend([str(row)] * matters)
    every = {**new, **merged.checkpoints}
    names = in_existing_order(new, merged.checkpoints)
    return Merged({name: dict(every[name]) for name in names}, merged.kept, merged.dropped)


def _rows(entries: Entries) -> Iterator[_Row]:
    for name, entry in entries.items():
        split = entry.get("split", name)
        fold = parse_fold(split)
        yield _Row(name, entry["axis"], fold[0] if fold else split, entry)


def _has_parts(union: Mapping[str, Any], axes: Axes) -> bool:
    """Whether the corpus has all splits of a joint one."""
    return union["of"] == "all" or set(union["of"]) <= set(axes[union["axis"]])


def in_existing_order(new: Iterable[str], existing: Iterable[str]) -> list[str]:
    """Existing names in their order; each of `new` that is none behind the one before it there."""
    names = list(existing)
    place = 0
    for name in new:
        if name in names:
            place = names.index(name) + 1
        else:
            names.insert(place, name)
            place += 1
    return names
