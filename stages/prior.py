"""Stage `prior`: the blind baseline of every test split, before any model is trained.

    python -m stages.prior

Computes the blind prior of each split, and that of all splits of its axis together, for the kind of
split in use (stages/scoring/prior.py). The files hold per-question credits, so that the report can
compare accuracies with the baseline question by question.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Final

from stages.core import layout
from stages.core.cli import run_stage, stage_parser
from stages.core.outputs import atomic_directory, write_json
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.dataset.split_files import read_split
from stages.scoring.blind_baseline import (
    RULES,
    BlindBaseline,
    as_json,
    find_blind_baseline,
    pool_folds,
)
from stages.scoring.prior import fit_prior, pool
from stages.scoring.questions import Question, as_questions
from stages.taxonomy import AXIS_NAMES, parse_fold

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""


def main() -> None:
    """Write data/prior/<axis>/<slug>.json for every split of the kind in use, all or nothing."""
    stage_parser("prior", __doc__).parse_args()
    settings = load_params().splits
    kind = settings.kind
    blind_baselines = list(
        chain.from_iterable(axis_blind_baselines(axis, kind, settings.joint) for axis in AXIS_NAMES)
    )
    provenance = collect_provenance({"splits.kind": kind})
    with atomic_directory(layout.PRIOR) as folder:
        for blind_baseline in blind_baselines:
            path = layout.prior(blind_baseline.axis, blind_baseline.split)
            content = as_json(blind_baseline) | {"provenance": provenance}
            write_json(folder / path.relative_to(layout.PRIOR), content)
    for blind_baseline in blind_baselines:
        as_written, normalised = (blind_baseline.rules[name] for name in RULES)
        print(
            f"prior: {blind_baseline.axis}/{blind_baseline.split}: {as_written.accuracy:.1%} of"
            f" {blind_baseline.n} without the image ({as_written.low:.1%} to {as_written.high:.1%};"
            f" normalised {normalised.accuracy:.1%}; chance {blind_baseline.chance:.1%}), balanced"
            f" subset of {len(as_written.balanced)}"
        )
    print(f"prior: {len(blind_baselines)} splits, {kind} -> {layout.PRIOR}")


def axis_blind_baselines(axis: str, kind: str, joint: Collection[str] = ()) -> list[BlindBaseline]:
    """Blind baselines of an axis; InputError names a missing, empty or malformed split.

    `joint`: names of splits that are unions of others, whose questions count once when pooled. Of a
    cross-validation, those of the folds are pooled: every question by the rule of its fold.
    """
    slugs = layout.split_slugs(axis, kind)
    folds = {slug: fold for slug in slugs if (fold := parse_fold(slug))}
    if not folds:
        return _blind_baselines(axis, kind, slugs, joint)
    of_split: dict[str, list[BlindBaseline]] = {}
    for number in sorted({number for _, number in folds.values()}):
        own = [slug for slug in slugs if slug in folds and folds[slug][1] == number]
        unions = [slug for slug in own if folds[slug][0] in joint]
        for each in _blind_baselines(axis, kind, own, unions):
            of_split.setdefault(folds[each.split][0], []).append(each)
    return [pool_folds(each, split) for split, each in of_split.items()]


def _blind_baselines(
    axis: str, kind: str, slugs: Sequence[str], joint: Collection[str]
) -> list[BlindBaseline]:
    """The same of some splits, among whose train parts priors are pooled."""
    train: dict[str, list[Question]] = {}
    test: dict[str, list[Question]] = {}
    for slug in slugs:
        paths = [layout.split(axis, slug, part, kind) for part in ("train", "test")]
        items = [read_split(path) for path in paths]
        if not any(items):  # left out for lack of data
            continue
        train[slug], test[slug] = (
            as_questions(each, str(path)) for each, path in zip(items, paths, strict=True)
        )
    own = {
        slug: {name: fit_prior(questions, exact=(name == "as_written")) for name in RULES}
        for slug, questions in train.items()
    }
    parts_only = [priors for slug, priors in own.items() if slug not in joint]
    pooled = {name: pool([priors[name] for priors in parts_only]) for name in RULES}
    return [
        find_blind_baseline(axis, slug, kind, train[slug], test[slug], own[slug], pooled)
        for slug in train
    ]


if __name__ == "__main__":
    run_stage(main)
