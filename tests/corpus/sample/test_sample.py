"""The embedded corpus: reproducible, large and varied enough, not answerable without images."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from stages.core.params import load_params
from stages.corpus.archives.source import open_corpus
from stages.corpus.dataset.paths import IMAGES, QUESTIONS
from stages.corpus.images.decoding import ImageError, decode
from stages.corpus.quarantine.advice import remedy_of
from stages.corpus.quarantine.ledger import Row, tally
from stages.corpus.quarantine.limits import check_refused
from stages.corpus.quarantine.reasons import RefusedDataError
from stages.corpus.records.records import Reading, Record, read_record_files
from stages.corpus.sample import build as sample
from stages.corpus.sample import volumes
from stages.corpus.sample.phantoms import QUESTIONS as WORDINGS
from stages.corpus.sample.phantoms import VISUAL
from tests.conftest import ROOT, resize_settings
from tests.corpus.raw_archives import LIMITS
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES, TAXONOMY

COMMITTED = ROOT / sample.DEFAULT_OUT
ATTRIBUTE_OF: dict[str, str] = {}
for _attribute, _wordings in WORDINGS.items():
    ATTRIBUTE_OF.update(dict.fromkeys(_wordings, _attribute))
"""Wording of a question -> attribute it asks for."""

GoldAndOffered = tuple[Counter[str], Counter[str]]
"""How often each option text was gold, and offered."""


@pytest.fixture(scope="module")
def reading() -> Reading:
    with open_corpus(COMMITTED, LIMITS) as archive:
        return read_record_files(archive.read(of_single_images(archive.names, QUESTIONS)), TAXONOMY)


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    with open_corpus(COMMITTED, LIMITS) as archive:
        return dict(archive.read(of_single_images(archive.names, IMAGES)))


def of_single_images(names: Iterable[str], top: str) -> list[str]:
    """Files below a folder without those of series and follow-ups (test_volumes.py)."""
    others = tuple(f"{top}{name}" for name in volumes.SETS)
    return [name for name in names if name.startswith(top) and not name.startswith(others)]


def test_a_build_reproduces_the_committed_archive_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample", "--out", str(tmp_path / "again.zip")])
    sample.main()
    built = (tmp_path / "again.zip").read_bytes()
    committed = COMMITTED.read_bytes()
    assert hashlib.sha256(built).hexdigest() == hashlib.sha256(committed).hexdigest()
    assert len(committed) <= 8_000_000


def test_it_is_large_enough_and_has_every_type_of_question_about_every_modality(
    reading: Reading, images: dict[str, bytes]
) -> None:
    assert len(images) >= 600
    assert len(reading.records) >= 2400
    assert len({record.dataset for record in reading.records}) >= 14
    cells = Counter((record.modality, record.question_type) for record in reading.records)
    assert set(cells) == set(product(MODALITIES, QUESTION_TYPES))
    assert min(cells.values()) >= 50


def test_questions_have_two_three_and_four_options(reading: Reading) -> None:
    assert {len(record.options) for record in reading.records} == {2, 3, 4}


def test_the_readme_excludes_clinical_use_and_sets_are_named_phantoms() -> None:
    with open_corpus(COMMITTED, LIMITS) as archive:
        ((_, text),) = archive.read(["README.txt"])
    assert b"NOT FOR CLINICAL USE" in text
    assert all(name.startswith("Phantom ") for name, _, _ in sample.SETS)


def test_file_names_are_hard_on_path_handling(images: dict[str, bytes]) -> None:
    for part in (2, 1):
        names = {name.split("/")[part] for name in images}
        for odd in (" ", "[", "("):
            assert any(odd in name for name in names)
        assert any(not name.isascii() for name in names)


def test_images_are_of_every_kind_and_shape(images: dict[str, bytes]) -> None:
    kinds = set()
    ratios = []
    for content in images.values():
        try:
            decoded = decode(content, resize_settings(size=16, resample="nearest"))
        except ImageError:
            continue
        opened = Image.open(BytesIO(content))
        kinds.add((opened.format, decoded.mode, opened.getexif().get(ExifTags.Base.Orientation)))
        ratios.append(decoded.width / decoded.height)
        assert 96 <= min(decoded.width, decoded.height) <= max(decoded.width, decoded.height) <= 224
    assert kinds == {
        *(("JPEG", mode, None) for mode in ("RGB", "L", "CMYK")),
        *(("JPEG", "RGB", orientation) for orientation in (3, 6, 8)),
        *(("PNG", mode, None) for mode in ("P", "L", "I;16", "RGBA", "LA")),
        ("TIFF", "RGB", None),
        ("BMP", "P", None),
    }
    assert min(ratios) < 0.7
    assert max(ratios) > 1.45


def test_each_broken_record_and_image_is_refused_for_its_own_reason(
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


def test_broken_records_are_within_the_limits_and_many_more_of_one_set_are_not(
    reading: Reading,
) -> None:
    limits = load_params(ROOT / "params.yaml").quarantine

    def check(rows: list[Row]) -> None:
        datasets = [record.dataset for record in reading.records]
        counts = tally("download", len(datasets) + len(rows), datasets, rows)
        check_refused(counts, limits, Path("q.parquet"), "the sample", remedy_of)

    check(reading.rows)
    more = [reading.rows[0]._replace(dataset="Phantom Brain MRI")] * 200
    with pytest.raises(RefusedDataError, match="'Phantom Brain MRI'"):
        check([*reading.rows, *more])


def test_at_least_half_of_the_questions_need_the_image(reading: Reading) -> None:
    visual = [record for record in reading.records if ATTRIBUTE_OF[record.question] in VISUAL]
    assert len(visual) >= len(reading.records) / 2


@pytest.mark.parametrize("attribute", sorted(VISUAL))
def test_counting_option_texts_stays_at_chance_where_the_image_is_needed(
    reading: Reading, attribute: str
) -> None:
    counts, test = halves(reading.records)
    questions = [record for record in test if ATTRIBUTE_OF[record.question] == attribute]
    chance = np.mean([1 / len(record.options) for record in questions])
    assert abs(accuracy(counts, questions) - chance) < 0.08


def test_counting_option_texts_beats_chance_elsewhere_as_in_omnimedvqa(reading: Reading) -> None:
    counts, test = halves(reading.records)
    questions = [record for record in test if ATTRIBUTE_OF[record.question] not in VISUAL]
    assert accuracy(counts, questions) > 0.8


def halves(records: Iterable[Record]) -> tuple[dict[str, GoldAndOffered], list[Record]]:
    """(modality -> counts of a random half; the other half)."""
    rng = np.random.default_rng(0)
    counts: dict[str, GoldAndOffered] = {slug: (Counter(), Counter()) for slug in MODALITIES}
    test = []
    for record in records:
        if rng.random() < 0.5:
            test.append(record)
            continue
        gold, offered = counts[record.modality]
        gold[record.options["ABCD".index(record.gold)]] += 1
        offered.update(record.options)
    return counts, test


def accuracy(counts: dict[str, GoldAndOffered], questions: Iterable[Record]) -> float:
    """Of the blind rule that picks the text that was gold most often when offered."""
    return float(np.mean([most_often_gold(counts, record) == record.gold for record in questions]))


def most_often_gold(counts: dict[str, GoldAndOffered], record: Record) -> str:
    """The letter of the text that was gold most often, relative to the times it was offered."""
    gold, offered = counts[record.modality]
    shares = [(gold[text] + 0.25) / (offered[text] + 1) for text in record.options]
    return "ABCD"[shares.index(max(shares))]
