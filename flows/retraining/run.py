"""One retraining, from probing the source to a decision; independent of Prefect.

1. Probe the source. Without new data nothing runs.
2. Fetch, unpack and validate new data. On refusal or failure, the workspace is rolled back.
3. Re-run stale stages. If one fails the new data stays pinned, and the next run resumes.
4. Champions answer the challengers' test questions, the gate decides, and the decision is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pandas as pd

from flows.dvc_api.client import read_status
from flows.dvc_api.graph import read_graph
from flows.dvc_api.preloading import preloaded_libraries
from flows.planning.plan import make_plan
from flows.planning.table import sum_up
from flows.registry import champion as champions
from flows.registry import snapshot, store
from flows.registry.champion import Champion
from flows.registry.manifest import (
    Manifest,
    build_manifest,
    changed_modalities,
    counts,
    diff,
    drift,
    seen_by_one_policy,
)
from flows.retraining.champion_evaluation import ChampionEvaluation
from flows.retraining.decision import Decision, make_decision, read_decisions, write_decision
from flows.retraining.gate import PairedPredictions, Verdict, judge
from flows.retraining.initial_checkpoints import CHAMPIONS, set_initial_checkpoints
from flows.retraining.validate import (
    RefusedDropError,
    UnusedQuestions,
    check_archive,
    drift_warnings,
    is_refusal,
    problems,
    refused_for,
    small_tests,
    unused_questions,
)
from flows.scheduling.slots import Slots
from flows.source import probe as source
from stages.core import layout
from stages.core.errors import InputError
from stages.core.params import Params, load_params
from stages.reporting.sources import read_predictions

Start = Literal["base", "champion"]


class Result(Protocol):
    """Result of a stage."""

    @property
    def name(self) -> str:
        """Name of the stage."""

    @property
    def state(self) -> str:
        """Such as "ran", "unchanged", "cached"."""


Reproduce = Callable[[list[str] | None], Sequence[Result]]
"""Brings stages (None: all) and their dependencies up to date; raises if one fails."""


@dataclass(frozen=True)
class RetrainOptions:
    """Options of a retraining.

    `dry_run`: report only, change nothing; `force`: continue without new data or with data refused
    before; `start_from`: initial policy of affected trainings, None for the one in params.yaml.
    """

    dry_run: bool = False
    force: bool = False
    start_from: Start | None = None


@dataclass(frozen=True)
class RetrainOutcome:
    """Outcome of a retraining: `name` (NothingNew, DryRun, Promoted, ...) and a `message`."""

    name: str
    message: str
    decision: Decision | None = None


@dataclass
class Retraining:
    """A retraining of the workspace `root`; the caller holds its lock (`snapshot.champion_lock`).

    `slots`: GPU slots for evaluating champions; `report`: receives progress messages.
    """

    root: Path
    options: RetrainOptions
    reproduce: Reproduce
    slots: Slots
    report: Callable[[str], None]
    _states: dict[str, str] = field(default_factory=dict)
    _identity: str | None = None
    _unused: UnusedQuestions | None = None
    _stale_before: list[str] = field(default_factory=list)

    def run(self) -> RetrainOutcome:
        """Run the retraining to its outcome.

        RefusedDropError for data that must not be trained on; otherwise InputError and the errors
        of `reproduce`.
        """
        if snapshot.exists(self.root) and not self.options.dry_run:
            message = snapshot.rollback(self.root)
            self.report(
                "an interrupted run had not validated its new data: data.dvc was rolled back"
                f"{f'; {message}' if message else ''}"
            )
        params = load_params(self.root / layout.PARAMS)
        champions.check_no_folds(params)
        champion = champions.current(self.root)
        first = None
        if champion is None and not self.options.dry_run and not read_status(self.root):
            first = self._promote_first(params)
            champion = champions.current(self.root)
        state = source.probe(self.root)
        if outcome := self._early_outcome(state, champion, first):
            return outcome
        if state.changed:
            state = source.debounce(
                lambda: source.probe(self.root), state, params.retrain.debounce_seconds, self.report
            )
        self._identity = state.identity
        return self._retrain(state, params, champion)

    def _early_outcome(
        self, state: source.Probe, champion: Champion | None, first: Decision | None
    ) -> RetrainOutcome | None:
        """The outcome if there is nothing to retrain; None to continue."""
        pin = source.read_pin(self.root)
        if state.changed:
            identity = state.identity or "unknown until it is fetched"
            news = f"{state.source} has changed: {identity}, pinned is md5:{pin.md5}"
        elif champion is None:
            news = "there is no champion yet"
        elif self._is_undecided(pin, champion):
            news = (
                f"the corpus md5:{pin.md5} is pinned but undecided: an earlier run did not finish"
            )
        elif self.options.force:
            news = "there is no new data, but --force was given"
        elif first:
            return RetrainOutcome(
                "FirstChampion",
                f"the existing results are champion {first['successor']}; {state.source} has no"
                " new data",
                first,
            )
        else:
            return RetrainOutcome(
                "NothingNew",
                f"{state.source} is unchanged (md5:{pin.md5}); champion {champion.version} stays",
            )
        self.report(news)
        refusal = self._earlier_refusal(state)
        if refusal and not self.options.force:
            why = "; ".join(refusal["reasons"])
            return RetrainOutcome(
                "RefusedBefore",
                f"{news}. It was refused before ({why}); use --force to try it again",
                refusal,
            )
        if self.options.dry_run:
            return RetrainOutcome(
                "DryRun",
                f"{news}. A run would {self._plan(state.changed)}",
            )
        return None

    def _plan(self, fetch: bool) -> str:
        """What a run would do, for how long, as far as it is known without fetching."""
        if fetch:
            plan = make_plan(self.root, changed=[str(layout.DATA_DVC)])
            return (
                "fetch and validate it, which shows its new images, and re-run the stages that they"
                f" affect. At most, {sum_up(plan)}. Then it would decide"
            )
        plan = make_plan(self.root)
        if not plan.steps:
            return "re-run nothing, as all stages are up to date, and decide"
        return f"re-run what is stale: {sum_up(plan)}. Then it would decide"

    def _earlier_refusal(self, state: source.Probe) -> Decision | None:
        """The latest decision on this state of the source, if it was a refusal.

        None if the state's identity is unknown: such a corpus is fetched again.
        """
        decisions = [
            decision
            for decision in read_decisions(self.root)
            if state.identity and decision["corpus"].get("identity") == state.identity
        ]
        if decisions and decisions[-1]["outcome"] == "refused":
            return decisions[-1]
        return None

    def _is_undecided(self, pin: source.PinnedCorpus, champion: Champion) -> bool:
        """Was the pinned corpus fetched by a run that did not reach a decision."""
        return pin.md5 != champion.corpus.md5 and all(
            decision["corpus"]["md5"] != pin.md5 for decision in read_decisions(self.root)
        )

    def _retrain(
        self, state: source.Probe, params: Params, champion: Champion | None
    ) -> RetrainOutcome:
        """Fetch, validate, reproduce, decide."""
        old = champions.manifest_of(self.root, champion) if champion else None
        self._stale_before = sorted(read_status(self.root))
        if self._stale_before:
            self.report(
                f"stale before the new data and re-run with it: {', '.join(self._stale_before)}"
            )
        settings = (params.splits.kind, params.prompt.style)
        if champion and (champion.split_kind, champion.style) != settings:
            self.report(
                f"champion {champion.version} was trained with {champion.split_kind} splits and"
                f" {champion.style} prompts, challengers with {params.splits.kind} and"
                f" {params.prompt.style}: champions are evaluated with the challengers' settings"
            )
        self._validate(state.changed, params, champion, old)
        if self.options.start_from:
            self._set_starts(params, champion, self.options.start_from)
        self._reproduce(None)
        new = build_manifest(self.root, params.taxonomy, params.splits.kind)
        outcome = self._decide(load_params(self.root / layout.PARAMS), champion, old, new)
        try:
            if source.probe(self.root).changed:
                self.report(f"{state.source} has changed again: re-run to retrain on it")
        except InputError as error:
            self.report(f"{error} (the decision stands)")
        return outcome

    def _validate(
        self, fetch: bool, params: Params, champion: Champion | None, old: Manifest | None
    ) -> None:
        """Validate the corpus, fetched first with `fetch`; on refusal or failure, roll back."""
        if fetch:
            snapshot.save(self.root)
        try:
            if fetch:
                source.update(self.root)
            new = self._check_corpus(params, champion, old)
        except BaseException as error:
            if fetch and isinstance(error, RefusedDropError):
                try:
                    error.findings = snapshot.keep_findings(self.root)
                except OSError as failure:  # a full disk, say: the rollback matters more
                    self.report(f"the findings of the refused corpus are not kept: {failure}")
            if fetch and (message := snapshot.rollback(self.root)):
                self.report(message)
            raise
        if fetch:
            snapshot.commit(self.root)
        changed = []
        if old:
            changed = changed_modalities(diff(old, new))
            for line in drift_warnings(new, old, params.retrain):
                self.report(line)
        self.report(
            f"the corpus is valid{'; it changed in ' if changed else ''}{', '.join(changed)}"
        )

    def _check_corpus(
        self, params: Params, champion: Champion | None, old: Manifest | None
    ) -> Manifest:
        """Check the pinned corpus against its limits and the champion's; its manifest.

        RefusedDropError, with the refusal written as a decision, if it must not be trained on.
        """
        corpus = source.read_pin(self.root)
        new = None
        try:
            check_archive(self.root, corpus.path, params.corpus.limits)
            self._unpack()
            new = build_manifest(self.root, params.taxonomy)
            reasons = problems(new, old, params.retrain)
            self._unused = unused_questions(self.root, params, new, old)
            reasons += refused_for(self._unused, params.retrain)
            if champion:  # a first champion is promoted whatever its tests
                reasons += small_tests(self.root, params, read_status(self.root))
            if reasons:
                raise RefusedDropError("; ".join(reasons))
        except RefusedDropError as error:
            decision = make_decision(
                "refused",
                [str(error)],
                corpus,
                self._identity,
                params.retrain,
                champion=champion.version if champion else None,
                sizes=counts(new) if new else None,
                changes=diff(old, new) if old and new else None,
                drift=drift(old, new) if old and new else None,
                stages=self._stages(),
                unused=self._unused.unused if self._unused else None,
            )
            write_decision(self.root, decision)
            raise
        if self._unused:
            self.report(f"warning: {self._unused}")
        return new

    def _unpack(self) -> None:
        """Run the stages that read, check and test the corpus; RefusedDropError if one refuses."""
        try:
            self._reproduce(list(snapshot.VALIDATION_STAGES))
        except Exception as error:
            if is_refusal(error):
                raise RefusedDropError(str(error)) from error
            raise

    def _set_starts(self, params: Params, champion: Champion | None, start: Start) -> None:
        """Start exactly the trainings affected by new data from the requested policy."""
        self._reproduce(["splits"])
        stale = {
            name.partition("@")[2] for name in read_status(self.root) if name.startswith("train@")
        }
        names = [name for name in params.checkpoints if name in stale]
        if start == "base":
            starts = dict.fromkeys(names, layout.BASE_MODEL)
        else:
            known = champion.checkpoints if champion else {}
            for name in [each for each in names if each not in known]:
                self.report(
                    f"{name} is not a checkpoint of the champion: it starts from the policy in"
                    " params.yaml"
                )
            starts = {name: CHAMPIONS / name for name in names if name in known}
            for name in starts:
                champions.checkout(self.root, name, self.root / starts[name])
        set_initial_checkpoints(self.root, starts)
        self.report(f"starting from the {start}: {', '.join(starts) or 'none, as none is stale'}")

    def _decide(
        self, params: Params, champion: Champion | None, old: Manifest | None, new: Manifest
    ) -> RetrainOutcome:
        """Compare, judge, write the decision, move the champion."""
        if champion is None or old is None:
            decision = self._promote_first(params, new)
            return RetrainOutcome(
                "FirstChampion",
                f"the results are champion {decision['successor']}, the first",
                decision,
            )
        outputs = store.outputs(self.root)

        def compared(name: str) -> str:
            if name not in champion.checkpoints:
                return "new checkpoint"
            same = outputs[str(layout.model(name))] == champion.checkpoints[name].model
            return "as before" if same else "new weights"

        how = {
            name: compared(name)
            for name in params.checkpoints
            if not (self.root / layout.left_out(name)).is_file()
        }
        names = [name for name, each in how.items() if each == "new weights"]
        contests = {}
        for name, rows in self._evaluate_champion(champion, names).items():
            checkpoint = params.checkpoints[name]
            challenger, _ = read_predictions(
                self.root / layout.predictions(name), f"evaluate@{name}"
            )
            excluded = seen_by_one_policy(old, new, checkpoint.axis, checkpoint.split)
            contests[name] = PairedPredictions(
                checkpoint.axis,
                checkpoint.split,
                rows,
                challenger,
                frozenset(excluded),
                params.joint_cells(checkpoint.split),
            )
        gone = [name for name in champion.checkpoints if name not in how]
        verdict = judge(
            contests,
            params.retrain,
            params.report.bootstrap_samples,
            params.report.bootstrap_seed,
            gone,
        )
        reasons = "; ".join(verdict.reasons)
        successor = champions.promote(self.root, reasons).version if verdict.promote else None
        decision = self._decision(params, champion, old, new, how, verdict, successor)
        path = write_decision(self.root, decision).relative_to(self.root)
        if successor:
            return RetrainOutcome(
                "Promoted",
                f"champion {successor} replaces {champion.version}: {reasons} ({path})",
                decision,
            )
        return RetrainOutcome(
            "Kept", f"champion {champion.version} stays: {reasons} ({path})", decision
        )

    def _decision(
        self,
        params: Params,
        champion: Champion,
        old: Manifest,
        new: Manifest,
        how: Mapping[str, str],
        verdict: Verdict,
        successor: int | None,
    ) -> Decision:
        return make_decision(
            "promoted" if successor else "kept",
            list(verdict.reasons),
            source.read_pin(self.root),
            self._identity,
            params.retrain,
            champion=champion.version,
            successor=successor,
            sizes=counts(new),
            changes=diff(old, new),
            drift=drift(old, new),
            stages=self._stages(),
            checkpoints=how,
            verdict=verdict,
            stale_before=self._stale_before,
            unused=self._unused.unused if self._unused else None,
        )

    def _promote_first(self, params: Params, new: Manifest | None = None) -> Decision:
        """Promote the current results as the first champion."""
        corpus = source.read_pin(self.root)
        champion = champions.promote(self.root, "the first: nothing to compare with")
        decision = make_decision(
            "first",
            [champion.why],
            corpus,
            self._identity,
            params.retrain,
            champion=None,
            successor=champion.version,
            sizes=counts(new or build_manifest(self.root, params.taxonomy)),
            stages=self._stages(),
        )
        write_decision(self.root, decision)
        self.report(f"champion {champion.version}: {champion.why}")
        return decision

    def _evaluate_champion(
        self, champion: Champion, names: Sequence[str]
    ) -> dict[str, pd.DataFrame]:
        """The champion's predictions per checkpoint on the current test questions."""
        if names:
            self.report(
                f"evaluating champion {champion.version} on the challengers' test questions:"
                f" {', '.join(names)}"
            )
        stages = [f"evaluate@{name}" for name in names]
        with preloaded_libraries(self.root, stages, self.slots.cpu_environment) as variables:
            evaluation = ChampionEvaluation(self.root, variables)
            return self._answers(evaluation, champion, names)

    def _answers(
        self, evaluation: ChampionEvaluation, champion: Champion, names: Sequence[str]
    ) -> dict[str, pd.DataFrame]:
        """The champion's predictions per checkpoint; clears the evaluation."""
        graph = read_graph(self.root)

        def evaluate(name: str) -> pd.DataFrame:
            champions.checkout(self.root, name, evaluation.weights(name), champion.version)
            gpus = graph.stages[f"evaluate@{name}"].gpus
            if gpus:
                with self.slots.acquire(gpus, lambda: evaluation.stopped) as (gpu_names, locks):
                    extra = self.slots.environment(gpu_names)
                    path = evaluation.evaluate(name, self.report, extra, locks)
            else:
                path = evaluation.evaluate(name, self.report)
            return read_predictions(path, f"evaluate@{name}")[0]

        try:
            with ThreadPoolExecutor(max(len(self.slots.names), 1)) as pool:
                try:
                    return dict(zip(names, pool.map(evaluate, names), strict=True))
                except BaseException:
                    evaluation.stop()  # before the pool waits for running evaluations
                    raise
        finally:
            evaluation.clear()

    def _reproduce(self, only: list[str] | None) -> None:
        for result in self.reproduce(only):
            if self._states.get(result.name) != "ran":
                self._states[result.name] = result.state

    def _stages(self) -> dict[str, list[str]]:
        """State -> names of the stages that ended in it."""
        return {
            state: [name for name, each in self._states.items() if each == state]
            for state in dict.fromkeys(self._states.values())
        }
