"""What triggers a retraining: new data, an undecided corpus, no champion yet, or force."""

from __future__ import annotations

from pathlib import Path

from flows.planning.plan import make_plan
from flows.planning.table import sum_up
from flows.registry.champion import Champion
from flows.retraining.context import Retraining, RetrainOutcome
from flows.retraining.decision import Decision, read_decisions
from flows.source import probe as source
from stages.core import layout


def early_outcome(
    run: Retraining, state: source.Probe, champion: Champion | None, first: Decision | None
) -> RetrainOutcome | None:
    """The outcome if there is nothing to retrain for, or on a dry run; None to continue.

    `first`: the decision, if this run has made the existing results the first champion.
    """
    pin = source.read_pin(run.root)
    if state.changed:
        identity = state.identity or "unknown until it is fetched"
        news = f"{state.source} has changed: {identity}, pinned is md5:{pin.md5}"
    elif champion is None:
        news = "there is no champion yet"
    elif _is_undecided(run.root, pin, champion):
        news = f"the corpus md5:{pin.md5} is pinned but undecided: an earlier run did not finish"
    elif run.options.force:
        news = "there is no new data, but --force was given"
    elif first:
        return RetrainOutcome(
            "FirstChampion",
            f"the existing results are champion {first['successor']}; {state.source} has no new"
            " data",
            first,
        )
    else:
        return RetrainOutcome(
            "NothingNew",
            f"{state.source} is unchanged (md5:{pin.md5}); champion {champion.version} stays",
        )
    run.report(news)
    refusal = _earlier_refusal(run.root, state)
    if refusal and not run.options.force:
        why = "; ".join(refusal["reasons"])
        return RetrainOutcome(
            "RefusedBefore",
            f"{news}. It was refused before ({why}); use --force to try it again",
            refusal,
        )
    if run.options.dry_run:
        return RetrainOutcome("DryRun", f"{news}. A run would {_plan(run.root, state.changed)}")
    return None


def _plan(root: Path, fetch: bool) -> str:
    """What a run would do, for how long, as far as it is known without fetching."""
    if fetch:
        plan = make_plan(root, changed=[str(layout.DATA_DVC)])
        return (
            "fetch and validate it, which shows its new images, and re-run the stages that they"
            f" affect. At most, {sum_up(plan)}. Then it would decide"
        )
    plan = make_plan(root)
    if not plan.steps:
        return "re-run nothing, as all stages are up to date, and decide"
    return f"re-run what is stale: {sum_up(plan)}. Then it would decide"


def _earlier_refusal(root: Path, state: source.Probe) -> Decision | None:
    """The latest decision on this state of the source, if it was a refusal.

    None if the state's identity is unknown: such a corpus is fetched again.
    """
    decisions = [
        decision
        for decision in read_decisions(root)
        if state.identity and decision["corpus"].get("identity") == state.identity
    ]
    if decisions and decisions[-1]["outcome"] == "refused":
        return decisions[-1]
    return None


def _is_undecided(root: Path, pin: source.PinnedCorpus, champion: Champion) -> bool:
    """Was the pinned corpus fetched by a run that did not reach a decision."""
    return pin.md5 != champion.corpus.md5 and all(
        decision["corpus"]["md5"] != pin.md5 for decision in read_decisions(root)
    )
