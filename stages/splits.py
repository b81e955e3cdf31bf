"""Stage `splits`: train and test questions per modality and question type, in published form.

    python -m stages.splits

splits.kind selects the kind of split for training and testing; the two that are drawn are always
written, to compare their leaks.

grouped: all questions about an image, its copies and, if it is known, its patient stay together,
with the same draw on both axes: no checkpoint is trained on anything about a question that any
checkpoint is tested on.

random: over questions, independently on the two axes, as Med-R1 drew its splits (arXiv 2503.13939).
Each (axis, slug) has its own generator.

In both, new data of one modality does not change the splits of other modalities. With splits.folds,
grouped is a cross-validation: every question is tested once, by a checkpoint of its fold.

released: split files of others (splits.released), joined to the corpus by image path and question.
What does not join is in data/released.json, even if it stops the stage; a file that cannot be read
stops it before.

This stage is the first to see all modalities and precedes training, so it begins with the data
tests (data_tests in params.yaml). Their results are in data/data-tests.json, even if they stop the
stage.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.cli import run_stage, stage_parser
from stages.core.outputs import atomic_directory, write_json
from stages.core.params import Splits, load_params
from stages.core.provenance import collect_provenance
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
from stages.corpus.splitting.drawing import cross_validated, draw_folds, draw_splits
from stages.corpus.splitting.draws import Draw, splits_of, with_joint
from stages.corpus.splitting.leaks import (
    PATIENTS,
    KnownPatients,
    Leaks,
    all_patients,
    as_json,
    count_leaks,
    count_patients,
    total,
)
from stages.corpus.splitting.matrix import (
    LeftOutSplits,
    check_matrix,
    find_left_out,
    of_folds,
    without,
)
from stages.corpus.splitting.matrix import describe as describe_left_out
from stages.corpus.splitting.released import read_released
from stages.corpus.splitting.released_join import (
    NONE_RELEASED,
    check_joined,
    in_train_and_test,
    join,
    joined_as_json,
)
from stages.taxonomy import Taxonomy

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""

_SHARE_TOLERANCE = 0.01
"""Deviation from train_share beyond which a grouped split is marked in the printed table."""


def main() -> None:
    """Write data/data-tests.json, then data/splits: split files, groups, leaks and provenance."""
    stage_parser("splits", __doc__).parse_args()
    params = load_params()
    settings = params.splits
    provenance = collect_provenance(
        {
            "splits": settings,
            "matrix": params.matrix,
            "data_tests": params.data_tests,
            "resize.size": str(params.resize.size),
        }
    )
    reading = _read(params.taxonomy)
    paths = {slug: layout.records(slug).as_posix() for slug in params.modalities}
    results = Results(tuple(judge_records(reading, paths)), {})
    _report_tests(results, provenance)
    records = sorted(reading.records, key=lambda record: record.question_id)
    axes = params.taxonomy.axes
    images, group_of, draws = draw_splits(records, settings, axes)
    if settings.kind == "released":
        draws["released"] = _join_released(records, settings, params.taxonomy)
    else:
        write_json(layout.RELEASED, NONE_RELEASED)
    folds: dict[str, Sequence[Draw]] = {kind: [draw] for kind, draw in draws.items()}
    if settings.folds:
        folds["grouped"] = draw_folds(records, group_of, settings, axes)
    patients = count_patients(images)
    left_out = {kind: find_left_out(each, group_of, params.matrix) for kind, each in folds.items()}
    folds = {kind: [without(draw, left_out[kind]) for draw in each] for kind, each in folds.items()}
    own_folds = folds[settings.kind]
    corpus_results = judge_corpus(records, own_folds, params.resize.size, dict(params.data_tests))
    all_tests = (*results.tests, *corpus_results.tests)
    _report_tests(Results(all_tests, corpus_results.statistics), provenance)
    check_matrix(own_folds[0], left_out[settings.kind], settings.kind, params.matrix)
    leaks = {kind: count_leaks(each, group_of) for kind, each in folds.items()}
    unions = {name: (each.axis, params.cells_of(name)) for name, each in settings.joint.items()}
    with atomic_directory(layout.SPLITS) as folder:
        for kind, each in folds.items():
            joined = [with_joint(draw, unions) for draw in each]
            _write_draw(folder, kind, joined[0] if len(joined) == 1 else cross_validated(joined))
        write_json(folder / "groups.json", _groups_of_several(group_of))
        write_json(
            folder / layout.LEAKS.relative_to(layout.SPLITS),
            {kind: as_json(counts) for kind, counts in leaks.items()}
            | {PATIENTS: {name: asdict(each) for name, each in patients.items()}},
        )
        write_json(
            folder / layout.LEFT_OUT.relative_to(layout.SPLITS),
            {
                kind: _as_json(
                    slugs if len(folds[kind]) == 1 else of_folds(slugs, len(folds[kind]))
                )
                for kind, slugs in left_out.items()
            },
        )
        # A split file is a bare list, so provenance is a file of its own; it is outside the folders
        # of the kinds, on which later stages depend, so that a new commit alone makes none stale.
        write_json(folder / "provenance.json", collect_provenance({"splits": settings}))
    _print(folds, leaks, group_of, settings)
    _print_patients(patients)
    for text in describe_left_out(left_out[settings.kind]):
        print(f"splits: left out, as matrix in params.yaml asks for more data: {text}")
    count = len(records)
    print(f"splits: read {count} records, kept {count}, quarantined 0 -> {layout.SPLITS}")


def _read(taxonomy: Taxonomy) -> Reading:
    """The records of all modalities; records that are no longer valid become rows."""
    paths = [layout.records(slug) for slug in taxonomy.modalities]
    return read_record_lines(paths, "run `dvc repro resize`", taxonomy)


def _join_released(records: Sequence[Record], settings: Splits, taxonomy: Taxonomy) -> Draw:
    """The released splits; what does not join is printed and written, and refused if too much."""
    folder = settings.released.folder
    released = read_released(Path(folder), taxonomy)
    joined = join(released, records)
    draw = joined.draw(taxonomy.axes)
    write_json(layout.RELEASED, joined_as_json(released, joined, folder, draw))
    for each in joined.files:
        print(
            f"splits: {folder}/{each.file.path}: {len(each.items)} of {len(each.file.questions)}"
            f" questions joined, {each.file.part} of {each.file.axis}/{each.file.slug}"
        )
        if each.not_joined:
            others = f" and {len(each.not_joined) - 1} more" if each.not_joined[1:] else ""
            print(f"warning: does not join: {each.not_joined[0]}{others}: {layout.RELEASED}")
    for unused in released.unused:
        print(
            f"warning: {folder}/{unused.path}: its {unused.questions} questions are not used:"
            f" {unused.why}"
        )
    for axis, slugs in in_train_and_test(draw).items():
        for slug, ids in slugs.items():
            print(
                f"warning: {axis}/{slug}: {len(ids)} questions are in both train and test, as"
                f" released, such as {ids[0]}"
            )
    if joined.records_unused:
        print(
            f"warning: {joined.records_unused} of {len(records)} questions of the corpus are in no"
            f" file of {folder}, and are not used"
        )
    if joined.other_types:
        print(
            f"warning: {joined.other_types} questions have another type in the corpus than in"
            f" {folder}, whose type is used"
        )
    check_joined(joined, settings.released.max_lost, layout.RELEASED)
    return draw


def _report_tests(results: Results, provenance: dict[str, Any]) -> None:
    """Write the results of the data tests, stop on errors and print warnings."""
    write_results(layout.DATA_TESTS, results, provenance)
    stop_on_errors(results, layout.DATA_TESTS)
    for each in results.tests:
        if each.outcome == "failed":
            print(f"warning: data test {describe(each)}: {TESTS[each.test].meaning}")


def _write_draw(folder: Path, kind: str, draw: Draw) -> None:
    for axis, slug, train, test in splits_of(draw):
        for part, items in (("train", train), ("test", test)):
            path = layout.split(axis, slug, part, kind).relative_to(layout.SPLITS)
            write_json(folder / path, items)


def _as_json(left_out: LeftOutSplits) -> dict[str, dict[str, dict[str, int]]]:
    return {
        axis: {slug: asdict(each) for slug, each in slugs.items()}
        for axis, slugs in left_out.items()
    }


def _groups_of_several(group_of: Mapping[str, str]) -> list[list[str]]:
    """Groups of at least two images, as lists of paths."""
    groups: dict[str, list[str]] = defaultdict(list)
    for image, group in sorted(group_of.items()):
        groups[group].append(image)
    return [images for images in groups.values() if len(images) > 1]


def _print(
    folds: Mapping[str, Sequence[Draw]],
    leaks: Mapping[str, Leaks],
    group_of: Mapping[str, str],
    settings: Splits,
) -> None:
    """Print sizes and leaks of all splits, and which train shares grouping could not meet.

    Of a cross-validation, train is the mean over folds and test all that is tested.
    """
    print(
        f"{'kind':9} {'axis':9} {'slug':28} {'train':>7} {'test':>7} {'train %':>8}"
        f" {'image in train':>15} {'group in train':>15}"
    )
    for kind, draws in folds.items():
        wanted = settings.train_share if len(draws) == 1 else 1 - 1 / len(draws)
        for axis, slugs in draws[0].items():
            for slug in slugs:
                leak = leaks[kind][axis][slug]
                train = sum(len(draw[axis][slug][0]) for draw in draws)
                test = sum(len(draw[axis][slug][1]) for draw in draws)
                share = train / max(train + test, 1)
                note = ""
                off = abs(train - wanted * (train + test))
                # less than a question is no matter of groups
                off_too_far = off > _SHARE_TOLERANCE * (train + test) and round(off, 6) >= 1
                if kind == "grouped" and off_too_far:
                    note = " groups too large for the share"
                print(
                    f"{kind:9} {axis:9} {slug:28} {round(train / len(draws)):7} {test:7}"
                    f" {100 * share:8.1f} {leak.image:15} {leak.group:15}{note}"
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
        f" images, starting with {largest}"
    )
    how = f", cross-validated in {settings.folds} folds" if settings.folds else ""
    print(f"splits: training and tests use {settings.kind}{how}")


def _print_patients(patients: Mapping[str, KnownPatients]) -> None:
    """Print for how many images the patient is known, and warn where it is for none."""
    every = all_patients(patients)
    print(f"splits: the patient is known for {every.known} of {every.images} images")
    unknown = [name for name, each in patients.items() if not each.known]
    if unknown:
        which = "any data set" if len(unknown) == len(patients) else ", ".join(unknown)
        print(
            f"warning: no patient is known for {which}: images of one may be in both train and"
            " test. Add a column `patient`, or a pattern to splits.patient_patterns"
            " (docs/own-data.md)"
        )


if __name__ == "__main__":
    run_stage(main)
