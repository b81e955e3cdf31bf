"""Setting of the steps: precision, sampling and host, of the benchmark itself or of a profile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch

from stages.core.errors import InputError
from stages.core.params import Grpo, Params, Towers, check_params, load_params, parse_settings
from stages.grpo.trainer import deterministic
from stages.policy.attention import avoid_cudnn, choose_attention
from stages.profiles.measured import training_setting
from stages.profiles.schema import load_profile, merge
from stages.profiles.splice import reset
from stages.prompts.styles import Style

REPOSITORY: Final = Path(__file__).parents[2]
Precision = Literal["float32", "autocast", "bfloat16"]
"""Weights and computation: both in float32; float32 weights under bfloat16 autocast; bfloat16."""
BETA: Final = 0.04
"""Med-R1's weight of the KL."""
MODEL_OF: Final = {"full": "qwen2-vl-2b", "full-3b": "qwen2.5-vl-3b"}
"""Profile -> the shape in `models.SHAPES` of its model."""
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "autocast", "bfloat16")


@dataclass(frozen=True)
class Setting:
    """What all implementations of a step share.

    `grpo`: settings of our trainer and TRL's. `threads`: of the CPU, None for torch's default.
    `from_files`: a step opens its images; otherwise they are in memory. `own`: settings that decide
    how long a training takes, None without a profile.
    """

    precision: Precision
    grpo: Grpo
    attention: str | Towers = "sdpa"
    threads: int | None = None
    from_files: bool = False
    profile: str | None = None
    style: Style = "no-think"
    own: dict[str, Any] | None = None

    def with_precision(self, precision: Precision) -> Setting:
        """The same in another precision."""
        grpo = self.grpo.model_copy(update={"bf16": precision == "autocast"})
        return replace(self, precision=precision, grpo=grpo)

    @property
    def uses_drafts(self) -> bool:
        """Whether completions are drafted."""
        grpo = self.grpo
        return grpo.engine == "shared-prefix" and grpo.draft_nodes > 0 and grpo.rollout == "policy"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def attention_by_part(self) -> dict[str, str]:
        """Attention implementation of language model and vision tower."""
        return choose_attention(self.attention, self.dtype, custom_masks=True)

    def autocast(self, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
        """A context in which forward passes compute in this precision."""
        if self.precision != "autocast":
            return nullcontext
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)

    def prepare_process(self) -> None:
        """As stage train does: which kernels; of a profile also threads and determinism."""
        avoid_cudnn()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            deterministic(self.grpo.seed)


def default_setting(device: torch.device) -> Setting:
    """The benchmark's own: bfloat16 on a GPU, float32 on a CPU, and Med-R1's loss.

    Without drafts: no trie foresees the completions of a model with random weights.
    """
    grpo = load_params(REPOSITORY / "params.yaml").grpo
    changes = {
        "draft_nodes": 0,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "beta": BETA,
        "bf16": False,
    }
    precision: Precision = "bfloat16" if device.type == "cuda" else "float32"
    return Setting(precision, grpo.model_copy(update=changes))


def profile_params(name: str, style: Style | None = None) -> Params:
    """All settings of a profile in infra/profiles, as in params.yaml once it is set.

    `style`: a prompt style in place of the profile's.
    InputError if there is no such profile.
    """
    path, profile = load_profile(name, REPOSITORY / "infra" / "profiles")
    params = REPOSITORY / "params.yaml"
    sample, _ = reset(params.read_text(encoding="utf-8"), params)
    tree = parse_settings(sample, params)
    changes = {"prompt": {"style": style}} if style is not None else {}
    return check_params(merge(merge(tree | profile.groups, profile.params), changes), path)


def profile_setting(name: str, model: str, style: Style | None = None) -> Setting:
    """The setting of a profile, for its model or one of another size, in its or another style.

    InputError if it has no KL, which the implementations that ours is compared with have.
    """
    params = profile_params(name, style)
    grpo = params.grpo
    if not grpo.beta:
        raise InputError(f"profile {name}: grpo.beta is 0, and Med-R1's step has a KL term")
    own = training_setting(params)
    if model != MODEL_OF.get(name):
        own |= {"source": model, "revision": None}
    return Setting(
        precision=_precision(params.base.dtype, grpo),
        grpo=grpo,
        attention=params.base.attention,
        threads=params.base.threads,
        from_files=True,
        profile=name,
        style=params.prompt.style,
        own=own,
    )


def _precision(dtype: str, grpo: Grpo) -> Precision:
    if dtype == "bfloat16":
        return "bfloat16"
    return "autocast" if grpo.bf16 else "float32"
