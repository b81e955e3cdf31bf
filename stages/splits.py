"""Stage `splits`: train and test questions per modality and question type, in published form.

    python -m stages.splits

Two kinds, both made; splits.kind says which one is trained and tested on.

grouped: all questions about an image, its copies and, where its path tells, its patient stay
together, and one draw serves both axes: no checkpoint has seen anything of a question that any
checkpoint is tested on.

published: random over questions, the two axes two independent draws, as in Med-R1 (arXiv
2503.13939). Each (axis, slug) has a generator of its own.

In both, new data of one modality leaves the splits of the other modalities as they were.

Here all modalities are together for the first time, and nothing is trained yet: the corpus is
tested first (data_tests in params.yaml). What the tests found is in data/data-tests.json, also when
they stop the stage.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from stages.core import layout
from stages.core.cli import run_stage
from stages.core.outputs import atomic_directory, write_json
from stages.core.params import Splits, load_params
from stages.core.provenance import collect_provenance
from stages.corpus.dataset.problems import format_problem, format_solution
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from stages.corpus.records.records import Reading, Record, read_record_lines
from stages.corpus.splitting.data_tests import (
    TESTS,
    Results,
    describe,
    judge_corpus,
    judge_records,
    stop_on_errors,
    write_results,
)
from stages.corpus.splitting.groups import GroupedImage, group_images, patient_of
from stages.corpus.splitting.leaks import Leaks, as_json, count_leaks, total
from stages.corpus.splitting.stratify import stratify
from stages.taxonomy import AXES, MODALITIES

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""

Item = dict[str, Any]
Draw = dict[str, dict[str, tuple[list[Item], list[Item]]]]
"""Axis -> slug -> (train, test)."""

_FIELD = {"modality": "modality", "task": "question_type"}
"""Axis -> the field of an item that names its slug."""
_TOLERANCE = 0.01
"""A train share of a grouped split that is further off is told."""


def main() -> None:
    """Write data/data-tests.json, then data/splits: split files, groups, leaks and provenance."""
    argparse.ArgumentParser(prog="python -m stages.splits", description=__doc__).parse_args()
    params = load_params()
    settings = params.splits
    provenance = collect_provenance(
        {
            "splits": settings,
            "data_tests": params.data_tests,
            "resize.size": str(params.resize.size),
        }
    )
    reading = _read()
    results = Results(
        tuple(
            judge_records(reading, {slug: layout.records(slug).as_posix() for slug in MODALITIES})
        ),
        {},
    )
    _settle(results, provenance)
    records = sorted(reading.records, key=lambda record: record.question_id)
    items = [_item(record) for record in records]
    group_of = group_images(_images(records, settings), settings.near_duplicates)
    draws = {"grouped": grouped(items, group_of, settings), "published": published(items, settings)}
    tested = judge_corpus(
        records, draws[settings.kind], params.resize.size, dict(params.data_tests)
    )
    _settle(Results((*results.tests, *tested.tests), tested.statistics), provenance)
    _check_sides(draws[settings.kind], group_of, settings.kind)
    leaks = {kind: count_leaks(draw, group_of) for kind, draw in draws.items()}
    with atomic_directory(layout.SPLITS) as folder:
        for kind, draw in draws.items():
            for axis, slugs in draw.items():
                for slug, parts in slugs.items():
                    for part, chosen in zip(("train", "test"), parts, strict=True):
                        path = folder / layout.split(axis, slug, part, kind).relative_to(
                            layout.SPLITS
                        )
                        write_json(path, chosen)
        write_json(folder / "groups.json", _several(group_of))
        write_json(
            folder / layout.LEAKS.relative_to(layout.SPLITS),
            {kind: as_json(counts) for kind, counts in leaks.items()},
        )
        # the published form is a bare list; beside the kinds, not in them, for another commit alone
        # is no reason to train again
        write_json(folder / "provenance.json", collect_provenance({"splits": settings}))
    _print(draws, leaks, group_of, settings)
    print(f"splits: read {len(items)} records, kept {len(items)}, quarantined 0 -> {layout.SPLITS}")


def grouped(items: list[Item], group_of: Mapping[str, str], settings: Splits) -> Draw:
    """Split items (sorted by question_id) by groups of images, with the same draw on both axes."""
    strata: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for item in items:
        strata[group_of[item["image"]]][item["modality"], item["question_type"]] += 1
    trained = stratify(strata, settings.train_share, settings.seed)
    return {
        axis: {
            slug: _cut(mine, [group_of[item["image"]] in trained for item in mine])
            for slug, mine in _by_slug(items, axis).items()
        }
        for axis in AXES
    }


def published(items: list[Item], settings: Splits) -> Draw:
    """Split items (sorted by question_id) at random: round(n * train_share) for training.

    At least one on each side of two or more.
    """
    return {
        axis: {
            slug: _at_random(mine, axis, slug, settings)
            for slug, mine in _by_slug(items, axis).items()
        }
        for axis in AXES
    }


def _at_random(
    items: list[Item], axis: str, slug: str, settings: Splits
) -> tuple[list[Item], list[Item]]:
    count = max(min(max(round(len(items) * settings.train_share), 1), len(items) - 1), 0)
    # numbers from a hash: the same on every machine, and for one split whatever the others hold
    key = hashlib.sha256(f"{settings.seed}/{axis}/{slug}".encode()).digest()
    train = set(np.random.default_rng(list(key)).permutation(len(items))[:count].tolist())
    return _cut(items, [index in train for index in range(len(items))])


def _cut(items: list[Item], trained: list[bool]) -> tuple[list[Item], list[Item]]:
    pairs = list(zip(items, trained, strict=True))
    return [item for item, yes in pairs if yes], [item for item, yes in pairs if not yes]


def _by_slug(items: list[Item], axis: str) -> dict[str, list[Item]]:
    return {slug: [item for item in items if item[_FIELD[axis]] == slug] for slug in AXES[axis]}


def _check_sides(draw: Draw, group_of: Mapping[str, str], kind: str) -> None:
    """RefusedDataError if a split has nothing to train on, or nothing to test."""
    for axis, slugs in draw.items():
        for slug, (train, test) in slugs.items():
            if train and test:
                continue
            together = len({group_of[item["image"]] for item in train + test})
            looser = (
                "lower splits.near_duplicates or narrow splits.patient_patterns, set splits.kind to"
                " published, "
            )
            raise RefusedDataError(
                f"the split {axis}/{slug} would be empty on one side: {len(train + test)} usable"
                f" question(s) in {together} group(s) of images, two are needed;"
                f" {looser if kind == 'grouped' and len(train + test) > 1 else ''}add data of this"
                f" {axis} to the corpus, or see in {layout.QUARANTINE}/ why it was refused",
                CorpusFault.EMPTY_SPLIT,
            )


def _read() -> Reading:
    """The records of all modalities; those that were made unfit since stage resize as rows."""
    return read_record_lines(
        [layout.records(slug) for slug in MODALITIES], "run `dvc repro resize`"
    )


def _settle(results: Results, provenance: dict[str, Any]) -> None:
    """Write down what the tests found, say which failed, and stop on errors."""
    write_results(layout.DATA_TESTS, results, provenance)
    stop_on_errors(results, layout.DATA_TESTS)
    for each in results.tests:
        if each.outcome == "failed":
            print(f"warning: data test {describe(each)}: {TESTS[each.test].meaning}")


def _item(record: Record) -> Item:
    return {
        "image": record.fields["image"],
        "problem": format_problem(record.question, record.options),
        "solution": format_solution(record.gold),
        "options": record.options,
        "question_id": record.question_id,
        "dataset": record.dataset,
        "modality": record.modality,
        "question_type": record.question_type,
    }


def _images(records: list[Record], settings: Splits) -> list[GroupedImage]:
    """The images of the records, each once."""
    patterns = [re.compile(pattern) for pattern in settings.patient_patterns]
    by_path: dict[str, GroupedImage] = {}
    for record in records:
        image = record.fields["image"]
        hashes = record.fields["pixel_hash"], record.fields["perceptual_hash"]
        by_path[image] = GroupedImage(image, *hashes, patient_of(record.image_path, patterns))
    return list(by_path.values())


def _several(group_of: Mapping[str, str]) -> list[list[str]]:
    """Groups of several images, as lists of paths: what was found to belong together."""
    groups: dict[str, list[str]] = defaultdict(list)
    for image, group in sorted(group_of.items()):
        groups[group].append(image)
    return [images for images in groups.values() if len(images) > 1]


def _print(
    draws: dict[str, Draw], leaks: dict[str, Leaks], group_of: Mapping[str, str], settings: Splits
) -> None:
    """Sizes of all splits, what leaks in them, and what grouping could not even out."""
    print(
        f"{'kind':9} {'axis':9} {'slug':28} {'train':>7} {'test':>7} {'train %':>8}"
        f" {'image in train':>15} {'group in train':>15}"
    )
    for kind, draw in draws.items():
        for axis, slugs in draw.items():
            for slug, (train, test) in slugs.items():
                leak, share = leaks[kind][axis][slug], len(train) / max(len(train + test), 1)
                sizes = (
                    f"{len(train):7} {len(test):7} {100 * share:8.1f} {leak.image:15}"
                    f" {leak.group:15}"
                )
                off = kind == "grouped" and abs(share - settings.train_share) > _TOLERANCE
                print(
                    f"{kind:9} {axis:9} {slug:28}"
                    f" {sizes}{' groups too large for the share' if off else ''}"
                )
            leak = total(leaks[kind][axis].values())
            print(
                f"{kind:9} {axis:9} {'all':28} {'':7} {leak.test:7} {'':8} {leak.image:15}"
                f" {leak.group:15}"
            )
    images = Counter(group_of.values())
    largest = max(images, key=lambda name: (images[name], name), default="")
    print(
        f"splits: {len(group_of)} images in {len(images)} groups, the largest of {images[largest]}"
        f" from {largest} on"
    )
    print(f"splits: training and tests use {settings.kind}")


if __name__ == "__main__":
    run_stage(main)
