"""params.yaml as one frozen model. An unknown key, a missing one or a wrong value stops a stage before it starts."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages import layout
from stages.corpus.modalities import AXES
from stages.errors import InputError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Group = TypeVar("Group", bound=_Group)


class Limits(_Group):
    """What a corpus may hold at most: beyond, it is refused as a bomb before it is unpacked."""

    max_members: PositiveInt
    """Files and folders in all."""
    max_member_mb: PositiveInt
    """MiB of one file, unpacked. Files are read whole, one on each core: this bounds the memory that takes."""
    max_total_mb: PositiveInt
    """MiB of all files, unpacked."""
    max_ratio: PositiveInt
    """Bytes unpacked from each packed byte, of one file and of a compressed tar, beyond the first 16 MiB."""


class Corpus(_Group):
    """Stage download, and what stage resize reads in place."""

    archive: str
    """Path of the raw corpus, an archive, a folder of archives, or a folder; data.dvc puts it there."""
    limits: Limits


class Resize(_Group):
    """Stage resize."""

    size: Annotated[int, Field(ge=28, le=4096)]
    """Side of the square RGB images, in pixels."""
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    """The filter, by Pillow's names and formulas."""
    background: Literal["black", "white"]
    """What shows where a picture is see-through."""
    deep_grey: Literal["range", "percentiles", "depth"]
    """How grey of more than 8 bits, or real-valued, becomes 8-bit. range: from the picture's darkest to its brightest pixel;
    percentiles: from its 0.5th to its 99.5th percentile, so that a few odd pixels do not set the range; depth: from 0 to the most that
    its type can hold (a real-valued one as range). DICOM has rules of its own: group dicom."""
    frames: Literal["first", "refuse"]
    """Of an animation, or of a TIFF with several pages: show the first picture, or quarantine the file."""
    shrink_on_load: bool
    """Decode large JPEG files at a half, a quarter or an eighth of their size, but at twice the size that is wanted or more: faster,
    and within a grey level on photographs, but not on pure noise."""
    max_megapixels: PositiveInt
    """Larger pictures, in millions of pixels, are quarantined before they are decoded: what unpacks to more may be a bomb."""


class Cache(_Group):
    """What is kept of earlier work, in .scratch; no result depends on it, and deleting it costs nothing but time."""

    images_gb: PositiveFloat
    """Resized pictures, in 10^9 bytes; beyond, those not used for longest go first. They are shared with data/images as hard links, so
    that only pictures of earlier corpora and settings take room of their own."""


Share = Annotated[float, Field(ge=0, le=1)]


class Quarantine(_Group):
    """Stages download and resize: how much each may refuse of what it reads before it stops. Every run, new data or not, is held to it.

    Beyond these limits something is wrong with the corpus. Retrain.max_refused is another thing: how much a drop of new data may have
    lost over both stages together before it is not worth training on; only flow retrain asks it, of data that passed here.
    """

    max_refused_share: Share
    """Of all records a stage reads, without those of `sets`."""
    max_refused_share_of_set: Share
    """Of the records of each source set, a record's `dataset`, that a stage reads."""
    min_refused: PositiveInt
    """Refused records, of a set or of all, below which a share says nothing and nothing stops."""
    sets: dict[str, Share]
    """Source set -> a limit of its own; 1.0 lets all of it be refused. {} if none is known to be bad."""


class Dicom(_Group):
    """Stage resize, for pictures that are DICOM files. What each of these means for grey: docs/ingest-dicom.md."""

    frame: Literal["middle", "first"]
    """Of the frames of a file, or the files of a series, the one that is asked about."""
    ct_window: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    """Centre and width, in Hounsfield units, that CT is shown through; null: the file's own window."""
    max_frames: PositiveInt
    """Of a file, and files of a series: more are refused."""
    max_total_pixels: PositiveInt
    """Rows x columns x frames: more are refused before any is decoded."""
    max_inflated_mb: PositiveInt
    """MiB that a deflated file may unpack to."""
    accept_burned_in: bool
    """Take pictures whose header says that text is burned into them."""
    accept_unflagged: bool
    """Take pictures of kinds that often have text burned in, if their header does not say that they have none."""

    @model_validator(mode="after")
    def _window_has_a_width(self) -> Self:
        if self.ct_window is not None and self.ct_window[1] < 1:
            raise ValueError(f"ct_window: the width, {self.ct_window[1]}, is less than 1")
        return self


class Splits(_Group):
    """Stage splits."""

    kind: Literal["grouped", "published"]
    """What training and testing use; both are made. grouped: all questions of a picture, of its copies and of its patient are on
    one side, the same on both axes. published: random over questions, each axis by itself, as in Med-R1."""
    train_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the questions that is trained on."""
    near_duplicates: Annotated[int, Field(ge=0, le=24)] | None
    """Bits, of 256, in which the perceptual hashes of two copies of a picture may differ; null: only equal pixels make a copy."""
    patient_patterns: list[str]
    """Regular expressions, searched in the path of a source image; the first that is found gives, as its first group, an id that
    is the same for all images of a patient in a data set. [] if paths say nothing of patients."""
    seed: int

    @model_validator(mode="after")
    def _patterns_have_a_group(self) -> Self:
        for pattern in self.patient_patterns:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"patient_patterns: {pattern!r} is no regular expression: {error}") from error
            if not groups:
                raise ValueError(f"patient_patterns: {pattern!r} has no group: put what names the patient in brackets")
        return self


class DataTest(_Group):
    """One test of the corpus."""

    severity: Literal["error", "warning", "off"]
    """What a failure does: stop stage splits, before anything is trained; be told in its output and in the report; nothing."""
    limit: NonNegativeFloat
    """The largest value that passes; of questions_of_modality and questions_of_type, the smallest."""


class DataTests(_Group):
    """Stage splits: tests of the corpus as a whole. stages/corpus/data_tests.py says what each value is, docs/ingest-quality.md what to do.

    What a single record must hold, and that no id stands twice, is tested too, always as an error.
    """

    repeated_questions: DataTest
    """Share of the questions."""
    contradictions: DataTest
    """Share of the questions."""
    letter_bias: DataTest
    """Share of the questions, beyond chance."""
    commonest_letter: DataTest
    """Share of a split's right answers."""
    commonest_answer: DataTest
    """Share of a split's right answers."""
    single_answer_tests: DataTest
    """Test splits."""
    questions_of_modality: DataTest
    """Questions of the modality that has fewest."""
    questions_of_type: DataTest
    """Questions of the type that has fewest."""
    blank_pictures: DataTest
    """Share of the pictures, as in all that follow."""
    dark_or_bright_pictures: DataTest
    enlarged_pictures: DataTest
    squeezed_pictures: DataTest
    copied_pictures: DataTest


class Base(_Group):
    """Stage base, and how train and evaluate open any checkpoint."""

    source: str
    """A folder with a Hugging Face checkpoint, or a model id on the hub."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    """The commit of a model id, 40 hex digits: a name or a tag could move. null for a folder."""
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    threads: PositiveInt
    """Threads of a CPU that a policy is computed with: with other numbers, sums are rounded in other orders."""
    max_pixels: PositiveInt | None
    """Largest image, in pixels, that the processor passes on; null keeps its own limit."""


class Prompt(_Group):
    """Stages train and evaluate."""

    style: Literal["think", "no-think", "think-after"]
    """Whether thoughts are asked for, and on which side of the answer."""


class Lora(_Group):
    """A low-rank adapter (arXiv 2106.09685), merged into the weights when training ends."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: list[str]
    """Ends of the names of the linear layers that get one, in the language model."""


class Grpo(_Group):
    """Stage train: GRPO (arXiv 2402.03300) as TRL's GRPOTrainer runs it."""

    engine: Literal["shared-prefix", "trl"]
    """Compute a prompt and its picture once for its group, or once for each completion as TRL does: the same numbers."""
    reuse_prompt_pass: bool
    """The pass over a prompt that begins its rollout keeps its gradients and serves the loss too: a fourth less work. It holds
    the activations of all prompts of a forward pass while completions are sampled."""
    skip_zero_advantage: bool
    """No pass of the policy for groups whose completions were all worth the same. Needs beta 0, without which they have a
    gradient, and excludes reuse_prompt_pass."""
    fused_head: bool
    """Log-probabilities tile by tile, without keeping logits: for large vocabularies and long completions on a GPU."""
    freeze_vision_tower: bool
    """Train the language model alone; gradients end at the features of the picture."""
    vision_cache_mb: Annotated[int, Field(ge=0)]
    """Memory for features of pictures, in MiB: of the reference's tower, and of the policy's if frozen. 0: none are kept."""
    lora: Lora | None
    """Train an adapter instead of all weights; the reference is then the policy without it. null: all weights."""
    seed: int
    num_generations: Annotated[int, Field(ge=2)]
    """Completions sampled for each prompt: the group an advantage is relative to."""
    prompts_per_device: PositiveInt
    """Prompts a device takes in one forward pass, each with its whole group."""
    gradient_accumulation_steps: PositiveInt
    num_train_epochs: PositiveFloat
    max_steps: Annotated[int, Field(ge=-1)]
    """Optimiser steps; -1: as many as the epochs take."""
    learning_rate: PositiveFloat
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: NonNegativeFloat
    adam_beta2: Annotated[float, Field(gt=0, lt=1)]
    max_grad_norm: PositiveFloat
    beta: NonNegativeFloat
    """Weight of the KL divergence from the base; 0 runs without a reference and logs no KL."""
    epsilon: PositiveFloat
    """The ratio of new to old probability is clipped to 1 +- epsilon."""
    num_iterations: PositiveInt
    """Optimiser updates made with one batch of completions."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"]
    scale_rewards: Literal["group", "batch", "none"]
    """What the advantage is divided by: the standard deviation of its group, of the batch, or nothing."""
    rewards: dict[Literal["accuracy", "format"], float]
    """Reward name -> weight."""
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_prompt_length: PositiveInt
    """Tokens, those of the image among them."""
    max_completion_length: PositiveInt
    """Tokens."""
    gradient_checkpointing: bool
    bf16: bool
    """Mixed precision: compute in bfloat16."""
    deepspeed: str | None
    """Path of a DeepSpeed configuration."""
    logging_steps: PositiveInt
    save_steps: Annotated[int, Field(ge=0)]
    """Optimiser steps between two states of the training, from which a killed run goes on; 0 keeps none."""
    report_to: Literal["none", "wandb"]

    @model_validator(mode="after")
    def _has_rewards(self) -> Self:
        if not self.rewards:
            raise ValueError("at least one reward is needed: accuracy, format")
        return self

    @model_validator(mode="after")
    def _shortcuts_are_exact(self) -> Self:
        if self.engine == "shared-prefix":
            self._check_sharing()
        if self.save_steps % self.logging_steps:
            raise ValueError(f"save_steps {self.save_steps} is no multiple of logging_steps {self.logging_steps}")
        return self

    def _check_sharing(self) -> None:
        if self.skip_zero_advantage and self.beta:
            raise ValueError(f"skip_zero_advantage needs beta 0, not {self.beta}: the KL of a group without advantage has a gradient")
        if self.reuse_prompt_pass:
            wrong = {
                "skip_zero_advantage": self.skip_zero_advantage,
                "gradient_checkpointing": self.gradient_checkpointing,
                "deepspeed": self.deepspeed is not None,
                "num_iterations above 1": self.num_iterations > 1,
            }
            if refused := [name for name, given in wrong.items() if given]:
                raise ValueError(f"reuse_prompt_pass excludes {', '.join(refused)}: set it to false")


class Sft(_Group):
    """Stage train of a checkpoint with `method: sft`: supervised fine-tuning on the answers, as TRL's SFTTrainer runs it.

    All else is `grpo`'s, so that the two differ in the method alone: seed, prompts a step and their order, steps, norm of the
    gradients, Adam's second moment, frozen tower, adapter, precision, DeepSpeed, logging. What belongs to completions is unused.
    """

    learning_rate: PositiveFloat
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the optimiser steps in which the learning rate rises from zero."""
    weight_decay: NonNegativeFloat
    save_steps: Annotated[int, Field(ge=0)]
    """Optimiser steps between two states of the training, from which a killed run goes on; 0 keeps none."""


class Evaluate(_Group):
    """Stage evaluate."""

    batch_size: PositiveInt
    """Questions generated for together."""
    max_new_tokens: PositiveInt
    ablations: bool
    """Ask every question of a black picture and of another picture of its modality too: what did the picture contribute?"""


class Report(_Group):
    """Stage report."""

    bootstrap_samples: Annotated[int, Field(ge=100)]
    bootstrap_seed: int


class Retrain(_Group):
    """Flow retrain: which new data is taken, and when what was trained on it takes the champion's place. No stage reads it."""

    debounce_seconds: NonNegativeFloat
    """A source that has changed is taken when it has looked the same for so long: an upload that goes on, or many, make one run."""
    max_fewer_questions: Annotated[float, Field(ge=0, le=1)]
    """Share of the questions of the champion's corpus, of all and of each modality, that a new one may lack."""
    max_refused: Annotated[float, Field(ge=0, le=1)]
    """Share of the records of new data that download and resize together may have refused. Each of the two stages has stopped before
    if it refused more than the group `quarantine` allows, whatever it runs for."""
    warn_drift: Share
    """Jensen-Shannon distance from the champion's corpus, of one feature in one modality or in all, from which it is told; 0.13 is about
    a population stability index of 0.1."""
    max_drift: Share | None
    """The same, beyond which new data is not trained on; null: drift stops nothing."""
    ignored_modalities: list[str]
    """Values of modality_type that are known to be none of ours; any other unknown one stops the run."""
    min_test_questions: PositiveInt
    """A checkpoint with fewer test questions of its own, that both sides can be asked, is not judged, and so not promoted."""
    max_loss: NonNegativeFloat
    """Points. The 95% interval of challenger minus champion, on its own test and over its axis, may not reach below minus this."""
    never_worse: list[str]
    """Cells, "<checkpoint>/<modality or question type tested>", in which the challenger must answer as many questions rightly."""
    min_better: Annotated[int, Field(ge=0)]
    """Checkpoints that must be better on their own test: interval above zero, and McNemar's p, after Holm, below 0.05."""


class Checkpoint(_Group):
    """One policy to train."""

    axis: Literal["modality", "task"]
    split: str
    """What it learns from: a modality or a question type. Left out, it is the checkpoint's name; dvc.yaml wants it written out."""
    method: Literal["grpo", "sft"] = "grpo"
    """How it learns. A checkpoint by GRPO has the name of its split, one by SFT is called sft-<split>. dvc.yaml wants it written out."""
    images: str
    """Folder of the images its split needs; dvc.yaml makes it a dependency."""
    start: str = "models/base"
    """Folder of the policy it begins with, its reference too: the base, or what was trained before. dvc.yaml wants it written out."""
    grpo: dict[str, Any] = Field(default_factory=dict)
    """Keys of `grpo` that differ for this checkpoint."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Keys of `sft` that differ for this checkpoint."""


class Evaluation(_Group):
    """One policy to test."""

    axis: Literal["modality", "task", "all"]
    images: str
    split: str | None = None
    method: Literal["grpo", "sft"] | None = None
    start: str | None = None
    grpo: dict[str, Any] = Field(default_factory=dict)
    sft: dict[str, Any] = Field(default_factory=dict)
    """Unused here, as the three above: they come along with the checkpoint's entry."""


BUDGET: Final = (
    "seed",
    "prompts_per_device",
    "gradient_accumulation_steps",
    "engine",
    "reuse_prompt_pass",
    "num_iterations",
    "num_train_epochs",
    "max_steps",
)
"""Keys of `grpo` that decide which prompts are seen, in which order and how often."""


class Params(_Group):
    """All of params.yaml."""

    corpus: Corpus
    quarantine: Quarantine
    resize: Resize
    cache: Cache
    dicom: Dicom
    splits: Splits
    data_tests: DataTests
    base: Base
    prompt: Prompt
    grpo: Grpo
    sft: Sft
    evaluate: Evaluate
    report: Report
    retrain: Retrain
    checkpoints: dict[str, Checkpoint]
    evaluations: dict[str, Evaluation]

    @model_validator(mode="before")
    @classmethod
    def _splits_are_named(cls, tree: Any) -> Any:
        """Fill in `split` where it is the name of the checkpoint."""
        entries = tree.get("checkpoints") if isinstance(tree, dict) else None
        if not isinstance(entries, dict):
            return tree
        return tree | {"checkpoints": {name: {"split": name, **each} if isinstance(each, dict) else each for name, each in entries.items()}}

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for name, checkpoint in self.checkpoints.items():
            self._check_name(name, checkpoint)
            self.grpo_for(name)
            if checkpoint.method == "sft":
                self._check_sft(name, checkpoint)
            elif checkpoint.sft:
                raise ValueError(f"checkpoints.{name}.sft: this checkpoint learns by GRPO; take it out, or set method to sft")
        if self.base.attention == "flash_attention_2" and self.grpo.engine == "shared-prefix":
            raise ValueError(
                "base.attention flash_attention_2 cannot take the mask of grpo.engine shared-prefix: use sdpa, or the engine trl"
            )
        for cell in self.retrain.never_worse:
            name, _, tested = cell.partition("/")
            if name not in self.checkpoints or tested not in AXES[self.checkpoints[name].axis]:
                raise ValueError(f"retrain.never_worse: {cell!r} is no cell; name a checkpoint and one that it is tested on, as ct/mri")
        if extra := set(self.evaluations) ^ {"base", *self.checkpoints}:
            raise ValueError(f"evaluations must be base and the checkpoints; not on both sides: {', '.join(sorted(extra))}")
        return self

    def _check_name(self, name: str, checkpoint: Checkpoint) -> None:
        axis, split = checkpoint.axis, checkpoint.split
        if split not in AXES[axis]:
            where = f"checkpoints.{name}" if split == name else f"checkpoints.{name}.split = {split!r}"
            hint = " (say which it learns from: split)" if split == name and checkpoint.method == "sft" else ""
            raise ValueError(f"{where}: no such {axis}{hint}; allowed: {', '.join(AXES[axis])}")
        wanted = f"sft-{split}" if checkpoint.method == "sft" else split
        if name != wanted:
            raise ValueError(f"checkpoints.{name}: with the split {split!r} and the method {checkpoint.method} it must be called {wanted}")

    def _check_sft(self, name: str, checkpoint: Checkpoint) -> None:
        """The settings of an SFT checkpoint are allowed, and its budget is that of the GRPO checkpoint of its split."""
        self.sft_for(name)
        if checkpoint.split not in self.checkpoints:
            return
        own, twin = self.grpo_for(name), self.grpo_for(checkpoint.split)
        if differing := [key for key in BUDGET if getattr(own, key) != getattr(twin, key)]:
            key = differing[0]
            raise ValueError(
                f"checkpoints.{name}: grpo.{key} is {getattr(own, key)!r}, but {getattr(twin, key)!r} for checkpoints.{checkpoint.split}: "
                "both must see the same prompts, so give both the same `grpo`"
            )

    def grpo_for(self, checkpoint: str) -> Grpo:
        """`grpo` with the overrides of one checkpoint; ValueError names an override that is not allowed."""
        return _overridden(self.grpo, self.checkpoints[checkpoint].grpo, f"checkpoints.{checkpoint}.grpo")

    def sft_for(self, checkpoint: str) -> Sft:
        """`sft` with the overrides of one checkpoint; ValueError names a setting that is not allowed."""
        sft = _overridden(self.sft, self.checkpoints[checkpoint].sft, f"checkpoints.{checkpoint}.sft")
        every = self.grpo_for(checkpoint).logging_steps
        if sft.save_steps % every:
            raise ValueError(f"checkpoints.{checkpoint}: sft.save_steps {sft.save_steps} is no multiple of grpo.logging_steps {every}")
        return sft

    def require_checkpoint(self, name: str) -> Checkpoint:
        """The entry of one checkpoint; InputError with the known names if there is none."""
        return _require(self.checkpoints, name, "checkpoint")

    def require_evaluation(self, name: str) -> Evaluation:
        """The entry of one evaluation; InputError with the known names if there is none."""
        return _require(self.evaluations, name, "checkpoint")


def load_params(path: Path = layout.PARAMS) -> Params:
    """Read and check params.yaml; InputError names each bad key, its value and what is allowed."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise InputError(f"{path} not found: run from the project's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected groups of settings, got {type(tree).__name__}")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n       ".join([f"{path} has settings that are not allowed:", *_explain(error, "", Params, tree)])) from error


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-6 is a number, as everywhere but in YAML 1.1, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys; a merged key (`<<`) may be given again."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _overridden(group: Group, overrides: dict[str, Any], key: str) -> Group:
    """A group with some keys changed; ValueError names, below `key`, a change that is not allowed."""
    model = type(group)
    try:
        return model.model_validate(group.model_dump() | overrides)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(error, key, model, overrides))) from error


def _require(entries: dict[str, Any], name: str, what: str) -> Any:
    if name not in entries:
        close = difflib.get_close_matches(name, entries, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"unknown {what} {name!r}{hint} {layout.PARAMS} knows: {', '.join(entries)}")
    return entries[name]


def _explain(error: ValidationError, prefix: str, model: type[BaseModel], given: Any) -> list[str]:
    """One line a problem: dotted key, value, what is allowed."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(([prefix] if prefix else []) + path)
        if problem["type"] == "extra_forbidden":
            known = list(_known_keys(model, path[:-1]))
            close = difflib.get_close_matches(path[-1], known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            lines.append(f"{key}: unknown key{hint} Allowed here: {', '.join(known)}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing; add it (see params.yaml in the repository's history for a default)")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            shown = f" = {problem['input']!r}" if path else ""
            lines.append(f"{key}{shown}: {message[:1].lower()}{message[1:]}" if path else message)
    return lines


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            # an entry of a dict of models: checkpoints.<name>
            continue
        annotation = fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        current = next((a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, BaseModel)), current)
    return list(getattr(current, "model_fields", {}))
