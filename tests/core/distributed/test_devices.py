"""GPUs that were promised and cannot be used are told before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages import evaluate, train
from stages.core.distributed.devices import SLOTS_PER_GPU, check_gpus, slots_per_gpu
from stages.core.errors import InputError
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from tests.conftest import ROOT

WANTED = "grpo.bf16 true"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU, as torch tells of it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])


@pytest.mark.parametrize("visible", [None, "", "-1"])
def test_nothing_is_asked_of_a_machine_without_gpus(
    visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check_gpus(bf16_setting=WANTED)


def test_a_slot_with_a_gpu_that_torch_does_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        InputError,
        match=(
            r"CUDA_VISIBLE_DEVICES=0,1, but torch .* sees no GPU: .*Install a newer driver or a"
            r" torch"
        ),
    ):
        check_gpus(bf16_setting=WANTED)


def test_fewer_gpus_than_promised_are_refused(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match="names 2 GPUs, but torch sees 1"):
        check_gpus(bf16_setting=WANTED)


def test_a_gpu_that_torch_was_not_built_for_is_refused(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nmore"
        )

    monkeypatch.setattr(torch, "ones", broken)
    with pytest.raises(
        InputError,
        match=(
            r"GPU 0 cannot be used for computation \(CUDA error: no kernel image is available .*"
            r" sm_90:"
            r" install one"
        ),
    ):
        check_gpus(bf16_setting=None)


def test_bfloat16_is_refused_where_the_gpu_has_none(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    with pytest.raises(
        InputError, match=r"^grpo.bf16 true: Tesla V100 has no bfloat16 \(.*\): compute in float32"
    ):
        check_gpus(bf16_setting=WANTED)
    check_gpus(bf16_setting=None)


@pytest.mark.parametrize(
    ("slots", "rank", "limits"),
    [(None, "0", []), ("1", "0", []), ("2", "0", [(0.5, 0)]), ("4", "1", [(0.25, 1)])],
)
def test_a_process_is_limited_to_its_share_of_the_memory_of_its_gpu(
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    slots: str | None,
    rank: str,
    limits: list[tuple[float, int]],
) -> None:
    found: list[tuple[float, int]] = []

    def limit(fraction: float, device: torch.device) -> None:
        found.append((fraction, device.index))

    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.delenv(SLOTS_PER_GPU, raising=False)
    if slots is not None:
        monkeypatch.setenv(SLOTS_PER_GPU, slots)
    check_gpus(None)
    assert found == limits


@pytest.mark.parametrize("value", ["0", "-1", "half", ""])
def test_a_number_of_slots_that_is_none_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOTS_PER_GPU, value)
    with pytest.raises(InputError, match=f"{SLOTS_PER_GPU}='{value}' is not a number of stages"):
        slots_per_gpu()


def test_a_share_of_a_gpu_is_in_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a training resumes, and cached answers are used, under another number of slots."""
    monkeypatch.chdir(ROOT)  # with the code that both contain
    params = load_params()
    split = tmp_path / "train.json"
    split.write_text("[]", encoding="utf-8")
    base = ROOT / "infra" / "base"
    found = set()
    for slots in (None, "2", "4"):
        if slots is not None:
            monkeypatch.setenv(SLOTS_PER_GPU, slots)
        provenance = collect_provenance({"base": params.base})
        found.add(
            (
                train._fingerprint(params, {"grpo": params.grpo}, split, base),
                evaluate._policy_key(base, params, provenance),
            )
        )
    assert len(found) == 1


def test_the_device_is_in_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a state of a CPU is not resumed on a GPU, whose numbers are others."""
    import torch

    monkeypatch.chdir(ROOT)
    params = load_params()
    split = tmp_path / "train.json"
    split.write_text("[]", encoding="utf-8")
    base = ROOT / "infra" / "base"
    found = {train._fingerprint(params, {"grpo": params.grpo}, split, base)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("NVIDIA H100", "NVIDIA H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        found.add(train._fingerprint(params, {"grpo": params.grpo}, split, base))
    assert len(found) == 3
