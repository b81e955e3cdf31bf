"""Stage download: the archive's records and pictures by modality, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages import download, layout
from stages.corpus.modalities import MODALITIES
from stages.corpus.quarantine import read_quarantine
from stages.errors import InputError
from stages.params import load_params
from stages.provenance import provenance
from tests.conftest import MakeCorpus, MakeRecord, Raw, RunStage, change_params, picture

ACCOUNT = layout.QUARANTINE / "download.parquet"


def kept(slug: str) -> list[Raw]:
    found: list[Raw] = json.loads((layout.corpus(slug) / "records.json").read_text(encoding="utf-8"))
    return found


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(layout.DATA.rglob("*")) if path.is_file() and "raw" not in path.parts}


def test_records_and_only_the_pictures_they_name_lie_by_modality(run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord) -> None:
    ct = [make_record(question_id=name, source="kept") for name in ("b", "a")]
    oct_ = make_record(question_id="c", modality_type=MODALITIES["oct"], image_path="Images/Ö [1]/x y.tif")
    make_corpus([*ct, oct_], {"Images/unnamed.png": b"", "QA_information/Restricted-access/x.json": b"["})
    run(download)
    assert kept("ct") == ct[::-1]
    assert kept("oct") == [oct_]
    pictures = {str(path) for path in layout.DATA.rglob("Images/**/*") if path.is_file()}
    assert pictures == {"data/corpus/ct/Images/Chest CT Scan/a.png", "data/corpus/oct/Images/Ö [1]/x y.tif"}
    assert (layout.corpus("oct") / oct_["image_path"]).read_bytes() == picture()
    assert all(kept(slug) == [] for slug in MODALITIES if slug not in ("ct", "oct"))


def test_two_runs_give_the_same_bytes(run: RunStage, make_corpus: MakeCorpus, full_records: list[Raw]) -> None:
    make_corpus([*full_records, None])
    run(download)
    first = tree()
    run(download)
    assert tree() == first


def test_a_file_left_by_an_earlier_corpus_is_gone(run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord) -> None:
    make_corpus([make_record(image_path="Images/old.png")])
    run(download)
    make_corpus([make_record(image_path="Images/new.png")])
    run(download)
    assert [path.name for path in (layout.corpus("ct") / "Images").iterdir()] == ["new.png"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"gt_answer": None}, "gt_answer is missing"),
        ({"gt_answer": "x"}, "gt_answer is none of the options"),
        ({"option_A": "Nodule"}, "two options are the same"),
        ({"modality_type": "CT"}, "unknown modality_type"),
        ({"question_type": "?"}, "unknown question_type"),
        ({"question": ""}, "question is empty"),
        ({"question_id": "good"}, "question_id stands twice"),
        ({"image_path": "/etc/passwd"}, "image_path is an absolute path"),
        ({"image_path": "Images/../../x.png"}, "image_path is a path that leads out"),
        ({"image_path": "Images/missing.png"}, "the image is not in the archive"),
    ],
)
def test_a_bad_record_goes_to_quarantine_and_the_good_one_is_kept(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord, capsys: pytest.CaptureFixture[str], bad: dict[str, Any], why: str
) -> None:
    good, other = make_record(question_id="good"), make_record(**({"question_id": "bad"} | bad))
    make_corpus([good], {"QA_information/Open-access/T.json": json.dumps([other]).encode()})
    run(download)
    account = read_quarantine(ACCOUNT)
    assert (account.stage, account.read, account.kept) == ("download", 2, 1)
    (row,) = account.rows
    assert str(row.where) == f"QA_information/Open-access/T.json#0 ({other['question_id']})"
    assert why in row.why
    assert kept("ct") == [good]
    assert "download: read 2 records, kept 1, quarantined 1" in capsys.readouterr().out


def test_the_account_says_where_it_comes_from(run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord) -> None:
    make_corpus([make_record()])
    run(download)
    facts = json.loads(pq.read_schema(ACCOUNT).metadata[b"provenance"])
    assert facts == provenance({"corpus": load_params().corpus})


def test_a_question_file_that_is_cut_short_is_one_row(run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord) -> None:
    make_corpus([make_record()], {"QA_information/Open-access/Cut.json": b'[{"dataset"'})
    run(download)
    account = read_quarantine(ACCOUNT)
    assert (account.read, account.kept, str(account.rows[0].where)) == (2, 1, "QA_information/Open-access/Cut.json")


def test_no_archive_is_refused_with_the_way_to_get_it(run: RunStage, project: Path) -> None:
    with pytest.raises(InputError, match=r"data/raw/corpus\.zip .*is missing: run `dvc repro`, or `dvc pull data\.dvc`"):
        run(download)
    assert not layout.DATA.exists()


def test_a_file_that_is_no_archive_is_refused(run: RunStage, project: Path) -> None:
    path = project / "data/raw/corpus.zip"
    path.parent.mkdir(parents=True)
    path.write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")
    with pytest.raises(InputError, match=r"data/raw/corpus\.zip is not a whole zip"):
        run(download)


def test_a_corpus_without_a_usable_record_is_refused_and_accounted_for(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record(gt_answer=None), {}])
    with pytest.raises(InputError, match=r"no usable record: 2 read, all refused; data/quarantine/download\.parquet says why"):
        run(download)
    assert len(read_quarantine(ACCOUNT).rows) == 2
    assert not layout.corpus("ct").exists()


def test_too_much_refused_of_one_source_set_stops_and_the_account_can_be_read(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    torn = [make_record(question_id=f"torn{number}", dataset="Torn", gt_answer="?" if number < 6 else "Nodule") for number in range(20)]
    good = [make_record(question_id=f"good{number}") for number in range(200)]
    make_corpus([*torn, *good])
    with pytest.raises(
        InputError,
        match=r"data/raw/corpus\.zip: too much was refused by download: of 'Torn' 6 of 20 records \(30\.0%\) .* 6 answer-not-offered "
        r"\('\?' in QA_information.*quarantine\.max_refused_share_of_set allows 20\.0%\. data/quarantine/download\.parquet holds",
    ):
        run(download)
    assert len(read_quarantine(ACCOUNT).rows) == 6
    assert not layout.corpus("ct").exists()
    change_params("quarantine", max_refused_share_of_set=0.3)
    run(download)
    assert len(kept("ct")) == 214


def test_too_small_a_disk_is_found_before_anything_is_unpacked(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus([make_record()])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(InputError, match="MiB unpacked, data/ has 0 MiB free: free some space"):
        run(download)
    assert not layout.corpus("ct").exists()
