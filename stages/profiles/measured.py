"""Measured rates of a profile on a GPU: what `python -m benchmarks.gpu` wrote, for estimates.

A measurement holds for one GPU name and the settings that decide how long a step or an answer
takes. Of another GPU or other settings, none is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stages.core.params import Params

FILE: Final = Path("benchmarks/gpu.json")
"""Where the benchmark writes, from the project's root."""
_GRPO: Final = (
    "engine",
    "draft_nodes",
    "reuse_prompt_pass",
    "reference_steps",
    "loader_workers",
    "compile",
    "cuda_graphs",
    "skip_zero_advantage",
    "fused_head",
    "freeze_vision_tower",
    "vision_cache_mb",
    "lora",
    "num_generations",
    "prompts_per_device",
    "gradient_accumulation_steps",
    "num_iterations",
    "beta",
    "temperature",
    "top_p",
    "top_k",
    "gradient_checkpointing",
    "bf16",
    "rollout",
)
"""Keys of `grpo` that decide how long a step takes, and memory."""


@dataclass(frozen=True)
class Measured:
    """Rates on one GPU; None where none was measured.

    `step_seconds`: an optimiser step of a training, with what is done ahead of it, and completions
    of the style's typical length, `drafted`: with drafts that foresee them; `pass_seconds`: a pass
    that samples one token of each completion; `questions_per_second`: of an evaluation.
    """

    step_seconds: float | None = None
    drafted: bool = False
    pass_seconds: float | None = None
    questions_per_second: float | None = None

    def of_images(self, mean: float) -> Measured:
        """The rates that hold for questions with so many images on average.

        Steps and answers are measured with one. A pass that samples a token has no image.
        """
        return self if mean == 1 else Measured(pass_seconds=self.pass_seconds)


def training_setting(params: Params) -> dict[str, Any]:
    """The settings that decide how long an optimiser step takes, as JSON."""
    grpo = params.grpo.model_dump(mode="json")
    base = params.base.model_dump(mode="json")
    return {
        **{key: base[key] for key in ("source", "revision", "dtype", "attention", "max_pixels")},
        "style": params.prompt.style,
        "grpo": {key: grpo[key] for key in _GRPO},
    }


def evaluation_setting(params: Params) -> dict[str, Any]:
    """The settings that decide how many questions are answered in a second, as JSON."""
    base = params.base.model_dump(mode="json")
    return {
        **{key: base[key] for key in ("source", "revision", "attention", "max_pixels")},
        "style": params.prompt.style,
        "dtype": params.evaluate.dtype or params.base.dtype,
        "batch_size": params.evaluate.batch_size,
    }


def read_measured(params: Params, gpu: str, path: Path = FILE) -> Measured:
    """What was measured with these settings on a GPU of this name; a missing file has nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not gpu or content["device"]["name"] != gpu:
            return Measured()
        return _rates(params, content)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Measured()  # none, or of an earlier form


def _rates(params: Params, content: Mapping[str, Any]) -> Measured:
    steps = _matching(content["steps"], training_setting(params))
    evaluation = _matching(content["evaluation"], evaluation_setting(params))
    rates: dict[str, Any] = {}
    if steps is not None:
        row = steps["rows"][0]
        # a step alone takes longer: its images are opened and its reference runs while it waits
        if training := row["seconds"].get("training"):
            rates["step_seconds"] = training["step"]
            rates["drafted"] = "drafted" in row["seconds"]
        by_profile = content["pass_seconds"].get(row["model"], {})
        rates["pass_seconds"] = by_profile.get(steps["profile"])
    if evaluation is not None:
        rates["questions_per_second"] = evaluation["questions_per_second"]
    return Measured(**rates)


def _matching(parts: Mapping[str, Any], setting: dict[str, Any]) -> Any:
    return next((each for each in parts.values() if each.get("setting") == setting), None)
