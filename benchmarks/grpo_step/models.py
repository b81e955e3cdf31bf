"""Policies with random weights, built without downloads, and questions with images for them.

Time does not depend on the values of weights, so a random model stands for a trained one of its
shape. All models use the embedded base's tokenizer; ids beyond its vocabulary are sampled too, and
decode to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)

from benchmarks.grpo_step.clock import Clock
from stages.corpus.sample import phantoms
from stages.corpus.sample.drawing import draw
from stages.policy.loading import load_processor
from stages.policy.vision_attention import loadable

REPOSITORY: Final = Path(__file__).parents[2]
BASE: Final = REPOSITORY / "infra" / "base"
SIDE: Final = 384
"""Pixels; the image processor resizes to 392 x 392: 28 x 28 patches of 14 pixels, 196 tokens."""

PROBLEMS: Final = (
    "What kind of scan is this? A)CT, B)MRI, C)X-ray",
    "Is the scan normal? A)Yes, B)No",
    "What is shown in this image? A)Cyst, B)Nodule, C)Mass",
    "What part of the body does this image show? A)Chest, B)Brain",
    "Is there a lesion in this image? A)No, B)Yes",
    "How severe is the lesion? A)Mild, B)Moderate, C)Severe",
)
"""With the no-think instructions, 77 to 81 text tokens: prompts of 276 tokens on average."""


@dataclass(frozen=True)
class Shape:
    """A model's name, its text and vision configuration, and `std` of its random weights."""

    name: str
    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    std: float = 0.02


_PATCHES: Final = {
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}


def _text(
    width: int,
    inner: int,
    layers: int,
    heads: int,
    shared_heads: int,
    vocabulary: int,
    rotary: list[int],
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": rotary},
        "tie_word_embeddings": True,
        "bos_token_id": 842,
        "eos_token_id": 844,
        "pad_token_id": 842,
    }


SHAPES: Final = {
    shape.name: shape
    for shape in (
        # a two-hundredth of Qwen2-VL-2B with its proportions: the tower is 63% of the forward over
        # image and prompt (60% in the 2B), the head 16% of a text token (15%), and a fifth of the
        # weights is an embedding that is read but never multiplied
        Shape(
            "10m",
            "qwen2_vl",
            _text(256, 1536, 4, 4, 1, 4096, [8, 12, 12]),
            _PATCHES
            | {
                "depth": 4,
                "embed_dim": 192,
                "num_heads": 4,
                "mlp_ratio": 4,
                "hidden_size": 256,
            },
            # sqrt(256) * 0.05 equals sqrt(1536) * 0.02 of the 2B: logits of the same spread
            std=0.05,
        ),
        Shape(  # for tests
            "tiny",
            "qwen2_vl",
            _text(32, 64, 2, 2, 1, 900, [2, 3, 3]),
            _PATCHES
            | {
                "depth": 1,
                "embed_dim": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "hidden_size": 32,
            },
            std=0.1,
        ),
        Shape(
            "qwen2-vl-2b",
            "qwen2_vl",
            _text(1536, 8960, 28, 12, 2, 151936, [16, 24, 24]),
            _PATCHES
            | {
                "depth": 32,
                "embed_dim": 1280,
                "num_heads": 16,
                "mlp_ratio": 4,
                "hidden_size": 1536,
            },
        ),
        Shape(
            "qwen2.5-vl-3b",
            "qwen2_5_vl",
            _text(2048, 11008, 36, 16, 2, 151936, [16, 24, 24]),
            _PATCHES
            | {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
            }
            | {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
        ),
    )
}


def build_policy(
    shape: Shape,
    device: torch.device,
    seed: int,
    dtype: torch.dtype | None = None,
    attention: dict[str, str] | None = None,
) -> PreTrainedModel:
    """Build the model with random weights: by default bfloat16 on a GPU, otherwise float32."""
    base = AutoConfig.from_pretrained(BASE)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = AutoConfig.for_model(
        shape.family,
        text_config=shape.text | {"initializer_range": shape.std},
        vision_config=shape.vision | {"initializer_range": shape.std},
        tie_word_embeddings=True,
        **{name: getattr(base, name) for name in names},
    )
    torch.manual_seed(seed)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        policy: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=loadable(attention) if attention else "sdpa"
        )
    policy.generation_config.eos_token_id = [844, 842]
    policy.generation_config.pad_token_id = 842
    return policy.train()


class TimedProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """A processor whose time counts as part `processor`."""

    clock: Clock

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """As Qwen2VLProcessor."""
        with self.clock.part("processor"):
            return super().__call__(*arguments, **more)


def build_processor(clock: Clock) -> TimedProcessor:
    """Qwen2-VL's image processor at default limits, the embedded base's tokenizer and template."""
    base: Any = load_processor(BASE)
    processor = TimedProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=base.tokenizer,
        video_processor=base.video_processor,
        chat_template=base.chat_template,
    )
    processor.clock = clock
    return processor


def question_rows(folder: Path, count: int, images: int = 1) -> list[dict[str, Any]]:
    """Questions in the format of stage train, each with images of its own, written to `folder`."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        paths = [folder / f"{number}-{which}-of-{images}.png" for which in range(images)]
        for path in paths:
            draw(phantoms.sample_phantom(rng), (SIDE, SIDE), rng).save(path)
        rows.append(
            {
                "images": [str(path) for path in paths],
                "problem": PROBLEMS[number % len(PROBLEMS)],
                "gold": "A",
                "options": ["Yes", "No"],
            }
        )
    return rows


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A cheap reward that differs within a group, so that no advantage is zero."""
    return [sum(ids) % 997 / 997 for ids in completion_ids]
