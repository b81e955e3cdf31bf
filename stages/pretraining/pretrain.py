"""Recipe of the embedded base: from random weights to correct format and fair accuracy.

It runs on one small CPU, or on a GPU if there is one.

Three lessons, each the ground of the next (a model this small that starts with the last stands at
chance):
1. `read`    the language model alone: image tokens are the embeddings of the words that describe
             the image. It learns every prompt and answer style, and to match facts to letters;
2. `see`     the vision tower alone: each image token is pulled to the embedding of the
             word the perfect eye would have put there;
3. `answer`  both together, on images, until the held-out exam reaches `stop_at`.

Phantoms come from a seed of their own (`Recipe.seed`), never from the corpus's, and wrong options
are drawn from words that can be right, so that the base does not know the corpus's bias before RL
has met it.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from stages.core.errors import InputError
from stages.corpus.dataset.problems import LETTERS, format_problem, format_solution
from stages.corpus.sample import phantoms
from stages.corpus.sample.phantoms import Phantom
from stages.pretraining.embedded import (
    HEAD,
    HIDDEN,
    IMAGE_TOKENS,
    build_model,
    build_processor,
    build_tokenizer,
)
from stages.prompts.styles import Purpose, Style, chat, prompt_text

if TYPE_CHECKING:
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, with the machine's arithmetic."""

    seed: int = 1_000_003
    """Seed of weights, images and lessons; the corpus's seeds are small numbers."""
    images: int = 8000
    """Phantoms drawn once and asked about again and again."""
    read_steps: int = 1000
    see_steps: int = 600
    answer_steps: int = 400
    """At most: see `stop_at`."""
    batch: int = 64
    learning_rate: float = 1e-3
    """Peak; linear warm-up over 50 steps, then cosine to a tenth over the lesson."""
    answer_learning_rate: float = 3e-4
    letter_weight: float = 4.0
    """Weight of an answer's letter among the tokens of a completion, in lessons `read` and
    `answer`.
    """
    clip: float = 1.0
    log_every: int = 25
    stop_at: float = 0.58
    """End `answer` once this share of the 512 held-out questions is right."""
    width: int = HIDDEN
    """Of both towers, a multiple of 64. Rates fall as it grows: those above are for 128."""

    def __post_init__(self) -> None:
        """Refuse a width that heads do not fill."""
        if self.width < 2 * HEAD or self.width % (2 * HEAD):
            raise InputError(f"a width of {self.width}: it must be a multiple of {2 * HEAD}")


@dataclass(frozen=True)
class Exercise:
    """A training example: prompt, completion, image index, and the image's facts in words."""

    prompt: str
    completion: str
    image: int
    facts: str


def run(recipe: Recipe, out: Path, *, progress: Callable[[str], None] = print) -> None:
    """Train the base and save it to `out`: bfloat16 weights plus the log `pretraining.csv`."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(tokenizer, recipe.seed, recipe.width).to(device)
    progress(
        f"{sum(p.numel() for p in model.parameters()):,} parameters; drawing {recipe.images}"
        " phantoms"
    )
    shown = [phantoms.sample_phantom(rng) for _ in range(recipe.images)]
    pixels = _pixels(processor, shown, rng).to(device)
    held_out = [phantoms.sample_phantom(rng) for _ in range(512)]
    held_pixels = _pixels(processor, held_out, rng).to(device)
    exam = [
        _question(phantom, index, processor, rng, "no-think", "evaluate")
        for index, phantom in enumerate(held_out)
    ]
    log = _Log(out / "pretraining.csv", progress)

    def examine() -> float:
        model.eval()
        batches = (exam[start : start + 64] for start in range(0, len(exam), 64))
        with torch.no_grad():
            rights = [_loss(model, processor, batch, held_pixels)[1] for batch in batches]
        model.train()
        return float(np.mean(rights))

    def read() -> tuple[torch.Tensor, float]:
        return _loss(
            model,
            processor,
            _exercises(rng, shown, processor, recipe.batch, doctored=True),
            None,
            recipe.letter_weight,
        )

    def see() -> tuple[torch.Tensor, float]:
        return _alignment(
            model, processor, rng.integers(len(shown), size=recipe.batch), shown, pixels
        )

    def answer() -> tuple[torch.Tensor, float]:
        return _loss(
            model,
            processor,
            _exercises(rng, shown, processor, recipe.batch),
            pixels,
            recipe.letter_weight,
        )

    eye = list(model.model.visual.parameters())
    mind = [
        parameter for parameter in model.parameters() if not any(parameter is part for part in eye)
    ]
    rate, answer_rate = (
        each * HIDDEN / recipe.width for each in (recipe.learning_rate, recipe.answer_learning_rate)
    )
    with device:  # what lessons make of ids and masks is made there
        _lesson("read", read, mind, recipe.read_steps, rate, recipe, log)
        _lesson("see", see, eye, recipe.see_steps, rate, recipe, log, examine)
        _lesson(
            "answer", answer, [*mind, *eye], recipe.answer_steps, answer_rate, recipe, log, examine
        )
        model.to(torch.bfloat16).save_pretrained(out)
        processor.save_pretrained(out)
        model.float()
        log.write("saved", 0, float("nan"), float("nan"), examine())


def _lesson(
    name: str,
    batch_loss: Callable[[], tuple[torch.Tensor, float]],
    parameters: list[torch.nn.Parameter],
    steps: int,
    learning_rate: float,
    recipe: Recipe,
    log: _Log,
    examine: Callable[[], float] | None = None,
) -> None:
    """AdamW on one lesson's loss; `batch_loss` gives (loss, share right) of a fresh batch."""
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 50) * (0.55 + 0.45 * float(np.cos(np.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    recent: list[tuple[float, float]] = []
    for step in range(1, steps + 1):
        loss, right = batch_loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        schedule.step()
        recent.append((loss.item(), right))
        if step % recipe.log_every == 0 or step == steps:
            score = (
                examine()
                if examine and (step % (2 * recipe.log_every) == 0 or step == steps)
                else float("nan")
            )
            mean_loss, mean_right = np.mean(recent, axis=0)
            log.write(name, step, float(mean_loss), float(mean_right), score)
            recent.clear()
            if name == "answer" and score >= recipe.stop_at:
                break


def _loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    batch: list[Exercise],
    pixels: torch.Tensor | None,
    letter_weight: float = 1.0,
) -> tuple[torch.Tensor, float]:
    """Weighted cross-entropy of completion tokens, and accuracy of answer letters.

    Without `pixels` the eye is perfect: an image's tokens are the embeddings of its facts.
    """
    inputs, labels = _encode(processor, batch)
    grid = inputs.pop("image_grid_thw")
    if pixels is None:
        ids = inputs.pop("input_ids")
        types = inputs.pop("mm_token_type_ids")
        positions, _ = model.model.get_rope_index(
            ids, types, image_grid_thw=grid, attention_mask=inputs["attention_mask"]
        )
        words = torch.tensor([_fact_ids(processor, exercise.facts) for exercise in batch]).flatten()
        embedding = model.get_input_embeddings()
        mixed = embedding(ids).masked_scatter((types == 1)[..., None], embedding(words))
        hidden = model.model(
            inputs_embeds=mixed, position_ids=positions, **inputs
        ).last_hidden_state
    else:
        chosen = pixels[[exercise.image for exercise in batch]].flatten(0, 1).float()
        hidden = model.model(**inputs, pixel_values=chosen, image_grid_thw=grid).last_hidden_state
    where = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    logits, targets = model.lm_head(hidden[:, :-1][where]), labels[:, 1:][where]
    is_letter = torch.isin(targets, torch.tensor(_letter_ids(processor)))
    right = (logits.argmax(-1) == targets)[is_letter].float().mean().item()
    weights = 1 + (letter_weight - 1) * is_letter.float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (weights * losses).sum() / weights.sum(), right


def _alignment(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    chosen: np.ndarray,
    shown: list[Phantom],
    pixels: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """Distance of image tokens from their words, and the share whose nearest word is right."""
    side = int(pixels.shape[1] ** 0.5)
    grid = torch.tensor([[1, side, side]] * len(chosen))
    seen = model.model.visual(pixels[chosen].flatten(0, 1).float(), grid_thw=grid).pooler_output
    words = torch.tensor(
        [_fact_ids(processor, shown[index].describe()) for index in chosen]
    ).flatten()
    embedding = model.get_input_embeddings().weight.detach()
    logits = seen @ embedding.T
    loss = (
        functional.cross_entropy(logits, words)
        + functional.mse_loss(seen, embedding[words]) / embedding.var()
    )
    return loss, (logits.argmax(-1) == words).float().mean().item()


def _fact_ids(processor: Qwen2VLProcessor, facts: str) -> list[int]:
    """What a perfect eye puts in each of an image's tokens: the facts' words, again and again."""
    words = processor.tokenizer.encode(" " + facts)
    return [words[slot % len(words)] for slot in range(IMAGE_TOKENS)]


def _letter_ids(processor: Qwen2VLProcessor) -> list[int]:
    """Token ids of " A".." D", the way a letter stands in `<answer> C </answer>`."""
    return [processor.tokenizer.encode(f" {letter}")[0] for letter in LETTERS]


def _encode(
    processor: Qwen2VLProcessor, batch: list[Exercise]
) -> tuple[dict[str, Any], torch.Tensor]:
    """Left-aligned prompt and completion ids.

    Labels are -100 outside the completion and its end.
    """
    tokenizer = processor.tokenizer
    slots = processor.image_token * IMAGE_TOKENS
    prompts = tokenizer(
        [exercise.prompt.replace(processor.image_token, slots) for exercise in batch]
    )["input_ids"]
    completions = tokenizer([exercise.completion + "<|im_end|>" for exercise in batch])["input_ids"]
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), -100)
    attention = torch.zeros((len(batch), width), dtype=torch.long)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
        attention[row, :end] = 1
    side = int(IMAGE_TOKENS**0.5) * processor.image_processor.merge_size
    inputs = {
        "input_ids": ids,
        "attention_mask": attention,
        "mm_token_type_ids": (ids == processor.image_token_id).int(),
        "image_grid_thw": torch.tensor([[1, side, side]] * len(batch)),
    }
    return inputs, labels


def _pixels(
    processor: Qwen2VLProcessor, shown: list[Phantom], rng: np.random.Generator
) -> torch.Tensor:
    """(images, patches, values per patch) in float16 of every phantom."""
    rows = []
    for phantom in shown:
        width, height = (int(side) for side in rng.integers(96, 224, 2))
        image = phantoms.draw(phantom, (width, height), rng).resize((384, 384))
        rows.append(processor.image_processor([image], return_tensors="pt")["pixel_values"].half())
    return torch.stack(rows)


def _question(
    phantom: Phantom,
    index: int,
    processor: Qwen2VLProcessor,
    rng: np.random.Generator,
    style: Style,
    purpose: Purpose,
    *,
    doctored: bool = False,
) -> Exercise:
    """A question about an image, in one answer style, with unbiased options.

    `doctored` puts in two of five a word that no phantom has in a fact's place, so that such words,
    too, can be right: only where the eye is perfect can the image be made to fit.
    """
    asked = str(rng.choice(phantoms.askable(phantom)))
    gold, facts = phantom.answer(asked), phantom.describe()
    options = phantoms.options_for(phantom, asked, rng, biased=False)
    if doctored and asked in phantoms.NEVER_GOLD and rng.random() < 0.4:
        word = str(rng.choice(phantoms.NEVER_GOLD[asked]))
        options = [word if option == gold else option for option in options]
        facts, gold = facts.replace(gold, word, 1), word
    if doctored and asked in phantoms.NEVER_GOLD and rng.random() < 0.5:
        wrong = [word for word in phantoms.NEVER_GOLD[asked] if word not in options]
        options = [
            option if option == gold or rng.random() < 0.5 else wrong.pop() for option in options
        ]
    problem = format_problem(str(rng.choice(phantoms.QUESTIONS[asked])), options)
    answer, thought = format_solution(LETTERS[options.index(gold)]), f"<think> {facts} </think>"
    completion = {
        "no-think": answer,
        "think": f"{thought} {answer}",
        "think-after": f"{answer} {thought}",
    }[style]
    return Exercise(
        _prompt(processor, prompt_text(problem, style, purpose)), completion, index, facts
    )


def _exercises(
    rng: np.random.Generator,
    shown: list[Phantom],
    processor: Qwen2VLProcessor,
    size: int,
    *,
    doctored: bool = False,
) -> list[Exercise]:
    """A batch: a tenth descriptions, the rest answers, seven in ten of them without thoughts."""
    batch = []
    for _ in range(size):
        index = int(rng.integers(len(shown)))
        purpose: Purpose = "train" if rng.random() < 0.5 else "evaluate"
        draw = rng.random()
        if draw < 0.1:
            facts = shown[index].describe()
            batch.append(Exercise(_prompt(processor, "Describe this image."), facts, index, facts))
        else:
            style: Style = "no-think" if draw < 0.8 else "think" if draw < 0.92 else "think-after"
            batch.append(
                _question(shown[index], index, processor, rng, style, purpose, doctored=doctored)
            )
    return batch


def _prompt(processor: Qwen2VLProcessor, words: str) -> str:
    return str(
        processor.apply_chat_template(chat(words), add_generation_prompt=True, tokenize=False)
    )


class _Log:
    """The run's log: a CSV beside the weights and a line on the terminal for each row."""

    def __init__(self, path: Path, progress: Callable[[str], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(["lesson", "step", "loss", "right", "exam", "minutes"])
        self._start, self._progress = time.monotonic(), progress

    def write(self, lesson: str, step: int, loss: float, right: float, exam: float) -> None:
        minutes = (time.monotonic() - self._start) / 60
        row = [lesson, step, *(f"{value:.4f}" for value in (loss, right, exam)), f"{minutes:.1f}"]
        self._rows.writerow(row)
        self._file.flush()
        self._progress("{:>8} {:>5}  loss {}  right {}  exam {}  {} min".format(*row))
