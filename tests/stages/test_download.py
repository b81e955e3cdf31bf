"""Stage download: the archive's records and images by modality, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages import download
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import read_json_lines
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.archives.source import Corpus
from stages.corpus.quarantine.ledger import read_quarantine
from tests.conftest import MakeCorpus, MakeRecord, Raw, RunStage, change_params, image
from tests.corpus.raw_archives import write
from tests.omnimedvqa import MODALITIES

ACCOUNT = layout.QUARANTINE / "download.parquet"


def kept(slug: str) -> list[Raw]:
    return list(read_json_lines(layout.corpus_records(slug), ""))


def tree() -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in sorted(layout.DATA.rglob("*"))
        if path.is_file() and "raw" not in path.parts
    }


def images(slug: str) -> dict[str, dict[str, Any]]:
    return {entry.pop("file"): entry for entry in read_json_lines(layout.corpus_images(slug), "")}


def facts(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_records_and_the_hashes_of_only_the_images_they_name_lie_by_modality(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    ct = [make_record(question_id=name, source="kept") for name in ("b", "a")]
    oct_ = make_record(
        question_id="c", modality_type=MODALITIES["oct"], image_path="Images/Ö [1]/x y.tif"
    )
    make_corpus(
        [*ct, oct_], {"Images/unnamed.png": b"", "QA_information/Restricted-access/x.json": b"["}
    )
    run(download)
    assert kept("ct") == ct[::-1]
    assert kept("oct") == [oct_]
    assert images("ct") == {"Images/Chest CT Scan/a.png": facts(image())}
    assert images("oct") == {"Images/Ö [1]/x y.tif": facts(image())}
    assert all(
        kept(slug) == [] and images(slug) == {} for slug in MODALITIES if slug not in ("ct", "oct")
    )
    assert sorted(path.name for path in layout.corpus("ct").iterdir()) == [
        "images.jsonl",
        "records.jsonl",
    ], "no image is copied"


@pytest.mark.parametrize("kind", ["c.tar", "c.tar.gz", "c.tar.zst", "c"])
def test_every_kind_of_source_gives_the_same(
    run: RunStage, make_corpus: MakeCorpus, full_records: list[Raw], kind: str, project: Path
) -> None:
    with zipfile.ZipFile(make_corpus(full_records)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    run(download)
    first = {path: content for path, content in tree().items() if "quarantine" not in path}
    write(project / kind, files, "")
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(
        text.replace("archive: data/raw/corpus.zip", f"archive: {kind}"), encoding="utf-8"
    )
    run(download)
    assert {path: content for path, content in tree().items() if "quarantine" not in path} == first


def test_two_runs_give_the_same_bytes(
    run: RunStage, make_corpus: MakeCorpus, full_records: list[Raw]
) -> None:
    make_corpus([*full_records, None])
    run(download)
    first = tree()
    run(download)
    assert tree() == first


def test_a_file_left_by_an_earlier_corpus_is_gone(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record(image_path="Images/old.png")])
    run(download)
    make_corpus([make_record(image_path="Images/new.png")])
    run(download)
    assert list(images("ct")) == ["Images/new.png"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"gt_answer": None}, "gt_answer is missing"),
        ({"gt_answer": "x"}, "gt_answer is none of the options"),
        ({"option_A": "Nodule"}, "two options are the same"),
        ({"modality_type": "CT"}, "unknown modality_type"),
        ({"question_type": "?"}, "unknown question_type"),
        ({"question": ""}, "question is empty"),
        ({"question_id": "good"}, "duplicate question_id"),
        ({"image_path": "/etc/passwd"}, "image_path is an absolute path"),
        ({"image_path": "Images/../../x.png"}, "image_path is a path that leads out"),
        ({"image_path": "Images/missing.png"}, "the image is not in the corpus"),
    ],
)
def test_a_bad_record_goes_to_quarantine_and_the_good_one_is_kept(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
    bad: dict[str, Any],
    why: str,
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


def test_the_account_says_where_it_comes_from(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record()])
    run(download)
    facts = json.loads(pq.read_schema(ACCOUNT).metadata[b"provenance"])
    assert facts == collect_provenance({"corpus": load_params().corpus})


def test_a_question_file_that_is_cut_short_is_one_row(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record()], {"QA_information/Open-access/Cut.json": b'[{"dataset"'})
    run(download)
    account = read_quarantine(ACCOUNT)
    assert (account.read, account.kept, str(account.rows[0].where)) == (
        2,
        1,
        "QA_information/Open-access/Cut.json",
    )


def test_no_archive_is_refused_with_the_way_to_get_it(run: RunStage, project: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"data/raw/corpus\.zip .*is missing: run `dvc repro`, or `dvc pull data\.dvc`",
    ):
        run(download)
    assert not layout.DATA.exists()


def test_a_file_that_is_no_archive_is_refused(run: RunStage, project: Path) -> None:
    path = project / "data/raw/corpus.zip"
    path.parent.mkdir(parents=True)
    path.write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")
    with pytest.raises(InputError, match=r"data/raw/corpus\.zip is not a complete zip"):
        run(download)


def test_a_corpus_without_a_usable_record_is_refused_and_accounted_for(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record(gt_answer=None), {}])
    with pytest.raises(
        InputError,
        match=r"no usable record: 2 read, all refused; see data/quarantine/download\.parquet",
    ):
        run(download)
    assert len(read_quarantine(ACCOUNT).rows) == 2
    assert not layout.corpus("ct").exists()


def test_too_much_refused_of_one_source_set_stops_and_the_account_can_be_read(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    torn = [
        make_record(
            question_id=f"torn{number}", dataset="Torn", gt_answer="?" if number < 6 else "Nodule"
        )
        for number in range(20)
    ]
    good = [make_record(question_id=f"good{number}") for number in range(200)]
    make_corpus([*torn, *good])
    with pytest.raises(
        InputError,
        match=(
            r"data/raw/corpus\.zip: .*6 of 20 records \(30\.0%\) of 'Torn'"
            r".*quarantine\.max_refused_share_of_set allows 20\.0%"
            r".* 6 answer-not-offered \('\?' in QA_information.*data/quarantine/download\.parquet"
        ),
    ):
        run(download)
    assert len(read_quarantine(ACCOUNT).rows) == 6
    assert not layout.corpus("ct").exists()
    change_params("quarantine", max_refused_share_of_set=0.3)
    run(download)
    assert len(kept("ct")) == 214


def damage(path: Path, content: bytes) -> None:
    """Change these bytes, which are stored as they are, so that their CRC-32 tells."""
    whole = path.read_bytes()
    assert content in whole
    path.write_bytes(whole.replace(content, content[:-1] + bytes([content[-1] ^ 1])))


def test_a_damaged_image_sends_its_records_to_quarantine_and_no_others(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    bad = [make_record(question_id=name, image_path="Images/bad.png") for name in ("a", "b")]
    path = make_corpus([*bad, make_record(question_id="c")], {"Images/bad.png": b"some image"})
    damage(path, b"some image")
    run(download)
    account = read_quarantine(ACCOUNT)
    assert (account.read, account.kept) == (3, 1)
    assert all(
        row.what == "Images/bad.png"
        and row.why == "the image cannot be read from the corpus: bad CRC-32"
        for row in account.rows
    )
    assert [record["question_id"] for record in kept("ct")] == ["c"]
    assert list(images("ct")) == ["Images/Chest CT Scan/a.png"]


def test_a_damaged_question_file_is_one_row(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    path = make_corpus(
        [make_record()], {"QA_information/Open-access/T.json": b'[{"x": 1}, {"x": 2}]'}
    )
    damage(path, b'[{"x": 1}, {"x": 2}]')
    run(download)
    account = read_quarantine(ACCOUNT)
    assert (account.read, account.kept) == (2, 1)
    (row,) = account.rows
    assert (str(row.where), row.what, row.why) == (
        "QA_information/Open-access/T.json",
        "bad CRC-32",
        "the file cannot be read from the corpus",
    )


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were read from the corpus."""
    names: list[str] = []
    fetch = Corpus.fetch

    def told(self: Corpus, name: str) -> bytes:
        names.append(name)
        return fetch(self, name)

    monkeypatch.setattr(Corpus, "fetch", told)
    return names


def test_of_a_corpus_that_grew_only_what_is_new_is_read(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord, read: list[str]
) -> None:
    records = [
        make_record(question_id=str(number), image_path=f"Images/{number}.png")
        for number in range(20)
    ]
    make_corpus(records[:18])
    run(download)
    assert len([name for name in read if name.startswith("Images/")]) == 18
    read.clear()
    make_corpus(records, {"Images/3.png": image(size=(5, 5))})
    run(download)
    assert sorted(name for name in read if name.startswith("Images/")) == [
        "Images/18.png",
        "Images/19.png",
        "Images/3.png",
    ]
    assert images("ct")["Images/3.png"] == facts(image(size=(5, 5)))
    with_memo = tree()
    download.HASH_CACHE.unlink()
    run(download)
    assert tree() == with_memo, "it is there to save time, and nothing else"


@pytest.mark.parametrize("how", ["cut", "changed", "empty", "gone"])
def test_a_damaged_memo_is_as_good_as_none(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord, read: list[str], how: str
) -> None:
    make_corpus([make_record()])
    run(download)
    content = download.HASH_CACHE.read_bytes()
    before = tree()
    if how == "gone":
        download.HASH_CACHE.unlink()
    else:
        changed = {
            "cut": content[:-40],
            "changed": content[:60] + bytes([content[60] ^ 1]) + content[61:],
            "empty": b"",
        }
        download.HASH_CACHE.write_bytes(changed[how])
    read.clear()
    run(download)
    assert "Images/Chest CT Scan/a.png" in read
    assert tree() == before


def test_images_are_hashed_in_memory_that_does_not_grow_with_their_number(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_IN_FLIGHT", 2 * 2**20)
    records = [
        make_record(question_id=str(number), image_path=f"Images/{number}.png")
        for number in range(60)
    ]
    make_corpus(records, {record["image_path"]: os.urandom(2**20) for record in records})
    tracemalloc.start()
    run(download)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
