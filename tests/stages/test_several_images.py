"""Questions about several images through download, resize and splits."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages import download, resize, splits
from stages.core import layout
from stages.core.outputs import read_json, read_json_lines
from stages.corpus.dataset.image_store import list_shard, open_image
from stages.corpus.dataset.split_files import images_of, read_split
from stages.corpus.quarantine.ledger import Row, read_quarantine
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import MakeCorpus, MakeRecord, Raw, RunStage, change_params
from tests.dicoms import file
from tests.omnimedvqa import MODALITIES


def noise(seed: int) -> bytes:
    """A PNG unlike that of any other seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def clip(seed: int, frames: int, **elements: Any) -> bytes:
    """A DICOM file of several frames, the first and the last of them blank."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, 32, 32), dtype=np.uint8)
    pixels[[0, -1]] = 7
    return file(pixels, Modality="MR", **elements)


def mri(name: str, make_record: MakeRecord, **changes: Any) -> Raw:
    several = {"image_path": None} if "images" in changes else {"image_path": f"Images/{name}"}
    changes = {"question_id": name, "modality_type": MODALITIES["mri"]} | several | changes
    return make_record(**changes)


def refused(stage: str) -> list[Row]:
    return list(read_quarantine(layout.QUARANTINE / f"{stage}.parquet").rows)


@pytest.fixture(autouse=True)
def _lenient(project: object) -> None:
    change_params("quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0)
    change_params("data_tests", **dict.fromkeys(("contradictions", "repeated_questions"), OFF))


OFF = {"severity": "off", "limit": 0.0}


def run_all(run: RunStage) -> dict[str, Raw]:
    """Question id -> resized record, after all three stages."""
    run(download)
    for slug in MODALITIES:
        run(resize, slug)
    run(splits)
    rows: dict[str, Raw] = {}
    for slug in MODALITIES:
        rows |= {row["question_id"]: row for row in read_json_lines(layout.records(slug), "")}
    return rows


def items(axis: str = "modality", slug: str = "mri") -> dict[str, Raw]:
    return {
        item["question_id"]: item
        for part in ("train", "test")
        for item in read_split(layout.split(axis, slug, part, "grouped"))
    }


def test_the_items_list_all_images_in_order_and_those_of_one_image_are_as_before(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    change_params("volume", frames=3)
    make_corpus(
        [
            mri("views", make_record, images=["Images/b.png", "Images/a.png"]),
            mri("clip", make_record, image_path="Images/clip.dcm"),
            mri("named", make_record, image_path="Images/clip.dcm", slices=[5, 2]),
            mri("slice", make_record, image_path="Images/clip.dcm", slices=[2]),
            mri("both", make_record, images=["Images/clip.dcm", "Images/a.png"]),
            mri("single", make_record, image_path="Images/c.png"),
        ],
        {"Images/a.png": noise(1), "Images/b.png": noise(2), "Images/c.png": noise(3)}
        | {"Images/clip.dcm": clip(4, 6)},
    )
    rows = run_all(run)
    folder = "data/images/mri"
    frames = f"{folder}/@frames/clip.dcm"
    found = items()
    assert {name: images_of(item) for name, item in found.items()} == {
        "views": (f"{folder}/b.png.png", f"{folder}/a.png.png"),
        "clip": tuple(f"{frames}/000{number}.png" for number in (2, 4, 6)),
        "named": (f"{frames}/0005.png", f"{frames}/0002.png"),
        "slice": (f"{frames}/0002.png",),
        "both": (*(f"{frames}/000{number}.png" for number in (2, 4, 6)), f"{folder}/a.png.png"),
        "single": (f"{folder}/c.png.png",),
    }
    assert list(found["single"]) == list(found["slice"])
    assert "images" not in found["single"]
    assert found["clip"]["image"] == f"{folder}/clip.dcm.png", "the middle frame stands for it"
    assert "shown" not in rows["single"]
    assert "sources" not in rows["single"]
    for item in found.values():
        for path in images_of(item):
            assert open_image(path).size == (384, 384)
    # what no question shows is not kept
    shards = [set(list_shard(path)) for path in sorted(layout.images("mri").iterdir())]
    kept = {name for names in shards for name in names if "@frames" in name}
    assert kept == {f"@frames/clip.dcm/000{number}.png" for number in (2, 4, 5, 6)}


def test_a_volume_is_its_middle_frame_by_default(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus(
        [mri("clip.dcm", make_record), mri("a.png", make_record)],
        {"Images/clip.dcm": clip(4, 5), "Images/a.png": noise(1)},
    )
    rows = run_all(run)
    assert rows["clip.dcm"]["frames"] == 5
    assert images_of(items()["clip.dcm"]) == ("data/images/mri/clip.dcm.png",)


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"image_path": "Images/clip.dcm", "slices": [7]}, Reason.IMAGE_SLICE, "slice 7"),
        ({"image_path": "Images/a.png", "slices": [1]}, Reason.IMAGE_SLICE, "no volume"),
        (
            {"image_path": None, "images": ["Images/a.png", "Images/broken.png"]},
            Reason.IMAGE_FORMAT,
            "the image cannot be used",
        ),
        (
            {"image_path": None, "images": [f"Images/{number}.png" for number in range(5)]},
            Reason.IMAGE_TOO_LARGE,
            "5 images are shown, more than volume.max_images = 4",
        ),
        (
            {"image_path": None, "images": ["Images/clip.dcm", "Images/a.png"]},
            Reason.IMAGE_TOO_LARGE,
            "5 images",
        ),
    ],
)
def test_a_question_that_cannot_be_shown_is_refused_alone(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    changes: Raw,
    reason: Reason,
    words: str,
) -> None:
    change_params("volume", frames=4, max_images=4)
    good = mri("good", make_record, image_path="Images/clip.dcm")
    also = mri("also", make_record, images=["Images/a.png", "Images/0.png"])
    make_corpus(
        [good, also, mri("bad", make_record, **changes)],
        {"Images/a.png": noise(1), "Images/broken.png": b"no image"}
        | {"Images/clip.dcm": clip(4, 6)},
    )
    rows = run_all(run)
    assert rows.keys() == {"good", "also"}
    (row,) = refused("resize/mri")
    assert row.reason == reason
    assert words in row.why
    assert row.where.question_id == "bad"


def test_a_missing_image_of_several_is_named(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus(
        [
            mri("good", make_record, images=["Images/a.png", "Images/b.png"]),
            mri("bad", make_record, images=["Images/a.png", "Images/gone.png"]),
        ],
        {"Images/gone.png": None},
    )
    run(download)
    (row,) = refused("download")
    assert (row.reason, row.what) == (Reason.IMAGE_MISSING, "Images/gone.png")
    assert row.where.question_id == "bad"


def test_images_of_two_patients_are_no_question_and_two_studies_of_one_are(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    def study(patient: str, seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16), dtype=np.uint8)
        return file(pixels, PatientID=patient, StudyInstanceUID=f"1.2.{seed}", Modality="MR")

    make_corpus(
        [
            mri("mixed", make_record, images=["Images/a.dcm", "Images/x.dcm"]),
            mri("same", make_record, images=["Images/a.dcm", "Images/b.dcm"]),
            mri("other.png", make_record),
        ],
        {
            "Images/other.png": noise(4),
            "Images/a.dcm": study("Doe-4711", 1),
            "Images/b.dcm": study("Doe-4711", 2),
            "Images/x.dcm": study("Roe-0815", 3),
        },
    )
    rows = run_all(run)
    assert rows.keys() == {"same", "other.png"}
    (row,) = refused("download")
    assert row.reason == Reason.IMAGE_LIST
    assert "different patients" in row.why
    assert "4711" not in str(row)


def groups() -> list[set[str]]:
    named: list[list[str]] = read_json(layout.SPLITS / "groups.json", "")
    return [set(each) for each in named]


def test_grouping_covers_all_images_of_a_question_and_all_frames_that_are_shown(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    change_params("volume", frames=6, selection="uniform")
    change_params("splits", near_duplicates=None)
    volume, other = np.random.default_rng(5).integers(0, 255, (2, 6, 32, 32), dtype=np.uint8)
    # blank frames are no reason to think that two volumes are one
    volume[[0, -1]] = other[[0, -1]] = 7
    copy = BytesIO()
    Image.fromarray(volume[4]).save(copy, "PNG")
    make_corpus(
        [
            mri("pair", make_record, images=["Images/a.png", "Images/b.png"]),
            mri("a.png", make_record),
            mri("b.png", make_record),
            mri("volume.dcm", make_record),
            mri("copy of a frame.png", make_record),
            mri("other.dcm", make_record),
        ],
        {
            "Images/a.png": noise(1),
            "Images/b.png": noise(2),
            "Images/volume.dcm": file(volume, Modality="MR"),
            "Images/copy of a frame.png": copy.getvalue(),
            "Images/other.dcm": file(other, Modality="MR"),
        },
    )
    run_all(run)
    folder = "data/images/mri"
    assert {f"{folder}/a.png.png", f"{folder}/b.png.png"} in groups()
    assert {f"{folder}/volume.dcm.png", f"{folder}/copy of a frame.png.png"} in groups()
    assert len(groups()) == 2


def test_a_patient_of_several_images_stays_on_one_side(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    records: list[Raw] = []
    pixels: dict[str, bytes | None] = {}
    for number in range(12):
        names = [f"Images/{number}-{view}.png" for view in "ab"]
        pixels |= {name: noise(2 * number + at) for at, name in enumerate(names)}
        records.append(mri(f"{number}", make_record, images=names, patient=f"P{number // 2}"))
    make_corpus(records, pixels)
    run_all(run)
    for part in ("train", "test"):
        split = read_split(layout.split("modality", "mri", part, "grouped"))
        numbers = {int(item["question_id"]) for item in split}
        assert numbers
        assert {number ^ 1 for number in numbers} == numbers
    leaks = read_json(layout.LEAKS, "")["grouped"]["modality"]["mri"]
    assert (leaks["image"], leaks["group"]) == (0, 0)


def test_another_choice_of_frames_decodes_the_volumes_alone(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [mri(f"{number}.png", make_record) for number in range(9)]
    make_corpus(
        [*records, mri("clip.dcm", make_record)],
        {f"Images/{number}.png": noise(number) for number in range(9)}
        | {"Images/clip.dcm": clip(4, 6)},
    )
    run(download)
    counts = []
    for frames in (1, 1, 2, 2, 3, 2):
        change_params("volume", frames=frames)
        capsys.readouterr()
        run(resize, "mri")
        counts.append(int(capsys.readouterr().out.partition("images (")[2].split()[0]))
    assert counts == [10, 0, 1, 0, 1, 0]


def test_images_of_a_study_are_one_group_even_without_a_patient(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    change_params("splits", near_duplicates=None)

    def series(seed: int, study: str) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16), dtype=np.uint8)
        return file(pixels, StudyInstanceUID=study, PatientID="ANON", Modality="MR")

    studies = {"a.dcm": "1.2.77", "b.dcm": "1.2.78", "c.dcm": "1.2.77"}
    make_corpus(
        [mri(name, make_record) for name in studies],
        {f"Images/{name}": series(at, uid) for at, (name, uid) in enumerate(studies.items())},
    )
    rows = run_all(run)
    assert {name: row.get("study") for name, row in rows.items()} == {
        "a.dcm": "Images/a.dcm",
        "b.dcm": "Images/b.dcm",
        "c.dcm": "Images/a.dcm",
    }
    assert "patient" not in rows["a.dcm"], "a study says nothing of who it is"
    assert groups() == [{"data/images/mri/a.dcm.png", "data/images/mri/c.dcm.png"}]
    assert "1.2.77" not in layout.corpus_records("mri").read_text(encoding="utf-8")
