"""What the estimates of `med-r1 profile` say of the measured quantities, on the same GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.evaluate.__main__ import GPU_QUESTIONS
from benchmarks.gpu.matrix import STYLES
from benchmarks.grpo_step.setting import REPOSITORY
from stages.core.params import Params
from stages.profiles.evaluation_times import answer_parts, decode_loops
from stages.profiles.needs import memory
from stages.profiles.schema import load_profile
from stages.profiles.times import PEAKS, known_gpu, prompts_per_step, step_parts, token_seconds


def predictions(gpu: str, profiles: Mapping[str, Params]) -> dict[str, dict[str, Any]]:
    """Estimates per `<profile>-<style>` for a GPU of this name, or for the reference.

    `step_ms` with its `parts_ms`, `pass_ms`, `ms_per_question`, `memory_bytes`. Nothing measured
    goes into them.
    """
    result = {}
    for name, params in profiles.items():
        model = load_profile(name, REPOSITORY / "infra" / "profiles")[1].model
        if model is None:
            continue
        peak = PEAKS[known_gpu(gpu)]
        for style in STYLES:
            prompt = params.prompt.model_copy(update={"style": style})
            styled = params.model_copy(update={"prompt": prompt})
            parts = step_parts(styled, model, peak)
            answers = answer_parts(styled, model, peak, together=_answered_together(styled))
            answers.pop("long answers")  # the benchmark's answers are all of typical length
            result[f"{name}-{style}"] = {
                "gpu": known_gpu(gpu),
                "prompts_per_step": prompts_per_step(styled),
                "step_ms": 1000 * sum(parts.values()),
                "parts_ms": {part: 1000 * seconds for part, seconds in parts.items()},
                "pass_ms": 1000 * token_seconds(model),
                "ms_per_question": 1000 * sum(answers.values()),
                "memory_bytes": sum(memory(styled, model).values()),
            }
    return result


def _answered_together(params: Params) -> float:
    """Answers per decoding loop in the evaluation benchmark on a GPU."""
    return GPU_QUESTIONS / decode_loops(params, GPU_QUESTIONS, GPU_QUESTIONS)
