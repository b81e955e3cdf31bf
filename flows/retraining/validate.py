"""Validation of new data: what prevents training on it, and the messages that say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.dvc_api.client import StageError
from flows.registry.drift import describe
from flows.registry.manifest import Manifest, drift
from flows.scheduling.schedule import StagesFailedError
from stages.core.errors import ExitCode, InputError
from stages.core.params import CorpusLimits, Retrain
from stages.corpus.archives.source import SCRATCH, open_corpus
from stages.corpus.quarantine.reasons import RefusedDataError
from stages.taxonomy import MODALITIES


class RefusedDropError(Exception):
    """New data that may not be trained on; the message says why and what to do."""


def check_archive(root: Path, path: str, limits: CorpusLimits) -> None:
    """RefusedDropError if the corpus of a workspace is damaged, unsafe, or none.

    Looks at the list of members, not at their bytes.
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
    found = list(_unknown(new, old, rule))
    share = new.refused / new.read if new.read else 1.0
    if share > rule.max_refused:
        found.append(
            f"{new.refused} of {new.read} records ({share:.1%}) were refused by download and"
            f" resize, more than retrain.max_refused ({rule.max_refused:.1%}): data/quarantine/ of"
            " the refused run is summed up in the decision; correct the records, or raise the"
            " limit"
        )
    if old is None:
        return found
    found += [
        f"{describe(each)}, further from the champion's corpus than retrain.max_drift"
        f" ({rule.max_drift:.2f}): see whether this is the data that was meant; if it is, raise the"
        " limit, or set it to null"
        for each in drift(old, new) or ()
        if rule.max_drift is not None and each.is_beyond(rule.max_drift)
    ]
    lost = [slug for slug in MODALITIES if old.questions[slug] and not new.questions[slug]]
    for slug in lost:
        found.append(
            f"{slug} has vanished: {len(old.questions[slug])} questions in the champion's corpus,"
            " none in this one"
        )
    for name, slugs in {
        "all modalities": list(MODALITIES),
        **{slug: [slug] for slug in MODALITIES if slug not in lost},
    }.items():
        before, after = (_total(each, slugs) for each in (old, new))
        if before and after < before * (1 - rule.max_fewer_questions):
            found.append(
                f"{name}: {after} questions, {1 - after / before:.0%} fewer than the {before} of"
                " the champion's corpus; retrain.max_fewer_questions allows"
                f" {rule.max_fewer_questions:.0%}"
            )
    return found


def drifted(new: Manifest, old: Manifest, rule: Retrain) -> list[str]:
    """What is told of drift that stops nothing, one line each."""
    found = drift(old, new)
    if found is None:
        return [
            "drift is not judged: the manifest of the champion's corpus is of a time before it was"
            " counted; the next champion's is not"
        ]
    return [
        f"drift: {describe(each)}, beyond retrain.warn_drift ({rule.warn_drift:.2f})"
        for each in found
        if each.is_beyond(rule.warn_drift)
    ]


def is_refusal(error: Exception) -> bool:
    """Did a stage refuse the data, rather than fail for another reason, such as a full disk."""
    if isinstance(error, StagesFailedError):
        return ExitCode.REFUSED_DATA in error.codes
    return isinstance(error, StageError | InputError) and error.code == ExitCode.REFUSED_DATA


def _total(manifest: Manifest, slugs: Sequence[str]) -> int:
    return sum(len(manifest.questions[slug]) for slug in slugs)


def _unknown(new: Manifest, old: Manifest | None, rule: Retrain) -> list[str]:
    """Modalities that are none of ours and that the champion's corpus did not have either."""
    return [
        f"unknown modality {literal!r} in {count} records: if it is known to be none of ours, name"
        " it in retrain.ignored_modalities; if it is a new one or another spelling,"
        " stages/taxonomy.py has to learn it"
        for literal, count in sorted(new.unknown.items())
        if literal not in rule.ignored_modalities and (old is None or literal not in old.unknown)
    ]
