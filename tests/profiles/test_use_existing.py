"""`med-r1 use` beside checkpoints that params.yaml already has: kept, or named as not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import SettingsError
from stages.core.params import load_params
from stages.profiles.command import apply
from stages.profiles.proposals.checkpoints import (
    evaluations_of,
    in_existing_order,
    merge_existing,
    new_checkpoints,
)
from stages.profiles.use import use
from tests.profiles.test_use import content, root, ward  # noqa: F401  # a fixture

AXES = {"modality": ("ct", "mri"), "task": ("lesion-grading",)}
NEW = new_checkpoints(AXES)


def entry(split: str, **changes: Any) -> dict[str, Any]:
    axis = "task" if split in ("lesion-grading", "disease-diagnosis") else "modality"
    return {"axis": axis, "split": split, "method": "grpo", "start": "models/base"} | changes


def test_entries_of_the_same_splits_keep_settings_and_place() -> None:
    grpo = {"max_steps": 7}
    existing = {
        "lesion-grading": entry("lesion-grading"),
        "x-ray": entry("x-ray", grpo=grpo),
        "sft-ct": entry("ct", method="sft", sft={"save_steps": 0}),
        "ct": entry("ct", grpo=grpo, start="models/earlier"),
        "sft-x-ray": entry("x-ray", method="sft"),
        "oct": entry("oct"),
    }
    merged = merge_existing(NEW, existing, {}, {}, AXES)
    assert list(merged.checkpoints) == ["lesion-grading", "sft-ct", "ct", "mri"]
    assert merged.checkpoints["ct"] == NEW["ct"] | {"grpo": grpo, "start": "models/earlier"}
    assert merged.checkpoints["sft-ct"]["sft"] == {"save_steps": 0}
    assert merged.checkpoints["sft-ct"]["method"] == "sft"
    assert [text.split()[0] for text in merged.kept] == ["sft-ct", "ct"]
    assert [text.split()[0] for text in merged.dropped] == ["x-ray", "sft-x-ray"]


def test_settings_below_a_profile_count_only_for_splits_that_it_has_not() -> None:
    original = {"ct": entry("ct", grpo={"beta": 0.1}), "mri": entry("mri", grpo={"beta": 0.2})}
    merged = merge_existing(NEW, {"ct": entry("ct")}, original, {}, AXES)
    assert "grpo" not in merged.checkpoints["ct"]
    assert merged.checkpoints["mri"]["grpo"] == {"beta": 0.2}


def test_joint_checkpoints_are_kept_if_the_corpus_has_their_parts() -> None:
    existing = {name: entry(name) for name in ("both", "more", "every")}
    joint = {
        "both": {"axis": "modality", "of": ["ct", "mri"]},
        "more": {"axis": "modality", "of": ["ct", "x-ray"]},
        "every": {"axis": "modality", "of": "all"},
    }
    merged = merge_existing(NEW, existing, {}, joint, AXES)
    assert set(merged.checkpoints) == {*NEW, "both", "every"}
    assert merged.dropped == ["more"]


def test_the_first_fold_counts_for_all_and_another_one_is_named() -> None:
    existing = {
        f"{name}-fold-{number}": entry(f"{name}-fold-{number}", grpo={"max_steps": steps})
        for name, number, steps in [("ct", 1, 5), ("ct", 2, 5), ("mri", 1, 6), ("mri", 2, 7)]
    }
    merged = merge_existing(NEW, existing, {}, {}, AXES)
    assert merged.checkpoints["ct"] == NEW["ct"] | {"grpo": {"max_steps": 5}}
    assert merged.checkpoints["mri"]["grpo"] == {"max_steps": 6}
    assert [text.split()[0] for text in merged.dropped] == ["mri-fold-2"]


@pytest.mark.parametrize(
    ("existing", "names"),
    [
        ([], ["a", "b", "c"]),
        (["c", "a"], ["c", "a", "b"]),
        (["b", "x"], ["a", "b", "c", "x"]),
        (["x", "c"], ["a", "b", "x", "c"]),
    ],
)
def test_new_names_follow_the_one_before_them(existing: list[str], names: list[str]) -> None:
    assert in_existing_order(["a", "b", "c"], existing) == names


def test_evaluations_are_those_of_the_checkpoints_and_the_base() -> None:
    found = evaluations_of(NEW, ["mri", "gone", "base"])
    assert list(found) == ["mri", "lesion-grading", "base", "ct"]
    assert found["base"] == {"axis": "all"}


def edit(root: Path, old: str, new: str, times: int = -1) -> None:  # noqa: F811
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, times), encoding="utf-8")


MRI = "images: data/images/mri, start: models/base}"
MINE = f"{MRI[:-1]}, grpo: {{beta: 0.1}}}}  # closer to the base"


def test_a_persons_settings_come_through_and_are_taken_back(
    root: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(root, MRI, MINE, 1)
    edit(root, "  # sft-mri", "  sft-mri")
    edit(root, "  # sft-oct", "  sft-oct")
    edit(root, "never_worse: []", "never_worse: [mri/mri, mri/oct, oct/oct]")
    before = content(root)
    assert use(ward(tmp_path / "w", {"MRI": 30}), yes=True)
    params = load_params()
    assert list(params.checkpoints) == ["mri", "disease-diagnosis", "sft-mri"]
    assert set(params.evaluations) == {"base", *params.checkpoints}
    assert params.grpo_for("mri").beta == 0.1
    assert params.retrain.never_worse == ["mri/mri"]
    text = (root / "params.yaml").read_text(encoding="utf-8").partition("\n# profile: ")[0]
    (line,) = (line for line in text.splitlines() if line.startswith("  mri: {axis: modality, s"))
    assert line.endswith("# closer to the base")
    printed = capsys.readouterr().out
    assert 'kept from params.yaml: mri {"grpo": {"beta": 0.1}}' in printed
    assert "kept from params.yaml: sft-mri" in printed
    assert "too little data for its split: sft-oct" in printed
    apply("sample", dry_run=False, elsewhere=False)
    assert (root / "params.yaml").read_bytes() == before["params.yaml"]


def test_settings_that_were_edited_under_a_profile_come_through_to_the_next(
    root: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert use(ward(tmp_path / "a", {"MRI": 12}), yes=True)
    edit(root, "split: mri, method: grpo", "split: mri, method: grpo, grpo: {max_steps: 9}", 1)
    assert use(ward(tmp_path / "b", {"MRI": 12, "CT": 12}), yes=True, folds=2)
    params = load_params()
    assert params.grpo_for("mri-fold-1").max_steps == params.grpo_for("mri-fold-2").max_steps == 9
    assert params.grpo_for("ct-fold-1") == params.grpo


def test_kept_settings_that_do_not_fit_the_scale_are_named(root: Path, tmp_path: Path) -> None:  # noqa: F811
    edit(root, MRI, f"{MRI[:-1]}, grpo: {{reuse_prompt_pass: false}}}}", 1)
    with pytest.raises(SettingsError, match=r"checkpoints\.mri\.grpo: reference_steps 8"):
        use(ward(tmp_path / "w", {"MRI": 12}), yes=True, scale="full", elsewhere=True)
    assert use(ward(tmp_path / "x", {"CT": 12}), yes=True, scale="full", elsewhere=True)


@pytest.mark.parametrize(
    ("union", "is_kept"), [("of: all", True), ("of: [mri, ct]", True), ("of: [mri, oct]", False)]
)
def test_a_union_of_splits_is_kept_or_refused_by_name(
    root: Path,  # noqa: F811
    tmp_path: Path,
    union: str,
    is_kept: bool,
) -> None:
    edit(root, "  joint: {} ", f"  joint: {{both: {{axis: modality, {union}}}}} ")
    mine = "  both: {axis: modality, split: both, method: grpo, images: data/images}\n"
    edit(root, "\ncheckpoints:\n", f"\ncheckpoints:\n{mine}")
    edit(root, "\nevaluations:\n", "\nevaluations:\n  both: {axis: modality}\n")
    folder = ward(tmp_path / "w", {"MRI": 12, "CT": 12})
    if not is_kept:
        before = content(root)
        with pytest.raises(SettingsError, match=r"splits\.joint.*oct"):
            use(folder, yes=True)
        assert content(root) == before
        return
    assert use(folder, yes=True)
    assert set(load_params().checkpoints) == {"both", "ct", "mri", "disease-diagnosis"}
