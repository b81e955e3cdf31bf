"""Measurements of the evaluation benchmark.

Both loops on the same questions and weights, interleaved; the cost of ablations; the gain from
shrinking the batch.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.evaluate.published import MAX_NEW_TOKENS, answer_as_published
from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.models import BASE, SHAPES, SIDE, build_policy, build_processor
from stages.corpus.dataset.image_store import open_image
from stages.corpus.dataset.problems import format_problem
from stages.corpus.sample import phantoms
from stages.generation.batch_size import BatchSize
from stages.generation.generate import BLANK, Key, Question, answer_greedily, cut_windows
from stages.generation.greedy import COMPACT_BELOW
from stages.policy.loading import load_policy, load_processor
from stages.prompts.styles import Style, chat, prompt_text

Result = TypeVar("Result")

EMBEDDED: Final = "base"
"""The embedded base, which has learnt to answer and ends by itself. All other models are random
ones by `benchmarks.grpo_step`.
"""


@dataclass(frozen=True)
class Case:
    """A benchmark case: model, numbers of images and of questions per image, answer length.

    The length is in tokens; None lets the model end its answers.
    """

    model: str
    images: int
    questions_per_image: int
    answer: int | None = None
    style: Style = "no-think"

    @property
    def most(self) -> int:
        """Tokens after which an answer ends."""
        return self.answer or MAX_NEW_TOKENS


@dataclass(frozen=True)
class Bench:
    """A model, twice, as ours changes how its tower embeds patches; and what it is asked."""

    policy: PreTrainedModel
    untouched: PreTrainedModel
    processor: Any
    asked: list[Question]


def set_up(case: Case, folder: Path) -> Bench:
    """Models, and images written to the folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if case.model == EMBEDDED:
        policy, processor = (
            load_policy(
                BASE, dtype="float32" if device.type == "cpu" else "bfloat16", attention="sdpa"
            ),
            load_processor(BASE),
        )
        policy.to(device)
    else:
        policy, processor = (
            build_policy(SHAPES[case.model], device, seed=0),
            build_processor(Clock(device)),
        )
    processor.tokenizer.padding_side = "left"
    asked = questions(folder, case)
    untouched = copy.deepcopy(policy)
    if case.answer is not None:
        # random weights never say that they have done
        policy.generation_config.eos_token_id = untouched.generation_config.eos_token_id = []
    return Bench(policy, untouched, processor, asked)


def questions(folder: Path, case: Case) -> list[Question]:
    """Questions of the embedded corpus about drawn images, ordered as stage evaluate orders them.

    Questions about one image are adjacent.
    """
    rng = np.random.default_rng(0)
    asked: list[Question] = []
    for number in range(case.images):
        phantom = phantoms.sample_phantom(rng)
        while len(phantom.attributes) < case.questions_per_image:
            phantom = phantoms.sample_phantom(rng)
        path = folder / f"{number}.png"
        phantoms.draw(phantom, (SIDE, SIDE), rng).save(path)
        kinds = phantom.attributes
        for kind in rng.choice(kinds, case.questions_per_image, replace=False):
            wordings = phantoms.QUESTIONS[kind]
            problem = format_problem(
                wordings[rng.integers(len(wordings))], phantoms.options_for(phantom, kind, rng)
            )
            asked.append(
                Question(prompt_text(problem, case.style, "evaluate"), {"real": str(path)})
            )
    return asked


def with_ablations(asked: Sequence[Question]) -> list[Question]:
    """The same asked of a black image and of the next one, too."""
    own = list(dict.fromkeys(each.own_image for each in asked))
    following = dict(zip(own, own[1:] + own[:1], strict=True))
    return [
        Question(
            each.words,
            {"real": each.own_image, "blank": BLANK, "shuffled": following[each.own_image]},
        )
        for each in asked
    ]


def answer(
    bench: Bench,
    asked: Sequence[Question],
    *,
    most: int = MAX_NEW_TOKENS,
    compact_below: float = COMPACT_BELOW,
) -> dict[Key, tuple[int, ...]]:
    """Completions as stage evaluate makes them, token ids."""
    device = bench.policy.device
    batches = answer_greedily(
        bench.policy,
        bench.processor,
        asked,
        windows=cut_windows(asked, "auto"),
        batch_size=BatchSize("auto", device),
        max_new_tokens=most,
        compact_below=compact_below,
        loader_threads=(os.cpu_count() or 1) if device.type == "cuda" else 0,
    )
    ids = {}
    for batch in batches:
        ids.update({key: each.ids for key, each in batch.completions.items()})
    return ids


def compare(
    case: Case, folder: Path, repeats: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Median seconds of both loops, interleaved after a warm-up, and whether answers agree."""
    bench = set_up(case, folder)
    few = bench.asked[: case.questions_per_image]
    answer(bench, few, most=case.most)
    answer_as_published(bench.untouched, bench.processor, few, most=case.most)
    seconds: dict[str, list[float]] = {"published": [], "ours": []}
    for repeat in range(repeats):
        taken, published = timed(
            bench,
            lambda: answer_as_published(
                bench.untouched, bench.processor, bench.asked, most=case.most
            ),
        )
        seconds["published"].append(taken)
        taken, ours = timed(bench, lambda: answer(bench, bench.asked, most=case.most))
        seconds["ours"].append(taken)
        report(
            f"{case.model}, {case.questions_per_image} an image, {repeat + 1} of {repeats}: "
            + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in seconds.items())
        )
    medians = {name: median(each) for name, each in seconds.items()}
    lengths = [len(ids) for ids in published]
    differing = [
        {"question": place, "margin": margin(bench, bench.asked[place], ids, ours[place, "real"])}
        for place, ids in enumerate(published)
        if tuple(ids) != ours[place, "real"]
    ]
    return {
        **asdict(case),
        "questions": len(bench.asked),
        "tokens": {"median": median(lengths), "longest": max(lengths)},
        "seconds": medians,
        "questions_per_second": {name: len(bench.asked) / each for name, each in medians.items()},
        "speedup": medians["published"] / medians["ours"],
        "same_answers": 1 - len(differing) / len(bench.asked),
        "differing": differing,
    }


def measure_variants(case: Case, folder: Path, repeats: int) -> dict[str, float]:
    """Cost of ablations: seconds with a black and an exchanged image, over those without."""
    bench = set_up(case, folder)
    ablated = with_ablations(bench.asked)
    answer(bench, ablated[: case.questions_per_image])
    plain, whole = [], []
    for _ in range(repeats):
        plain.append(timed(bench, lambda: answer(bench, bench.asked))[0])
        whole.append(timed(bench, lambda: answer(bench, ablated))[0])
    return {"seconds": median(whole), "times_real_only": median(whole) / median(plain)}


def measure_leaving(case: Case, folder: Path, repeats: int) -> dict[str, float]:
    """Gain from compacting the batch: seconds with ended rows kept in it, over ours."""
    bench = set_up(case, folder)
    answer(bench, bench.asked[: case.questions_per_image])
    stay, go = [], []
    for _ in range(repeats):
        stay.append(timed(bench, lambda: answer(bench, bench.asked, compact_below=0.0))[0])
        go.append(timed(bench, lambda: answer(bench, bench.asked))[0])
    lengths = [len(ids) for ids in answer(bench, bench.asked).values()]
    return {
        "seconds": median(go),
        "seconds_staying": median(stay),
        "saved": median(stay) / median(go),
        "mean_tokens": sum(lengths) / len(lengths),
    }


def timed(bench: Bench, work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of some work, with what it returned."""
    start = time.perf_counter()
    result = work()
    if bench.policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@torch.inference_mode()
def margin(bench: Bench, question: Question, one: Sequence[int], other: Sequence[int]) -> float:
    """Logit margin at the first token where two completions differ: rounding noise, or more?"""
    place = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    if place >= min(len(one), len(other)):
        return math.inf  # one goes on where the other ended: no rounding does that
    text = bench.processor.apply_chat_template(
        chat(question.words), tokenize=False, add_generation_prompt=True
    )
    inputs = bench.processor(
        text=[text], images=[open_image(question.own_image)], return_tensors="pt"
    ).to(bench.untouched.device)
    told = torch.tensor([list(one[:place])], dtype=torch.long, device=bench.untouched.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], told], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(told)], dim=1
        )
    logits = bench.untouched(**inputs, logits_to_keep=1).logits[0, -1].float()
    return float((logits[one[place]] - logits[other[place]]).abs())
