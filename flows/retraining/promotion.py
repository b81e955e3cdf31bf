"""Compare challengers with the champion, let the gate judge, write the decision, promote."""

from __future__ import annotations

from flows.registry import champion as champions
from flows.registry import store
from flows.registry.champion import Champion
from flows.registry.manifest import (
    Manifest,
    build_manifest,
    counts,
    diff,
    drift,
    seen_by_one_policy,
)
from flows.retraining.champion_evaluation import evaluate_champion
from flows.retraining.context import Retraining, RetrainOutcome
from flows.retraining.decision import Decision, make_decision, write_decision
from flows.retraining.gate import PairedPredictions, judge
from flows.source import probe as source
from stages.core import layout
from stages.core.params import Params
from stages.reporting.sources import read_predictions


def promote_first(run: Retraining, params: Params, new: Manifest | None = None) -> Decision:
    """Promote the current results as the first champion.

    `new`: manifest of the corpus, built if None.
    """
    corpus = source.read_pin(run.root)
    champion = champions.promote(run.root, "the first: nothing to compare with")
    decision = make_decision(
        "first",
        [champion.why],
        corpus,
        run.identity,
        params.retrain,
        champion=None,
        successor=champion.version,
        sizes=counts(new or build_manifest(run.root, params.taxonomy)),
        stages=run.stages_by_state(),
    )
    write_decision(run.root, decision)
    run.report(f"champion {champion.version}: {champion.why}")
    return decision


def decide(
    run: Retraining,
    params: Params,
    champion: Champion | None,
    old: Manifest | None,
    new: Manifest,
) -> RetrainOutcome:
    """Compare, judge, write the decision, move the champion.

    `old`, `new`: manifests of the champion's corpus and of the challengers'.
    """
    if champion is None or old is None:
        decision = promote_first(run, params, new)
        return RetrainOutcome(
            "FirstChampion",
            f"the results are champion {decision['successor']}, the first",
            decision,
        )
    compared = _compared_weights(run, params, champion)
    verdict = judge(
        _contests(run, params, champion, old, new, compared),
        params.retrain,
        params.report.bootstrap_samples,
        params.report.bootstrap_seed,
        [name for name in champion.checkpoints if name not in compared],
    )
    reasons = "; ".join(verdict.reasons)
    successor = champions.promote(run.root, reasons).version if verdict.promote else None
    decision = make_decision(
        "promoted" if successor else "kept",
        list(verdict.reasons),
        source.read_pin(run.root),
        run.identity,
        params.retrain,
        champion=champion.version,
        successor=successor,
        sizes=counts(new),
        changes=diff(old, new),
        drift=drift(old, new),
        stages=run.stages_by_state(),
        checkpoints=compared,
        verdict=verdict,
        stale_before=run.stale_before,
        unused=run.unused.unused if run.unused else None,
    )
    path = write_decision(run.root, decision).relative_to(run.root)
    if successor:
        return RetrainOutcome(
            "Promoted",
            f"champion {successor} replaces {champion.version}: {reasons} ({path})",
            decision,
        )
    return RetrainOutcome(
        "Kept", f"champion {champion.version} stays: {reasons} ({path})", decision
    )


def _compared_weights(run: Retraining, params: Params, champion: Champion) -> dict[str, str]:
    """Checkpoint -> "new checkpoint", "new weights" or "as before"; without those left out."""
    outputs = store.outputs(run.root)
    compared = {}
    for name in params.checkpoints:
        if (run.root / layout.left_out(name)).is_file():
            continue
        if name not in champion.checkpoints:
            compared[name] = "new checkpoint"
        elif outputs[str(layout.model(name))] == champion.checkpoints[name].model:
            compared[name] = "as before"
        else:
            compared[name] = "new weights"
    return compared


def _contests(
    run: Retraining,
    params: Params,
    champion: Champion,
    old: Manifest,
    new: Manifest,
    compared: dict[str, str],
) -> dict[str, PairedPredictions]:
    """Checkpoint with new weights -> its and the champion's predictions on its test questions."""
    names = [name for name, state in compared.items() if state == "new weights"]
    contests = {}
    for name, rows in evaluate_champion(run, champion, names).items():
        checkpoint = params.checkpoints[name]
        challenger, _ = read_predictions(run.root / layout.predictions(name), f"evaluate@{name}")
        excluded = seen_by_one_policy(old, new, checkpoint.axis, checkpoint.split)
        contests[name] = PairedPredictions(
            checkpoint.axis,
            checkpoint.split,
            rows,
            challenger,
            frozenset(excluded),
            params.joint_cells(checkpoint.split),
        )
    return contests
