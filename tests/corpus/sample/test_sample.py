"""The embedded corpus: reproducible, large and varied enough, not answerable without images."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from stages.core.errors import InputError
from stages.core.params import load_params
from stages.corpus.archives.source import open_corpus
from stages.corpus.dataset.paths import IMAGES, QUESTIONS
from stages.corpus.images.decoding import ImageError, decode
from stages.corpus.quarantine.ledger import Row, tally
from stages.corpus.quarantine.limits import check_refused
from stages.corpus.records.records import Reading, Record, read_record_files
from stages.corpus.sample import build as sample
from stages.corpus.sample.phantoms import QUESTIONS as WORDINGS
from stages.corpus.sample.phantoms import VISUAL
from stages.taxonomy import MODALITIES, QUESTION_TYPES
from tests.conftest import ROOT, resize_settings
from tests.corpus.raw_archives import LIMITS

COMMITTED = ROOT / sample.DEFAULT_OUT
ASKED = {wording: asked for asked, wordings in WORDINGS.items() for wording in wordings}


@pytest.fixture(scope="module")
def reading() -> Reading:
    with open_corpus(COMMITTED, LIMITS) as archive:
        return read_record_files(
            archive.read(name for name in archive.names if name.startswith(QUESTIONS))
        )


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    with open_corpus(COMMITTED, LIMITS) as archive:
        return dict(archive.read(name for name in archive.names if name.startswith(IMAGES)))


def test_the_committed_archive_is_made_again_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample", "--out", str(tmp_path / "again.zip")])
    sample.main()
    again, committed = ((tmp_path / "again.zip").read_bytes(), COMMITTED.read_bytes())
    assert hashlib.sha256(again).hexdigest() == hashlib.sha256(committed).hexdigest()
    assert len(committed) <= 8_000_000


def test_it_is_large_enough_and_every_modality_is_asked_every_type(
    reading: Reading, images: dict[str, bytes]
) -> None:
    assert len(images) >= 600
    assert len(reading.records) >= 2400
    assert len({record.dataset for record in reading.records}) >= 14
    cells = Counter((record.modality, record.question_type) for record in reading.records)
    assert set(cells) == {(slug, kind) for slug in MODALITIES for kind in QUESTION_TYPES}
    assert min(cells.values()) >= 50


def test_questions_have_two_three_and_four_options(reading: Reading) -> None:
    assert {len(record.options) for record in reading.records} == {2, 3, 4}


def test_it_says_that_it_shows_no_patients() -> None:
    with open_corpus(COMMITTED, LIMITS) as archive:
        ((_, text),) = archive.read(["README.txt"])
    assert b"NOT FOR CLINICAL USE" in text
    assert all(name.startswith("Phantom ") for name, _, _ in sample.SETS)


def test_names_hold_what_path_handling_trips_over(images: dict[str, bytes]) -> None:
    for part in (2, 1):
        names = {name.split("/")[part] for name in images}
        for odd in (" ", "[", "("):
            assert any(odd in name for name in names)
        assert any(not name.isascii() for name in names)


def test_images_are_of_every_kind_and_shape(images: dict[str, bytes]) -> None:
    kinds, ratios = set(), []
    for content in images.values():
        try:
            decoded = decode(content, resize_settings(size=16, resample="nearest"))
        except ImageError:
            continue
        opened = Image.open(BytesIO(content))
        kinds.add((opened.format, decoded.mode, opened.getexif().get(ExifTags.Base.Orientation)))
        ratios.append(decoded.width / decoded.height)
        assert 96 <= min(decoded.width, decoded.height) <= max(decoded.width, decoded.height) <= 224
    wanted = {("JPEG", mode, None) for mode in ("RGB", "L", "CMYK")} | {
        ("JPEG", "RGB", turned) for turned in (3, 6, 8)
    }
    wanted |= {("PNG", mode, None) for mode in ("P", "L", "I;16", "RGBA", "LA")} | {
        ("TIFF", "RGB", None),
        ("BMP", "P", None),
    }
    assert kinds == wanted
    assert min(ratios) < 0.7
    assert max(ratios) > 1.45


def test_what_is_broken_is_refused_for_its_own_reason(
    reading: Reading, images: dict[str, bytes]
) -> None:
    reasons = sorted(row.why.split(" [")[0] for row in reading.rows)
    assert reasons == [
        "gt_answer is missing",
        "gt_answer is none of the options",
        "not a JSON file that can be parsed",
        "question is empty",
        "two options are the same",
        "unknown modality_type",
        "unknown question_type",
    ]
    assert len({record.image_path for record in reading.records} - set(images)) == 1
    bad = []
    for content in images.values():
        try:
            decode(content, resize_settings(size=16, resample="nearest"))
        except ImageError as error:
            bad.append(str(error).partition(":")[0].partition(" (")[0])
    assert sorted(bad) == [
        "not an image of a known format",
        "the file is empty",
        "truncated or damaged",
    ]


def test_what_is_broken_is_less_than_stops_a_run_and_much_more_of_a_set_is_not(
    reading: Reading,
) -> None:
    limits = load_params(ROOT / "params.yaml").quarantine

    def check(rows: list[Row]) -> None:
        kept = [record.dataset for record in reading.records]
        check_refused(
            tally("download", len(kept) + len(rows), kept, rows),
            limits,
            Path("q.parquet"),
            "the sample",
        )

    check(reading.rows)
    with pytest.raises(InputError, match="of 'Phantom Brain MRI' 200 of"):
        check(
            [
                *reading.rows,
                *(reading.rows[0]._replace(dataset="Phantom Brain MRI") for _ in range(200)),
            ]
        )


def test_at_least_half_of_the_questions_need_the_image(reading: Reading) -> None:
    visual = [record for record in reading.records if ASKED[record.question] in VISUAL]
    assert len(visual) >= len(reading.records) / 2


@pytest.mark.parametrize("asked", sorted(VISUAL))
def test_counting_option_texts_stays_at_chance_where_the_image_is_needed(
    reading: Reading, asked: str
) -> None:
    learnt, tested = halves(reading.records)
    questions = [record for record in tested if ASKED[record.question] == asked]
    chance = np.mean([1 / len(record.options) for record in questions])
    assert (
        abs(np.mean([count_rule(learnt, record) == record.gold for record in questions]) - chance)
        < 0.08
    )


def test_counting_option_texts_beats_chance_elsewhere_as_in_omnimedvqa(reading: Reading) -> None:
    learnt, tested = halves(reading.records)
    questions = [record for record in tested if ASKED[record.question] not in VISUAL]
    assert np.mean([count_rule(learnt, record) == record.gold for record in questions]) > 0.8


def halves(
    records: Iterable[Record],
) -> tuple[dict[str, tuple[Counter[str], Counter[str]]], list[Record]]:
    """(modality -> how often each text was gold, and offered, in a random half; the other half)."""
    rng = np.random.default_rng(0)
    learnt: dict[str, tuple[Counter[str], Counter[str]]] = {
        slug: (Counter(), Counter()) for slug in MODALITIES
    }
    tested = []
    for record in records:
        if rng.random() < 0.5:
            tested.append(record)
            continue
        gold, offered = learnt[record.modality]
        gold[record.options["ABCD".index(record.gold)]] += 1
        offered.update(record.options)
    return learnt, tested


def count_rule(learnt: dict[str, tuple[Counter[str], Counter[str]]], record: Record) -> str:
    """The letter whose text was gold most often, of the times it was offered."""
    gold, offered = learnt[record.modality]
    shares = [(gold[text] + 0.25) / (offered[text] + 1) for text in record.options]
    return "ABCD"[shares.index(max(shares))]
