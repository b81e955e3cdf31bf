"""The interface to vLLM: refusals without it, and the prompt it is given. vLLM is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.core.params import Grpo, load_params
from stages.grpo.vllm_rollout import (
    collapse_image_tokens,
    generation_kwargs,
    require_vllm,
    verify_prompts,
    vllm_arguments,
)
from tests.grpo.tiny import REPOSITORY, processor

IMAGE = 9
PROMPT = [1, 2, *[IMAGE] * 4, 3, 5]


def settings(**changed: object) -> Grpo:
    return Grpo.model_validate(
        load_params(REPOSITORY / "params.yaml").grpo.model_dump()
        | {"reuse_prompt_pass": False}
        | changed
    )


class Vllm:
    """TRL's `VLLMGeneration` as far as it is used.

    In the trainer's process, vLLM puts an image's tokens in the place of the first that stands for
    it; a server is told where they are.
    """

    def __init__(self, mode: str, tokens: int = 4) -> None:
        self.mode, self._tokens = mode, tokens

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[Any, ...]:
        seen = []
        for ids in prompts:
            if self.mode == "colocate":
                at = ids.index(IMAGE)
                ids = [*ids[:at], *[IMAGE] * self._tokens, *ids[at + 1 :]]
            seen.append(ids)
        return seen, [[7] for _ in prompts], None, None


def test_a_run_of_an_images_tokens_becomes_one_and_nothing_else_changes() -> None:
    assert collapse_image_tokens(PROMPT, IMAGE) == [1, 2, IMAGE, 3, 5]
    assert collapse_image_tokens([4, 4, IMAGE, IMAGE, 4, IMAGE], IMAGE) == [4, 4, IMAGE, 4, IMAGE]


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_sees_the_prompt_that_is_trained_on(mode: str) -> None:
    vllm: Any = Vllm(mode)
    if mode == "colocate":
        assert (
            len(vllm.generate(prompts=[PROMPT], images=None, num_generations=1)[0][0])
            == len(PROMPT) + 3
        ), "twice, as TRL asks"
    verify_prompts(vllm, IMAGE)
    assert vllm.generate(prompts=[PROMPT, PROMPT], images=None, num_generations=2)[0] == [
        PROMPT,
        PROMPT,
    ]


def test_an_image_that_vllm_sees_otherwise_stops_the_run() -> None:
    vllm: Any = Vllm("colocate", tokens=6)
    verify_prompts(vllm, IMAGE)
    with pytest.raises(
        InputError,
        match=(
            r"vLLM saw 10 tokens for prompt 0 of a batch, 6 of them of its image, .* makes 8 with 4"
        ),
    ):
        vllm.generate(prompts=[PROMPT], images=None, num_generations=1)


def test_vllm_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.grpo.vllm_rollout.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError,
        match=r"grpo.rollout vllm-colocate needs the package vllm: `pip install '.\[vllm\]'`",
    ):
        require_vllm("vllm-colocate")


def test_vllm_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.grpo.vllm_rollout.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="needs a GPU, and torch sees none: set it to policy"):
        require_vllm("vllm-server")


def test_settings_in_trls_words() -> None:
    assert vllm_arguments(settings()) == {}
    told = vllm_arguments(
        settings(rollout="vllm-server", vllm_server="http://gpu1:8000", max_completion_length=100)
    )
    assert (told["use_vllm"], told["vllm_mode"], told["vllm_server_base_url"]) == (
        True,
        "server",
        "http://gpu1:8000",
    )
    assert told["vllm_max_model_length"] == 1024 + 100


def test_tokens_that_stand_for_images_are_kept_out_either_way() -> None:
    names = generation_kwargs(processor(), "vllm-colocate")["bad_words"]
    assert "<|image_pad|>" in names
    assert (
        processor().tokenizer.convert_tokens_to_ids(names)
        == generation_kwargs(processor(), "policy")["suppress_tokens"]
    )
