"""Stage base: a folder or hub revision, safetensors only, clear messages otherwise."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from stages.base import __main__ as base
from stages.core import layout
from stages.core.errors import InputError
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.policy.loading import load_policy, load_processor

REPOSITORY = Path(__file__).parents[2]


def run_base(monkeypatch: pytest.MonkeyPatch, root: Path, **settings: object) -> None:
    tree = read_yaml(REPOSITORY / "params.yaml")
    tree["base"] |= {"source": "source"} | settings
    (root / "params.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["base"])
    base.main()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "infra" / "base", tmp_path / "source")
    return tmp_path


def test_a_folder_is_taken_over_with_its_provenance(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_base(monkeypatch, root)
    assert (layout.BASE_MODEL / "model.safetensors").read_bytes() == (
        root / "source" / "model.safetensors"
    ).read_bytes()
    assert (
        json.loads(layout.training_provenance("base").read_text(encoding="utf-8"))["params"][
            "base"
        ]["source"]
        == "source"
    )
    assert (
        json.loads((layout.BASE_MODEL / "base_model.json").read_text(encoding="utf-8"))["source"]
        == "source"
    )
    assert not (layout.BASE_MODEL / "provenance.json").exists(), (
        "another commit alone changes no base"
    )


def test_max_pixels_reaches_the_processor(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_base(monkeypatch, root, max_pixels=96 * 96)
    processor = load_processor(layout.BASE_MODEL)
    assert processor(text=["<|image_pad|>"], images=[Image.new("RGB", (384, 384))])[
        "image_grid_thw"
    ].tolist() == [[1, 4, 4]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nowhere"}, "no such folder, and not a model id"),
        ({"source": "./a/b"}, "no such folder, and not a model id"),
        ({"source": "Qwen/Qwen2-VL-2B-Instruct"}, "set base.revision to the commit"),
        ({"revision": "0" * 40}, "does not apply to the folder source"),
    ],
)
def test_a_source_that_cannot_be_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_base(monkeypatch, root, **settings)
    assert not layout.BASE_MODEL.exists()


@pytest.mark.parametrize(
    ("model_type", "removed", "message"),
    [
        ("llava", (), "type 'llava': take a Qwen2-VL, Qwen2.5-VL or Qwen3-VL"),
        ("qwen2", (), "type 'qwen2': take a Qwen2-VL"),
        ("qwen2_vl", ("processor_config.json",), "no preprocessor_config.json or processor_config"),
    ],
)
def test_a_model_of_another_family_or_without_a_processor_is_refused(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    removed: tuple[str, ...],
    message: str,
) -> None:
    path = root / "source" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"model_type": model_type}), encoding="utf-8")
    for name in removed:
        (root / "source" / name).unlink()
    with pytest.raises(InputError, match=message):
        run_base(monkeypatch, root)
    assert not layout.BASE_MODEL.exists()


def test_tied_weights_stay_tied_and_are_stored_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as Qwen publishes them: one flat configuration, several shards under the names of the first
    # release
    model = AutoModelForImageTextToText.from_pretrained(root / "source")
    (root / "source" / "model.safetensors").unlink()
    model.save_pretrained(root / "source", max_shard_size="2MB")
    config = json.loads((root / "source" / "config.json").read_text(encoding="utf-8"))
    flat = config.pop("text_config") | config
    (root / "source" / "config.json").write_text(
        json.dumps(flat | {"model_type": "qwen2_vl"}), encoding="utf-8"
    )
    run_base(monkeypatch, root)
    policy = load_policy(layout.BASE_MODEL, dtype="float32", attention="sdpa")
    assert len(list(layout.BASE_MODEL.glob("model-*.safetensors"))) > 1
    assert policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
    assert all(
        torch.equal(value, model.state_dict()[name].float())
        for name, value in policy.state_dict().items()
    )


def test_the_published_limit_of_pixels_caps_large_images_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}
    images = Qwen2VLImageProcessor(**limits)
    tokens = load_processor(root / "source").tokenizer
    Qwen2VLProcessor(
        images, tokens, Qwen2VLVideoProcessor(**limits), chat_template=tokens.chat_template
    ).save_pretrained(root / "source")
    run_base(monkeypatch, root, max_pixels=401408)
    processor = load_processor(layout.BASE_MODEL)

    def pixels(side: int) -> int:
        grid = processor(text=["<|image_pad|>"], images=[Image.new("RGB", (side, side))])[
            "image_grid_thw"
        ][0]
        return int(grid.prod()) * 14 * 14

    assert pixels(384) == 392 * 392
    assert 0.9 * 401408 < pixels(2000) <= 401408
    assert pixels(14) == 56 * 56, "its lower limit stays"


def test_a_shard_that_is_missing_or_cut_short_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = root / "source" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        InputError,
        match=r"model.safetensors has \d+ bytes instead of \d+. Copy or download the model again",
    ):
        run_base(monkeypatch, root)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (root / "source" / "model.safetensors.index.json").write_text(
        json.dumps(index), encoding="utf-8"
    )
    with pytest.raises(InputError, match="model-00001-of-00002.safetensors is missing"):
        run_base(monkeypatch, root)
    assert not layout.BASE_MODEL.exists()


def test_weights_that_lack_a_tensor_are_refused_and_not_drawn_at_random(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(root / "source" / "model.safetensors")
    tensors.pop(next(name for name in tensors if "mlp" in name))
    save_file(tensors, root / "source" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="its weights lack 1 tensors"):
        run_base(monkeypatch, root)


def test_a_model_that_needs_code_of_its_own_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "source" / "config.json"
    own = json.loads(path.read_text(encoding="utf-8")) | {
        "model_type": "own",
        "auto_map": {"AutoModel": "modeling_own.Own"},
    }
    path.write_text(json.dumps(own), encoding="utf-8")
    (root / "source" / "modeling_own.py").write_text("raise SystemExit('run')", encoding="utf-8")
    with pytest.raises(
        InputError,
        match=r"is of the type 'own', .* code of its own \(modeling_own.Own\), which is never run",
    ):
        run_base(monkeypatch, root)
    assert not layout.BASE_MODEL.exists()


def test_pickled_weights_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "source" / "model.safetensors").unlink()
    torch.save({}, root / "source" / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights"):
        run_base(monkeypatch, root)
    assert not layout.BASE_MODEL.exists()


def test_a_folder_that_is_no_checkpoint_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "source" / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json missing. Check base.source"):
        run_base(monkeypatch, root)
