"""Stage resize: one PNG for each image, and what becomes of the records of a bad one."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages import download, resize
from stages.core import layout
from stages.core.errors import ExitCode, InputError
from stages.core.outputs import read_json_lines, write_json_lines
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.dataset.image_store import open_image, read_image
from stages.corpus.images.hashes import perceptual_hash, pixel_hash
from stages.corpus.quarantine.ledger import Counts, read_quarantine
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import MakeCorpus, MakeRecord, Raw, RunStage, change_params, image


def resized(slug: str = "ct") -> list[Raw]:
    return list(read_json_lines(layout.records(slug), ""))


def test_a_record_gets_a_square_rgb_image_that_opens_and_the_facts_of_its_source(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = make_record(image_path="Images/Röntgen [AP] (1)/a b.JPG", source="kept")
    make_corpus([record], {record["image_path"]: image("JPEG", (30, 20))})
    run(download)
    run(resize, "ct")
    resized_to = "data/images/ct/Röntgen [AP] (1)/a b.JPG.png"
    with Image.open(BytesIO(read_image(resized_to))) as opened:
        hashes = {"pixel_hash": pixel_hash(opened), "perceptual_hash": perceptual_hash(opened)}
        assert resized() == [
            record
            | {
                "image": resized_to,
                "source_size": [30, 20],
                "source_mode": "L",
                "brightness": [90.0, 0.0],
            }
            | hashes
        ]
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (384, 384))
    assert (
        "resize ct: read 1 records of 1 images (1 of them decoded), kept 1, quarantined 0"
        in capsys.readouterr().out
    )


def test_images_whose_names_differ_in_the_suffix_only_stay_apart(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    names = [f"Images/a{suffix}" for suffix in (".jpg", ".bmp", ".png", ".jpg.png", "")]
    levels = {name: 40 * number for number, name in enumerate(names)}
    files = {}
    for name, level in levels.items():
        buffer = BytesIO()
        Image.new("L", (8, 8), level).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    make_corpus([make_record(question_id=name, image_path=name) for name in names], files)
    run(download)
    run(resize, "ct")
    for record in resized():
        assert np.asarray(open_image(record["image"])).max() == levels[record["image_path"]]


def test_an_image_of_many_questions_is_written_once(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record(question_id=str(number)) for number in range(5)])
    run(download)
    run(resize, "ct")
    assert {record["image"] for record in resized()} == {"data/images/ct/Chest CT Scan/a.png.png"}
    (shard,) = layout.images("ct").iterdir()
    with zipfile.ZipFile(shard) as archive:
        assert archive.namelist() == ["Chest CT Scan/a.png.png"]


@pytest.mark.parametrize(
    ("content", "why", "reason"),
    [
        (image("JPEG", (200, 200))[:-300], "truncated or damaged", Reason.IMAGE_DAMAGED),
        (b"This is a text.", "not an image of a known format", Reason.IMAGE_FORMAT),
        (b"", "the file is empty", Reason.IMAGE_EMPTY),
    ],
)
def test_each_record_of_a_bad_image_goes_to_quarantine(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    content: bytes,
    why: str,
    reason: Reason,
) -> None:
    bad: list[dict[str, Any]] = [
        make_record(question_id=name, image_path="Images/bad.jpg") for name in ("a", "b")
    ]
    make_corpus([*bad, make_record(question_id="c")], {"Images/bad.jpg": content})
    run(download)
    run(resize, "ct")
    account = read_quarantine(layout.QUARANTINE / "resize" / "ct.parquet")
    assert (account.stage, account.read, account.kept) == ("resize@ct", 3, 1)
    places = [
        f"data/corpus/ct/records.jsonl, line {line} ({name})" for line, name in ((1, "a"), (2, "b"))
    ]
    assert [str(row.where) for row in account.rows] == places
    assert all(
        (row.what, row.reason) == ("Images/bad.jpg", reason) and why in row.why
        for row in account.rows
    )
    assert [record["question_id"] for record in resized()] == ["c"]


def test_too_many_bad_images_of_a_set_stop_and_the_account_can_be_read(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    bad = [
        make_record(question_id=f"bad{number}", dataset="Torn", image_path="Images/bad.jpg")
        for number in range(6)
    ]
    good = [make_record(question_id=f"good{number}") for number in range(200)]
    make_corpus([*bad, *good], {"Images/bad.jpg": image("JPEG", (200, 200))[:-300]})
    run(download)
    with pytest.raises(
        InputError,
        match=(
            r"resize@ct refused .*: 6 of 6 records \(100\.0%\) of 'Torn'.* 6 image-damaged"
            r" \('Images/bad\.jpg' in QA_information/Open-access/[^/]*\.json#0"
            r".*data/quarantine/resize/ct\.parquet"
        ),
    ):
        run(resize, "ct")
    account = read_quarantine(layout.QUARANTINE / "resize" / "ct.parquet")
    assert account.sets == {"Chest CT Scan": Counts(200, 200), "Torn": Counts(6, 0)}
    assert {row.reason for row in account.rows} == {Reason.IMAGE_DAMAGED}
    change_params("quarantine", sets={"Torn": 1.0})
    run(resize, "ct")
    assert len(resized()) == 200


def test_the_account_says_where_it_comes_from(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record()])
    run(download)
    run(resize, "ct")
    facts = json.loads(
        pq.read_schema(layout.QUARANTINE / "resize" / "ct.parquet").metadata[b"provenance"]
    )
    assert facts == collect_provenance(
        {name: getattr(load_params(), name) for name in ("resize", "dicom", "volume")}
    )


def test_a_modality_without_records_gives_an_empty_folder_and_list(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record()])
    run(download)
    run(resize, "mri")
    assert resized("mri") == []
    assert list(layout.images("mri").iterdir()) == []


def test_two_runs_give_the_same_bytes(
    run: RunStage, make_corpus: MakeCorpus, full_records: list[Raw]
) -> None:
    make_corpus(full_records)
    run(download)
    first: dict[str, bytes] = {}
    for made_anew in (True, False, True):
        if made_anew:
            shutil.rmtree(resize.CACHE, ignore_errors=True)
        run(resize, "ct")
        found = {
            str(path): path.read_bytes()
            for path in [layout.records("ct"), *layout.images("ct").iterdir()]
        }
        assert len(found) > 1
        assert found == (first or found)
        first = found


def test_an_unknown_modality_is_refused_with_the_known_ones(
    run: RunStage, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(resize, "pet")
    assert caught.value.code == ExitCode.USAGE
    assert re.search(r"'pet'.*'ct', 'mri', .*'microscopy'", capsys.readouterr().err)


@pytest.mark.usefixtures("project")
def test_without_download_the_remedy_is_named(run: RunStage) -> None:
    with pytest.raises(
        InputError, match=r"data/corpus/ct/records\.jsonl is missing: run `dvc repro download`"
    ):
        run(resize, "ct")


@pytest.mark.parametrize(
    "entry",
    [{}, {"file": "a.png"}, {"file": "a.png", "sha256": "x"}, {"file": "a.png", "sha256": 3}],
)
def test_a_line_without_an_image_file_and_its_hash_is_named(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord, entry: Raw
) -> None:
    make_corpus([make_record()])
    run(download)
    write_json_lines(
        layout.corpus_images("ct"), [*read_json_lines(layout.corpus_images("ct"), ""), entry]
    )
    with pytest.raises(
        InputError, match=r"data/corpus/ct/images\.jsonl, line 2\b.*`dvc repro download`"
    ):
        run(resize, "ct")


@pytest.mark.parametrize(
    ("changed", "why"), [(image(size=(9, 9)), "has other bytes"), (None, "is missing")]
)
def test_a_corpus_that_is_not_the_one_download_read_is_named_and_nothing_is_written(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord, changed: bytes | None, why: str
) -> None:
    make_corpus([make_record()])
    run(download)
    make_corpus([make_record()], {"Images/Chest CT Scan/a.png": changed, "Images/other.png": b""})
    said = (
        rf"corpus\.zip: 'Images/Chest CT Scan/a\.png' {why}: the corpus has changed .*dvc repro"
        r" -f download"
    )
    with pytest.raises(InputError, match=said):
        run(resize, "ct")
    assert not layout.images("ct").exists()
    assert not layout.records("ct").exists()


def test_an_image_that_was_damaged_since_it_was_hashed_goes_to_quarantine(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    path = make_corpus(
        [make_record(question_id="a", image_path="Images/bad.png"), make_record(question_id="b")]
    )
    run(download)
    content = bytearray(path.read_bytes())
    content[content.index(image()) + 20] ^= 1
    path.write_bytes(content)
    run(download)  # no wiser: the zip says that nothing has changed
    run(resize, "ct")
    (row,) = read_quarantine(layout.QUARANTINE / "resize" / "ct.parquet").rows
    assert row.reason == Reason.IMAGE_DAMAGED
    assert "Images/bad.png cannot be read from the corpus: bad CRC-32" in row.why


def test_without_the_corpus_the_remedy_is_named(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    path = make_corpus([make_record()])
    run(download)
    path.unlink()
    with pytest.raises(
        InputError,
        match=r"data/raw/corpus\.zip \(corpus\.archive\).* is missing.*`dvc pull data\.dvc`",
    ):
        run(resize, "ct")
