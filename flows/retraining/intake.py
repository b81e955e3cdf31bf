"""Intake of new data: fetch, unpack, validate; roll the workspace back if it is refused."""

from __future__ import annotations

from flows.dvc_api.client import read_status
from flows.registry import snapshot
from flows.registry.champion import Champion
from flows.registry.manifest import (
    Manifest,
    build_manifest,
    changed_modalities,
    counts,
    diff,
    drift,
)
from flows.retraining.context import Retraining
from flows.retraining.decision import make_decision, write_decision
from flows.retraining.validate import (
    RefusedDropError,
    check_archive,
    drift_warnings,
    is_refusal,
    problems,
    refused_for,
    small_tests,
    unused_questions,
)
from flows.source import probe as source
from stages.core.params import Params


def validate_new_data(
    run: Retraining, fetch: bool, params: Params, champion: Champion | None, old: Manifest | None
) -> None:
    """Validate the corpus, fetched first with `fetch`; on refusal or failure, roll back.

    `old`: manifest of the champion's corpus. RefusedDropError, with the refusal written as a
    decision, if the corpus must not be trained on.
    """
    if fetch:
        snapshot.save(run.root)
    try:
        if fetch:
            source.update(run.root)
        new = _check_corpus(run, params, champion, old)
    except BaseException as error:
        if fetch:
            _roll_back(run, error)
        raise
    if fetch:
        snapshot.commit(run.root)
    changed = []
    if old:
        changed = changed_modalities(diff(old, new))
        for line in drift_warnings(new, old, params.retrain):
            run.report(line)
    run.report(f"the corpus is valid{'; it changed in ' if changed else ''}{', '.join(changed)}")


def _roll_back(run: Retraining, error: BaseException) -> None:
    """Restore the workspace; the findings of a refused corpus are kept beside it."""
    if isinstance(error, RefusedDropError):
        try:
            error.findings = snapshot.keep_findings(run.root)
        except OSError as failure:  # a full disk, say: the rollback matters more
            run.report(f"the findings of the refused corpus are not kept: {failure}")
    if message := snapshot.rollback(run.root):
        run.report(message)


def _check_corpus(
    run: Retraining, params: Params, champion: Champion | None, old: Manifest | None
) -> Manifest:
    """Check the pinned corpus against its limits and the champion's; its manifest."""
    corpus = source.read_pin(run.root)
    new = None
    try:
        check_archive(run.root, corpus.path, params.corpus.limits)
        _unpack(run)
        new = build_manifest(run.root, params.taxonomy)
        reasons = problems(new, old, params.retrain)
        run.unused = unused_questions(run.root, params, new, old)
        reasons += refused_for(run.unused, params.retrain)
        if champion:  # a first champion is promoted whatever its tests
            reasons += small_tests(run.root, params, read_status(run.root))
        if reasons:
            raise RefusedDropError("; ".join(reasons))
    except RefusedDropError as error:
        decision = make_decision(
            "refused",
            [str(error)],
            corpus,
            run.identity,
            params.retrain,
            champion=champion.version if champion else None,
            sizes=counts(new) if new else None,
            changes=diff(old, new) if old and new else None,
            drift=drift(old, new) if old and new else None,
            stages=run.stages_by_state(),
            unused=run.unused.unused if run.unused else None,
        )
        write_decision(run.root, decision)
        raise
    if run.unused:
        run.report(f"warning: {run.unused}")
    return new


def _unpack(run: Retraining) -> None:
    """Run the stages that read, check and test the corpus; RefusedDropError if one refuses."""
    try:
        run.bring_up_to_date(list(snapshot.VALIDATION_STAGES))
    except Exception as error:
        if is_refusal(error):
            raise RefusedDropError(str(error)) from error
        raise
