"""The step benchmark: FLOPs as computed by hand, and agreement of the three implementations."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType
from transformers import AutoConfig

from benchmarks.grpo_step import __main__, g_copies, measure, trainers
from benchmarks.grpo_step.clock import PARTS, Clock, PeakMemory
from benchmarks.grpo_step.equivalence import compare
from benchmarks.grpo_step.flops import Costs, Way, costs, per_prompt
from benchmarks.grpo_step.g_copies import log_probabilities
from benchmarks.grpo_step.measure import WAYS, Bench, Plan
from benchmarks.grpo_step.models import SHAPES, build_policy
from benchmarks.grpo_step.row import figures
from benchmarks.grpo_step.setting import profile_params, profile_setting
from benchmarks.grpo_step.show import above_bounds
from benchmarks.grpo_step.trace import sum_events, trace
from benchmarks.grpo_step.trainers import TrainerStep, settings
from stages.policy.vision_attention import batch_images
from stages.profiles.measured import training_setting
from tests.benchmarks.conftest import COMPLETION, GROUP
from tests.conftest import RunStage


def model_costs(name: str) -> Costs:
    shape = SHAPES[name]
    config = AutoConfig.for_model(shape.family, text_config=shape.text, vision_config=shape.vision)
    return costs(config)


def test_flops_of_qwen2_vl_2b_are_as_computed_by_hand() -> None:
    model = model_costs("qwen2-vl-2b")
    # 28 layers of 46,792,704 weights, two FLOPs each
    assert model.token == pytest.approx(2.6204e9, rel=1e-4)
    assert model.head == pytest.approx(0.4667e9, rel=1e-3)
    # 988.9 blocks, 13.4 merger, 100.7 attention
    assert model.image == pytest.approx(1102.9e9, rel=1e-4)
    assert model.text(276) == pytest.approx(729.8e9, rel=1e-4)
    assert model.image / (model.image + model.text(276)) == pytest.approx(0.60, abs=0.005)
    assert model.text(10, behind=276, logits=10) == pytest.approx(0.0313e12, rel=0.03)


@pytest.mark.parametrize(
    ("name", "completion", "group", "tera"),
    [
        ("qwen2-vl-2b", 10, 4, 39.34),
        ("qwen2-vl-2b", 10, 8, 78.69),
        ("qwen2-vl-2b", 150, 8, 96.32),
        ("qwen2.5-vl-3b", 10, 4, 55.34),
    ],
)
def test_flops_of_a_step_with_copies_are_as_computed_by_hand(
    name: str, completion: int, group: int, tera: float
) -> None:
    """By hand with prefill logits of one position; Med-R1 computes them for all positions."""
    model = model_costs(name)
    all_logits = per_prompt("g_copies", model, 276, completion, group)
    assert (all_logits - group * 275 * model.head) / 1e12 == pytest.approx(tera, rel=1e-3)


def test_flops_of_ours_count_each_prompt_pass_once() -> None:
    model = model_costs("qwen2-vl-2b")
    four = per_prompt("shared", model, 276, 10, 4)
    eight = per_prompt("shared", model, 276, 10, 8)
    completion = model.text(10, behind=276, logits=10)
    # each completion is decoded, scored, counted twice in the backward, and in the reference
    assert eight - four == pytest.approx(4 * 5 * completion)
    # by hand 9.79 TF with separate passes; sharing the pass of rollout and loss saves one over
    # image and prompt, and the last layer's keys and values alone for 275 tokens four times 92.0 MF
    assert four / 1e12 == pytest.approx(9.79 - 1.833 - 4 * 275 * 92.0e6 / 1e12, abs=0.01)


def test_flops_of_drafted_completions_leave_out_the_passes_over_completions() -> None:
    model = model_costs("qwen2-vl-2b")
    prompt_pass = model.image + model.text(276, logits=1) - 275 * model.top
    completions = 4 * model.text(10, behind=276, logits=10)
    assert per_prompt("drafted", model, 276, 10, 4) == pytest.approx(4 * prompt_pass + completions)
    nodes = per_prompt("drafted", model, 276, 10, 4, nodes=20) - 4 * prompt_pass - completions
    # forward, and a backward that counts twice
    assert nodes == pytest.approx(3 * model.text(20, behind=276, logits=20))


def test_the_default_model_has_ten_million_weights_in_the_proportions_of_the_2b() -> None:
    policy = build_policy(SHAPES["10m"], torch.device("cpu"), seed=0)
    assert 8e6 < sum(parameter.numel() for parameter in policy.parameters()) < 12e6
    small = model_costs("10m")
    real = model_costs("qwen2-vl-2b")
    for part, rest in (("image", "text"), ("head", "token")):
        shares = [_share(model, part, rest) for model in (small, real)]
        assert shares[0] == pytest.approx(shares[1], abs=0.04)


def _share(model: Costs, part: str, rest: str) -> float:
    others = model.text(276) if rest == "text" else getattr(model, rest)
    return float(getattr(model, part) / (getattr(model, part) + others))


@pytest.mark.parametrize(
    ("completion", "images", "gain"), [(10, 1, 9.4), (10, 8, 10.5), (150, 1, 3.7), (150, 8, 8.0)]
)
def test_the_gain_by_flops_is_as_documented(completion: int, images: int, gain: float) -> None:
    model = model_costs("qwen2-vl-2b")
    tokens = 80 + 196 * images + 7 * (images - 1)
    copies, shared = (
        per_prompt(way, model, tokens, completion, 8, images=images)
        for way in ("g_copies", "shared")
    )
    assert copies / shared == pytest.approx(gain, abs=0.05)


def test_flops_of_several_images_are_shared_as_the_prompt_is() -> None:
    model = model_costs("qwen2-vl-2b")
    tokens = 276 + 203
    more = model.text(tokens) - model.text(276)
    # of G = 4: rollout, policy, a backward that counts twice, reference; ours shares the first two
    passes: dict[Way, int] = {"g_copies": 20, "trl": 20, "shared": 4}
    for way, count in passes.items():
        one = per_prompt(way, model, 276, 10, 4)
        two = per_prompt(way, model, tokens, 10, 4, images=2)
        # in a shared pass, the last layer makes only keys and values of the further tokens
        saved = 203 * model.top if way == "shared" else 0.0
        logits = 203 * model.head if way == "g_copies" else 0.0
        assert two - one == pytest.approx(
            count * (model.image + more - saved + logits), rel=2e-3
        ), way


def test_figures_follow_from_seconds() -> None:
    steps: dict[Way, float] = {"g_copies": 8.0, "trl": 6.0, "shared": 2.0}
    seconds = {
        way: dict.fromkeys(PARTS, 0.0)
        | {"step": step, "backward": 0.75 * step, "other": 0.25 * step}
        for way, step in steps.items()
    }
    flops: dict[Way, float] = {"g_copies": 4e12, "trl": 3e12, "shared": 1e12}
    result = figures(seconds, flops, prompts=4, tokens=40, rate=1e12)
    assert (result["speedup_vs_g_copies"], result["speedup_vs_trl"]) == (4, 3)
    assert (result["bound_vs_g_copies"], result["bound_vs_trl"]) == (4, 3)
    seconds["drafted"] = seconds["shared"] | {"step": 1.0}
    flops["drafted"] = 0.5e12
    drafted = figures(seconds, flops, prompts=4, tokens=40, rate=1e12)
    assert drafted["ms_per_prompt"] == result["ms_per_prompt"] | {"drafted": 250}
    assert drafted["mfu"]["drafted"] == 0.5
    assert result["mfu"] == {"g_copies": 0.5, "trl": 0.5, "shared": 0.5}
    assert result["ms_per_prompt"]["shared"] == 500
    assert result["completion_tokens_per_second"]["shared"] == 80
    assert result["largest_in_ours"] == {"part": "backward", "share": 0.75}


def test_nested_parts_add_up_to_the_step() -> None:
    clock = Clock(torch.device("cpu"))
    clock.reset()
    with clock.part("rollout"):
        clock.timed("processor", lambda: sum(range(1000)))()
    seconds = clock.stop()
    assert set(seconds) == {"step", *PARTS}
    assert seconds["step"] == pytest.approx(sum(seconds[part] for part in PARTS))
    assert min(seconds["rollout"], seconds["processor"], seconds["other"]) > 0
    assert seconds["backward"] == 0


def test_peak_memory_includes_memory_freed_before_the_end() -> None:
    with PeakMemory(torch.device("cpu")) as peak:
        block = torch.ones(2**26)  # 256 MiB
        torch.randn(300, 300) @ torch.randn(300, 300)
        time.sleep(0.05)
        del block
    assert 200 * 2**20 < peak.above_start < 400 * 2**20


def test_copies_and_ours_give_the_same_log_probabilities_and_gradients(tiny: Bench) -> None:
    steps: Any = tiny.steps(GROUP, COMPLETION)
    differences = compare(steps["shared"], steps["g_copies"], tiny.examples)
    assert differences["max_logp_diff"] < 1e-5
    assert differences["grad_rel_diff"] < 1e-5
    assert differences["grad_rounding"] is None, "nothing is rounded in float32"
    assert all(parameter.grad is None for parameter in tiny.policy.parameters())


def test_copies_and_ours_agree_about_several_images(tiny: Bench) -> None:
    try:
        tiny.ask_about(2)
        assert [len(example["images"]) for example in tiny.examples] == [2, 2]
        # "Picture 2: " and the like
        assert 276 + 196 < tiny.prompt_tokens() < 276 + 196 + 60
        steps: Any = tiny.steps(GROUP, COMPLETION)
        differences = compare(steps["shared"], steps["g_copies"], tiny.examples)
        assert differences["max_logp_diff"] < 1e-5
        assert differences["grad_rel_diff"] < 1e-5
    finally:
        tiny.ask_about(1)


def test_every_implementation_learns_from_completions_of_the_same_length(tiny: Bench) -> None:
    steps: Any = tiny.steps(GROUP, COMPLETION)
    for step in steps.values():
        before = {
            name: parameter.detach().clone() for name, parameter in tiny.policy.named_parameters()
        }
        seconds = tiny.timed(step)
        assert all(seconds[part] > 0 for part in PARTS if part != "images")
        assert any(
            not torch.equal(parameter, before[name])
            for name, parameter in tiny.policy.named_parameters()
        )
        if isinstance(step, TrainerStep):
            # of its last pass, whose size is the fastest one for TRL's engine
            rows = step.prompts_per_pass * GROUP
            assert step.scores["policy forward"].shape == (rows, COMPLETION)
            assert step.trainer._metrics["train"]["completions/min_length"][-1] == COMPLETION
        else:
            prompt = step.copies(tiny.examples[0])
            assert step.sample(prompt).shape == (GROUP, COMPLETION)


def test_copies_are_computed_separately(tiny: Bench) -> None:
    """G images go through the tower in generation; the prefill has logits at every position."""
    steps: Any = tiny.steps(GROUP, COMPLETION)
    copies = steps["g_copies"]
    prompt = copies.copies(tiny.examples[0])
    patches: list[int] = []
    logits: list[tuple[int, ...]] = []

    def count_patches(_: Any, arguments: Any, named: Any) -> None:
        patches.append(len(arguments[0] if arguments else named["hidden_states"]))

    tower = tiny.policy.model.visual.register_forward_pre_hook(count_patches, with_kwargs=True)
    head = tiny.policy.lm_head.register_forward_hook(
        lambda _, __, out: logits.append(tuple(out.shape))
    )
    completions = copies.sample(prompt)
    log_probabilities(tiny.policy, prompt, completions)
    tower.remove()
    head.remove()
    vocabulary = SHAPES["tiny"].text["vocab_size"]
    assert patches == [GROUP * 784, GROUP * 784]
    assert logits[0] == (GROUP, prompt.tokens, vocabulary)
    assert logits[1] == (GROUP, 1, vocabulary)
    assert logits[-1] == (GROUP, prompt.tokens + COMPLETION, vocabulary)


def test_prompts_are_as_long_as_published_ones(tiny: Bench) -> None:
    assert tiny.prompt_tokens() == pytest.approx(276, abs=4)


@pytest.fixture(scope="module")
def command_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Result and chart of the command, with one image and with two."""
    folder = tmp_path_factory.mktemp("command")
    path, chart = folder / "step.json", folder / "step.png"
    arguments = ["--quick", "--model", "tiny", "--repeats", "1", "--prompts", "1"]
    arguments += ["--completions", "10", "--images", "1", "2", "--set", "fused_head=true"]
    arguments += ["--json", str(path), "--chart", str(chart)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grpo_step", *arguments])
        __main__.main()
    return path, chart


def test_the_command_writes_rows_with_provenance_and_a_chart(
    command_files: tuple[Path, Path],
) -> None:
    path, chart = command_files
    result: dict[str, Any] = json.loads(path.read_text())
    row = result["rows"][0]
    assert (row["model"], row["group_size"], row["completion_tokens"]) == ("tiny", 4, 10)
    assert (row["images"], row["prompt_tokens"]) == (1, round(result["prompt_tokens"]))
    for name in ("speedup_vs_g_copies", "speedup_vs_trl", "max_logp_diff", "grad_rel_diff"):
        assert math.isfinite(row[name])
    assert row["grad_rel_diff"] < 1e-4
    for way in WAYS:
        assert set(row["seconds"][way]) == {"step", *PARTS}
        assert row["ms_per_prompt"][way] > 0
        assert set(row["peak_memory_bytes"][way]) == {"above_start", "total"}
    assert row["trl_prompts_per_pass"] == 1
    assert result["ours"] == {"fused_head": True}
    assert {"git_commit", "versions", "params"} <= set(result["provenance"])
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_trl_is_measured_with_the_number_of_prompts_a_pass_that_is_fastest(
    tiny: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Step:
        def __init__(self, prompts: int) -> None:
            self.prompts_per_pass = prompts
            tried.append(prompts)

        def backward(self, examples: list[Any]) -> None:
            assert len(examples) == self.prompts_per_pass

    seconds = iter([9.0, 3.0, 9.0, 4.0])  # warm-up and measured, of one prompt and of two
    monkeypatch.setattr(tiny, "update", lambda: None)
    monkeypatch.setattr(tiny.clock, "stop", lambda: {"step": next(seconds)})
    fastest: Any = tiny.fastest(Step)  # type: ignore[arg-type]
    assert fastest.prompts_per_pass == 2
    assert tried == [1, 2, 2]


def test_a_step_in_several_passes_has_the_gradients_of_one(tiny: Bench) -> None:
    gradients = []
    own = tiny.setting.grpo
    for prompts in (1, 2):
        changes = {"engine": "trl", "reuse_prompt_pass": False}
        grpo = settings(own, GROUP, COMPLETION, prompts, **changes)
        step = TrainerStep(
            tiny.policy,
            tiny.reference,
            tiny.processor,
            tiny.dataset,
            grpo,
            tiny.clock,
            tiny.folder / "state",
            own.beta,
        )
        assert step.prompts_per_pass == prompts
        monkey: Any = step.trainer
        completions = iter([[5 + number] * COMPLETION for number in range(2 * GROUP)])
        monkey._generate_single_turn = lambda ids, *_, rows=completions, **__: (
            [next(rows) for _ in ids],
            None,
        )
        step.backward(tiny.examples)
        gradients.append(
            torch.cat([p.grad.flatten() for p in tiny.policy.parameters() if p.grad is not None])
        )
        tiny.policy.zero_grad(set_to_none=True)
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_a_speedup_above_its_bound_is_explained() -> None:
    row = {
        "group_size": 4,
        "completion_tokens": 150,
        "images": 2,
        "speedup_vs_g_copies": 3.4,
        "bound_vs_g_copies": 3.0,
        "speedup_vs_trl": 2.0,
        "bound_vs_trl": 3.0,
        "mfu": {"g_copies": 0.4, "trl": 0.3, "shared": 0.45},
    }
    (text,) = above_bounds(row)
    assert "G=4 C=150, 2 images: 3.40x is above" in text
    assert "40% of the peak here and ours 45%" in text


def test_a_setting_that_would_change_the_result_is_refused(run: RunStage) -> None:
    with pytest.raises(SystemExit, match=r"--set takes .*not beta"):
        run(__main__, "--quick", "--set", "beta=0")


def test_a_profile_decides_precision_sampling_and_weights(as_full: Bench) -> None:
    setting = as_full.setting
    assert (setting.precision, setting.dtype, setting.threads) == ("autocast", torch.float32, 1)
    assert as_full.policy.dtype == as_full.reference.dtype == torch.float32
    steps: Any = as_full.steps(4, COMPLETION)
    assert list(steps) == [*WAYS, "drafted"]
    assert steps["g_copies"].generation.top_k == 50
    for way in ("trl", "shared", "drafted"):
        arguments = steps[way].trainer.args
        assert (arguments.top_k, arguments.bf16) == (50, True)
        assert steps[way].trainer.beta == setting.grpo.beta == steps["g_copies"].beta
    dtypes = []
    hook = as_full.policy.lm_head.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    for step in steps.values():
        seconds = as_full.timed(step)
        assert min(seconds["step"], seconds["images"]) > 0
    hook.remove()
    assert set(dtypes) == {torch.bfloat16}
    assert all(each.dtype == torch.float32 for each in as_full.policy.parameters())


def test_foreseen_completions_take_no_decoding_pass(as_full: Bench) -> None:
    steps: Any = as_full.steps(4, COMPLETION)
    drafted = steps["drafted"]
    drafted.backward(as_full.examples)
    assert drafted.sampled["forwards"] > 0, "not yet learnt"
    drafted.backward(as_full.examples)
    assert drafted.sampled == {"drafted": 1.0, "forwards": 0.0}
    assert COMPLETION < drafted.nodes < 64
    as_full.policy.zero_grad(set_to_none=True)
    steps["shared"].backward(as_full.examples)
    assert steps["shared"].sampled["forwards"] == COMPLETION - 1
    as_full.policy.zero_grad(set_to_none=True)


@pytest.mark.parametrize(("device", "batched"), [("cuda", True), ("cpu", False)])
def test_towers_of_the_baselines_take_images_together_on_a_gpu_only(
    device: str, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Med-R1 ran flash-attn, which asks the device for no lengths; transformers' sdpa would."""
    chosen: list[bool] = []
    for module in (g_copies, trainers):
        monkeypatch.setattr(module, "batch_images", lambda _, wanted: chosen.append(wanted))
        monkeypatch.setattr(module, "embed_patches_by_convolution", lambda _: None)
    policy: Any = SimpleNamespace(device=torch.device(device))
    nothing: Any = None
    copies = g_copies.GCopies(policy, policy, nothing, nothing, 4, nothing)
    copies.choose_tower()
    trl: Any = SimpleNamespace(
        trainer=SimpleNamespace(
            engine_options=SimpleNamespace(engine="trl"), model=policy, ref_model=policy
        )
    )
    TrainerStep.choose_tower(trl)
    assert chosen == [batched] * 4


def test_the_attention_of_a_tower_is_named(tiny: Bench) -> None:
    batch_images(tiny.policy, True)
    assert g_copies.tower_attention(tiny.policy) == "sdpa, images of one size together"
    assert tiny.baselines_tower() == "sdpa"


def test_settings_of_another_model_are_not_those_of_the_profile() -> None:
    full = profile_setting("full", "qwen2-vl-2b").own
    tiny = profile_setting("full", "tiny").own
    assert full == training_setting(profile_params("full"))
    assert full is not None
    assert tiny == full | {"source": "tiny", "revision": None}
    think = profile_setting("full", "qwen2-vl-2b", "think")
    assert think.own == full | {"style": "think"}
    assert think.with_precision("bfloat16").dtype == torch.bfloat16
    three = profile_setting("full-3b", "qwen2.5-vl-3b").own
    assert three is not None
    assert three["source"] == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_events_on_the_gpu_are_counted_without_copies_and_ranges() -> None:
    def event(name: str, device: DeviceType, us: float, annotation: bool = False) -> Any:
        span = SimpleNamespace(elapsed_us=lambda: us)
        return SimpleNamespace(
            name=name, device_type=device, time_range=span, is_user_annotation=annotation
        )

    gpu = DeviceType.CUDA
    events = [
        event("gemm", gpu, 1000.0),
        event("gemm", gpu, 500.0),
        event("Memcpy HtoD", gpu, 20.0),
        event("Memset", gpu, 5.0),
        event("Optimizer.step", gpu, 1500.0, annotation=True),
        event("cudaLaunchKernel", DeviceType.CPU, 9.0),
    ]
    assert sum_events(events) == {
        "kernels": 2,
        "copies": 2,
        "gpu_seconds": pytest.approx(1525e-6),
    }
    assert trace(torch.device("cpu"), lambda: None) is None


def test_numbers_of_images_are_measured_one_after_the_other(
    command_files: tuple[Path, Path], run: RunStage
) -> None:
    rows = json.loads(command_files[0].read_text())["rows"]
    assert [row["images"] for row in rows] == [1, 2]
    assert rows[1]["prompt_tokens"] > rows[0]["prompt_tokens"] + 196
    for way in WAYS:
        assert rows[1]["flops_per_step"][way] > 1.5 * rows[0]["flops_per_step"][way]
    assert all(row["grad_rel_diff"] < 1e-4 for row in rows)
    with pytest.raises(SystemExit, match="--images takes numbers from 1 to 64"):
        run(__main__, "--quick", "--images", "1", "65")


def test_the_plan_covers_every_size() -> None:
    assert Plan("tiny", (4, 8), (10, 150), 1, 1, {}).cells() == [
        (4, 10),
        (8, 10),
        (4, 150),
        (8, 150),
    ]
    assert measure.LEARNING_RATE == 1e-6
