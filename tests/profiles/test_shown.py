"""Estimates for questions about several images: memory by the most, time by the mean."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stages.core.machine import Gpu, Torch
from stages.profiles.checks import Machine
from stages.profiles.description import describe_needs
from stages.profiles.evaluation_times import LOADER_THREADS, answer_parts
from stages.profiles.measured import Measured
from stages.profiles.needs import memory, needs
from stages.profiles.schema import Scale, load_profile
from stages.profiles.shown import ONE, Images, images_per_question, prompt_flops
from stages.profiles.times import IMAGE_SECONDS, step_parts
from tests.benchmarks.test_grpo_step import model_costs
from tests.conftest import ROOT
from tests.profiles.test_times import ALONE, FULL, H200, MODEL, NAME, SCALE, params_with


def scale(**changes: Any) -> Scale:
    return Scale.model_validate(SCALE.model_dump() | changes)


@pytest.mark.parametrize(
    ("changes", "frames", "limit", "images"),
    [
        ({}, 1, 16, ONE),
        ({}, 8, 16, ONE),  # no volumes: their frames do not matter
        ({"images_per_question": 1.5, "most_images_per_question": 4}, 8, 16, Images(1.5, 4)),
        ({"volume_share": 0.25}, 1, 16, ONE),
        ({"volume_share": 0.25}, 9, 16, Images(3.0, 9)),
        (
            {"images_per_question": 2.0, "most_images_per_question": 12, "volume_share": 0.5},
            8,
            16,
            Images(5.0, 12),
        ),
        ({"volume_share": 1.0}, 32, 16, Images(16.0, 16)),
        ({"images_per_question": 3.0, "most_images_per_question": 30}, 1, 2, Images(2.0, 2)),
    ],
)
def test_images_of_a_question_are_counted_with_the_frames_of_volumes(
    changes: dict[str, Any], frames: int, limit: int, images: Images
) -> None:
    assert images_per_question(scale(**changes), frames, limit) == images


@pytest.mark.parametrize(
    "changes",
    [
        {"images_per_question": 2.0},
        {"images_per_question": 0.5},
        {"most_images_per_question": 65},
        {"volume_share": 1.5},
    ],
)
def test_impossible_counts_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        scale(**changes)


@pytest.mark.parametrize(
    ("profile", "name"), [("full", "qwen2-vl-2b"), ("full-3b", "qwen2.5-vl-3b")]
)
@pytest.mark.parametrize(("images", "error"), [(1, 0.005), (2, 0.02), (8, 0.04), (16, 0.06)])
def test_flops_are_near_those_counted_for_the_model(
    profile: str, name: str, images: int, error: float
) -> None:
    _, loaded = load_profile(profile, ROOT / "infra" / "profiles")
    assert loaded.model is not None
    costs = model_costs(name)
    tokens = 80 + 196 * images + 7 * (images - 1)
    counted = images * costs.image + costs.text(tokens, logits=1)
    assert prompt_flops(loaded.model, images) == pytest.approx(counted, rel=error)


def test_one_image_is_estimated_as_without_the_counts() -> None:
    params = params_with()
    assert step_parts(params, MODEL, H200, 1.0) == step_parts(params, MODEL, H200)
    assert answer_parts(params, MODEL, H200, 1.0) == answer_parts(params, MODEL, H200)
    assert memory(params, MODEL, 1) == memory(params, MODEL)
    assert prompt_flops(MODEL, 1) == MODEL.prompt_tflop * 1e12


def test_time_follows_the_images_of_a_step() -> None:
    params = params_with(grpo=ALONE)
    one, four = (step_parts(params, MODEL, H200, images) for images in (1.0, 4.0))
    assert four["images"] == pytest.approx(4 * 4 * IMAGE_SECONDS)
    # a prompt of four images has one question
    assert 3.5 < four["products"] / one["products"] < 4
    assert four["weights"] == one["weights"]
    assert four["launches"] < one["launches"], "more of them overlap with products"
    copies = params_with(grpo=ALONE | {"engine": "trl", "reuse_prompt_pass": False})
    shared = step_parts(params, MODEL, H200, 4.0)["products"]
    assert step_parts(copies, MODEL, H200, 4.0)["products"] > 3.5 * shared
    answers = answer_parts(params, MODEL, H200, 4.0)
    waiting = max(4 * IMAGE_SECONDS / LOADER_THREADS - answers["products"], 0)
    assert answers["images"] == pytest.approx(waiting)


def test_memory_is_that_of_the_most_images_and_hours_those_of_the_mean() -> None:
    params = params_with()
    many = scale(images_per_question=2.0, most_images_per_question=8)
    estimate = needs(params, MODEL, many, NAME)
    assert estimate.images == Images(2.0, 8)
    assert estimate.memory == memory(params, MODEL, 8)
    one, eight = (memory(params, MODEL, images) for images in (1, 8))
    assert {part for part in one if one[part] != eight[part]} == {"activations"}
    # 7 more images for each of 4 prompts, with 73 tokens less than a prompt of their own
    more = 4 * 7 * (MODEL.prompt_mb - 73 * MODEL.token_mb) * 1e6
    assert eight["activations"] - one["activations"] == pytest.approx(more)
    twos = needs(params, MODEL, scale(images_per_question=2.0, most_images_per_question=2), NAME)
    assert twos.training_parts == estimate.training_parts
    assert twos.bytes < estimate.bytes
    # two images are computed while their kernels are launched, eight are not
    eights = needs(params, MODEL, scale(images_per_question=8.0, most_images_per_question=8), NAME)
    alone = needs(params, MODEL, SCALE, NAME)
    assert alone.training == pytest.approx(estimate.training)
    assert eights.training > 1.5 * alone.training


def test_rates_measured_with_one_image_are_not_used_for_several() -> None:
    rates = Measured(step_seconds=0.2, pass_seconds=0.01, questions_per_second=100.0)
    several = scale(images_per_question=2.0, most_images_per_question=8)
    estimate = needs(params_with(), MODEL, several, NAME, rates)
    assert estimate.measured == Measured(pass_seconds=0.01)
    assert "steps" not in estimate.training_parts
    assert "answers" not in estimate.evaluation_parts
    # a few questions with several images change the mean, and so the hours
    assert needs(params_with(), MODEL, SCALE, NAME, rates).measured == rates


def test_the_printed_estimate_names_the_images(tmp_path: Any) -> None:
    machine = Machine(
        [NAME], Torch("2.11.0", "13.0", (Gpu(NAME, 15 * 10**10, 149 * 10**9),), "", ""), ""
    )

    def described(**changes: Any) -> str:
        profile = FULL.model_copy(update={"scale": scale(**changes)})
        return "\n".join(describe_needs(profile, params_with(), machine, tmp_path))

    text = described(images_per_question=2.25, most_images_per_question=8)
    assert "images: 2.25 a question on average, for the hours, and 8 at most" in text
    assert "a question on average" not in described()
