"""Control flow reads no prose: with all error texts replaced, everything ends as before."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from flows.dvc_api.events import explain, read_event
from flows.dvc_api.runner import StageError
from flows.retraining.validate import RefusedDropError, check_archive, is_refusal
from flows.scheduling.schedule import StagesFailedError
from stages.core.cli import run_stage
from stages.core.distributed.launch import RankFailure, root_cause_rank
from stages.core.errors import DiskFullError, ExitCode, InputError, LostPeerError, SettingsError
from stages.core.outcome import RUN, STAGE, StageOutcome, read_outcome
from stages.core.params import load_params
from stages.corpus.archives import unpacked
from stages.corpus.archives.source import open_corpus
from stages.corpus.inspection import inspect as inspection
from stages.corpus.inspection.findings import Findings
from stages.corpus.quarantine.advice import advise
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.ledger import RecordLocation, Row
from stages.corpus.quarantine.reasons import CorpusFault, Reason, RefusedDataError
from stages.corpus.records.records import Reading
from stages.corpus.records.texts import RefusedRecord
from stages.corpus.splitting.data_tests import judge_records
from tests.conftest import ROOT
from tests.hostile.corpus import CORPUS, QUESTIONS, record
from tests.hostile.records import RECORDS
from tests.hostile.test_hostile import ARCHIVES, FILES, IMAGES

# what earlier versions compared, so that a comparison that comes back is seen at once
TRAPS = (
    *(
        "too much was refused by",
        "data tests failed:",
        "would be empty on one side",
        "data/raw/corpus.zip",
        "free some space",
    ),
    *(
        "No space left on device",
        "Unable to acquire lock",
        "exited with -9",
        "lost the other processes",
        "error: ",
        "limit",
    ),
    *(
        "unknown modality_type",
        "the image cannot be used",
        "is missing",
        "not UTF-8 text",
        "two options are the same",
    ),
)


def words(seed: int) -> str:
    """Random text with some of the words that were compared once."""
    source = random.Random(seed)
    return " ".join(source.choice([*TRAPS, f"x{source.random()}"]) for _ in range(6))


@contextmanager
def other_words(seed: int) -> Iterator[None]:
    """Inside, refusals of records and images have another text."""
    refuse, image = RefusedRecord.__init__, ImageError.__init__

    def refuse_in_other_words(self: RefusedRecord, what: object, why: str, reason: Reason) -> None:
        refuse(self, what, words(seed), reason)

    def image_in_other_words(
        self: ImageError, why: str, reason: Reason = Reason.IMAGE_DAMAGED
    ) -> None:
        image(self, words(seed), reason)

    with (
        patch.object(RefusedRecord, "__init__", refuse_in_other_words),
        patch.object(ImageError, "__init__", image_in_other_words),
    ):
        yield


def write_corpus(folder: Path) -> Path:
    """All hostile images, records and question files in one corpus, as a folder."""
    images = [
        record(name, image_path=f"Images/Hostile/{number}.png")
        for number, name in enumerate(IMAGES)
    ]
    changes = [change for change, _ in RECORDS.values()]
    broken = [
        record(f"record {number}", **change) if isinstance(change, dict) and change else change
        for number, change in enumerate(changes)
    ]
    files = CORPUS | {each["image_path"]: IMAGES[each["question_id"]].content for each in images}
    files |= {
        f"{QUESTIONS}/{name.replace('/', ' of ')}.json": case.content
        for name, case in FILES.items()
    }
    files |= {
        f"{QUESTIONS}/Images.json": json.dumps(images).encode(),
        f"{QUESTIONS}/Records.json": json.dumps(broken).encode(),
    }
    files["Rows.csv"] = (
        b'image,question,options,answer,modality,type\n"a" b,c\na,b\nImages/Good/a.png,?,A) x|B)'
        b" y,A,ct,lesion-grading\n"
    )
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_check_of_a_corpus_gives_the_same_findings_and_advice(tmp_path: Path) -> None:
    folder, params = write_corpus(tmp_path / "corpus"), load_params(ROOT / "params.yaml")

    def inspect() -> tuple[list[Any], set[str]]:
        with open_corpus(folder, params.corpus.limits, tmp_path / "scratch") as corpus:
            found = inspection.inspect(corpus, params, examples=10**6).findings
        shown = [
            (
                finding.kind,
                finding.level,
                finding.count,
                finding.remedy,
                [(row.where, row.what) for row in finding.examples],
            )
            for finding in found
        ]
        return shown, {row.why for finding in found for row in finding.examples}

    before, texts = inspect()
    with other_words(1):
        after, other_texts = inspect()
    assert after == before
    assert len(before) > 20
    assert words(1) in other_texts - texts


@pytest.mark.parametrize("reason", Reason)
def test_the_advice_and_the_data_test_of_a_refusal_follow_its_reason(reason: Reason) -> None:
    kinds, failed = set(), set()
    for seed in range(5):
        row = Row(RecordLocation("a.json", 3, "q"), "value", words(seed), reason)
        findings = Findings(3)
        findings.refuse(row)
        kinds |= {(finding.kind, finding.remedy) for finding in findings.ordered()}
        results = judge_records(Reading(1, [], [row]), {})
        failed.add(tuple(result.test for result in results if result.stops))
    assert kinds == {tuple(advise(reason))}
    assert len(failed) == 1


ONE_OF_EACH_FAULT = {
    case.code: case.content for case in ARCHIVES.values() if isinstance(case.code, CorpusFault)
}


@pytest.mark.parametrize("fault", ONE_OF_EACH_FAULT)
def test_an_archive_that_is_refused_stays_refused(fault: CorpusFault, tmp_path: Path) -> None:
    (tmp_path / "corpus").write_bytes(ONE_OF_EACH_FAULT[fault])
    make = RefusedDataError.__init__

    def in_other_words(
        self: RefusedDataError, message: str, fault: CorpusFault = CorpusFault.DAMAGED
    ) -> None:
        make(self, words(2), fault)

    with (
        patch.object(RefusedDataError, "__init__", in_other_words),
        pytest.raises(RefusedDropError, match=re.escape(words(2))) as caught,
    ):
        check_archive(tmp_path, "corpus", load_params(ROOT / "params.yaml").corpus.limits)
    assert isinstance(caught.value.__cause__, RefusedDataError)
    assert caught.value.__cause__.fault == fault


def test_a_disk_that_is_too_small_for_an_archive_refuses_no_data(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_bytes(ARCHIVES["gzip bomb"].content)
    with (
        patch.object(unpacked, "DiskFullError", lambda message: DiskFullError(words(3))),
        patch.object(unpacked, "_RESERVE", 2**62),
        pytest.raises(DiskFullError) as caught,
    ):
        check_archive(tmp_path, "corpus", load_params(ROOT / "params.yaml").corpus.limits)
    assert not is_refusal(caught.value)


ERRORS: dict[ExitCode, Callable[[str], BaseException]] = {
    ExitCode.INPUT: InputError,
    ExitCode.SETTINGS: SettingsError,
    ExitCode.REFUSED_DATA: lambda message: RefusedDataError(message, CorpusFault.DATA_TEST),
    ExitCode.DISK_FULL: DiskFullError,
    ExitCode.LOST_PEER: LostPeerError,
    ExitCode.CRASHED: ValueError,
    ExitCode.INTERRUPTED: KeyboardInterrupt,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("code", ERRORS)
def test_a_stage_gives_the_code_of_its_error(
    code: ExitCode, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(STAGE, "splits")
    monkeypatch.setenv(RUN, "1")

    def main() -> None:
        raise ERRORS[code](words(seed))

    with pytest.raises((SystemExit, ValueError)):
        run_stage(main)
    outcome = read_outcome(tmp_path, "splits", "1")
    assert outcome is not None
    assert outcome.code == code


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("code", [*ExitCode, None])
def test_only_the_code_of_a_failed_stage_refuses_data(code: ExitCode | None, seed: int) -> None:
    refused = code == ExitCode.REFUSED_DATA
    codes = [] if code is None else [ExitCode.DISK_FULL, code]
    assert is_refusal(StageError(words(seed), code)) is refused
    assert is_refusal(StagesFailedError(words(seed), codes)) is refused
    assert not is_refusal(RuntimeError(words(seed)))


@pytest.mark.parametrize("code", ExitCode)
def test_what_is_said_of_a_failed_stage_does_not_depend_on_what_it_printed(code: ExitCode) -> None:
    outcome = StageOutcome(code, "the reason")
    said = {
        explain("train@ct", 255, outcome, (), [words(seed)]).splitlines()[0] for seed in range(5)
    }
    assert len(said) == 1


def test_words_of_a_stage_are_no_report_of_dvc() -> None:
    assert {read_event(words(seed)) for seed in range(100)} == {None}


@pytest.mark.parametrize("code", [code for code in ExitCode if code])
def test_the_root_cause_of_a_lost_training_follows_exit_codes(code: ExitCode) -> None:
    lost = ExitCode.LOST_PEER
    found = {
        root_cause_rank(
            {
                0: RankFailure(lost, StageOutcome(lost, words(seed)), [words(seed + 1)]),
                1: RankFailure(code, StageOutcome(code, words(seed + 2)), [words(seed + 3)]),
            }
        )
        for seed in range(5)
    }
    assert found == {0 if code == lost else 1}
