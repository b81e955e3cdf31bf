"""Estimates of how long evaluations take on a GPU, by part; see `stages.profiles.times`."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Final

from stages.core.params import Params
from stages.profiles.measured import Measured
from stages.profiles.schema import Model, Scale
from stages.profiles.shown import ONE, prompt_flops
from stages.profiles.times import (
    COMPLETION_TOKENS,
    DISK_RATE,
    EFFICIENCY,
    IMAGE_SECONDS,
    Parts,
    Peak,
    expected_longest,
    token_seconds,
    trained_axes,
    weight_size,
)
from stages.profiles.variants import expected_answers

EVALUATE_START_SECONDS: Final = 9.4
"""Measured: imports of an evaluation."""
LOADER_THREADS: Final = 8
"""Assumed: images that an evaluation on a GPU opens and processes at a time."""
AUTO_ROWS: Final = 512
"""Rows per batch of an evaluation with batch_size: auto on a GPU (`MAX_GPU_ROWS` of
stages.generation.batch_size): those of a 2B or 3B model with one image fit into 40 GB.
"""
WINDOW_ROWS: Final = 1024
"""Rows that are answered together, and images that they show (stages.generation.windows)."""


def evaluation_parts(
    params: Params, model: Model, scale: Scale, peak: Peak, measured: Measured
) -> Parts:
    """Seconds of one GPU to test all checkpoints and the base."""
    # on each axis, every checkpoint of it and the base are tested
    policies = 0
    for axis in trained_axes(params):
        policies += 1 + sum(entry.axis == axis for entry in params.checkpoints.values())
    questions = scale.questions * (1 - params.splits.train_share)
    expected = expected_answers(params, scale)
    # the questions of a modality share windows
    of_modality = questions / len(params.modalities)
    rows = of_modality * sum(count.answers for count in expected.values())
    images = of_modality * sum(count.images for count in expected.values())
    together = rows / decode_loops(params, rows, images)
    parts: defaultdict[str, float] = defaultdict(float)
    for count in expected.values():
        each = answer_parts(params, model, peak, count.mean, together, measured.pass_seconds)
        if measured.questions_per_second is not None:
            # measured with answers of typical length
            each = {
                "answers": 1 / measured.questions_per_second,
                "long answers": each["long answers"],
            }
        for name, seconds in each.items():
            parts[name] += questions * policies * count.answers * seconds
    weights = model.parameters * weight_size(params)
    # hashed, then loaded
    start = EVALUATE_START_SECONDS + 2 * weights / DISK_RATE
    return {**parts, "starts": len(params.evaluations) * start}


def answer_parts(
    params: Params,
    model: Model,
    peak: Peak,
    images: float = ONE.mean,
    together: float | None = None,
    pass_seconds: float | None = None,
) -> Parts:
    """Seconds per question, of so many images on average, of an evaluation.

    `together`: answers that are decoded in one loop, on average, by default a full batch;
    `pass_seconds`: of a pass that samples a token of each, if it was measured.
    """
    in_bfloat16 = (params.evaluate.dtype or params.base.dtype) == "bfloat16"
    rate = EFFICIENCY * (peak.bfloat16 if in_bfloat16 else peak.float32)
    tokens = COMPLETION_TOKENS[params.prompt.style]
    products = (prompt_flops(model, images) + tokens * model.token_gflop * 1e9) / rate
    answers = together or batch_rows(params)
    typical = min(tokens, params.evaluate.max_new_tokens)
    longest = expected_longest(params, answers, params.evaluate.max_new_tokens)
    token = (pass_seconds or token_seconds(model)) / answers
    return {
        # threads open images while the GPU computes
        "images": max(images * IMAGE_SECONDS / LOADER_THREADS - products, 0.0),
        "products": products,
        "sampling": typical * token,
        "long answers": (longest - typical) * token,
    }


def batch_rows(params: Params) -> int:
    """Most rows per batch of an evaluation on a GPU."""
    size = params.evaluate.batch_size
    return AUTO_ROWS if size == "auto" else size


def decode_loops(params: Params, rows: float, images: float) -> int:
    """Loops in which an evaluation decodes so many rows of one modality, with so many images.

    As `stages.generation.windows` cuts: rows are halved until a window fits, and the batches of
    each window are decoded one after the other.
    """
    batch = batch_rows(params)
    window = max(batch, min(2 * batch, WINDOW_ROWS))
    excess = max(rows / window, images / max(window, WINDOW_ROWS), 1.0)
    windows = 2 ** math.ceil(math.log2(excess))
    return windows * max(math.ceil(rows / windows / batch), 1)
