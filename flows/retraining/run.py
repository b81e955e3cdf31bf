"""One retraining, from a look at the source to a decision; no Prefect in here.

The order of things, and what is true when it ends there:

1. The source is asked. Nothing new: nothing runs.
2. New data is fetched, unpacked and counted on trial. On refusal or failure, the workspace is
   rolled back.
3. Stages that DVC finds stale are re-run. If one fails the data stays, and the next run resumes.
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
from flows.registry import champion as champions
from flows.registry import snapshot, store
from flows.registry.champion import Champion
from flows.registry.manifest import (
    Manifest,
    counts,
    diff,
    drift,
    known_to_one,
    take_manifest,
    touched,
)
from flows.retraining.champion_evaluation import ChampionEvaluation
from flows.retraining.decision import Decision, make_decision, read_decisions, write_decision
from flows.retraining.gate import PairedPredictions, Verdict, judge
from flows.retraining.initial_checkpoints import CHAMPIONS, set_initial_checkpoints
from flows.retraining.validate import RefusedDropError, check_archive, drifted, is_refusal, problems
from flows.scheduling.slots import Slots
from flows.source import probe as source
from stages.core import layout
from stages.core.errors import InputError
from stages.core.params import Params, load_params
from stages.reporting.sources import read_predictions

Start = Literal["base", "champion"]


class Result(Protocol):
    """How a stage ended."""

    @property
    def name(self) -> str:
        """The stage's."""

    @property
    def state(self) -> str:
        """Such as "ran", "unchanged", "cached"."""


Reproduce = Callable[[list[str] | None], Sequence[Result]]
"""Brings the stages that the patterns mean, or all, up to date, with what they need; raises if one
fails.
"""


@dataclass(frozen=True)
class RetrainOptions:
    """How a retraining is asked for.

    `dry_run`: look and tell, change nothing; `force`: go on though nothing is new, or the data was
    refused before; `start_from`: the policy from which the trainings begin that new data touches;
    what params.yaml says if None.
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
    """A retraining of the workspace `root`; the caller holds its lock (`snapshot.only_retraining`).

    `slots`: where champions are evaluated; `report`: takes what a person wants to know meanwhile.
    """

    root: Path
    wishes: RetrainOptions
    reproduce: Reproduce
    slots: Slots
    report: Callable[[str], None]
    _states: dict[str, str] = field(default_factory=dict)
    _identity: str | None = None
    _stale_before: list[str] = field(default_factory=list)

    def run(self) -> RetrainOutcome:
        """Do it.

        RefusedDropError for data that may not be trained on; InputError and what `reproduce` raises
        otherwise.
        """
        if snapshot.on_trial(self.root) and not self.wishes.dry_run:
            word = snapshot.rollback(self.root)
            self.report(
                "an earlier run ended before its new data was judged: data.dvc is again as it was"
                f" before{f'; {word}' if word else ''}"
            )
        params = load_params(self.root / layout.PARAMS)
        champion = champions.current(self.root)
        first = None
        if champion is None and not self.wishes.dry_run and not read_status(self.root):
            first = self._first(params)
            champion = champions.current(self.root)
        seen = source.probe(self.root)
        if ended := self._nothing_to_do(seen, champion, first):
            return ended
        if seen.changed:
            seen = source.debounce(
                lambda: source.probe(self.root), seen, params.retrain.debounce_seconds, self.report
            )
        self._identity = seen.identity
        return self._take(seen, params, champion)

    def _nothing_to_do(
        self, seen: source.Probe, champion: Champion | None, first: Decision | None
    ) -> RetrainOutcome | None:
        """How it ends already, None if it goes on."""
        pinned = source.pinned(self.root)
        known = "not known before it is fetched" if seen.identity is None else seen.identity
        if seen.changed:
            news = f"{seen.source} has changed: {known}, pinned is md5:{pinned.md5}"
        elif champion is None:
            news = "there is no champion yet"
        elif self._undecided(pinned, champion):
            news = (
                f"the corpus md5:{pinned.md5} was taken, but not decided on: an earlier run did not"
                " get so far"
            )
        elif self.wishes.force:
            news = "nothing is new, but it was asked for"
        elif first:
            return RetrainOutcome(
                "FirstChampion",
                f"the results that were there are champion {first['successor']}; {seen.source} has"
                " nothing new",
                first,
            )
        else:
            return RetrainOutcome(
                "NothingNew",
                f"{seen.source} is as it was pinned (md5:{pinned.md5}); champion {champion.version}"
                " stays",
            )
        self.report(news)
        # the last word on what the source holds now; a corpus whose identity is not known is
        # fetched again
        refused = [
            each
            for each in read_decisions(self.root)
            if seen.identity and each["corpus"].get("identity") == seen.identity
        ][-1:]
        if refused and refused[0]["outcome"] == "refused" and not self.wishes.force:
            why = "; ".join(refused[0]["reasons"])
            return RetrainOutcome(
                "RefusedBefore",
                f"{news}. It was refused before ({why}); --force tries it again",
                refused[0],
            )
        if self.wishes.dry_run:
            return RetrainOutcome(
                "DryRun",
                f"{news}. A run would take and check it, bring up to date what it touches, and"
                " decide",
            )
        return None

    def _undecided(self, pinned: source.PinnedCorpus, champion: Champion) -> bool:
        """Was the pinned corpus taken by a run that did not get to a decision."""
        return pinned.md5 != champion.corpus.md5 and all(
            each["corpus"]["md5"] != pinned.md5 for each in read_decisions(self.root)
        )

    def _take(
        self, seen: source.Probe, params: Params, champion: Champion | None
    ) -> RetrainOutcome:
        """Fetch, check, reproduce, decide."""
        old = champions.manifest_of(self.root, champion) if champion else None
        self._stale_before = sorted(read_status(self.root))
        if self._stale_before:
            self.report(
                f"stale before the new data and re-run with it: {', '.join(self._stale_before)}"
            )
        if champion and (champion.split_kind, champion.style) != (
            params.splits.kind,
            params.prompt.style,
        ):
            self.report(
                f"champion {champion.version} was made with {champion.split_kind} splits and"
                f" {champion.style} prompts, challengers with {params.splits.kind} and"
                f" {params.prompt.style}: champions are asked as challengers are"
            )
        self._check(seen.changed, params, champion, old)
        if self.wishes.start_from:
            self._set_starts(params, champion, self.wishes.start_from)
        self._reproduce(None)
        new = take_manifest(self.root, params.splits.kind)
        ended = self._decide(load_params(self.root / layout.PARAMS), champion, old, new)
        try:
            if source.probe(self.root).changed:
                self.report(f"{seen.source} has changed again meanwhile: the next run takes it")
        except InputError as error:
            self.report(f"{error} (what is decided is decided)")
        return ended

    def _check(
        self, fetch: bool, params: Params, champion: Champion | None, old: Manifest | None
    ) -> None:
        """Fetch the corpus if asked to and validate it; on refusal or failure, roll back."""
        if fetch:
            snapshot.save(self.root)
        try:
            if fetch:
                source.update(self.root)
            corpus = source.pinned(self.root)
            new = None
            try:
                check_archive(self.root, corpus.path, params.corpus.limits)
                self._unpack(corpus)
                new = take_manifest(self.root)
                if found := problems(new, old, params.retrain):
                    raise RefusedDropError("; ".join(found))
            except RefusedDropError as error:
                changes = diff(old, new) if old and new else None
                write_decision(
                    self.root,
                    make_decision(
                        "refused",
                        [str(error)],
                        corpus,
                        self._identity,
                        params.retrain,
                        champion=champion.version if champion else None,
                        sizes=counts(new) if new else None,
                        changes=changes,
                        drift=drift(old, new) if old and new else None,
                        stages=self._stages(),
                    ),
                )
                raise
        except BaseException:
            if fetch and (word := snapshot.rollback(self.root)):
                self.report(word)
            raise
        if fetch:
            snapshot.commit(self.root)
        for line in drifted(new, old, params.retrain) if old else ():
            self.report(line)
        changed = touched(diff(old, new)) if old else []
        self.report(
            "the corpus is fit to train"
            f" on{'; it changed in ' if changed else ''}{', '.join(changed)}"
        )

    def _unpack(self, corpus: source.PinnedCorpus) -> None:
        """Run the stages that read, check and test the corpus; their objections are a refusal."""
        try:
            self._reproduce(list(snapshot.TRIED))
        except Exception as error:
            if is_refusal(error):
                raise RefusedDropError(str(error)) from error
            raise

    def _set_starts(self, params: Params, champion: Champion | None, wish: Start) -> None:
        """Start exactly the trainings affected by new data from the requested policy."""
        self._reproduce(["splits"])
        stale = {
            name.partition("@")[2] for name in read_status(self.root) if name.startswith("train@")
        }
        names = [name for name in params.checkpoints if name in stale]
        if wish == "base":
            starts = dict.fromkeys(names, layout.BASE_MODEL)
        else:
            known = champion.checkpoints if champion else {}
            for name in [each for each in names if each not in known]:
                self.report(
                    f"{name} is not a checkpoint of the champion: it begins where params.yaml says"
                )
            starts = {name: CHAMPIONS / name for name in names if name in known}
            for name in starts:
                champions.checkout(self.root, name, self.root / starts[name])
        set_initial_checkpoints(self.root, starts)
        self.report(f"begin from the {wish}: {', '.join(starts) or 'none, for none is touched'}")

    def _decide(
        self, params: Params, champion: Champion | None, old: Manifest | None, new: Manifest
    ) -> RetrainOutcome:
        """Compare, judge, write the decision, move the champion."""
        if champion is None or old is None:
            decision = self._first(params, new)
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

        how = {name: compared(name) for name in params.checkpoints}
        names = [name for name, each in how.items() if each == "new weights"]
        answers = self._champions_answers(champion, names)
        contests = {}
        for name, rows in answers.items():
            axis, cell = params.checkpoints[name].axis, params.checkpoints[name].split
            own, _ = read_predictions(self.root / layout.predictions(name), f"evaluate@{name}")
            contests[name] = PairedPredictions(
                axis, cell, rows, own, frozenset(known_to_one(old, new, axis, cell))
            )
        gone = [name for name in champion.checkpoints if name not in params.checkpoints]
        verdict = judge(
            contests,
            params.retrain,
            params.report.bootstrap_samples,
            params.report.bootstrap_seed,
            gone,
        )
        successor = (
            champions.promote(self.root, "; ".join(verdict.reasons)).version
            if verdict.promote
            else None
        )
        decision = self._decision(params, champion, old, new, how, verdict, successor)
        path = write_decision(self.root, decision).relative_to(self.root)
        said = "; ".join(verdict.reasons)
        if successor:
            return RetrainOutcome(
                "Promoted",
                f"champion {successor} takes the place of {champion.version}: {said} ({path})",
                decision,
            )
        return RetrainOutcome(
            "Kept", f"champion {champion.version} stays: {said} ({path})", decision
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
            source.pinned(self.root),
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
        )

    def _first(self, params: Params, new: Manifest | None = None) -> Decision:
        """Promote what is there, for want of a champion to compare with."""
        corpus = source.pinned(self.root)
        made = champions.promote(self.root, "the first: nothing to compare with")
        sizes = counts(new or take_manifest(self.root))
        decision = make_decision(
            "first",
            [made.why],
            corpus,
            self._identity,
            params.retrain,
            champion=None,
            successor=made.version,
            sizes=sizes,
            stages=self._stages(),
        )
        write_decision(self.root, decision)
        self.report(f"champion {made.version}: {made.why}")
        return decision

    def _champions_answers(
        self, champion: Champion, names: Sequence[str]
    ) -> dict[str, pd.DataFrame]:
        """The champion's predictions per checkpoint on the current test questions."""
        duel, graph = ChampionEvaluation(self.root), read_graph(self.root)

        def answer(name: str) -> pd.DataFrame:
            champions.checkout(self.root, name, duel.weights(name), champion.version)
            gpus = graph.stages[f"evaluate@{name}"].gpus
            if gpus:
                with self.slots.take(gpus, lambda: duel.stopped) as (held, locks):
                    path = duel.answer(name, self.report, self.slots.environment(held), locks)
            else:
                path = duel.answer(name, self.report)
            return read_predictions(path, f"evaluate@{name}")[0]

        if names:
            self.report(
                f"champion {champion.version} is asked the challengers' test questions:"
                f" {', '.join(names)}"
            )
        try:
            with ThreadPoolExecutor(max(len(self.slots.names), 1)) as pool:
                try:
                    return dict(zip(names, pool.map(answer, names), strict=True))
                except BaseException:
                    duel.stop()  # before the pool waits for those that run
                    raise
        finally:
            duel.clear()

    def _reproduce(self, only: list[str] | None) -> None:
        for result in self.reproduce(only):
            if self._states.get(result.name) != "ran":
                self._states[result.name] = result.state

    def _stages(self) -> dict[str, list[str]]:
        """How stages ended -> their names."""
        return {
            state: [name for name, each in self._states.items() if each == state]
            for state in dict.fromkeys(self._states.values())
        }
