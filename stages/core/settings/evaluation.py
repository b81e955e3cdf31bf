"""Settings of what is judged: evaluations, the report, and retraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.core.settings.group import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seed,
    SettingsGroup,
    Share,
)


class Evaluate(SettingsGroup):
    """Stage evaluate."""

    batch_size: PositiveInt | Literal["auto"]
    """Answers generated together, each to a question about one image. auto: as many as the memory
    of the GPU holds, found by trying; 64 on a CPU. Choose a number for the same rounding on every
    machine, auto for speed on a GPU.
    """
    dtype: Literal["float32", "bfloat16"] | None
    """What answers are computed in; null: base.dtype. Choose bfloat16 where weights are in float32
    for training's sake alone (grpo.bf16): float32 has a fifteenth of its speed on a GPU.
    """
    max_new_tokens: PositiveInt
    ablations: bool
    """Also evaluate every question in variants: with black images and with others of its modality;
    if it shows several, without one, in another order and with one alone; if it has a context,
    without and with another.
    """


class Report(SettingsGroup):
    """Stage report."""

    bootstrap_samples: Annotated[int, Field(ge=100, le=1_000_000)]
    bootstrap_seed: Seed
    images: bool
    """Whether the page contains images of the examples, scaled down, and the report what is known
    of the patients (context): whoever gets the report sees them.
    """


class Retrain(SettingsGroup):
    """The retrain flow: which new data is taken and when a challenger replaces the champion.

    No stage reads this group.
    """

    debounce_seconds: Annotated[float, Field(ge=0, le=604_800)]
    """A source that has changed is taken when it has looked the same for so long: an upload that
    goes on, or many, make one run.
    """
    max_fewer_questions: Annotated[float, Field(ge=0, le=1)]
    """Largest share of the champion corpus's questions, in total and per modality, that new data
    may lack.
    """
    max_refused: Annotated[float, Field(ge=0, le=1)]
    """Largest share of new records that download and resize may refuse together. Each stage has
    already stopped if it refused more than the group `quarantine` allows.
    """
    max_unused: Share = 0.0
    """Share of the new questions that may be in none of the files of splits.released, with
    splits.kind released: they are neither trained on nor tested. More refuses the data, fewer are
    reported.
    """
    warn_drift: Share
    """Jensen-Shannon distance from the champion's corpus, per feature and modality, that is
    reported; 0.13 is about a population stability index of 0.1.
    """
    max_drift: Share | None
    """The same, beyond which new data is not trained on; null: drift stops nothing."""
    ignored_modalities: list[str]
    """Values of modality_type that are known to be none of ours; any other unknown one stops the
    run.
    """
    min_test_questions: PositiveInt
    """Minimum number of a checkpoint's own test questions that both sides can answer; with fewer it
    is not judged, and so not promoted.
    """
    max_loss: NonNegativeFloat
    """Points: the 95% interval of challenger minus champion, on its own test and over its axis,
    must stay above minus this.
    """
    never_worse: list[str]
    """Cells, "<checkpoint>/<modality or question type tested>", in which the challenger must answer
    as many questions rightly.
    """
    min_better: NonNegativeInt
    """Checkpoints that must be better on their own test: interval above zero, and McNemar's p,
    after Holm, below 0.05.
    """


class Evaluation(SettingsGroup):
    """One policy to test."""

    axis: Literal["modality", "task", "all"]
    """On whose splits: those of the checkpoint's axis, or for the base of both."""
