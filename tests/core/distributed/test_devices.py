"""GPUs that were promised and cannot be used are told before anything is computed."""

from __future__ import annotations

import pytest
import torch

from stages.core.distributed.devices import check_gpus
from stages.core.errors import InputError

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
