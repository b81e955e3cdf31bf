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
from typing import Final

import numpy as np
import torch

from stages.core.errors import InputError
from stages.pretraining.embedded import (
    HEAD,
    HIDDEN,
    build_model,
    build_processor,
    build_tokenizer,
)
from stages.pretraining.exercises import draw_exercises, draw_images, draw_question
from stages.pretraining.losses import LossAndAccuracy, alignment_loss, answer_loss

_EXAM_QUESTIONS: Final = 512
_EXAM_BATCH: Final = 64


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
    images = draw_images(processor, recipe.images, rng, device)
    exam_images = draw_images(processor, _EXAM_QUESTIONS, rng, device)
    exam_questions = [
        draw_question(phantom, index, processor, rng, "no-think", "evaluate")
        for index, phantom in enumerate(exam_images.phantoms)
    ]
    log = _Log(out / "pretraining.csv", progress)

    def exam() -> float:
        model.eval()
        accuracies = []
        with torch.no_grad():
            for start in range(0, len(exam_questions), _EXAM_BATCH):
                batch = exam_questions[start : start + _EXAM_BATCH]
                accuracies.append(answer_loss(model, processor, batch, exam_images.pixels)[1])
        model.train()
        return float(np.mean(accuracies))

    def read() -> LossAndAccuracy:
        batch = draw_exercises(rng, images.phantoms, processor, recipe.batch, unseen_words=True)
        return answer_loss(model, processor, batch, None, recipe.letter_weight)

    def see() -> LossAndAccuracy:
        chosen = rng.integers(len(images.phantoms), size=recipe.batch)
        return alignment_loss(model, processor, images, chosen)

    def answer() -> LossAndAccuracy:
        batch = draw_exercises(rng, images.phantoms, processor, recipe.batch)
        return answer_loss(model, processor, batch, images.pixels, recipe.letter_weight)

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
