"""`dvc exp run --set-param` works for every key, and leaves a file that can still be edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from flows.retraining.initial_checkpoints import set_initial_checkpoints
from stages.core.params import load_params
from stages.core.yaml_files import load_for_edit, read_yaml
from stages.profiles.schema import load_profile
from stages.profiles.splice import reset, set_values
from tests.conftest import ROOT

OTHER: dict[str, Any] = {
    "checkpoints.ct.start": "models/champion/ct",
    "checkpoints.lesion-grading.images": "data/images/oct",
    "checkpoints.mri.split": "mri",
    "evaluations.base.axis": "all",
    "base.revision": "0" * 40,
    "base.max_pixels": 401408,
    "grpo.learning_rate": 1e-6,
    "grpo.lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj"]},
    "data_tests.contradictions.severity": "off",
    "splits.near_duplicates": 3,
    "report.images": False,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def value_of(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def comments(text: str) -> list[str]:
    return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]


def override(key: str, value: Any) -> str:
    """The argument of --set-param, in Hydra's grammar."""
    return f"{key}={json.dumps(value).replace(chr(34), '')}"


def test_every_key_can_be_set(path: Path) -> None:
    before = read_yaml(path)
    text = path.read_text(encoding="utf-8")
    checkpoints = [key for key, _ in leaves(before) if key.startswith(("checkpoints", "eval"))]
    assert len(checkpoints) > 70
    # of any two keys, each is in a half without the other
    for bit in range(len(checkpoints).bit_length()):
        for half in (0, 1):
            chosen = [key for at, key in enumerate(checkpoints) if at >> bit & 1 == half]
            path.write_text(text, encoding="utf-8")
            apply_overrides(path, [f"{key}=other" for key in chosen])
            after = read_yaml(path)
            changed = {name for name, value in leaves(after) if value_of(before, name) != value}
            assert changed == set(chosen)


@pytest.mark.parametrize("key", OTHER)
def test_a_set_value_is_read_and_all_else_stays(path: Path, key: str) -> None:
    before = read_yaml(path)
    text = path.read_text(encoding="utf-8")
    apply_overrides(path, [override(key, OTHER[key])])
    after = read_yaml(path)
    assert value_of(after, key) == OTHER[key]
    top = key.split(".")[0]
    assert {name: each for name, each in after.items() if name != top} == {
        name: each for name, each in before.items() if name != top
    }
    load_params(path)
    assert comments(path.read_text(encoding="utf-8")) == comments(text)


@pytest.mark.parametrize("profile", ["full", "full-3b"])
def test_a_profile_is_set_and_undone_after_an_experiment(
    path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    apply_overrides(path, ["grpo.seed=7"])
    _, loaded = load_profile(profile)
    text = path.read_text(encoding="utf-8")
    edited = set_values(text, loaded.params, profile, path)
    path.write_text(edited, encoding="utf-8")
    assert load_params(path).grpo.seed == 7
    apply_overrides(path, ["grpo.seed=8"])
    restored, name = reset(path.read_text(encoding="utf-8"), path)
    assert name == profile
    path.write_text(restored, encoding="utf-8")
    assert load_params(path).grpo.seed == 8
    original = read_yaml(ROOT / "params.yaml")
    original["grpo"]["seed"] = 8
    assert read_yaml(path) == original


def test_a_retraining_starts_from_the_champion_after_an_experiment(path: Path) -> None:
    apply_overrides(path, ["grpo.seed=7"])
    set_initial_checkpoints(path.parent, {"ct": Path("models/champion/ct")})
    assert load_params(path).checkpoints["ct"].start == "models/champion/ct"
    load_for_edit(path.read_text(encoding="utf-8"), path)
