"""Tiny policies of the supported families, questions for them, and helpers for trainer tests."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from stages.core.params import Grpo, Params, load_params
from stages.corpus.sample import phantoms
from stages.corpus.sample.drawing import draw
from stages.grpo.data.dataset import train_dataset
from stages.grpo.resume import prune_checkpoints
from stages.grpo.trainer import build_trainer, write_log
from stages.policy.loading import load_policy, load_processor

REPOSITORY = Path(__file__).parents[2]
BASE = REPOSITORY / "infra" / "base"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
QUESTIONS = (
    "Scan? A)CT, B)MRI",
    "How severe is the lesion? A)Mild, B)Moderate, C)Severe, D)None of these",
)
SIZES = ((384, 384), (96, 144))
"""Of the images of `QUESTIONS`, in pixels."""
SMALL_SIZES = ((96, 96), (96, 144), (48, 96))
"""Of images where there are several, in pixels."""


@cache
def processor() -> Any:
    return load_processor(BASE)


def random_policy(family: str, seed: int = 0) -> PreTrainedModel:
    """About a million random float32 parameters, for the embedded base's processor."""
    return copy.deepcopy(_random_policy(family, seed))


@cache
def _random_policy(family: str, seed: int) -> PreTrainedModel:
    base = AutoConfig.from_pretrained(BASE)
    text = base.text_config.to_dict()
    shared = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "patch_size": 24,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
    }
    vision = {
        "qwen2_vl": shared | {"embed_dim": 64, "hidden_size": 64},
        "qwen2_5_vl": (
            shared
            | {
                "intermediate_size": 96,
                "out_hidden_size": 64,
                "window_size": 96,
                "fullatt_block_indexes": [1],
            }
        ),
        "qwen3_vl": (
            shared
            | {
                "intermediate_size": 96,
                "out_hidden_size": 64,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            }
        ),
    }[family]
    inherited = (
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "rms_norm_eps",
        "rope_parameters",
        "tie_word_embeddings",
    )
    text = {name: text[name] for name in inherited} | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
    }
    special = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = {name: getattr(base, name) for name in special}
    config = AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens
    )
    torch.manual_seed(seed)
    policy = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").float()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:  # large enough that attention is not uniform
                parameter.mul_(4)
    policy.generation_config.eos_token_id = [844, 842]
    policy.generation_config.pad_token_id = 842
    return policy


def embedded_policy() -> PreTrainedModel:
    return copy.deepcopy(_embedded_policy())


@cache
def _embedded_policy() -> PreTrainedModel:
    return load_policy(BASE, dtype="float32", attention="sdpa")


@cache
def drawn_images(seed: int, sizes: tuple[tuple[int, int], ...]) -> list[bytes]:
    """PNG files of different images, in sizes (width, height)."""
    rng = np.random.default_rng(seed)
    files = []
    for size in sizes:
        file = BytesIO()
        draw(phantoms.sample_phantom(rng), size, rng).save(file, "PNG")
        files.append(file.getvalue())
    return files


def questions(folder: Path) -> list[dict[str, Any]]:
    """Two questions whose images differ in size, and so in their number of image tokens."""
    rows = []
    for number, (problem, content) in enumerate(
        zip(QUESTIONS, drawn_images(3, SIZES), strict=True)
    ):
        path = folder / f"{number}.png"
        path.write_bytes(content)
        rows.append({"image": str(path), "problem": problem, "gold": "A", "options": ["CT", "MRI"]})
    return rows


def questions_about_several(
    folder: Path, counts: Sequence[int], contexts: Sequence[str | None] = ()
) -> list[dict[str, Any]]:
    """Questions in the form of stage train, with so many images each, of three small sizes."""
    frames = [frame for count in counts for frame in range(count)]
    files = iter(drawn_images(11, tuple(SMALL_SIZES[frame % len(SMALL_SIZES)] for frame in frames)))
    rows = []
    for number, count in enumerate(counts):
        images = []
        for frame in range(count):
            path = folder / f"{number}-{frame}.png"
            path.write_bytes(next(files))
            images.append(str(path))
        rows.append(
            {
                "images": tuple(images),
                "problem": QUESTIONS[number % len(QUESTIONS)],
                "context": contexts[number] if contexts else None,
                "gold": "A",
                "options": ["CT", "MRI"],
            }
        )
    return rows


def chats(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Chats with opened images, as the engine passes them to the processor."""
    dataset = train_dataset(rows, "no-think")
    result = []
    for index in range(len(rows)):
        row = dataset[index]
        image = {"type": "image", "image": row["image"]}
        text = {"type": "text", "text": row["prompt"][0]["content"]}
        result.append([{"role": "user", "content": [image, text]}])
    return result


def grpo_settings(**changed: object) -> Grpo:
    """The settings of params.yaml, with changes."""
    return Grpo.model_validate(_params().grpo.model_dump() | changed)


@cache
def _params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


def tiny_trainer(
    folder: Path,
    policy: PreTrainedModel | None = None,
    *,
    rows: Any = None,
    **settings: Any,
) -> Any:
    """A trainer on two questions: 4 completions each and one optimiser step per batch.

    `rows`: its questions; None for `questions`.
    """
    small = {
        "num_generations": 4,
        "prompts_per_device": 2,
        "max_steps": 1,
        "save_steps": 0,
        "num_train_epochs": 100.0,
    }
    grpo = grpo_settings(**small | settings)
    dataset = train_dataset(rows or questions(folder), "no-think")
    if policy is None:
        policy = embedded_policy()
    else:  # the reference is loaded from where the policy was
        policy.save_pretrained(folder / "policy")
        policy = load_policy(folder / "policy", dtype="float32", attention="sdpa")
    return build_trainer(
        policy, processor(), dataset, grpo, "no-think", scratch=folder / "state", run_name="x"
    )


def set_rewards(trainer: Any, reward: Callable[..., Any], name: str = "constant") -> None:
    """Make `reward` the only reward of a trainer."""
    trainer.reward_funcs = [reward]
    trainer.reward_func_names = [name]
    trainer.reward_weights = torch.ones(1)
    trainer.reward_processing_classes = [None]


def backward_mode(trainer: Any) -> int:
    """Torch's deterministic debug mode within a backward pass of a trainer: 0, 1 warn, 2 error."""
    modes: list[int] = []
    weight = torch.ones(1, requires_grad=True)
    weight.register_hook(lambda _: modes.append(torch.get_deterministic_debug_mode()))
    trainer.accelerator.backward(weight.sum())
    (mode,) = modes
    return mode


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of a trainer's weights, by name."""
    named = trainer.model.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in named}


def changed_names(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> set[str]:
    """Names of the weights of `after` that differ."""
    return {name for name in after if not torch.equal(before[name], after[name])}


def layer_names(names: Iterable[str]) -> set[str]:
    """Layers of weights: "model.layers.0.self_attn.q_proj.weight" belongs to "q_proj"."""
    return {name.split(".")[-2] for name in names}


def count_processed_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of images of each call of the image processor."""
    counts: list[int] = []
    image_processor = type(processor().image_processor)
    original = image_processor.preprocess

    def counting(self: Any, images: list[Any], *rest: Any, **options: Any) -> Any:
        counts.append(len(images))
        return original(self, images, *rest, **options)

    monkeypatch.setattr(image_processor, "preprocess", counting)
    return counts


class Stopped(Exception):
    """Like a kill: nothing is finished or cleaned up."""


def train_and_log(
    trainer: Any,
    folder: Path,
    stop_after: int | None = None,
    copy_after: Iterable[int] = (),
    resume: bool = False,
) -> dict[str, torch.Tensor]:
    """Train, from the newest checkpoint in `folder`/state if `resume`; returns the weights.

    Raises Stopped after `stop_after` micro-steps. After those of `copy_after` it copies the state
    that a kill would leave to `folder`/state-<micro-steps>. Writes `folder`/log.csv.
    """
    original = trainer.training_step
    count = 0

    def step(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        if count == stop_after:
            raise Stopped
        if count in copy_after:
            shutil.copytree(folder / "state", folder / f"state-{count}")
        count += 1
        return original(*arguments, **options)

    trainer.training_step = step
    checkpoint = prune_checkpoints(folder / "state") if resume else None
    assert bool(checkpoint) == resume
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    write_log(trainer.state.log_history, folder / "log.csv")
    return parameters(trainer)


def assert_resumes_exactly(
    run: Callable[..., dict[str, torch.Tensor]], folder: Path, *stop_after: int
) -> None:
    """Check that a run (`train_and_log`) resumed from where it stopped equals an uninterrupted one.

    `stop_after`: the micro-steps after which it stopped, each a resumed run.
    """
    whole = folder / "whole"
    whole.mkdir()
    uninterrupted = run(whole, copy_after=stop_after)
    for count in stop_after:
        parts = folder / f"parts-{count}"
        parts.mkdir()
        (whole / f"state-{count}").rename(parts / "state")
        resumed = run(parts, resume=True)
        assert not changed_names(uninterrupted, resumed), count
        assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes(), count
