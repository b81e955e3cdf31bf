"""Each tower gets the attention available here; a broken flash-attn is reported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.errors import InputError
from stages.core.params import Towers, load_params
from stages.grpo.data.dataset import train_dataset
from stages.grpo.trainer import build_trainer
from stages.policy.attention import choose_attention
from stages.policy.loading import load_policy
from stages.policy.vision_attention import SETTING as SDPA_BATCHED
from tests.grpo.tiny import BASE, REPOSITORY, processor, questions

BROKEN = 'raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E")'


def install(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a fake flash-attn whose module is `code`."""
    (folder / "flash_attn-2.8.3.dist-info").mkdir()
    (folder / "flash_attn-2.8.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n", encoding="utf-8"
    )
    (folder / "flash_attn.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    importlib.invalidate_caches()


def build(folder: Path, policy: Any) -> Any:
    """A trainer of this policy."""
    grpo = load_params(REPOSITORY / "params.yaml").grpo.model_copy(update={"prompts_per_device": 2})
    dataset = train_dataset(questions(folder), "no-think")
    return build_trainer(
        policy, processor(), dataset, grpo, "no-think", scratch=folder / "state", run_name="x"
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H200")


def test_auto_is_sdpa_without_flash_attn(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_attention("auto", torch.bfloat16, custom_masks=True) == {
        "text_config": "sdpa",
        "vision_config": SDPA_BATCHED,
    }
    assert capsys.readouterr().err == ""


def test_auto_uses_flash_attn_for_the_vision_tower_only(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "", monkeypatch)
    assert choose_attention("auto", torch.bfloat16, custom_masks=True) == {
        "text_config": "sdpa",
        "vision_config": "flash_attention_2",
    }
    assert (
        choose_attention("auto", torch.float32, custom_masks=True)["vision_config"] == SDPA_BATCHED
    ), "flash-attn supports 16-bit types only"


def test_auto_reports_a_flash_attn_that_does_not_load_and_uses_sdpa(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, BROKEN, monkeypatch)
    assert (
        choose_attention("auto", torch.bfloat16, custom_masks=True)["vision_config"] == SDPA_BATCHED
    )
    assert "flash-attn 2.8.3 was built for another torch than" in capsys.readouterr().err


def test_flash_attn_set_by_name_is_refused_if_unavailable(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"not installed: `pip install .*'\.\[gpu\]'`"):
        choose_attention("flash_attention_2", torch.bfloat16, custom_masks=False)
    install(tmp_path, BROKEN, monkeypatch)
    with pytest.raises(InputError, match="undefined symbol.*`pip install --force-reinstall"):
        choose_attention(
            Towers(language="sdpa", vision="flash_attention_2"), torch.bfloat16, custom_masks=True
        )


def test_flash_attn_needs_a_recent_gpu_and_16_bit_weights(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "", monkeypatch)
    with pytest.raises(InputError, match=r"float32 \(base\.dtype"):
        choose_attention("flash_attention_2", torch.float32, custom_masks=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(InputError, match="compute capability 8.0"):
        choose_attention("flash_attention_2", torch.bfloat16, custom_masks=False)


def test_custom_masks_are_never_passed_to_flash_attn(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "", monkeypatch)
    kinds = choose_attention("flash_attention_2", torch.bfloat16, custom_masks=True)
    assert kinds == {"text_config": "sdpa", "vision_config": "flash_attention_2"}


def test_policy_and_reference_have_an_implementation_per_tower(tmp_path: Path) -> None:
    policy = load_policy(BASE, dtype="float32", attention=Towers(language="sdpa", vision="eager"))
    for model in (policy, build(tmp_path, policy).ref_model):
        assert model.config.text_config._attn_implementation == "sdpa"
        assert model.config.vision_config._attn_implementation == "eager"


def test_a_loaded_policy_never_uses_cudnns_attention() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_policy(BASE, dtype="float32", attention="sdpa")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
