"""Stage base: a folder or a hub revision, safetensors only, one clear message when neither will do."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError

from stages import layout
from stages.base import __main__ as base
from stages.errors import InputError

REPOSITORY = Path(__file__).parents[2]


def run_base(monkeypatch: pytest.MonkeyPatch, root: Path, **settings: object) -> None:
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    tree["base"] |= {"source": "source"} | settings
    (root / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["base"])
    base.main()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "infra" / "base", tmp_path / "source")
    return tmp_path


def test_a_folder_is_taken_over_with_its_provenance(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_base(monkeypatch, root)
    assert (layout.BASE_MODEL / "model.safetensors").read_bytes() == (root / "source" / "model.safetensors").read_bytes()
    assert json.loads((layout.BASE_MODEL / "provenance.json").read_text(encoding="utf-8"))["params"]["base"]["source"] == "source"


def test_max_pixels_reaches_the_processor(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_base(monkeypatch, root, max_pixels=96 * 96)
    from stages.grpo.policy import load_processor

    processor = load_processor(layout.BASE_MODEL)
    from PIL import Image

    assert processor(text=["<|image_pad|>"], images=[Image.new("RGB", (384, 384))])["image_grid_thw"].tolist() == [[1, 4, 4]]


def test_a_hub_id_is_fetched_at_its_commit_through_the_same_code(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **given: object) -> str:
        asked.update(given, repo=repo)
        return str(root / "source")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    run_base(monkeypatch, root, source="Qwen/Qwen2-VL-2B-Instruct", revision="0" * 40)
    assert asked["repo"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert asked["revision"] == "0" * 40
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".py", ".pt", "*"))]
    assert (layout.BASE_MODEL / "config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nowhere"}, "no such folder, and not a model id"),
        ({"source": "./a/b"}, "no such folder, and not a model id"),
        ({"source": "Qwen/Qwen2-VL-2B-Instruct"}, "set base.revision to the commit"),
        ({"revision": "0" * 40}, "has no meaning for the folder source"),
    ],
)
def test_a_source_that_cannot_be_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_base(monkeypatch, root, **settings)
    assert not layout.BASE_MODEL.exists()


def test_a_hub_that_is_out_of_reach_is_named_with_the_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(InputError, match="neither on the hub nor in the local cache"):
        run_base(monkeypatch, root, source="Qwen/Qwen2-VL-2B-Instruct", revision="0" * 40)


def test_pickled_weights_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "source" / "model.safetensors").unlink()
    torch.save({}, root / "source" / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights"):
        run_base(monkeypatch, root)
    assert not layout.BASE_MODEL.exists()


def test_a_folder_that_is_no_checkpoint_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "source" / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json missing. Check base.source"):
        run_base(monkeypatch, root)
