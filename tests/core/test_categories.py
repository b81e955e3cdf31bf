"""Modalities and question types in params.yaml: every slug and every name means one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import SettingsError
from stages.core.params import check_params, read_settings
from tests.conftest import ROOT

PATH = Path("params.yaml")
ENDOSCOPY = {"names": ["Endoscopy", "Colonoscopy"], "dicom": ["ES"]}


def settings(**groups: dict[str, Any]) -> dict[str, Any]:
    """params.yaml with entries added to `modalities` or `question_types`."""
    tree = read_settings(ROOT / "params.yaml")
    return tree | {name: tree[name] | added for name, added in groups.items()}


def test_a_modality_of_ones_own_has_its_names_in_all_forms() -> None:
    taxonomy = check_params(settings(modalities={"endoscopy": ENDOSCOPY}), PATH).taxonomy
    assert taxonomy.axes["modality"][-1] == "endoscopy"
    assert taxonomy.modalities.slug_of["Colonoscopy"] == "endoscopy"
    assert "colonoscopy" not in taxonomy.modalities.slug_of
    assert taxonomy.modalities.spellings["colonoscopy"] == "Endoscopy"
    assert taxonomy.modalities.spellings["endoscopy"] == "Endoscopy"
    assert taxonomy.by_dicom["ES"] == "endoscopy"


@pytest.mark.parametrize("count", [1, 40])
def test_one_to_forty_are_possible(count: int) -> None:
    tree = settings()
    tree["modalities"] = {f"m{number}": {"names": [f"M {number}"]} for number in range(count)}
    tree["question_types"] = {f"t{number}": {"names": [f"T {number}"]} for number in range(count)}
    tree["checkpoints"] = {}
    tree["evaluations"] = {"base": {"axis": "all"}}
    axes = check_params(tree, PATH).taxonomy.axes
    assert list(map(len, axes.values())) == [count, count]


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ({"modalities": {"ct2": {"names": ["X-Ray"]}}}, "'X-Ray' names both x-ray and ct2"),
        ({"modalities": {"ct2": {"names": ["x-RAY"]}}}, "'x-RAY' names both x-ray and ct2"),
        ({"modalities": {"pet": {"names": ["ct"]}}}, "'ct' names both ct and pet"),
        ({"modalities": {"PET": {"names": ["PET"]}}}, "modalities.PET: a slug names files"),
        ({"modalities": {"../a": {"names": ["a"]}}}, "a slug names files"),
        ({"modalities": {"a b": {"names": ["a"]}}}, "a slug names files"),
        ({"modalities": {"a--b": {"names": ["a"]}}}, "a slug names files"),
        ({"modalities": {"x" * 41: {"names": ["a"]}}}, "a slug names files"),
        ({"modalities": {"base": {"names": ["a"]}}}, "the slug has a meaning of its own"),
        ({"modalities": {"sft-ct": {"names": ["a"]}}}, "the slug has a meaning of its own"),
        ({"modalities": {"pet": {"names": []}}}, "modalities.pet.names"),
        ({"modalities": {"pet": {"names": [""]}}}, "modalities.pet.names"),
        ({"modalities": {"pet": {"names": [" PET"]}}}, "' PET' has outer whitespace"),
        ({"modalities": {"pet": {"names": ["PET"], "dicom": ["XY"]}}}, "'XY' is no value of DICOM"),
        ({"modalities": {"pet": {"names": ["PET"], "dicom": ["CT"]}}}, "CT stands for both ct and"),
        ({"modalities": {"pet": {"name": ["PET"]}}}, "modalities.pet.name: unknown key"),
        (
            {"question_types": {"ct": {"names": ["Of CT"]}}},
            "ct is both a modality and a question type",
        ),
        (
            {"question_types": {"count": {"names": ["Count"], "dicom": ["CT"]}}},
            "only modalities have DICOM values",
        ),
        (
            {"modalities": {f"m{number}": {"names": [str(number)]} for number in range(33)}},
            "modalities.* at most 40",
        ),
    ],
)
def test_what_is_ambiguous_or_no_file_name_is_refused_by_name(
    groups: dict[str, dict[str, Any]], why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        check_params(settings(**groups), PATH)


JOINT = {"axis": "modality", "of": ["ct", "mri"]}
CHECKPOINT = {"axis": "modality", "split": "cross-sectional", "images": "data/images"}


def joint_settings(name: str = "cross-sectional", **changes: Any) -> dict[str, Any]:
    """params.yaml with a joint split and its checkpoint."""
    tree = settings()
    tree["splits"] |= {"joint": {name: JOINT | changes}}
    tree["checkpoints"] |= {name: CHECKPOINT | {"split": name}}
    tree["evaluations"] |= {name: {"axis": "modality"}}
    return tree


def test_a_joint_split_has_the_slugs_of_its_parts() -> None:
    params = check_params(joint_settings(), PATH)
    assert params.cells_of("cross-sectional") == ("ct", "mri")
    assert params.joint_cells("ct") == ()
    everything = check_params(joint_settings(of="all"), PATH)
    assert everything.cells_of("cross-sectional") == everything.taxonomy.axes["modality"]


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (joint_settings(of=["ct", "pet"]), "no such modality 'pet'; allowed: ct"),
        (joint_settings(of=["ct", "ct"]), "a slug is named twice"),
        (joint_settings(of=["ct"]), "splits.joint.cross-sectional.of"),
        (joint_settings(axis="task"), "no such task 'ct'"),
        (joint_settings("ct"), "a modality or question type has this name"),
        (joint_settings("A b"), "a slug names files"),
        (joint_settings(axis="task", of="all"), "cross-sectional: no such modality"),
    ],
)
def test_a_joint_split_of_missing_parts_is_refused_by_name(tree: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        check_params(tree, PATH)


def test_a_checkpoint_of_a_missing_split_is_named() -> None:
    tree = settings()
    del tree["modalities"]["oct"]
    with pytest.raises(SettingsError, match=r"checkpoints.oct: no such modality.*allowed: ct, mri"):
        check_params(tree, PATH)
