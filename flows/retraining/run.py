"""One retraining, from probing the source to a decision; independent of Prefect.

1. Probe the source. Without new data nothing runs (`trigger`).
2. Fetch, unpack and validate new data. On refusal or failure, the workspace is rolled back
   (`intake`).
3. Re-run stale stages. If one fails the new data stays pinned, and the next run resumes.
4. Champions answer the challengers' test questions, the gate decides, and the decision is written
   (`promotion`).
"""

from __future__ import annotations

from flows.dvc_api.client import read_status
from flows.registry import champion as champions
from flows.registry import snapshot
from flows.registry.champion import Champion
from flows.registry.manifest import build_manifest
from flows.retraining.context import Retraining, RetrainOutcome
from flows.retraining.initial_checkpoints import start_affected_trainings
from flows.retraining.intake import validate_new_data
from flows.retraining.promotion import decide, promote_first
from flows.retraining.trigger import early_outcome
from flows.source import probe as source
from stages.core import layout
from stages.core.errors import InputError
from stages.core.params import Params, load_params


def run_retraining(run: Retraining) -> RetrainOutcome:
    """Run a retraining to its outcome.

    RefusedDropError for data that must not be trained on; otherwise InputError and the errors of
    `run.reproduce`.
    """
    if not run.options.dry_run:
        _roll_back_interrupted(run)
    params = load_params(run.root / layout.PARAMS)
    champions.check_no_folds(params)
    champion = champions.current(run.root)
    first = None
    if champion is None and not run.options.dry_run and not read_status(run.root):
        first = promote_first(run, params)
        champion = champions.current(run.root)
    state = source.probe(run.root)
    if outcome := early_outcome(run, state, champion, first):
        return outcome
    if state.changed:
        state = source.debounce(
            lambda: source.probe(run.root), state, params.retrain.debounce_seconds, run.report
        )
    run.identity = state.identity
    return _retrain(run, state, params, champion)


def _retrain(
    run: Retraining, state: source.Probe, params: Params, champion: Champion | None
) -> RetrainOutcome:
    """Fetch, validate, reproduce, decide."""
    old = champions.manifest_of(run.root, champion) if champion else None
    run.stale_before = sorted(read_status(run.root))
    _report_other_changes(run, params, champion)
    validate_new_data(run, state.changed, params, champion, old)
    if run.options.start_from:
        start_affected_trainings(run, params, champion, run.options.start_from)
    run.bring_up_to_date()
    new = build_manifest(run.root, params.taxonomy, params.splits.kind)
    # read again: start_affected_trainings may have edited it
    outcome = decide(run, load_params(run.root / layout.PARAMS), champion, old, new)
    _report_later_data(run, state)
    return outcome


def _roll_back_interrupted(run: Retraining) -> None:
    """Undo what a killed run fetched and did not validate."""
    if snapshot.exists(run.root):
        message = snapshot.rollback(run.root)
        run.report(
            "an interrupted run had not validated its new data: data.dvc was rolled back"
            f"{f'; {message}' if message else ''}"
        )


def _report_other_changes(run: Retraining, params: Params, champion: Champion | None) -> None:
    """Report what differs from the champion's run apart from the data."""
    if run.stale_before:
        run.report(f"stale before the new data and re-run with it: {', '.join(run.stale_before)}")
    settings = (params.splits.kind, params.prompt.style)
    if champion and (champion.split_kind, champion.style) != settings:
        run.report(
            f"champion {champion.version} was trained with {champion.split_kind} splits and"
            f" {champion.style} prompts, challengers with {params.splits.kind} and"
            f" {params.prompt.style}: champions are evaluated with the challengers' settings"
        )


def _report_later_data(run: Retraining, state: source.Probe) -> None:
    """Report if the source has changed since it was fetched."""
    try:
        if source.probe(run.root).changed:
            run.report(f"{state.source} has changed again: re-run to retrain on it")
    except InputError as error:
        run.report(f"{error} (the decision stands)")
