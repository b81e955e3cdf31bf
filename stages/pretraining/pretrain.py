"""Training recipe of the embedded base: from random weights to right format and fair accuracy.

It runs on one small CPU, or on a GPU if there is one. Three lessons build on each other (a model
this small that starts with the last stays at chance):

1. `read`    the language model alone, with a perfect eye: image tokens are the embeddings of the
             words that describe the image. It learns all prompts and answer styles, and to match a
             fact to an option's letter;
2. `see`     the vision tower alone: each image token is pulled to the embedding of the word that
             the perfect eye would have put there;
3. `answer`  both together, on images, until the held-out exam reaches `stop_at`.

Phantoms come from a separate seed (`Recipe.seed`), never from the corpus's, and wrong options are
drawn from words that can be right: the base must not know the corpus's bias before RL meets it.

One generator (`rng`) draws all images, questions and batches, so the order of its draws decides the
weights. The initial weights come from a torch generator with the same seed.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.core.errors import InputError
from stages.corpus.dataset.problems import format_problem, format_solution
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

_EXAM_QUESTIONS: Final = 512
_EXAM_BATCH: Final = 64
STAGE_SIZE: Final = 384
"""Side, in pixels, of the images that stage resize makes (resize.size)."""
_IGNORED: Final = -100
"""Label of a token that has no loss."""

LossAndAccuracy = tuple[Tensor, float]
"""Loss of a batch, and the share of its predictions that are right."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the machine's arithmetic."""

    seed: int = 1_000_003
    """Seed of weights, images and lessons; the corpus's seeds are small numbers."""
    images: int = 8000
    """Phantoms, drawn once and used in many questions."""
    read_steps: int = 1000
    see_steps: int = 600
    answer_steps: int = 400
    """Upper bound: see `stop_at`."""
    batch: int = 64
    learning_rate: float = 1e-3
    """Peak; linear warm-up over 50 steps, then cosine to a tenth over the lesson."""
    answer_learning_rate: float = 3e-4
    letter_weight: float = 4.0
    """Weight of the answer's letter among a completion's tokens, in `read` and `answer`."""
    clip: float = 1.0
    log_every: int = 25
    stop_at: float = 0.58
    """End `answer` once this share of the 512 held-out questions is right."""
    width: int = HIDDEN
    """Of both towers, a multiple of 64. Rates are for 128, and scaled down for larger widths."""

    def __post_init__(self) -> None:
        """Raise InputError for a width that is not a whole, even number of heads."""
        if self.width < 2 * HEAD or self.width % (2 * HEAD):
            raise InputError(f"width {self.width}: it must be a positive multiple of {2 * HEAD}")


@dataclass(frozen=True)
class Exercise:
    """A training example: prompt, completion, image index, and the image's facts in words."""

    prompt: str
    completion: str
    image: int
    facts: str


@dataclass(frozen=True)
class _Images:
    """Phantoms, and their pixels (images, patches, values per patch) in float16."""

    phantoms: list[Phantom]
    pixels: Tensor


@dataclass(frozen=True)
class _Lesson:
    """One lesson.

    `draw_loss`: draws a batch, returns its loss and accuracy. `exam`: accuracy on the held-out
    questions, None for a lesson without images. `stop_at`: accuracy at which the lesson ends early.
    """

    name: str
    draw_loss: Callable[[], LossAndAccuracy]
    parameters: list[torch.nn.Parameter]
    steps: int
    learning_rate: float
    exam: Callable[[], float] | None = None
    stop_at: float = math.inf


def run(recipe: Recipe, out: Path, *, progress: Callable[[str], None] = print) -> None:
    """Train the base and save it to `out`: bfloat16 weights plus the log `pretraining.csv`."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(tokenizer, recipe.seed, recipe.width).to(device)
    count = sum(parameter.numel() for parameter in model.parameters())
    progress(f"{count:,} parameters; drawing {recipe.images} phantoms")
    images = _draw_images(processor, recipe.images, rng, device)
    exam_images = _draw_images(processor, _EXAM_QUESTIONS, rng, device)
    exam_questions = [
        _question(phantom, index, processor, rng, "no-think", "evaluate")
        for index, phantom in enumerate(exam_images.phantoms)
    ]
    log = _Log(out / "pretraining.csv", progress)

    def exam() -> float:
        model.eval()
        accuracies = []
        with torch.no_grad():
            for start in range(0, len(exam_questions), _EXAM_BATCH):
                batch = exam_questions[start : start + _EXAM_BATCH]
                accuracies.append(_loss(model, processor, batch, exam_images.pixels)[1])
        model.train()
        return float(np.mean(accuracies))

    def read() -> LossAndAccuracy:
        batch = _exercises(rng, images.phantoms, processor, recipe.batch, unseen_words=True)
        return _loss(model, processor, batch, None, recipe.letter_weight)

    def see() -> LossAndAccuracy:
        chosen = rng.integers(len(images.phantoms), size=recipe.batch)
        return _alignment(model, processor, images, chosen)

    def answer() -> LossAndAccuracy:
        batch = _exercises(rng, images.phantoms, processor, recipe.batch)
        return _loss(model, processor, batch, images.pixels, recipe.letter_weight)

    vision = list(model.model.visual.parameters())
    in_vision = {id(parameter) for parameter in vision}
    language = [each for each in model.parameters() if id(each) not in in_vision]
    rate = recipe.learning_rate * HIDDEN / recipe.width
    answer_rate = recipe.answer_learning_rate * HIDDEN / recipe.width
    lessons = (
        _Lesson("read", read, language, recipe.read_steps, rate),
        _Lesson("see", see, vision, recipe.see_steps, rate, exam),
        _Lesson(
            "answer",
            answer,
            [*language, *vision],
            recipe.answer_steps,
            answer_rate,
            exam,
            recipe.stop_at,
        ),
    )
    with device:  # where tensors of ids and masks are created
        for lesson in lessons:
            _train(lesson, recipe, log)
        model.to(torch.bfloat16).save_pretrained(out)
        processor.save_pretrained(out)
        # the exam of the rounded weights, computed in float32
        model.float()
        log.write("saved", 0, math.nan, math.nan, exam())


def _train(lesson: _Lesson, recipe: Recipe, log: _Log) -> None:
    """Minimise a lesson's loss with AdamW; every second logged step is examined."""
    steps = lesson.steps
    optimizer = torch.optim.AdamW(
        lesson.parameters, lr=lesson.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

    def rate_factor(step: int) -> float:
        """Factor of the peak rate: 50 steps of warm-up, then a cosine from 1 to 0.1."""
        return min(1.0, (step + 1) / 50) * (0.55 + 0.45 * float(np.cos(np.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
    recent: list[tuple[float, float]] = []
    for step in range(1, steps + 1):
        loss, accuracy = lesson.draw_loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lesson.parameters, recipe.clip)
        optimizer.step()
        schedule.step()
        recent.append((loss.item(), accuracy))
        last = step == steps
        if step % recipe.log_every and not last:
            continue
        score = math.nan
        if lesson.exam and (step % (2 * recipe.log_every) == 0 or last):
            score = lesson.exam()
        mean_loss, mean_accuracy = np.mean(recent, axis=0)
        log.write(lesson.name, step, float(mean_loss), float(mean_accuracy), score)
        recent.clear()
        if score >= lesson.stop_at:
            break


def _loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    batch: list[Exercise],
    pixels: Tensor | None,
    letter_weight: float = 1.0,
) -> LossAndAccuracy:
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
        inputs |= {
            "inputs_embeds": embedding(ids).masked_scatter(
                (types == 1)[..., None], embedding(words)
            ),
            "position_ids": positions,
        }
    else:
        chosen = pixels[[exercise.image for exercise in batch]]
        inputs |= {"pixel_values": chosen.flatten(0, 1).float(), "image_grid_thw": grid}
    hidden = model.model(**inputs).last_hidden_state  # (B, T, H)
    # the hidden state of a token predicts the next one's label: only those are projected
    predicting = (labels[:, 1:] != _IGNORED).nonzero(as_tuple=True)
    logits = model.lm_head(hidden[:, :-1][predicting])
    targets = labels[:, 1:][predicting]
    is_letter = torch.isin(targets, torch.tensor(_letter_ids(processor)))
    accuracy = (logits.argmax(-1) == targets)[is_letter].float().mean().item()
    weights = 1 + (letter_weight - 1) * is_letter.float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (weights * losses).sum() / weights.sum(), accuracy


def _alignment(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    images: _Images,
    chosen: np.ndarray,
) -> LossAndAccuracy:
    """Distance of image tokens from their words, and the share whose nearest word is right.

    The distance is a cross-entropy over the vocabulary plus a mean squared error, relative to the
    variance of the embeddings.
    """
    side = int(images.pixels.shape[1] ** 0.5)
    grid = torch.tensor([[1, side, side]] * len(chosen))
    patches = images.pixels[chosen].flatten(0, 1).float()
    features = model.model.visual(patches, grid_thw=grid).pooler_output  # (B * IMAGE_TOKENS, H)
    words = torch.tensor(
        [_fact_ids(processor, images.phantoms[index].describe()) for index in chosen]
    ).flatten()
    embedding = model.get_input_embeddings().weight.detach()
    logits = features @ embedding.T
    loss = (
        functional.cross_entropy(logits, words)
        + functional.mse_loss(features, embedding[words]) / embedding.var()
    )
    return loss, (logits.argmax(-1) == words).float().mean().item()


def _fact_ids(processor: Qwen2VLProcessor, facts: str) -> list[int]:
    """What a perfect eye puts into an image's tokens: the words of its facts, repeated."""
    words = processor.tokenizer.encode(" " + facts)
    return [words[slot % len(words)] for slot in range(IMAGE_TOKENS)]


def _letter_ids(processor: Qwen2VLProcessor) -> list[int]:
    """Token ids of " A".." D", as a letter is tokenised in `<answer> C </answer>`."""
    return [processor.tokenizer.encode(f" {letter}")[0] for letter in phantoms.LETTERS]


def _encode(processor: Qwen2VLProcessor, batch: list[Exercise]) -> tuple[dict[str, Any], Tensor]:
    """Inputs and labels (B, T) of a batch, right-padded, the completion after the prompt.

    Labels are `_IGNORED` except on the completion and its end token.
    """
    tokenizer = processor.tokenizer
    image_tokens = processor.image_token * IMAGE_TOKENS
    prompts = tokenizer(
        [exercise.prompt.replace(processor.image_token, image_tokens) for exercise in batch]
    )["input_ids"]
    completions = tokenizer([exercise.completion + "<|im_end|>" for exercise in batch])["input_ids"]
    pairs = list(zip(prompts, completions, strict=True))
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), _IGNORED)
    attention = torch.zeros((len(batch), width), dtype=torch.long)
    for row, (prompt, completion) in enumerate(pairs):
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


def _draw_images(
    processor: Qwen2VLProcessor, count: int, rng: np.random.Generator, device: torch.device
) -> _Images:
    """Draw phantoms with random aspect ratios, preprocessed as in every stage."""
    drawn = [phantoms.sample_phantom(rng) for _ in range(count)]
    rows = []
    for phantom in drawn:
        width, height = (int(side) for side in rng.integers(96, 224, 2))
        image = phantoms.draw(phantom, (width, height), rng).resize((STAGE_SIZE, STAGE_SIZE))
        rows.append(processor.image_processor([image], return_tensors="pt")["pixel_values"].half())
    return _Images(drawn, torch.stack(rows).to(device))


def _question(
    phantom: Phantom,
    index: int,
    processor: Qwen2VLProcessor,
    rng: np.random.Generator,
    style: Style,
    purpose: Purpose,
    *,
    unseen_words: bool = False,
) -> Exercise:
    """A question about image `index`, with unbiased options.

    `unseen_words`: see `_insert_unseen_words`.
    """
    kind = str(rng.choice(phantom.attributes))
    gold = phantom.answer(kind)
    facts = phantom.describe()
    options = phantoms.options_for(phantom, kind, rng, biased=False)
    if unseen_words and kind in phantoms.NEVER_GOLD:
        gold, facts, options = _insert_unseen_words(
            phantoms.NEVER_GOLD[kind], gold, facts, options, rng
        )
    problem = format_problem(str(rng.choice(phantoms.QUESTIONS[kind])), options)
    answer = format_solution(phantoms.LETTERS[options.index(gold)])
    thought = f"<think> {facts} </think>"
    completion = {
        "no-think": answer,
        "think": f"{thought} {answer}",
        "think-after": f"{answer} {thought}",
    }[style]
    prompt = _prompt(processor, prompt_text(problem, style, purpose))
    return Exercise(prompt, completion, index, facts)


def _insert_unseen_words(
    never_gold: tuple[str, ...],
    gold: str,
    facts: str,
    options: list[str],
    rng: np.random.Generator,
) -> tuple[str, str, list[str]]:
    """Mix words that no phantom has into a question, so that the base learns them as options.

    With probability 0.4 one replaces the gold option, and the facts change with it. With
    probability 0.5 others replace wrong options, each with probability 0.5. Returns gold, facts and
    options. Only for lesson `read`, whose image is made of the facts.
    """
    if rng.random() < 0.4:
        word = str(rng.choice(never_gold))
        options = [word if option == gold else option for option in options]
        facts = facts.replace(gold, word, 1)
        gold = word
    if rng.random() < 0.5:
        unused = [word for word in never_gold if word not in options]
        options = [
            option if option == gold or rng.random() < 0.5 else unused.pop() for option in options
        ]
    return gold, facts, options


def _exercises(
    rng: np.random.Generator,
    drawn: list[Phantom],
    processor: Qwen2VLProcessor,
    size: int,
    *,
    unseen_words: bool = False,
) -> list[Exercise]:
    """A batch: a tenth descriptions, seven tenths answers, two tenths answers with thoughts."""
    batch = []
    for _ in range(size):
        index = int(rng.integers(len(drawn)))
        purpose: Purpose = "train" if rng.random() < 0.5 else "evaluate"
        draw = rng.random()
        if draw < 0.1:
            facts = drawn[index].describe()
            batch.append(Exercise(_prompt(processor, "Describe this image."), facts, index, facts))
            continue
        style: Style = "no-think"
        if draw >= 0.8:
            style = "think" if draw < 0.92 else "think-after"
        batch.append(
            _question(
                drawn[index], index, processor, rng, style, purpose, unseen_words=unseen_words
            )
        )
    return batch


def _prompt(processor: Qwen2VLProcessor, words: str) -> str:
    return str(
        processor.apply_chat_template(chat(words), add_generation_prompt=True, tokenize=False)
    )


class _Log:
    """Log of the run: a CSV beside the weights, and a line of progress per row."""

    def __init__(self, path: Path, progress: Callable[[str], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(["lesson", "step", "loss", "right", "exam", "minutes"])
        self._start = time.monotonic()
        self._progress = progress

    def write(self, lesson: str, step: int, loss: float, accuracy: float, exam: float) -> None:
        minutes = (time.monotonic() - self._start) / 60
        numbers = (f"{value:.4f}" for value in (loss, accuracy, exam))
        row = [lesson, step, *numbers, f"{minutes:.1f}"]
        self._rows.writerow(row)
        self._file.flush()
        self._progress("{:>8} {:>5}  loss {}  right {}  exam {}  {} min".format(*row))
