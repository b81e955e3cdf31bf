"""Several ranks learn what one learns from the same batch, however it is divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.core.errors import InputError, LostPeerError
from stages.core.params import Grpo
from stages.grpo import engine, shared_prefix
from stages.grpo.parallel import (
    CONFIGURATIONS,
    explain_peer_error,
    parallel_arguments,
    peer_errors_explained,
    prepare_processes,
)
from tests.grpo.tiny import REPOSITORY, embedded_policy, grpo_settings
from tests.grpo.two_processes import CASES, step

PLAIN = [case for case in CASES if not case.startswith("zero")]


def settings(**changed: object) -> Grpo:
    return grpo_settings(**{"reuse_prompt_pass": False} | changed)


def step_differences(
    folder: Path, cases: list[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    """Run cases on two ranks and one; the difference of their steps as a share of the step."""
    # `step` replaces it in this process, too: restored after the test
    monkeypatch.setattr(engine, "sample_drafted", vars(engine)["sample_drafted"])
    monkeypatch.setattr(shared_prefix, "PACK_MAX_TOKENS", shared_prefix.PACK_MAX_TOKENS)
    command = [sys.executable, "-m", "tests.grpo.two_processes", str(folder), *cases]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    before = embedded_policy().state_dict()
    differences = {}
    for case in cases:
        (folder / case).mkdir()
        one = step(folder / case, case)
        two = load_file(folder / f"{case}.safetensors")
        assert one.keys() == two.keys()
        start = {name: before.get(name, torch.zeros_like(value)) for name, value in one.items()}
        if case == "adapter":
            # only B is compared: A starts at random, and does not change in the first step
            start |= {name: value for name, value in one.items() if "lora_B" not in name}
        difference = sum(float((one[name] - two[name]).pow(2).sum()) for name in one)
        length = sum(float((one[name] - start[name]).pow(2).sum()) for name in one)
        assert length > 0, case
        differences[case] = (difference / length) ** 0.5
    return differences


def test_two_processes_take_the_step_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences = step_differences(tmp_path, PLAIN, monkeypatch)
    print(differences)
    assert differences.pop("bfloat16") < 0.05
    assert all(difference < 1e-4 for difference in differences.values()), differences


@pytest.mark.skipif(
    util.find_spec("deepspeed") is None, reason="deepspeed is not installed: the extra `gpu` has it"
)
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("zero")])
def test_deepspeed_takes_the_step_of_one_process(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences = step_differences(tmp_path, [case], monkeypatch)
    print(differences)
    if "bfloat16" in case:
        weights = load_file(tmp_path / f"{case}.safetensors").values()
        assert any(not torch.equal(each, each.bfloat16().float()) for each in weights), (
            "the weights are the trained 32-bit ones"
        )
    assert differences[case] < (0.05 if "bfloat16" in case else 1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_configurations_leave_to_trl_what_params_set(stage: int) -> None:
    tree = json.loads((CONFIGURATIONS / f"zero{stage}.json").read_text(encoding="utf-8"))
    assert tree["zero_optimization"]["stage"] == stage
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert tree[key] == "auto"
    assert tree["bf16"] == {"enabled": "auto"}
    if stage == 3:
        assert tree["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"], (
            "or the checkpoint would be empty"
        )


def test_missing_deepspeed_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.grpo.parallel.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"grpo\.parallel zero2 .*`pip install .*'\.\[gpu\]'`"):
        prepare_processes(settings(parallel="zero2"))


@pytest.mark.parametrize(
    ("parallel", "gpus", "launched"),
    [
        ("auto", "1", 0),
        ("auto", "3", 3),
        ("ddp", "2", 2),
        ("none", "4", 0),
        ("zero2", "1", 1),
        ("zero3", "2", 2),
    ],
)
def test_one_process_is_launched_per_gpu_of_the_slot(
    parallel: str, gpus: str, launched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.grpo.parallel.util.find_spec", lambda name: object())
    monkeypatch.setenv("MED_R1_PROCESSES", gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert prepare_processes(settings(parallel=parallel)) == launched


def test_a_launched_process_launches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED_R1_PROCESSES", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert prepare_processes(settings(parallel="ddp")) == 0
    with pytest.raises(InputError, match=r"grpo\.parallel none.* 2 processes"):
        prepare_processes(settings(parallel="none"))


def test_ddp_is_refused_with_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED_R1_PROCESSES", "1")
    with pytest.raises(InputError, match=r"grpo\.parallel ddp .*CUDA_VISIBLE_DEVICES.* auto"):
        prepare_processes(settings(parallel="ddp"))


def test_none_uses_the_first_of_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    prepare_processes(settings(parallel="none"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_timeout_is_passed_on() -> None:
    assert parallel_arguments(settings(timeout_minutes=1.5))["ddp_timeout"] == 90


PEER_GONE = (
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    " [127.0.0.1]:4000"
)
TIMED_OUT = (
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 90000ms for"
    " recv operation to complete"
)
NCCL_TIMED_OUT = (
    "NCCL communicator was aborted on rank 1. Watchdog caught collective operation timeout:"
    " WorkNCCL(SeqNum=9, OpType=ALLREDUCE)"
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (PEER_GONE, LostPeerError),
        (TIMED_OUT, InputError),
        (NCCL_TIMED_OUT, InputError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_an_error_caused_by_another_process_has_its_own_type(
    text: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(error) as caught, peer_errors_explained(settings()):
        raise RuntimeError(text)
    assert type(caught.value) is error
    assert error is RuntimeError or "process 2 of 2 (rank 1)" in str(caught.value)


def test_a_single_process_has_no_peers_to_blame() -> None:
    assert explain_peer_error(RuntimeError(PEER_GONE), settings()) is None
