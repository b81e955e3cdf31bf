"""Stage `report`: page, figures, tables, model cards and metrics.json from predictions.

    python -m stages.report

`med-r1 report` prints the table, or rebuilds the report from a folder of predictions.
"""

from __future__ import annotations

from typing import Final

import pandas as pd

from stages.core import layout
from stages.core.cli import run_stage, stage_parser
from stages.core.errors import InputError, recreate
from stages.core.outputs import read_json
from stages.core.params import Splits, load_params
from stages.core.services.tracking import check_tracking, tracked
from stages.corpus.dataset.split_files import read_split
from stages.corpus.quarantine.ledger import read_quarantine
from stages.corpus.quarantine.locations import locate_in_corpus
from stages.corpus.splitting.data_tests import read_results
from stages.corpus.splitting.leaks import read_leaks, read_patients
from stages.reporting.build import read_inputs, write_report
from stages.reporting.evidence import SplitSize, count_split, pool_sizes, splits_used
from stages.reporting.released import summarise_released
from stages.reporting.sources import mean_log, read_training_log
from stages.scoring.blind_baseline import read_blind_baseline
from stages.scoring.tables import Score, in_domain, score
from stages.scoring.variants import variants_in
from stages.taxonomy import Axes, fold_slugs

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""


def main() -> None:
    """Build the report; there are no arguments."""
    stage_parser("report", __doc__).parse_args()
    make()


def make() -> None:
    """Read and check all inputs, then write report/; nothing is written if one is refused."""
    params = load_params()
    paths = {name: layout.predictions(name) for name in ["base", *params.checkpoints]}
    check_tracking(params.tracking)
    inputs = read_inputs(params, paths, params.splits.kind)
    for name in inputs.origins:
        first = inputs.targets[name].folds[:1] if name in inputs.targets else ()
        checkpoint = first[0] if first else name
        stage = "base" if name == "base" else f"train@{checkpoint}"
        inputs.weights[name] = read_json(layout.training_provenance(checkpoint), recreate(stage))
    inputs.style = params.prompt.style
    axes = params.taxonomy.axes
    inputs.splits, inputs.problems = _splits(inputs.predictions["base"], params.splits, axes)
    for split in inputs.splits:
        if split.train:  # otherwise it is left out for lack of data
            path = layout.prior(split.axis, split.slug)
            inputs.blind_baselines[split.axis, split.slug] = read_blind_baseline(path)
    for target in inputs.targets.values():
        if target.joint:
            path = layout.prior(target.axis, target.cell)
            inputs.blind_baselines[target.axis, target.cell] = read_blind_baseline(path)
    for name, target in inputs.targets.items():
        if target.method == "grpo":  # only GRPO logs rewards, KL and groups
            logs = [
                read_training_log(layout.training_log(each), f"train@{each}")
                for each in target.folds or (name,)
            ]
            inputs.logs[name] = mean_log(logs)
    leaks, patients = read_leaks(layout.LEAKS), read_patients(layout.LEAKS)
    inputs.leaks = splits_used(params.splits.kind, inputs.splits, leaks, patients)
    inputs.leaks |= {"folds": params.splits.folds}
    if params.splits.kind == "released":
        content = read_json(layout.RELEASED, recreate("splits"))
        inputs.leaks |= {"released": summarise_released(content)}
    accounts = ["download.parquet", *(f"resize/{slug}.parquet" for slug in params.modalities)]
    inputs.quarantine = [
        locate_in_corpus(read_quarantine(layout.QUARANTINE / name), layout.LOCATIONS)
        for name in accounts
    ]
    inputs.data_tests = read_results(layout.DATA_TESTS)
    write_report(inputs, layout.REPORT)
    for name, rows in inputs.predictions.items():
        with tracked(params, "report", name, inputs.origins[name], identity="") as run:
            run.summarise(_accuracies(rows, axes))


def _accuracies(predictions: pd.DataFrame, axes: Axes) -> dict[str, float]:
    """Accuracy by "test/<axis>/<split>", and "test/<axis>/<split>/<variant>" for variants."""
    scores = {}
    for axis, slugs in axes.items():
        for slug in slugs:
            own = in_domain(predictions, axis, [slug])
            scores[f"test/{axis}/{slug}"] = score(own)
            for variant in variants_in(own.columns):
                correct = own[f"{variant}_correct"].dropna()
                scores[f"test/{axis}/{slug}/{variant}"] = Score(int(correct.sum()), len(correct))
    accuracies = {name: each.accuracy for name, each in scores.items()}
    return {name: accuracy for name, accuracy in accuracies.items() if accuracy is not None}


def _splits(
    base: pd.DataFrame, settings: Splits, axes: Axes
) -> tuple[list[SplitSize], dict[str, str]]:
    """Sizes of the splits, and test question texts by id.

    Raises InputError if the base's predictions are of other questions.
    """
    kind, folds = settings.kind, settings.folds
    splits: list[SplitSize] = []
    problems: dict[str, str] = {}
    for axis, slugs in axes.items():
        known: set[str] = set()
        for slug in slugs:
            sizes = []
            names = fold_slugs(slug, folds) if folds else [slug]
            for name in names:
                train, test = (
                    read_split(layout.split(axis, name, part, kind)) for part in ("train", "test")
                )
                sizes.append(count_split(axis, slug, train, test))
                problems |= {question["question_id"]: question["problem"] for question in test}
                known |= {question["question_id"] for question in test}
            splits.append(pool_sizes(sizes))
        if differing := sorted(known ^ set(base.loc[base[f"{axis}_test"], "question_id"])):
            raise InputError(
                f"{layout.predictions('base')}: question {differing[0]!r}, one of {len(differing)},"
                f" is only in the predictions or only in {layout.SPLITS / kind / axis}: the splits"
                " have changed since; run `dvc repro evaluate@base`"
            )
    return splits, problems


if __name__ == "__main__":
    run_stage(main)
