"""Measurements of the evaluation benchmark: both loops, ablations, compaction of the batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.evaluate.published import MAX_NEW_TOKENS, answer_as_published
from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.g_copies import baseline_batches_images, tower_attention
from benchmarks.grpo_step.models import BASE, SHAPES, SIDE, build_policy, build_processor
from stages.core.cores import available_cores
from stages.core.params import Towers
from stages.corpus.dataset.image_store import open_image
from stages.corpus.dataset.problems import format_problem
from stages.corpus.sample import phantoms
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.options import options_for
from stages.generation.batch_size import BatchSize
from stages.generation.generate import answer_greedily
from stages.generation.variants import REAL
from stages.generation.windows import BLANK, Key, Question, Variant, cut_windows
from stages.policy.attention import avoid_cudnn, choose_attention
from stages.policy.decoding import COMPACT_BELOW
from stages.policy.loading import load_policy, load_processor
from stages.policy.vision_attention import batch_images
from stages.prompts.styles import Style, chat, prompt_text

Result = TypeVar("Result")

EMBEDDED: Final = "base"
"""The embedded base, a trained model. All others are random models of `benchmarks.grpo_step`."""


@dataclass(frozen=True)
class Case:
    """A benchmark case; `answer`: tokens per answer, None lets the model end its answers.

    With several `images_per_question`, `images` counts the sequences of so many that differ.
    `dtype`: None for bfloat16 on a GPU and float32 on a CPU; `threads`: None for torch's default;
    `published_questions`: that the published loop answers, None for all.
    """

    model: str
    images: int
    questions_per_image: int
    answer: int | None = None
    style: Style = "no-think"
    dtype: str | None = None
    attention: str | Towers = "sdpa"
    threads: int | None = None
    batch_size: int | Literal["auto"] = "auto"
    images_per_question: int = 1
    published_questions: int | None = None

    @property
    def max_new_tokens(self) -> int:
        """Maximum tokens of an answer."""
        return self.answer or MAX_NEW_TOKENS


@dataclass(frozen=True)
class Bench:
    """A model, its questions, and a copy of it, as ours replaces the tower's patch embedding."""

    policy: PreTrainedModel
    untouched: PreTrainedModel
    processor: Any
    questions: list[Question]
    batch_size: int | Literal["auto"] = "auto"


def set_up(case: Case, folder: Path) -> Bench:
    """Build the models, and write the images to the folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = case.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    if case.model == EMBEDDED:
        policy = load_policy(BASE, dtype=dtype, attention=case.attention)
        processor = load_processor(BASE)
        policy.to(device)
    else:
        avoid_cudnn()
        weights = getattr(torch, dtype)
        attention = choose_attention(case.attention, weights, custom_masks=True)
        policy = build_policy(SHAPES[case.model], device, 0, weights, attention)
        processor = build_processor(Clock(device))
    processor.tokenizer.padding_side = "left"
    questions = make_questions(folder, case)
    untouched = copy.deepcopy(policy)
    batch_images(policy)
    batch_images(untouched, baseline_batches_images(untouched))
    if case.answer is not None:
        # all answers of random weights get the same length
        policy.generation_config.eos_token_id = untouched.generation_config.eos_token_id = []
    return Bench(policy, untouched, processor, questions, case.batch_size)


def make_questions(folder: Path, case: Case) -> list[Question]:
    """Questions of the embedded corpus about generated images, in the order of stage evaluate.

    Questions about one image are adjacent.
    """
    rng = np.random.default_rng(0)
    questions: list[Question] = []
    for number in range(case.images):
        phantom = phantoms.sample_phantom(rng)
        while len(phantom.attributes) < case.questions_per_image:
            phantom = phantoms.sample_phantom(rng)
        paths = []
        for picture in range(case.images_per_question):
            paths.append(str(folder / f"{number}-{picture}.png"))
            draw(phantom, (SIDE, SIDE), rng).save(paths[-1])
        kinds = phantom.attributes
        for kind in rng.choice(kinds, case.questions_per_image, replace=False):
            wordings = phantoms.QUESTIONS[kind]
            wording = wordings[rng.integers(len(wordings))]
            problem = format_problem(wording, options_for(phantom, kind, rng))
            prompt = prompt_text(problem, case.style, "evaluate")
            questions.append(Question({REAL: Variant(prompt, tuple(paths))}))
    return questions


def with_ablations(questions: Sequence[Question]) -> list[Question]:
    """The same questions, also with black images and with those of the next."""
    images = list(dict.fromkeys(each.own_images for each in questions))
    following = dict(zip(images, images[1:] + images[:1], strict=True))
    ablated = []
    for each in questions:
        own = each.own_images
        shown = {REAL: own, "blank": (BLANK,) * len(own), "shuffled": following[own]}
        ablated.append(Question({name: Variant(each.text, paths) for name, paths in shown.items()}))
    return ablated


def answer(
    bench: Bench,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    compact_below: float = COMPACT_BELOW,
) -> dict[Key, tuple[int, ...]]:
    """Token ids of completions by stage evaluate's code."""
    device = bench.policy.device
    batch_size = BatchSize(bench.batch_size, device)
    windows = answer_greedily(
        bench.policy,
        bench.processor,
        questions,
        windows=cut_windows(questions, batch_size.rows),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        compact_below=compact_below,
        loader_threads=available_cores() if device.type == "cuda" else 0,
    )
    ids = {}
    for window in windows:
        ids.update({key: each.ids for key, each in window.completions.items()})
    return ids


def compare(
    case: Case, folder: Path, repeats: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Median seconds of both loops, interleaved after a warm-up, and whether answers agree."""
    bench = set_up(case, folder)
    questions = bench.questions

    def answer_published(some: Sequence[Question]) -> list[list[int]]:
        return answer_as_published(
            bench.untouched, bench.processor, some, max_new_tokens=case.max_new_tokens
        )

    def answer_ours(some: Sequence[Question]) -> dict[Key, tuple[int, ...]]:
        return answer(bench, some, max_new_tokens=case.max_new_tokens)

    asked = questions[: case.published_questions]
    warm_up = questions[: case.questions_per_image]
    answer_ours(warm_up)
    answer_published(warm_up)
    seconds: dict[str, list[float]] = {"published": [], "ours": []}
    for repeat in range(repeats):
        elapsed, published = timed(bench, lambda: answer_published(asked))
        seconds["published"].append(elapsed)
        elapsed, ours = timed(bench, lambda: answer_ours(questions))
        seconds["ours"].append(elapsed)
        report(
            f"{case.model}, {case.questions_per_image} per image, {repeat + 1} of {repeats}: "
            + ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items())
        )
    medians = {name: median(each) for name, each in seconds.items()}
    lengths = [len(ids) for ids in published]
    differing = [
        {"question": at, "margin": margin(bench, questions[at], ids, ours[at, REAL])}
        for at, ids in enumerate(published)
        if tuple(ids) != ours[at, REAL]
    ]
    rates = {
        "published": len(asked) / medians["published"],
        "ours": len(questions) / medians["ours"],
    }
    return {
        **asdict(replace(case, attention=str(case.attention))),
        "questions": len(questions),
        "published_questions": len(asked),
        "baselines_tower": tower_attention(bench.untouched),
        "tokens": {"median": median(lengths), "longest": max(lengths)},
        "seconds": medians,
        "questions_per_second": rates,
        "speedup": rates["ours"] / rates["published"],
        "same_answers": 1 - len(differing) / len(asked),
        "differing": differing,
    }


def measure_ablations(case: Case, folder: Path, repeats: int) -> dict[str, float]:
    """Cost of ablations: seconds with a black and an exchanged image, over those without."""
    bench = set_up(case, folder)
    ablated = with_ablations(bench.questions)
    answer(bench, ablated[: case.questions_per_image])
    without: list[float] = []
    both: list[float] = []
    for _ in range(repeats):
        without.append(timed(bench, lambda: answer(bench, bench.questions))[0])
        both.append(timed(bench, lambda: answer(bench, ablated))[0])
    return {"seconds": median(both), "times_real_only": median(both) / median(without)}


def measure_compaction(case: Case, folder: Path, repeats: int) -> dict[str, float]:
    """Gain from compacting the batch: seconds with ended rows in the batch, over ours."""
    bench = set_up(case, folder)
    answer(bench, bench.questions[: case.questions_per_image])
    full: list[float] = []
    compacted: list[float] = []
    for _ in range(repeats):
        full.append(timed(bench, lambda: answer(bench, bench.questions, compact_below=0.0))[0])
        compacted.append(timed(bench, lambda: answer(bench, bench.questions))[0])
    lengths = [len(ids) for ids in answer(bench, bench.questions).values()]
    return {
        "seconds": median(compacted),
        "seconds_staying": median(full),
        "saved": median(full) / median(compacted),
        "mean_tokens": sum(lengths) / len(lengths),
    }


def timed(bench: Bench, work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of some work, and its result."""
    start = time.perf_counter()
    result = work()
    if bench.policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@torch.inference_mode()
def margin(bench: Bench, question: Question, one: Sequence[int], other: Sequence[int]) -> float:
    """Logit margin at the first token where two completions differ; tiny for rounding errors.

    Infinite if one is a prefix of the other, which rounding cannot cause.
    """
    pairs = enumerate(zip(one, other, strict=False))
    place = next((at for at, (first, second) in pairs if first != second), None)
    if place is None:
        return math.inf
    text = bench.processor.apply_chat_template(
        chat(question.text, len(question.own_images)), tokenize=False, add_generation_prompt=True
    )
    images = [open_image(path) for path in question.own_images]
    inputs = bench.processor(text=[text], images=images, return_tensors="pt").to(
        bench.untouched.device
    )
    prefix = torch.tensor([list(one[:place])], dtype=torch.long, device=bench.untouched.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], prefix], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(prefix)], dim=1
        )
    logits = bench.untouched(**inputs, logits_to_keep=1).logits[0, -1].float()
    return float((logits[one[place]] - logits[other[place]]).abs())
