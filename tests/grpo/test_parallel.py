"""Several ranks learn what one learns from the same batch, however it is divided."""

from __future__ import annotations

import json
import os
from importlib import util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.core.distributed.launch import launch
from stages.core.errors import InputError, LostPeerError
from stages.core.params import Grpo, load_params
from stages.grpo import engine
from stages.grpo.parallel import (
    CONFIGURATIONS,
    explain_peer_error,
    parallel_arguments,
    peer_errors_explained,
    processes_to_launch,
)
from tests.grpo.tiny import REPOSITORY, embedded_policy
from tests.grpo.two_processes import CASES, step

PLAIN = [case for case in CASES if not case.startswith("zero")]


def settings(**changed: object) -> Grpo:
    return Grpo.model_validate(
        load_params(REPOSITORY / "params.yaml").grpo.model_dump()
        | {"reuse_prompt_pass": False}
        | changed
    )


def compare(folder: Path, cases: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Run cases on two ranks and one; the difference of their steps as a share of the step."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=":")
    monkeypatch.setitem(
        vars(engine), "sample_completions", vars(engine)["sample_completions"]
    )  # is put back behind the test
    launch(["tests.grpo.two_processes", str(folder), *cases], 2, folder / "logs", "see above")
    before, apart = embedded_policy().state_dict(), {}
    for case in cases:
        (folder / case).mkdir()
        one, two = step(folder / case, case), load_file(folder / f"{case}.safetensors")
        assert one.keys() == two.keys()
        start = {name: before.get(name, torch.zeros_like(value)) for name, value in one.items()}
        if (
            case == "adapter"
        ):  # whose first part begins at random, and does not move in the first step
            start |= {name: value for name, value in one.items() if "lora_A" in name}
            start |= {name: value for name, value in one.items() if "lora_" not in name}
        moved = sum(float((one[name] - start[name]).pow(2).sum()) for name in one)
        assert moved > 0, case
        apart[case] = (
            sum(float((one[name] - two[name]).pow(2).sum()) for name in one) / moved
        ) ** 0.5
    return apart


def test_two_processes_take_the_step_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = compare(tmp_path, PLAIN, monkeypatch)
    print(apart)
    assert apart.pop("bfloat16") < 0.05
    assert all(each < 1e-4 for each in apart.values()), apart


@pytest.mark.skipif(
    util.find_spec("deepspeed") is None, reason="deepspeed is not installed: the extra `gpu` has it"
)
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("zero")])
def test_deepspeed_takes_the_step_of_one_process(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = compare(tmp_path, [case], monkeypatch)
    print(apart)
    if "bfloat16" in case:
        kept = load_file(tmp_path / f"{case}.safetensors").values()
        assert any(not torch.equal(weights, weights.bfloat16().float()) for weights in kept), (
            "the weights are those that are trained"
        )
    assert apart[case] < (0.05 if "bfloat16" in case else 1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_configurations_are_deepspeeds_and_leave_to_trl_what_params_say(stage: int) -> None:
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


def test_deepspeed_that_is_missing_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.grpo.parallel.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError,
        match=(
            r"grpo.parallel zero2 needs the package deepspeed: `pip install --no-build-isolation"
            r" '.\[gpu\]'`"
        ),
    ):
        processes_to_launch(settings(parallel="zero2"))


@pytest.mark.parametrize(
    ("way", "there", "started"),
    [
        ("auto", "1", 0),
        ("auto", "3", 3),
        ("ddp", "2", 2),
        ("none", "4", 0),
        ("zero2", "1", 1),
        ("zero3", "2", 2),
    ],
)
def test_a_process_is_started_for_each_gpu_of_the_slot(
    way: str, there: str, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.grpo.parallel.util.find_spec", lambda name: object())
    monkeypatch.setenv("MED_R1_PROCESSES", there)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert processes_to_launch(settings(parallel=way)) == started


def test_what_was_launched_by_others_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED_R1_PROCESSES", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_launch(settings(parallel="ddp")) == 0
    with pytest.raises(InputError, match="grpo.parallel none, but 2 processes were started"):
        processes_to_launch(settings(parallel="none"))


def test_ddp_is_refused_where_there_is_nothing_to_share_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MED_R1_PROCESSES", "1")
    with pytest.raises(
        InputError, match="grpo.parallel ddp needs several GPUs, and here is one or none"
    ):
        processes_to_launch(settings(parallel="ddp"))


def test_of_several_gpus_none_takes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    processes_to_launch(settings(parallel="none"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_timeout_is_passed_on() -> None:
    assert parallel_arguments(settings(timeout_minutes=1.5))["ddp_timeout"] == 90


GONE = (
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    " [127.0.0.1]:4000"
)
LATE = (
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 90000ms for"
    " recv operation to complete"
)
NCCL = (
    "NCCL communicator was aborted on rank 1. Watchdog caught collective operation timeout:"
    " WorkNCCL(SeqNum=9, OpType=ALLREDUCE)"
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (GONE, LostPeerError),
        (LATE, InputError),
        (NCCL, InputError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_an_error_that_comes_from_another_process_has_a_type_of_its_own(
    text: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(error) as caught, peer_errors_explained(settings()):
        raise RuntimeError(text)
    assert type(caught.value) is error
    assert error is RuntimeError or "process 2 of 2 (rank 1)" in str(caught.value)


def test_alone_no_error_comes_from_another_process() -> None:
    assert explain_peer_error(RuntimeError(GONE), settings()) is None
