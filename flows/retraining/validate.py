"""Validation of new data: the reasons for refusing to train on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.dvc_api.runner import StageError
from flows.registry.drift import describe
from flows.registry.manifest import Manifest, drift
from flows.scheduling.schedule import StagesFailedError
from stages.core import layout
from stages.core.errors import ExitCode, InputError
from stages.core.outputs import read_json
from stages.core.params import CorpusLimits, Params, Retrain
from stages.corpus.archives.source import SCRATCH, open_corpus
from stages.corpus.dataset.split_files import read_split
from stages.corpus.quarantine.reasons import RefusedDataError


class RefusedDropError(Exception):
    """New data that must not be trained on; the message has reasons and remedies.

    `findings`: folder with its quarantine and data tests, if the workspace was rolled back.
    """

    findings: Path | None = None


def check_archive(root: Path, path: str, limits: CorpusLimits) -> None:
    """RefusedDropError if the corpus archive is corrupt, unsafe or not a corpus.

    Reads the list of members, not their bytes.
    """
    try:
        with open_corpus(root / path, limits, root / SCRATCH):
            pass
    except FileNotFoundError:
        raise InputError(f"{root / path} is missing: `dvc checkout data.dvc`") from None
    except RefusedDataError as error:
        raise RefusedDropError(str(error)) from error


def problems(new: Manifest, old: Manifest | None, rule: Retrain) -> list[str]:
    """Reasons against training on `new`, one line each; `old`: the champion's corpus or None."""
    reasons = _unknown_modalities(new, old, rule)
    share = new.refused / new.read if new.read else 1.0
    if share > rule.max_refused:
        reasons.append(
            f"{new.refused} of {new.read} records ({share:.1%}) were refused by download and"
            f" resize, more than retrain.max_refused ({rule.max_refused:.1%}): fix the records that"
            " its quarantine lists, or raise the limit"
        )
    if old is None:
        return reasons
    reasons += [
        f"{describe(each)}, further from the champion's corpus than retrain.max_drift"
        f" ({rule.max_drift:.2f}): check that this is the intended data; if it is, raise the limit,"
        " or set it to null"
        for each in drift(old, new) or ()
        if rule.max_drift is not None and each.is_beyond(rule.max_drift)
    ]
    lost = [slug for slug, ids in old.questions.items() if ids and not new.questions.get(slug)]
    for slug in lost:
        reasons.append(
            f"{slug} is missing: {len(old.questions[slug])} questions in the champion's corpus,"
            " none in this one"
        )
    scopes = {"all modalities": list(old.questions)}
    scopes |= {slug: [slug] for slug in old.questions if slug not in lost}
    for name, slugs in scopes.items():
        before = _total(old, slugs)
        after = _total(new, slugs)
        if before and after < before * (1 - rule.max_fewer_questions):
            reasons.append(
                f"{name}: {after} questions, {1 - after / before:.0%} fewer than the {before} of"
                " the champion's corpus; retrain.max_fewer_questions allows"
                f" {rule.max_fewer_questions:.0%}"
            )
    return reasons


def small_tests(root: Path, params: Params, stale: Collection[str]) -> list[str]:
    """Reasons against retraining checkpoints whose test is too small for them to be promoted.

    `stale`: stages that would run; stage splits is up to date. InputError if a split is missing.
    """
    reasons = []
    minimum = params.retrain.min_test_questions
    for name, checkpoint in params.checkpoints.items():
        if f"train@{name}" not in stale:
            continue
        path = layout.split(checkpoint.axis, checkpoint.split, "test", params.splits.kind)
        count = len(read_json(root / path, "run `dvc repro splits`"))
        if 0 < count < minimum:  # without any it is left out, and not retrained
            reasons.append(
                f"{name} would be retrained, but has {count} test questions, and"
                f" retrain.min_test_questions requires {minimum} to promote it: add data, or lower"
                " the limit"
            )
    return reasons


@dataclass(frozen=True)
class UnusedQuestions:
    """New questions that are in no split: modality -> those, and the number of all new ones."""

    unused: Mapping[str, int]
    new: int
    folder: str
    """The released split files."""

    @property
    def share(self) -> float:
        """Of the new questions."""
        return sum(self.unused.values()) / max(self.new, 1)

    def __str__(self) -> str:
        """As in messages."""
        counts = ", ".join(f"{slug} {count}" for slug, count in self.unused.items())
        return (
            f"{sum(self.unused.values())} of {self.new} new questions ({counts}) are in none of the"
            f" files in {self.folder}, so nothing is trained on or tested with them (splits.kind is"
            " released). To use them, set splits.kind to grouped, or add them to these files"
        )


def unused_questions(
    root: Path, params: Params, new: Manifest, old: Manifest | None
) -> UnusedQuestions | None:
    """New questions that the splits in use lack; None if there are none, or splits are drawn.

    `old`: the champion's corpus; without one, none is new. Stage splits is up to date.
    """
    if params.splits.kind != "released" or old is None:
        return None
    used: set[str] = set()
    for path in sorted((root / layout.SPLITS / params.splits.kind).glob("*/*/*.json")):
        used.update(str(item["question_id"]) for item in read_split(path))
    added = {
        slug: ids.keys() - old.questions.get(slug, {}).keys() for slug, ids in new.questions.items()
    }
    unused = {slug: len(ids - used) for slug, ids in added.items() if ids - used}
    if not unused:
        return None
    return UnusedQuestions(unused, sum(map(len, added.values())), params.splits.released.folder)


def refused_for(unused: UnusedQuestions | None, rule: Retrain) -> list[str]:
    """The reason against data with more unused questions than retrain.max_unused, if it has."""
    if unused is None or unused.share <= rule.max_unused:
        return []
    return [f"{unused}. To leave them out, raise retrain.max_unused, now {rule.max_unused:g}"]


def drift_warnings(new: Manifest, old: Manifest, rule: Retrain) -> list[str]:
    """Warnings about drift that does not prevent training, one line each."""
    drifts = drift(old, new)
    if drifts is None:
        return [
            "drift is not judged: the manifest of the champion's corpus predates drift detection;"
            " the next champion's will have it"
        ]
    return [
        f"drift: {describe(each)}, beyond retrain.warn_drift ({rule.warn_drift:.2f})"
        for each in drifts
        if each.is_beyond(rule.warn_drift)
    ]


def is_refusal(error: Exception) -> bool:
    """Did a stage refuse the data, rather than fail for another reason such as a full disk."""
    if isinstance(error, StagesFailedError):
        return ExitCode.REFUSED_DATA in error.codes
    return isinstance(error, StageError | InputError) and error.code == ExitCode.REFUSED_DATA


def _total(manifest: Manifest, slugs: Sequence[str]) -> int:
    return sum(len(manifest.questions[slug]) for slug in slugs)


def _unknown_modalities(new: Manifest, old: Manifest | None, rule: Retrain) -> list[str]:
    """Unknown modalities that the champion's corpus did not have either."""
    return [
        f"unknown modality {literal!r} in {count} records: add it to retrain.ignored_modalities if"
        " it is out of scope, or to stages/taxonomy.py if it is a new modality or another spelling"
        for literal, count in sorted(new.unknown.items())
        if literal not in rule.ignored_modalities and (old is None or literal not in old.unknown)
    ]
