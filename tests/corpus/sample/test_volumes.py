"""Series, follow-ups and indications of the sample: each answer lies in one place, and only there.

A shortcut is a rule that looks at less than a question shows. It is given the true side of every
lesion, so that it fails for lack of what it does not look at, and not for lack of eyes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from stages.core.params import load_params
from stages.corpus.archives.source import open_corpus
from stages.corpus.dataset.paths import IMAGES, QUESTIONS
from stages.corpus.dicom.series import read_series
from stages.corpus.images.hashes import perceptual_hash
from stages.corpus.records.records import read_record_files
from stages.corpus.sample import build as sample
from stages.corpus.sample import volumes
from stages.corpus.sample.phantoms import SIDES, Phantom, sample_phantom
from stages.corpus.splitting.near_pairs import near_pairs
from tests.conftest import ROOT
from tests.corpus.raw_archives import LIMITS
from tests.omnimedvqa import TAXONOMY

PARAMS = load_params(ROOT / "params.yaml")
OTHER = dict(zip(SIDES, reversed(SIDES), strict=True))

Corpus = dict[str, bytes]
Pixels = NDArray[np.uint8]
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    with open_corpus(ROOT / sample.DEFAULT_OUT, LIMITS) as archive:
        return dict(archive.read(archive.names))


@pytest.fixture(scope="module")
def tables(corpus: Corpus) -> dict[str, Records]:
    return {name: json.loads(corpus[f"{QUESTIONS}{name}.json"]) for name in volumes.SETS}


@pytest.fixture(scope="module")
def series(corpus: Corpus, tables: dict[str, Records]) -> list[list[str | None]]:
    """Per series the side of the lesions in each slice, in the order of the reader; None: none."""
    return [
        [side_of(pixels, skull=True) for pixels in slices(corpus, record)]
        for record in tables[volumes.SERIES]
    ]


@pytest.fixture(scope="module")
def follow_ups(corpus: Corpus, tables: dict[str, Records]) -> list[list[str | None]]:
    """The same of each follow-up's images, in the order of the record."""
    return [
        [side_of(opened(corpus[path])) for path in record["images"]]
        for record in tables[volumes.FOLLOW_UP]
    ]


def golds(records: Records) -> list[str]:
    return [record["gt_answer"] for record in records]


def share(answers: list[str | None], records: Records) -> float:
    """Accuracy; a rule that sees no lesion says Left."""
    guesses = [answer or SIDES[0] for answer in answers]
    return float(np.mean([a == b for a, b in zip(guesses, golds(records), strict=True)]))


def slices(corpus: Mapping[str, bytes], record: dict[str, Any]) -> list[Pixels]:
    names = sorted(name for name in corpus if name.startswith(f"{record['image_path']}/"))
    image = read_series([corpus[name] for name in names], PARAMS.dicom)
    return [image.frames[number - 1] for number in record["slices"]]


def opened(content: bytes) -> Pixels:
    return np.asarray(Image.open(BytesIO(content)).convert("L"))


def side_of(pixels: Pixels, *, skull: bool = False) -> str | None:
    """The half of an image with the bright pixels of lesions, if it has any.

    Neither brain nor knee are that bright; a skull is, and what lies in it is looked at alone.
    """
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    height, width = grey.shape
    y, x = np.mgrid[:height, :width] + 0.5
    inside = ((x / width - 0.5) / 0.36) ** 2 + ((y / height - 0.5) / 0.41) ** 2 < 1
    bright = (grey > 190) & (inside if skull else True)
    counts = [int(half.sum()) for half in np.array_split(bright, 2, axis=1)]
    return None if max(counts) < 5 else SIDES[counts[1] > counts[0]]


def test_a_series_has_lesions_in_one_slice_on_each_side_and_in_each_place_equally_often(
    tables: dict[str, Records], series: list[list[str | None]]
) -> None:
    found: Counter[tuple[str, int]] = Counter()
    for sides, gold in zip(series, golds(tables[volumes.SERIES]), strict=True):
        assert sorted(map(str, sides)) == sorted([gold, "None", "None"])
        found[gold, sides.index(gold)] += 1
    assert len(found) == 2 * volumes.SLICES
    assert set(found.values()) == {volumes.VOLUMES // 6}


@pytest.mark.parametrize("place", range(volumes.SLICES))
def test_one_slice_of_a_series_answers_what_a_third_of_the_series_ask(
    place: int, tables: dict[str, Records], series: list[list[str | None]]
) -> None:
    answers = [sides[place] for sides in series]
    # of a third it shows the lesion, and of the rest a constant answer is right for half
    assert share(answers, tables[volumes.SERIES]) == pytest.approx(1 / 3 + 1 / 3)


def test_a_follow_up_ends_on_the_other_side_than_it_began(
    tables: dict[str, Records], follow_ups: list[list[str | None]]
) -> None:
    for sides, gold in zip(follow_ups, golds(tables[volumes.FOLLOW_UP]), strict=True):
        assert sides[-1] == gold
        assert sides[0] == OTHER[gold]
    assert set(Counter(map(tuple, follow_ups)).values()) == {volumes.VOLUMES // 4}


def test_the_images_of_a_follow_up_without_their_order_stay_at_chance(
    tables: dict[str, Records], follow_ups: list[list[str | None]]
) -> None:
    golds_of: dict[tuple[str, ...], Counter[str]] = {}
    for sides, gold in zip(follow_ups, golds(tables[volumes.FOLLOW_UP]), strict=True):
        golds_of.setdefault(tuple(sorted(map(str, sides))), Counter())[gold] += 1
    # whatever a rule makes of each set of images
    best = sum(max(counts.values()) for counts in golds_of.values())
    assert best == volumes.VOLUMES / 2


def test_the_middle_image_of_a_follow_up_stays_at_chance_and_its_order_reversed_is_wrong(
    tables: dict[str, Records], follow_ups: list[list[str | None]]
) -> None:
    records = tables[volumes.FOLLOW_UP]
    assert share([sides[len(sides) // 2] for sides in follow_ups], records) == 0.5
    assert share([sides[0] for sides in follow_ups], records) == 0


def test_the_images_of_an_indication_say_nothing_of_the_side_that_it_names(
    tables: dict[str, Records],
) -> None:
    records = tables[volumes.INDICATION]
    shown = mri_phantoms()
    assert all(record["indication"].endswith(record["gt_answer"]) for record in records)
    pairs = Counter(
        (mri_phantom(record["image_path"], shown).side, record["gt_answer"]) for record in records
    )
    assert len(pairs) == 4
    assert set(pairs.values()) == {volumes.INDICATIONS // 4}


@pytest.mark.parametrize("name", volumes.SETS)
def test_the_letter_and_the_words_of_a_question_stay_at_chance(
    name: str, tables: dict[str, Records]
) -> None:
    records = tables[name]
    letters = np.mean([record["option_A"] == record["gt_answer"] for record in records])
    assert abs(letters - 0.5) < 0.12
    assert Counter(golds(records)) == dict.fromkeys(SIDES, len(records) // 2)
    by_words: dict[str, Counter[str]] = {}
    for record in records:
        by_words.setdefault(record["question"], Counter())[record["gt_answer"]] += 1
    for counts in by_words.values():
        assert max(counts.values()) / counts.total() < 0.65


def test_every_record_is_usable_and_shows_what_it_lists(corpus: Corpus) -> None:
    names = [f"{QUESTIONS}{name}.json" for name in volumes.SETS]
    reading = read_record_files([(name, corpus[name]) for name in names], TAXONOMY)
    assert reading.rows == []
    assert len(reading.records) == 2 * volumes.VOLUMES + volumes.INDICATIONS
    shown = Counter(
        len(record.image_paths) * max(len(record.slices), 1) for record in reading.records
    )
    assert shown == {volumes.SLICES: 2 * volumes.VOLUMES, 1: volumes.INDICATIONS}
    contexts = {record.context for record in reading.records if record.context}
    assert contexts == {
        f"Sex: {sex}. Indication: pain, side: {side}."
        for sex in ("female", "male")
        for side in SIDES
    }


def test_each_patient_has_one_answer_of_each_side(
    corpus: Corpus, tables: dict[str, Records]
) -> None:
    """So that a test split, which takes all of a patient, has as many of each."""
    patients: dict[tuple[str, str], list[str]] = {}
    for name in (volumes.SERIES, volumes.FOLLOW_UP):
        for record in tables[name]:
            patient = record.get("patient") or patient_of(corpus, record["image_path"])
            patients.setdefault((name, patient), []).append(record["gt_answer"])
    assert len(patients) == volumes.VOLUMES
    assert all(sorted(answers) == sorted(SIDES) for answers in patients.values())


def patient_of(corpus: Corpus, folder: str) -> str:
    """The PatientID that all slices of a series have."""
    files = [corpus[name] for name in corpus if name.startswith(f"{folder}/")]
    (patient,) = {str(dcmread(BytesIO(content)).PatientID) for content in files}
    return patient


def test_no_volume_is_a_near_duplicate_of_another(corpus: Corpus) -> None:
    """Else splits without leaks would put many volumes into one group."""
    hashes, owners = [], []
    for name in sorted(corpus):
        if name.startswith((f"{IMAGES}{volumes.SERIES}/", f"{IMAGES}{volumes.FOLLOW_UP}/")):
            pixels = (
                read_series([corpus[name]], PARAMS.dicom).frames[0]
                if name.endswith(".dcm")
                else opened(corpus[name])
            )
            hashes.append(perceptual_hash(Image.fromarray(pixels)))
            owners.append(name.rpartition("/")[0] if name.endswith(".dcm") else name[:-6])
    assert len(hashes) == 2 * volumes.SLICES * volumes.VOLUMES
    for pairs in near_pairs(hashes, PARAMS.splits.near_duplicates or 0):
        assert all(owners[a] == owners[b] for a, b in pairs)


def test_too_few_images_with_lesions_for_the_indications_are_named() -> None:
    one = Phantom("mri", "Brain", "ring", "Mild", "Left", 1)
    with pytest.raises(ValueError, match="1 images with lesions on the side Left"):
        volumes.indications(sample.SEED, 0, {"Images/a.png": one})


def mri_phantoms() -> dict[tuple[str, int], Phantom]:
    """(Data set, number of the image in it) -> what it shows, drawn again."""
    return {
        (dataset, index): sample_phantom(
            np.random.default_rng([sample.SEED, number, index]), modality, anatomy
        )
        for number, (dataset, modality, anatomy) in enumerate(sample.SETS)
        if modality == sample.INDICATED
        for index in range(sample.IMAGES_PER_SET)
    }


def mri_phantom(path: str, phantoms: Mapping[tuple[str, int], Phantom]) -> Phantom:
    """What the image at a path shows: its name has its number, as three digits."""
    _, dataset, name = path.split("/")
    (number,) = re.findall(r"\d{3}", name)
    return phantoms[dataset, int(number)]
