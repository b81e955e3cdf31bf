"""The interface to vLLM: refusals without it, and the prompt it is given. Needs no vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.core.params import Grpo
from stages.grpo.vllm_rollout import (
    collapse_image_tokens,
    generation_kwargs,
    patch_generate,
    require_vllm,
    vllm_arguments,
)
from tests.grpo.tiny import grpo_settings, processor

IMAGE = 9
PROMPT = [1, 2, *[IMAGE] * 4, 3, 5]


def settings(**changed: object) -> Grpo:
    return grpo_settings(**{"reuse_prompt_pass": False} | changed)


class Vllm:
    """Stand-in for TRL's `VLLMGeneration`.

    Colocated, it expands the first image token to `tokens` of them; as a server it gets prompts
    that are expanded already.
    """

    def __init__(self, mode: str, tokens: int = 4) -> None:
        self.mode = mode
        self._tokens = tokens

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[Any, ...]:
        expanded = []
        for ids in prompts:
            if self.mode == "colocate":
                at = ids.index(IMAGE)
                ids = [*ids[:at], *[IMAGE] * self._tokens, *ids[at + 1 :]]
            expanded.append(ids)
        return expanded, [[7] for _ in prompts], None, None


def test_each_run_of_image_tokens_collapses_to_one() -> None:
    assert collapse_image_tokens(PROMPT, IMAGE) == [1, 2, IMAGE, 3, 5]
    prompt = [4, 4, IMAGE, IMAGE, 4, IMAGE]
    assert collapse_image_tokens(prompt, IMAGE) == [4, 4, IMAGE, 4, IMAGE]


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_sees_the_prompt_that_is_trained_on(mode: str) -> None:
    vllm: Any = Vllm(mode)
    if mode == "colocate":
        unverified = vllm.generate(prompts=[PROMPT], images=None, num_generations=1)[0]
        assert len(unverified[0]) == len(PROMPT) + 3, "expanded twice, as by TRL alone"
    patch_generate(vllm, IMAGE)
    prompts = [PROMPT, PROMPT]
    assert vllm.generate(prompts=prompts, images=None, num_generations=2)[0] == prompts


def test_an_image_that_vllm_expands_differently_stops_the_run() -> None:
    vllm: Any = Vllm("colocate", tokens=6)
    patch_generate(vllm, IMAGE)
    with pytest.raises(InputError, match=r"10 tokens \(6 .* row 0 .* 8 \(4\)"):
        vllm.generate(prompts=[PROMPT], images=None, num_generations=1)


def test_missing_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.grpo.vllm_rollout.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"grpo\.rollout vllm-colocate .*'\.\[vllm\]'"):
        require_vllm("vllm-colocate")


def test_vllm_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.grpo.vllm_rollout.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"grpo\.rollout vllm-server needs a GPU"):
        require_vllm("vllm-server")


def test_settings_become_trls_arguments() -> None:
    assert vllm_arguments(settings()) == {}
    server = "http://gpu1:8000"
    arguments = vllm_arguments(
        settings(rollout="vllm-server", vllm_server=server, max_completion_length=100)
    )
    assert arguments["use_vllm"] is True
    assert arguments["vllm_mode"] == "server"
    assert arguments["vllm_server_base_url"] == server
    assert arguments["vllm_max_model_length"] == 1024 + 100


def test_image_tokens_are_suppressed_by_either_sampler() -> None:
    names = generation_kwargs(processor(), "vllm-colocate")["bad_words"]
    ids = generation_kwargs(processor(), "policy")["suppress_tokens"]
    assert "<|image_pad|>" in names
    assert processor().tokenizer.convert_tokens_to_ids(names) == ids
