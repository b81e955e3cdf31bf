"""Settings for volumes and several images: proposed with reasons, and such that prompts fit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from stages.core.params import Params, check_params, load_params, parse_settings
from stages.corpus.inspection.inspect import Inspection
from stages.corpus.inspection.slices import VolumeSlices
from stages.corpus.inspection.volumes import QuestionImages, VolumeFacts, stored_plane
from stages.profiles.proposals.image_settings import (
    MOST_FRAMES,
    Setting,
    as_params,
    fit_images,
    image_tokens,
    keep_one_slice,
    measure_scale,
)
from stages.profiles.schema import load_profile, merge
from stages.profiles.use import use
from tests.conftest import ROOT
from tests.dicoms import phantom, series
from tests.dicoms import settings as dicom_settings
from tests.omnimedvqa import AXES
from tests.profiles.test_use import noise, root  # noqa: F401  # a fixture
from tests.volumes import nifti, phantom_affine

ITEM = {"problem": "What is seen? A)Cyst, B)Nodule"}


def params_with(profile: str = "sample", **changes: Any) -> Params:
    path = ROOT / "params.yaml"
    tree = parse_settings(path.read_text(encoding="utf-8"), path)
    _, loaded = load_profile(profile, ROOT / "infra" / "profiles")
    tree = merge(merge(tree, loaded.params), changes)
    if profile == "sample":
        tree["base"]["source"] = str(ROOT / "infra/base")
    return check_params(tree, path)


def inspection(
    questions: dict[QuestionImages, int], volumes: dict[VolumeFacts, int], **changes: Any
) -> Inspection:
    """One that found these, with as many images as volumes."""
    count = sum(questions.values())
    values: dict[str, Any] = {
        "layout": "CSV",
        "question_files": ["a.csv"],
        "read": count,
        "usable": count,
        "questions": {},
        "images": {"ct": 10},
        "shown": {},
        "slices": VolumeSlices(params_with("full").volume, 0),
        "axes": AXES,
        "splits": {},
        "decoded": True,
        "findings": [],
        "volumes": volumes,
        "question_images": questions,
        "contexts": 0,
        "longest": ITEM,
        "tests": {},
    }
    return Inspection(**(values | changes))


def found(settings: list[Setting]) -> dict[str, Any]:
    return {f"{each.group}.{each.key}": each.value for each in settings}


SINGLE = QuestionImages(1, ())
AXIAL = VolumeFacts(20, "axial")


def test_questions_about_one_image_need_no_settings() -> None:
    assert fit_images(inspection({SINGLE: 9}, {}), params_with("full")) == []
    assert fit_images(inspection({SINGLE: 9}, {}, longest=None), params_with()) == []


@pytest.mark.parametrize(
    ("profile", "volumes", "expected"),
    [
        ("sample", (20,), MOST_FRAMES),  # 16 tokens an image
        ("full", (20,), 4),  # 203 tokens an image, of 1,024
        ("full", (20, 20), 2),
        ("full", (3,), 3),
        ("full", (2, 20), 2),
    ],
)
def test_as_many_slices_as_a_prompt_has_room_for(
    profile: str, volumes: tuple[int, ...], expected: int
) -> None:
    facts = {VolumeFacts(count, "axial"): 5 for count in volumes}
    settings = fit_images(inspection({QuestionImages(0, volumes): 4}, facts), params_with(profile))
    assert found(settings)["volume.frames"] == expected
    assert as_params(settings) == {"volume": {"frames": expected}}


def test_images_that_questions_name_raise_the_limits_that_they_exceed() -> None:
    questions = {SINGLE: 3, QuestionImages(20, ()): 1}
    settings = fit_images(inspection(questions, {}), params_with("full"))
    assert as_params(settings) == {
        "volume": {"max_images": 20},
        # 20 times 203, and words
        "grpo": {"max_prompt_length": 4352},
    }
    assert "20 images" in str(settings[0])


def test_a_long_context_raises_the_length_of_prompts_without_its_tokenizer() -> None:
    longest = ITEM | {"context": "x" * 2000}
    (setting,) = fit_images(inspection({SINGLE: 9}, {}, longest=longest), params_with("full"))
    assert as_params([setting]) == {"grpo": {"max_prompt_length": 1536}}
    # one of 856 tokens has one for each letter
    (setting,) = fit_images(inspection({SINGLE: 9}, {}, longest=longest), params_with())
    assert setting.value == 2304


def test_images_that_no_model_has_positions_for_become_smaller(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra/base", tmp_path / "base")
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 700
    path.write_text(json.dumps(config), encoding="utf-8")
    params = params_with(base={"source": str(tmp_path / "base")})
    params = params.model_copy(
        update={"base": params.base.model_copy(update={"source": str(tmp_path / "base")})}
    )
    settings = fit_images(inspection({QuestionImages(40, ()): 2}, {}), params)
    size = found(settings)["resize.size"]
    assert size < params.resize.size
    words = 700 - params.grpo.max_completion_length
    assert 40 * (image_tokens(size, 48, 36_864) + 7) < words
    assert "700 positions" in next(str(each) for each in settings if each.key == "size")


@pytest.mark.parametrize(
    ("size", "side", "max_pixels", "tokens"),
    [
        (384, 28, 401_408, 196),
        (384, 28, None, 196),
        (1024, 28, 401_408, 484),
        (384, 48, 36_864, 16),
        (28, 28, None, 1),
    ],
)
def test_tokens_of_an_image(size: int, side: int, max_pixels: int | None, tokens: int) -> None:
    assert image_tokens(size, side, max_pixels) == tokens


@pytest.mark.parametrize(
    ("planes", "expected"),
    [
        ({"axial": 3}, "acquired"),
        ({"coronal": 3}, "acquired"),
        ({"axial": 3, "sagittal": 4}, "sagittal"),
        ({"axial": 3, "sagittal": 3}, "axial"),
        ({"axial": 3, "oblique": 1}, "acquired"),
        ({"axial": 3, "sagittal": 4, "unknown": 1}, "acquired"),
    ],
)
def test_another_plane_is_proposed_only_if_all_volumes_can_be_cut(
    planes: dict[Any, int], expected: str
) -> None:
    volumes = {VolumeFacts(20, plane): count for plane, count in planes.items()}
    questions = {QuestionImages(0, (20,)): 4}
    assert found(fit_images(inspection(questions, volumes), params_with()))["volume.plane"] == (
        expected
    )


def test_choices_of_a_person_stay_if_they_fit() -> None:
    questions = {QuestionImages(0, (20,)): 4}
    own = params_with("full", volume={"frames": 3, "selection": "center", "plane": "axial"})
    assert as_params(fit_images(inspection(questions, {AXIAL: 4}), own)) == {}
    every = params_with("full", volume={"selection": "all", "max_images": 64})
    assert as_params(fit_images(inspection(questions, {AXIAL: 4}), every)) == {
        "volume": {"frames": 4, "selection": "uniform"}
    }
    named = {QuestionImages(5, ()): 4}
    assert as_params(fit_images(inspection(named, {AXIAL: 4}), params_with())) == {}


def test_one_slice_is_kept_where_several_would_cost_too_many_questions() -> None:
    volumes = {AXIAL: 4, VolumeFacts(20, "sagittal"): 4}
    params = params_with()
    settings = fit_images(inspection({QuestionImages(0, (20,)): 4}, volumes), params)
    assert {"frames", "plane"} <= as_params(settings)["volume"].keys()
    kept = keep_one_slice(settings, params.volume, 7, 9)
    assert as_params(kept) == {}
    assert len({(each.group, each.key) for each in kept}) == len(kept)
    assert "7 of 9" in kept[0].reason


def test_the_size_of_a_corpus_is_that_of_its_questions() -> None:
    questions = {SINGLE: 4, QuestionImages(4, ()): 2, QuestionImages(1, (20,)): 4}
    volume = params_with(volume={"frames": 3}).volume
    scale = measure_scale(inspection(questions, {AXIAL: 5}, contexts=5), volume)
    assert scale.model_dump() == {
        "questions": 10,
        "images": 10 + 5 * 3,
        "images_per_question": 2.0,
        "most_images_per_question": 4,
        "several_share": pytest.approx(1 / 3),
        "volume_share": 0.4,
        "context_share": 0.5,
    }


def turned(degrees: float) -> np.ndarray[Any, Any]:
    """An affine that is tilted from the axial plane."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


VOXELS = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)


@pytest.mark.parametrize(
    ("contents", "plane"),
    [
        ([nifti(VOXELS, phantom_affine())], "axial"),
        ([nifti(VOXELS, np.diag([3.0, 1, 1, 1])[[2, 1, 0, 3]])], "sagittal"),
        ([nifti(VOXELS, turned(90))], "coronal"),
        ([nifti(VOXELS, turned(4))], "axial"),
        ([nifti(VOXELS, turned(30))], "oblique"),
        ([nifti(VOXELS)], "unknown"),
        (series(phantom(), "axial"), "axial"),
        (series(phantom(), "coronal"), "coronal"),
        (series(phantom(), "sagittal"), "sagittal"),
        (series(phantom(), "axial", ImageOrientationPatient=None), "unknown"),
        # damaged where a question about one slice does not look
        ([series(phantom())[0].replace(b"1.0\\0.0", b"x.y\\0.0", 1)], "unknown"),
        ([b"\x89PNG", b"\x89PNG"], "unknown"),
    ],
)
def test_the_plane_of_stored_slices(contents: list[bytes], plane: str) -> None:
    assert stored_plane(contents, 6, dicom_settings()) == plane


def clinic(folder: Path, gap: bool = False) -> Path:
    """Volumes of two planes, two views, and contexts, in a table."""
    rows = []
    rng = np.random.default_rng(7)
    for number in range(12):
        name = f"v{number}.nii.gz" if number % 2 else f"s{number}"
        affine = (
            np.diag([1.0, 1, 3, 1]) if number % 4 == 1 else np.diag([3.0, 1, 1, 1])[[2, 1, 0, 3]]
        )
        voxels = rng.integers(0, 255, (24, 24, 12), dtype=np.uint8)
        folder.mkdir(exist_ok=True)
        if number % 2:
            nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / name)
        else:
            (folder / name).mkdir()
            files = series(voxels, "axial", PatientID=str(number))
            for at, content in enumerate(files):
                if not (gap and at == 5):
                    (folder / name / f"{at:02}.dcm").write_bytes(content)
        context = "cough" if number < 6 else ""
        rows.append((name, "", f"What is seen in {number}?", "mri", context))
    for number in range(6):
        for view in "ab":
            noise(folder / f"{number}{view}.png", 100 + number + 50 * (view == "b"))
        rows.append((f"{number}a.png|{number}b.png", "", "Has it grown?", "x-ray", ""))
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ["images", "slices", "question", "modality", "indication", "options", "answer", "type"]
        )
        for at, row in enumerate(rows):
            table.writerow([*row, "yes|no", "AB"[at % 2], "disease-diagnosis"])
    return folder


@pytest.mark.parametrize("scale", ["sample", "full"])
def test_a_clinics_volumes_and_views_are_set_with_reasons(
    root: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scale: str,
) -> None:
    folder = clinic(tmp_path / "clinic")
    assert use(folder, yes=True, scale=scale, elsewhere=True)
    params = load_params()
    frames = {"sample": MOST_FRAMES, "full": 4}[scale]
    assert (params.volume.frames, params.volume.plane) == (frames, "axial")
    assert params.evaluate.ablations
    printed = capsys.readouterr().out
    assert f"setting volume.frames: {frames} (now 1): 12 questions are about 12 volumes" in printed
    (answers,) = (
        line for line in printed.splitlines() if line.startswith("answers per test question: ")
    )
    assert "without context" in answers
    assert "context exchanged" not in answers
    assert "not asked: context exchanged (all contexts of a modality are the same)" in printed
    if scale == "full":
        _, profile = load_profile("clinic")
        assert profile.scale is not None
        assert profile.scale.volume_share == pytest.approx(12 / 18)
        assert profile.scale.context_share == pytest.approx(6 / 18)
        assert (profile.scale.most_images_per_question, profile.scale.several_share) == (4, 1.0)


def test_volumes_with_gaps_keep_one_slice(
    root: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert use(clinic(tmp_path / "clinic", gap=True), yes=True)
    params = load_params()
    assert (params.volume.frames, params.volume.plane) == (1, "acquired")
    assert "6 of 18 questions would be refused" in capsys.readouterr().out
