"""Estimates of time: parts as computed by hand, and the measured rates that replace them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from benchmarks.grpo_step.models import SHAPES
from stages.core.machine import Gpu, Torch
from stages.core.params import Params, check_params, parse_settings
from stages.generation.batch_size import MAX_GPU_ROWS, fitting_rows, row_bytes
from stages.generation.variants import REAL
from stages.generation.windows import Question, Variant, cut_windows
from stages.profiles.checks import Machine
from stages.profiles.description import describe_needs
from stages.profiles.evaluation_times import AUTO_ROWS, batch_rows, decode_loops, evaluation_parts
from stages.profiles.measured import (
    FILE,
    Measured,
    evaluation_setting,
    read_measured,
    training_setting,
)
from stages.profiles.needs import needs
from stages.profiles.schema import Model, Profile, Scale, load_profile, merge
from stages.profiles.times import (
    BACKWARD_SECONDS,
    COMPLETION_BACKWARD_SECONDS,
    COMPLETION_SECONDS,
    DISK_RATE,
    FORWARD_SECONDS,
    IMAGE_SECONDS,
    LONG_SHARE,
    PEAKS,
    REFERENCE,
    REFERENCE_SECONDS,
    TOKEN_SECONDS,
    TRAINER_SECONDS,
    known_gpu,
    reference_passes,
    state_bytes,
    step_parts,
    training_parts,
    weight_traffic,
)
from tests.conftest import ROOT

H200 = PEAKS["H200"]
NAME = "NVIDIA H200"
_, FULL = load_profile("full", ROOT / "infra" / "profiles")
STEPS = 88_996 * 0.8 * 2 / 4
"""Of the 13 trainings, by the share of train in params.yaml."""


def sizes() -> tuple[Model, Scale]:
    assert FULL.model is not None
    assert FULL.scale is not None
    return FULL.model, FULL.scale


MODEL, SCALE = sizes()


def params_with(**changes: Any) -> Params:
    """Settings of the profile `full` with changes, nested as in params.yaml."""
    path = ROOT / "params.yaml"
    tree = parse_settings(path.read_text(encoding="utf-8"), path)
    return check_params(merge(merge(tree, FULL.params), changes), path)


def training(params: Params, measured: Measured | None = None) -> dict[str, float]:
    return training_parts(params, MODEL, SCALE, H200, measured or Measured())


ALONE = {"reference_steps": 1, "loader_workers": 0}
"""Settings in which nothing is done ahead of a step."""


def test_a_step_of_foreseen_answers_waits_for_images_and_launches() -> None:
    parts = step_parts(params_with(grpo=ALONE), MODEL, H200)
    assert parts["images"] == pytest.approx(4 * IMAGE_SECONDS)
    assert parts["sampling"] == 0
    # policy and reference forward, and a backward
    launches = FORWARD_SECONDS + REFERENCE_SECONDS + BACKWARD_SECONDS
    kernels = parts["products"] + parts["weights"]
    assert kernels < launches
    assert parts["launches"] == pytest.approx(launches - kernels)
    assert parts["trainer"] == TRAINER_SECONDS
    # 4 passes over prompts of 1.83 TFLOP and little more, at 35% of 989 TFLOP/s
    assert parts["products"] == pytest.approx(4 * 4 * 1.83e12 / (0.35 * 989e12), rel=0.05)


def test_what_is_done_ahead_of_a_step_is_not_waited_for() -> None:
    alone = step_parts(params_with(grpo=ALONE), MODEL, H200)
    ahead = step_parts(params_with(), MODEL, H200)
    assert params_with().grpo.batches_ahead == 8
    assert ahead["images"] == 0, "two workers are faster than a step"
    saved = REFERENCE_SECONDS * 7 / 8
    host = ("launches", "products", "weights")
    assert sum(alone[part] - ahead[part] for part in host) == pytest.approx(saved)
    # workers that are slower than a step are waited for
    many = params_with(grpo={"prompts_per_device": 400, "loader_workers": 1})
    slow = step_parts(many, MODEL.model_copy(update={"prompt_tflop": 0.1}), H200)
    others = sum(seconds for part, seconds in slow.items() if part != "images")
    assert slow["images"] == pytest.approx(400 * IMAGE_SECONDS - others)
    assert slow["images"] > 0


def test_without_drafts_each_token_takes_a_pass_and_completions_are_scored() -> None:
    drafted = step_parts(params_with(), MODEL, H200)
    parts = step_parts(params_with(grpo={"draft_nodes": 0}), MODEL, H200)
    assert parts["sampling"] == pytest.approx(10 * TOKEN_SECONDS)
    host = parts["launches"] + parts["products"] + parts["weights"]
    # without drafts the reference takes no several steps at once
    once = FORWARD_SECONDS + REFERENCE_SECONDS + BACKWARD_SECONDS
    assert host == pytest.approx(once + COMPLETION_SECONDS + COMPLETION_BACKWARD_SECONDS)
    assert parts["weights"] > drafted["weights"]
    assert step_parts(params_with(grpo={"engine": "trl"}), MODEL, H200)["sampling"] > 0


def test_weight_traffic_is_as_computed_by_hand() -> None:
    weights = MODEL.parameters
    assert MODEL.embedding_parameters is not None
    # two casts (read 4, write 2) that passes read, and a backward that reads them; a gradient is
    # written, read and written in float32; clipping moves 3 x 4 bytes, Adam 7 x 4
    drafted = 2 * (6 + 2) + 2 + (2 + 2 + 4) + 12 + 28
    # the reference has its cast already, but for embeddings that are the output layer too
    rounded = 6 * (weights - MODEL.embedding_parameters)
    unknown = MODEL.model_copy(update={"embedding_parameters": None})
    assert weight_traffic(params_with(grpo=ALONE), unknown) == pytest.approx(drafted * weights)
    alone = drafted * weights - rounded
    assert weight_traffic(params_with(grpo=ALONE), MODEL) == pytest.approx(alone)
    # of eight steps one reads the reference
    ahead = drafted * weights - 7 / 8 * (6 + 2) * weights - rounded / 8
    assert weight_traffic(params_with(), MODEL) == pytest.approx(ahead)
    # a pass of its own over the completions: cast, read, backward, and a gradient that is added
    scored = drafted + (6 + 2) + 2 + (2 + 2 + 4) + 4
    assert weight_traffic(params_with(grpo={"draft_nodes": 0}), MODEL) == pytest.approx(
        scored * weights - rounded
    )
    sizes = {"prompts_per_device": 2, "gradient_accumulation_steps": 2}
    accumulated = params_with(grpo=ALONE | sizes)
    # all but the update twice, and the second gradient is added
    twice = 2 * (drafted - 40) + 4 + 40
    assert weight_traffic(accumulated, MODEL) == pytest.approx(twice * weights - 2 * rounded)
    # the reference of adapters is the policy without them, in float32
    adapter = {"rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj"]}
    lora = params_with(grpo=ALONE | {"lora": adapter, "reuse_prompt_pass": False})
    assert weight_traffic(lora, MODEL) == weight_traffic(lora, unknown)
    frozen = params_with(grpo=ALONE | {"freeze_vision_tower": True})
    saved = (2 + 2 + 4 + 40) * MODEL.vision_parameters
    assert weight_traffic(frozen, MODEL) == pytest.approx(alone - saved)


def test_a_large_batch_waits_for_kernels_instead_of_launches() -> None:
    large = params_with(grpo={"prompts_per_device": 64})
    assert step_parts(large, MODEL, H200)["launches"] == 0
    slow = step_parts(large, MODEL, PEAKS["A100"])
    assert slow["products"] > step_parts(large, MODEL, H200)["products"]


def test_long_completions_are_waited_for() -> None:
    parts = training(params_with())
    one_of_16 = 1 - (1 - LONG_SHARE) ** 16
    expected = STEPS * one_of_16 * 256 * TOKEN_SECONDS
    assert parts["long completions"] == pytest.approx(expected, rel=1e-6)
    measured = training(params_with(), Measured(pass_seconds=2 * TOKEN_SECONDS))
    assert measured["long completions"] == pytest.approx(2 * expected, rel=1e-6)
    # the longest of 16 thoughts is 1.6 times the typical one, or as long as allowed
    think = training(params_with(prompt={"style": "think"}))
    longest = 240 + one_of_16 * 16 - 150
    assert think["long completions"] == pytest.approx(STEPS * longest * TOKEN_SECONDS, rel=1e-6)
    short = params_with(prompt={"style": "think"}, grpo={"max_completion_length": 150})
    assert training(short)["long completions"] == 0


def test_states_are_counted_by_minutes_or_by_steps() -> None:
    state = state_bytes(params_with(), MODEL)
    assert state == 3 * 4 * MODEL.parameters
    parts = training(params_with())
    running = sum(parts.values()) - parts["states"] - parts["starts"]
    assert parts["states"] == pytest.approx(running / 900 * state / DISK_RATE)
    by_steps = training(params_with(grpo={"save_steps": 500, "save_minutes": None}))
    assert by_steps["states"] == pytest.approx(STEPS / 500 * state / DISK_RATE, rel=1e-6)
    none = training(params_with(grpo={"save_steps": 0, "save_minutes": None}))
    assert "states" not in none
    lora = {"rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj"]}
    assert state_bytes(params_with(grpo={"lora": lora}), MODEL) < state / 40


def test_every_process_is_started_once() -> None:
    parts = training(params_with())
    # policy and reference read, the result written and hashed
    assert parts["starts"] == pytest.approx(13 * (12.3 + 4 * 4 * MODEL.parameters / 1e9))
    tests = evaluation_parts(params_with(), MODEL, SCALE, H200, Measured())
    assert tests["starts"] == pytest.approx(14 * (9.4 + 2 * 4 * MODEL.parameters / 1e9))


def test_ablations_triple_the_answers_and_not_the_starts() -> None:
    one = evaluation_parts(params_with(), MODEL, SCALE, H200, Measured())
    ablated = params_with(evaluate={"ablations": True})
    three = evaluation_parts(ablated, MODEL, SCALE, H200, Measured())
    assert three["products"] == pytest.approx(3 * one["products"])
    # three times the rows fill batches better
    for part in ("sampling", "long answers"):
        assert one[part] < three[part] < 3 * one[part]
    assert three["starts"] == one["starts"]


def test_decoding_loops_are_those_of_the_windows() -> None:
    params = params_with()
    assert batch_rows(params) == AUTO_ROWS == MAX_GPU_ROWS
    # of each modality, a window of 556 rows takes a batch of 512 and one of 44
    assert decode_loops(params, 2225, 2225) == 4 * 2
    assert decode_loops(params, 512, 512) == 1
    assert decode_loops(params, 0.5, 0.5) == 1
    fixed = params_with(evaluate={"batch_size": 64})
    assert decode_loops(fixed, 2225, 2225) == 32 * 2
    # many images make small windows
    assert decode_loops(params, 1024, 8 * 1024) == 8
    tests = evaluation_parts(params, MODEL, SCALE, H200, Measured())
    loops = 8 * decode_loops(params, 88_996 * 0.2 / 8, 88_996 * 0.2 / 8)
    assert tests["sampling"] == pytest.approx(15 * loops * 10 * TOKEN_SECONDS, rel=1e-6)


@pytest.mark.parametrize(("rows", "batch"), [(2225, 512), (3162, 512), (700, 64)])
def test_decoding_loops_are_near_those_of_questions(rows: int, batch: int) -> None:
    questions = [Question({REAL: Variant("", (f"{number}.png",))}) for number in range(rows)]
    counted = sum(-(-len(window) // batch) for window in cut_windows(questions, batch))
    params = params_with(evaluate={"batch_size": batch})
    assert decode_loops(params, rows, rows) == pytest.approx(counted, rel=0.25)


@pytest.mark.parametrize("name", ["qwen2-vl-2b", "qwen2.5-vl-3b"])
def test_rows_of_an_automatic_batch_fit_into_forty_gigabytes(name: str) -> None:
    shape = SHAPES[name]
    config = AutoConfig.for_model(shape.family, text_config=shape.text).get_text_config()
    per_row = row_bytes(config, 2, prefix=220, suffix=80, answer=256)
    weights = 8 * 10**9
    assert fitting_rows(40 * 10**9 - weights, per_row) == AUTO_ROWS


def test_the_tail_of_long_answers_stays_where_answers_were_measured() -> None:
    rates = Measured(questions_per_second=100.0)
    estimated = evaluation_parts(params_with(), MODEL, SCALE, H200, Measured())
    measured = evaluation_parts(params_with(), MODEL, SCALE, H200, rates)
    assert measured["long answers"] == estimated["long answers"] > 0
    passes = Measured(questions_per_second=100.0, pass_seconds=2 * TOKEN_SECONDS)
    slower = evaluation_parts(params_with(), MODEL, SCALE, H200, passes)
    assert slower["long answers"] == pytest.approx(2 * estimated["long answers"])
    assert slower["answers"] == measured["answers"]


def test_the_reference_passes_once_more_where_completions_leave_the_drafts() -> None:
    assert reference_passes(params_with()) == 1 / 8
    think = params_with(prompt={"style": "think"})
    assert reference_passes(think) == 1 + 1 / 8
    alone = params_with(prompt={"style": "think"}, grpo={"reference_steps": 1})
    assert reference_passes(alone) == 1
    assert reference_passes(params_with(grpo={"beta": 0.0})) == 0
    assert sum(step_parts(alone, MODEL, H200).values()) < sum(
        step_parts(think, MODEL, H200).values()
    )


def test_measured_rates_replace_what_they_measure() -> None:
    rates = Measured(step_seconds=0.2, pass_seconds=0.01, questions_per_second=100.0)
    estimate = needs(params_with(), MODEL, SCALE, NAME, rates)
    assert set(estimate.training_parts) == {"steps", "long completions", "states", "starts"}
    assert estimate.training_parts["steps"] == pytest.approx(STEPS * 0.2 / 3600, rel=1e-6)
    assert set(estimate.evaluation_parts) == {"answers", "long answers", "starts"}
    questions = 88_996 * 0.2 * 15
    assert estimate.evaluation_parts["answers"] == pytest.approx(questions / 100 / 3600, rel=1e-6)
    assert estimate.training == pytest.approx(sum(estimate.training_parts.values()))
    assert estimate.measured == rates
    assert needs(params_with(), MODEL, SCALE, NAME).measured == Measured()


def measurement(params: Params, **changes: Any) -> dict[str, Any]:
    """gpu.json of a benchmark in the setting of these params."""
    seconds = {"shared": {"step": 0.9}, "drafted": {"step": 0.5}, "training": {"step": 0.3}}
    return {
        "device": {"name": NAME},
        "steps": {
            "other": {"setting": None, "profile": "full", "rows": []},
            "qwen2-vl-2b-no-think": {
                "setting": training_setting(params),
                "profile": "full",
                "rows": [{"model": "qwen2-vl-2b", "seconds": seconds}],
            },
        },
        "evaluation": {
            "qwen2-vl-2b-no-think": {
                "setting": evaluation_setting(params),
                "questions_per_second": 200.0,
            }
        },
        "pass_seconds": {"tiny": {"full": 0.001}, "qwen2-vl-2b": {"full": 0.02}},
    } | changes


def write(folder: Path, content: Any) -> Path:
    path = folder / "gpu.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_measurement_of_this_gpu_and_setting_is_read(tmp_path: Path) -> None:
    params = params_with()
    path = write(tmp_path, measurement(params))
    assert read_measured(params, NAME, path) == Measured(0.3, True, 0.02, 200.0)
    # what decides no duration may differ
    other_seed = params_with(grpo={"seed": 7, "learning_rate": 1e-5, "save_minutes": 5})
    assert read_measured(other_seed, NAME, path) == Measured(0.3, True, 0.02, 200.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"grpo": {"prompts_per_device": 8}},
        {"grpo": {"draft_nodes": 0}},
        {"grpo": {"bf16": False}},
        {"grpo": {"top_k": 0}},
        {"grpo": {"reference_steps": 1}},
        {"grpo": {"loader_workers": 0}},
        {"grpo": {"compile": True}},
        {"grpo": {"cuda_graphs": True}},
        {"base": {"source": "me/mine"}},
        {"base": {"dtype": "bfloat16"}},
        {"prompt": {"style": "think"}},
    ],
)
def test_a_measurement_of_another_setting_is_not_used(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = write(tmp_path, measurement(params_with()))
    rates = read_measured(params_with(**changes), NAME, path)
    assert (rates.step_seconds, rates.pass_seconds) == (None, None)


def test_a_measurement_of_another_gpu_or_form_is_not_used(tmp_path: Path) -> None:
    params = params_with()
    assert read_measured(params, NAME, tmp_path / "missing.json") == Measured()
    path = write(tmp_path, measurement(params))
    for name in ("NVIDIA H100", "cpu", ""):
        assert read_measured(params, name, path) == Measured()
    unreadable: list[Any] = [[], {}, {"device": None}, measurement(params, steps=[1])]
    for content in unreadable:
        assert read_measured(params, NAME, write(tmp_path, content)) == Measured()
    path.write_text("{", encoding="utf-8")
    assert read_measured(params, NAME, path) == Measured()
    evaluated = write(tmp_path, measurement(params, steps={}))
    assert read_measured(params, NAME, evaluated) == Measured(questions_per_second=200.0)
    # single steps alone, as measured before, are not those of a training
    single = measurement(params)
    del single["steps"]["qwen2-vl-2b-no-think"]["rows"][0]["seconds"]["training"]
    rates = read_measured(params, NAME, write(tmp_path, single))
    assert rates == Measured(pass_seconds=0.02, questions_per_second=200.0)


def test_the_committed_measurement_has_the_form_that_is_read() -> None:
    """It was made on a CPU, with a small model: no estimate uses it, but its setting is one."""
    content = json.loads((ROOT / FILE).read_text(encoding="utf-8"))
    assert content["device"]["name"] == "cpu"
    params = params_with(base={"source": "tiny", "revision": None})
    rates = read_measured(params, "cpu", ROOT / FILE)
    assert rates.drafted
    for rate in (rates.step_seconds, rates.questions_per_second):
        assert rate is not None
        assert rate > 0
    # it follows from steps of both styles
    both = len({steps["rows"][0]["completion_tokens"] for steps in content["steps"].values()}) > 1
    assert (rates.pass_seconds is not None) == both
    assert read_measured(params_with(), "cpu", ROOT / FILE) == Measured()


def described(root: Path, params: Params) -> str:
    gpu = Gpu(NAME, 150 * 10**9, 149 * 10**9)
    machine = Machine([NAME], Torch("2.11.0", "13.0", (gpu,), "", ""), "")
    profile: Profile = FULL
    return "\n".join(describe_needs(profile, params, machine, root))


def test_the_printed_estimate_shows_parts_and_whether_they_are_measured(tmp_path: Path) -> None:
    params = params_with()
    text = described(tmp_path, params)
    for part in ("launches", "weights", "long completions", "states", "starts"):
        assert f"{part} 0." in text or f"{part} 1." in text
    assert "These are estimates" in text
    (tmp_path / FILE).parent.mkdir()
    write(tmp_path / FILE.parent, measurement(params))
    text = described(tmp_path, params)
    assert f"Measured on {NAME} (benchmarks/gpu.json): steps, sampling passes, answers." in text
    assert "to train: steps 2.97 h" in text
    assert "These are estimates" not in text


def test_an_unknown_gpu_is_estimated_as_the_reference() -> None:
    assert known_gpu("NVIDIA H200") == "H200"
    assert known_gpu("Something 9000") == REFERENCE
