"""Stage `splits`: the questions of each modality and of each question type as train and test, in Med-R1's published form.

    python -m stages.splits

As in Med-R1 (arXiv 2503.13939) the split is random over questions, and the two axes are two independent draws. Each
(axis, slug) has a generator of its own, so that new data of one modality leaves the splits of the others as they were.
"""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import numpy as np

from stages import layout
from stages.cli import run_stage
from stages.corpus.modalities import AXES, MODALITIES
from stages.corpus.problems import format_problem, format_solution
from stages.corpus.records import Record, read_kept
from stages.errors import InputError
from stages.outputs import whole_directory, write_json
from stages.params import Splits, load_params
from stages.provenance import provenance

Item = dict[str, Any]


def main() -> None:
    """Write data/splits/{modality,task}/<slug>/{train,test}.json and their provenance.json, all of them or none."""
    argparse.ArgumentParser(prog="python -m stages.splits", description=__doc__).parse_args()
    settings = load_params().splits
    items = _items()
    print(f"{'axis':9} {'slug':28} {'train':>7} {'test':>7}")
    with whole_directory(layout.SPLITS) as folder:
        for axis, slugs in AXES.items():
            field = "modality" if axis == "modality" else "question_type"
            for slug in slugs:
                train, test = split([item for item in items if item[field] == slug], axis, slug, settings)
                for part, chosen in (("train", train), ("test", test)):
                    write_json(folder / layout.split(axis, slug, part).relative_to(layout.SPLITS), chosen)
                print(f"{axis:9} {slug:28} {len(train):7} {len(test):7}")
        # the published form is a bare list; beside the two axes, not in them, for another commit alone is no reason to train anew
        write_json(folder / "provenance.json", provenance({"splits": settings}))
    print(f"splits: read {len(items)} records, kept {len(items)}, quarantined 0 -> {layout.SPLITS}")


def split(items: list[Item], axis: str, slug: str, settings: Splits) -> tuple[list[Item], list[Item]]:
    """Cut items, sorted by question_id, into train and test: round(n * train_share) for training, but at least one on each side.

    Raises InputError when there are too few for two sides.
    """
    count = min(max(round(len(items) * settings.train_share), 1), len(items) - 1)
    if count < 1:
        raise InputError(
            f"the split {axis}/{slug} would be empty on one side: {len(items)} usable question(s), two are needed; "
            f"add data of this {axis} to the corpus, or see in {layout.QUARANTINE}/ why it was refused"
        )
    # numbers from a hash: the same on every machine, and for one split whatever the others hold
    key = hashlib.sha256(f"{settings.seed}/{axis}/{slug}".encode()).digest()
    order = np.random.default_rng(list(key)).permutation(len(items))
    train = set(order[:count].tolist())
    return [item for i, item in enumerate(items) if i in train], [item for i, item in enumerate(items) if i not in train]


def _items() -> list[Item]:
    """The records of all modalities as items of the published form, sorted by question_id."""
    found: dict[str, Record] = {}
    for slug in MODALITIES:
        for record in read_kept(layout.records(slug), f"run `dvc repro resize@{slug}`"):
            if record.question_id in found:
                raise InputError(
                    f"question_id {record.question_id!r} stands twice: in {found[record.question_id].place} and in {record.place}; "
                    "make the ids of the corpus unique and run `dvc repro`"
                )
            found[record.question_id] = record
    return [_item(found[question_id]) for question_id in sorted(found)]


def _item(record: Record) -> Item:
    return {
        "image": record.fields["image"],
        "problem": format_problem(record.question, record.options),
        "solution": format_solution(record.gold),
        "question_id": record.question_id,
        "dataset": record.dataset,
        "modality": record.modality,
        "question_type": record.question_type,
    }


if __name__ == "__main__":
    run_stage(main)
