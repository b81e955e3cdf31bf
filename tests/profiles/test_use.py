"""`med-r1 use`: from a folder of anybody's to settings, and back without a trace."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.core.errors import InputError
from stages.core.params import load_params
from stages.core.yaml_files import read_yaml
from stages.corpus.archives.folder import ARCHIVES
from stages.corpus.formats.questions import parse_bins
from stages.profiles.generated import default_name, is_archive
from stages.profiles.use import CONVERTED, use
from tests.conftest import ROOT

FILES = ("params.yaml", "data.dvc")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project as the working directory, beside the folder of the corpus."""
    root = tmp_path / "project"
    root.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "infra/profiles", root / "infra/profiles")
    for name in ("base", "sample"):
        (root / "infra" / name).symlink_to(ROOT / "infra" / name)
    monkeypatch.chdir(root)
    return root


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "infra/base" not in str(path) and "infra/sample" not in str(path)
    }


def noise(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (48, 48), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def rows(words: dict[str, int], kind: str = "disease-diagnosis") -> list[dict[str, str]]:
    return [
        {
            "image": f"scans/{at}-{number}.png",
            "question": "What is seen?",
            "options": "Cyst|Nodule|Nothing",
            "answer": "ABC"[number % 3],
            "modality": word,
            "type": kind,
        }
        for at, (word, count) in enumerate(words.items())
        for number in range(count)
    ]


def ward(folder: Path, words: dict[str, int], kind: str = "disease-diagnosis") -> Path:
    """A CSV and images, so many of each modality's word."""
    table = rows(words, kind)
    for number, row in enumerate(table):
        noise(folder / row["image"], number)
    with (folder / "ward.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return folder


def test_a_ward_of_two_modalities_is_set_and_reverted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ward(tmp_path / "Ward 3", {"MRI": 30, "Endoscopy": 30})
    before = content(root)
    assert not use(folder)
    assert content(root) == before
    printed = capsys.readouterr().out
    assert "word 'Endoscopy' (30 questions): a new entry endoscopy" in printed
    assert "checkpoints: mri, endoscopy, disease-diagnosis" in printed
    assert "uncertain by about" in printed
    assert use(folder, yes=True)
    params = load_params()
    assert params.taxonomy.axes == {
        "modality": ("mri", "endoscopy"),
        "task": ("disease-diagnosis",),
    }
    assert list(params.checkpoints) == ["mri", "endoscopy", "disease-diagnosis"]
    assert params.corpus.archive == "data/raw/ward-3"
    assert read_yaml(root / "data.dvc")["deps"][0]["path"] == str(folder)
    from stages.profiles.command import apply

    apply("sample", dry_run=False, elsewhere=False)
    (root / "infra/profiles/ward-3.yaml").unlink()
    after = content(root)
    assert {name: after[name] for name in before} == before


def test_small_data_can_be_cross_validated(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ward(tmp_path / "ward", {"MRI": 30, "Endoscopy": 30})
    assert not use(folder)
    assert "--folds 5 tests every question once" in capsys.readouterr().out
    assert use(folder, yes=True, folds=3)
    printed = capsys.readouterr().out
    assert "mri-fold-1: 20 questions to train, 10 to test" in printed
    assert "30 are tested in all" in printed
    params = load_params()
    assert params.splits.folds == 3
    assert params.rows["endoscopy"] == ("endoscopy-fold-1", "endoscopy-fold-2", "endoscopy-fold-3")
    assert params.checkpoints["mri-fold-2"].split == "mri-fold-2"
    assert params.checkpoints["mri-fold-2"].images == "data/images/mri"
    # without folds again, from the same source
    assert use(folder, yes=True)
    assert load_params().splits.folds is None


def test_a_word_that_shares_one_with_a_name_is_another_name(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ward(tmp_path / "w", {"CT scan": 12, "X ray": 12, "Pathology": 12})
    assert use(folder, yes=True)
    taxonomy = load_params().taxonomy
    assert taxonomy.axes["modality"] == ("ct", "x-ray", "microscopy")
    assert taxonomy.modalities.slug_of["CT scan"] == "ct"
    assert "word 'CT scan' (12 questions): another name of ct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "slugs"),
    [
        (["Endoscopy", "endoscopy"], ["endoscopy"]),
        (["Endoscopy images", "Gastroscopy images"], ["endoscopy-images", "gastroscopy-images"]),
        (["PET CT", "CT"], ["ct", "pet-ct"]),
        (["Clinical photography"], ["clinical-photography"]),
        (["All", "Base"], ["all-2", "base-2"]),
        (["SFT-CT"], ["ct"]),
        (["SFT-PET"], ["pet"]),
        (["\u5185\u8996\u93e1", "\u7dda"], ["modality", "modality-2"]),
        (["xray"], ["xray"]),
    ],
)
def test_words_become_slugs_of_their_own_where_they_are_like_none(
    root: Path, tmp_path: Path, words: list[str], slugs: list[str]
) -> None:
    assert use(ward(tmp_path / "w", dict.fromkeys(words, 12)), yes=True)
    assert sorted(load_params().modalities) == sorted(slugs)


def test_a_word_that_is_spelled_like_a_known_one_is_pointed_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(ward(tmp_path / "w", {"dermoscpy": 12}))
    assert "a new entry dermoscpy; did you mean dermoscopy?" in capsys.readouterr().out


def test_one_word_may_be_a_modality_and_a_type(root: Path, tmp_path: Path) -> None:
    assert use(ward(tmp_path / "w", {"Endoscopy": 12}, kind="Endoscopy"), yes=True)
    axes = load_params().taxonomy.axes
    assert axes == {"modality": ("endoscopy",), "task": ("endoscopy-2",)}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_modality_with_too_little_data_is_named_and_gets_no_checkpoint(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    words = {"MRI": 30} | ({"CT": number} if number else {})
    assert use(ward(tmp_path / "w", words), yes=True)
    printed = capsys.readouterr().out
    has_test = number == 2  # one image on each side
    assert ("left out for lack of data: modality/ct" in printed) == (number == 1)
    assert ("ct" in load_params().checkpoints) == has_test
    assert ("ct" in load_params().modalities) == bool(number)


def test_class_folders_become_questions_in_a_corpus_of_the_project(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        noise(tmp_path / "lungs" / "x-ray" / "abc"[number % 3] / f"{number}.png", number)
    before = content(root)
    assert not use(tmp_path / "lungs")
    assert content(root) == before
    assert use(tmp_path / "lungs", yes=True)
    printed = capsys.readouterr().out
    assert "60 entries, 60 of them questions about 60 images, 0 refused" in printed
    assert "chance is 33.3%" in printed
    (file,) = (CONVERTED / "lungs").rglob("*.json")
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 60
    assert read_yaml(root / "data.dvc")["deps"][0]["path"] == "corpora/lungs"
    assert list(load_params().checkpoints) == ["x-ray", "disease-diagnosis"]
    assert use(tmp_path / "lungs", yes=True), "again, into the same folder"


def test_a_full_size_profile_has_all_settings_of_one(root: Path, tmp_path: Path) -> None:
    folder = ward(tmp_path / "w", {"MRI": 30})
    assert use(folder, yes=True, scale="full", elsewhere=True)
    params = load_params()
    assert params.base.source == "Qwen/Qwen2-VL-2B-Instruct"
    assert params.grpo.learning_rate == 1e-6
    assert params.grpo.max_completion_length == 256
    assert params.splits.kind == "grouped"
    assert params.evaluate.ablations
    assert list(params.checkpoints) == ["mri", "disease-diagnosis"]


def test_an_archive_of_the_pipelines_own_layout_is_used_as_it_is(
    root: Path, tmp_path: Path
) -> None:
    folder = ward(tmp_path / "w", {"MRI": 12})
    archive = tmp_path / "ward.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, path.relative_to(folder))
    assert use(archive, yes=True)
    assert load_params().corpus.archive == "data/raw/ward.zip"


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_every_kind_of_archive_that_is_opened_is_known_by_its_suffix(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"Ward.2024{suffix}"
    path.touch()
    assert is_archive(path)
    assert default_name(path) == "ward-2024"


def test_unusable_corpora_change_nothing(root: Path, tmp_path: Path) -> None:
    folder = ward(tmp_path / "w", {"MRI": 12})
    before = content(root)
    cases: list[tuple[dict[str, Any], Path, str]] = [
        ({}, tmp_path / "none", "neither a file nor a folder"),
        ({"scale": "fuller"}, folder, "no such profile; known: full, full-3b, sample"),
        ({"name": "full"}, folder, "full.yaml is another profile"),
    ]
    for options, source, why in cases:
        with pytest.raises(InputError, match=why):
            use(source, yes=True, **options)
    (folder / "ward.csv").write_text("image,question,options,answer,modality,type\n", "utf-8")
    for yes in (True, False):
        with pytest.raises(InputError, match="no record can be used"):
            use(folder, yes=yes)
    one = ward(tmp_path / "one", {"MRI": 1})
    with pytest.raises(
        InputError,
        match=r"needs 1 to train \(matrix.min_train\) and 1 to test \(matrix.min_test\).*"
        r"modality/mri: 1 to train, 0 to test; task/disease-diagnosis: .*has 1 image: add images",
    ):
        use(one, yes=True)
    assert content(root) == before


@pytest.mark.parametrize("place", ["data/raw/w", "data/raw/w/inner", "data/raw", "corpora/w"])
def test_a_corpus_where_its_import_would_go_is_refused_and_stays(root: Path, place: str) -> None:
    folder = ward(root / place, {"MRI": 12})
    before = content(root)
    with pytest.raises(InputError, match="overlaps with .*: move it"):
        use(folder, yes=True, name="w")
    assert content(root) == before


@pytest.mark.parametrize("name", [".", "..", "../x", "a b", "A", "x" * 41, "a--b"])
def test_a_name_that_is_none_for_files_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    folder = ward(tmp_path / "w", {"MRI": 12})
    before = content(root)
    with pytest.raises(InputError, match=r"--name .*lower-case letters and digits"):
        use(folder, yes=True, name=name)
    assert content(root) == before


def test_the_same_corpus_under_another_name_is_imported_there(root: Path, tmp_path: Path) -> None:
    folder = ward(tmp_path / "w", {"MRI": 12})
    for name in ("one", "two", "one"):
        assert use(folder, yes=True, name=name)
        assert load_params().corpus.archive == f"data/raw/{name}"
        assert read_yaml(root / "data.dvc")["outs"][0]["path"] == f"data/raw/{name}"


def test_an_edited_profile_and_that_of_another_corpus_are_kept(root: Path, tmp_path: Path) -> None:
    assert use(ward(tmp_path / "a" / "w", {"MRI": 12}), yes=True)
    before = content(root)
    with pytest.raises(InputError, match=r"w\.yaml is the profile of .*a/w: choose another"):
        use(ward(tmp_path / "b" / "w", {"CT": 12}), yes=True)
    with pytest.raises(
        InputError, match="--scale w: no such profile; known: full, full-3b, sample"
    ):
        use(tmp_path / "a" / "w", yes=True, scale="w")
    assert content(root) == before
    path = root / "infra/profiles/w.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"w\.yaml was edited, which would be lost: delete it"):
        use(tmp_path / "a" / "w", yes=True)


def test_a_refused_change_of_a_converted_corpus_leaves_the_one_before(
    root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "w.jsonl"

    def write(answers: str) -> None:
        lines = []
        for number in range(24):
            noise(tmp_path / f"scans/{number}.png", number)
            row = rows({"MRI": 24})[number] | {"image": f"scans/{number}.png"}
            lines.append(json.dumps(row | {"answer": answers[number % len(answers)]}))
        source.write_text("\n".join(lines), encoding="utf-8")

    write("ABC")
    assert use(source, yes=True)
    before = content(root)
    write("Z")
    with pytest.raises(InputError):
        use(source, yes=True)
    assert content(root) == before


def test_a_profile_that_cannot_run_here_changes_nothing(root: Path, tmp_path: Path) -> None:
    folder = ward(tmp_path / "w", {"MRI": 12})
    before = content(root)
    with pytest.raises(InputError, match="a run of it cannot finish here"):
        use(folder, yes=True, scale="full")
    assert content(root) == before


def test_a_corpus_that_download_would_refuse_is_refused(root: Path, tmp_path: Path) -> None:
    folder = ward(tmp_path / "w", {"MRI": 40})
    sheet = folder / "ward.csv"
    text = sheet.read_text(encoding="utf-8")
    sheet.write_text(text.replace(",A,", ",Maybe,"), encoding="utf-8")
    with pytest.raises(InputError, match="would refuse too many records: 14 of 40"):
        use(folder, yes=True)


def test_the_matrix_of_the_project_decides_what_is_left_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("min_train: 1 ", "min_train: 17"), encoding="utf-8")
    folder = ward(tmp_path / "w", {"MRI": 40, "CT": 12})
    assert use(folder, yes=True)
    assert list(load_params().checkpoints) == ["mri", "disease-diagnosis"]
    assert "left out for lack of data: modality/ct" in capsys.readouterr().out


def test_settings_below_a_replaced_group_can_be_added_to_the_profile(
    root: Path, tmp_path: Path
) -> None:
    from stages.profiles.command import apply

    assert use(ward(tmp_path / "w", {"MRI": 30}), yes=True)
    path = root / "infra/profiles/w.yaml"
    text = path.read_text(encoding="utf-8")
    more = "params:\n  checkpoints: {mri: {grpo: {max_steps: 7}}}\n"
    path.write_text(text.replace("params:\n", more), encoding="utf-8")
    apply("w", dry_run=False, elsewhere=False)
    assert load_params().grpo_for("mri").max_steps == 7
    apply("sample", dry_run=False, elsewhere=False)
    assert (root / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


@pytest.mark.parametrize("text", ["age", "age=", "=1,2", "age=1", "age=2,1", "age=1,1", "age=a,b"])
def test_bins_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--bins {text}: write a column and rising bounds"):
        parse_bins([text])
    assert parse_bins(["age=0,40,60"]) == {"age": (0.0, 40.0, 60.0)}
