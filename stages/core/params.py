"""params.yaml as one frozen model.

An unknown key, a missing one or a wrong value stops a stage before it starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stages import taxonomy
from stages.core import layout
from stages.core.errors import InputError, SettingsError
from stages.core.settings.categories import check_categories, check_joint
from stages.core.settings.data import (
    Cache,
    Category,
    CorpusLimits,
    CorpusSettings,
    DataTest,
    DataTests,
    Dicom,
    JointSplit,
    Matrix,
    Quarantine,
    Resize,
    Splits,
    Volume,
)
from stages.core.settings.group import SettingsGroup
from stages.core.settings.learning import (
    Base,
    Checkpoint,
    Evaluate,
    Evaluation,
    Grpo,
    Lora,
    Prompt,
    Report,
    Retrain,
    Sft,
    Towers,
    Tracking,
)
from stages.core.yaml_files import load_yaml, read_text
from stages.taxonomy import Taxonomy, Vocabulary, fold_slug, fold_slugs, parse_fold

__all__ = [
    "SHIPPED_PARAMS",
    "Base",
    "Cache",
    "Checkpoint",
    "CorpusLimits",
    "CorpusSettings",
    "DataTest",
    "DataTests",
    "Dicom",
    "Evaluate",
    "Evaluation",
    "Grpo",
    "JointSplit",
    "Lora",
    "Params",
    "Prompt",
    "Quarantine",
    "Report",
    "Resize",
    "Retrain",
    "Sft",
    "Splits",
    "Towers",
    "Tracking",
    "Volume",
    "check_params",
    "explain",
    "load_params",
    "parse_settings",
    "read_settings",
    "shipped_taxonomy",
]

MAX_CATEGORIES: Final = 40
"""Of modalities, and of question types: more would fit in no table."""

SHIPPED_PARAMS: Final = Path(__file__).parents[2] / layout.PARAMS
"""The params.yaml beside this code, for what runs outside a project."""

Group = TypeVar("Group", bound=SettingsGroup)

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


class Params(SettingsGroup):
    """All of params.yaml."""

    modalities: Annotated[dict[str, Category], Field(min_length=1, max_length=MAX_CATEGORIES)]
    """Slug -> names of the imaging modalities in table order; dvc.yaml takes them from here."""
    question_types: Annotated[dict[str, Category], Field(min_length=1, max_length=MAX_CATEGORIES)]
    """Slug -> names of the question types in table order."""
    corpus: CorpusSettings
    quarantine: Quarantine
    resize: Resize
    cache: Cache
    tracking: Tracking
    dicom: Dicom
    volume: Volume
    splits: Splits
    matrix: Matrix
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
        return tree | {
            "checkpoints": {
                name: {"split": name, **each} if isinstance(each, dict) else each
                for name, each in entries.items()
            }
        }

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        check_categories(self.modalities, self.question_types)
        check_joint(self.splits.joint, self.taxonomy.axes)
        self._check_folds()
        for name, checkpoint in self.checkpoints.items():
            self._check_name(name, checkpoint)
            self.grpo_for(name)
            if checkpoint.method == "sft":
                self._check_sft(name, checkpoint)
            elif checkpoint.sft:
                raise ValueError(
                    f"checkpoints.{name}.sft: this checkpoint learns by GRPO; remove it, or set"
                    " method to sft"
                )
        language = getattr(self.base.attention, "language", self.base.attention)
        if language == "flash_attention_2" and any(
            self.grpo_for(name).engine == "shared-prefix" for name in self.checkpoints
        ):
            raise ValueError(
                "base.attention flash_attention_2 cannot take the mask of grpo.engine"
                " shared-prefix: use auto, which takes it for the vision tower, or sdpa, or the"
                " engine trl"
            )
        axes = self.taxonomy.axes
        for cell in self.retrain.never_worse:
            name, _, tested = cell.partition("/")
            if name not in self.checkpoints or tested not in axes[self.checkpoints[name].axis]:
                raise ValueError(
                    f"retrain.never_worse: {cell!r} is not a cell; name a checkpoint and one that"
                    " it is tested on, as ct/mri"
                )
        self._check_evaluations()
        return self

    def _check_evaluations(self) -> None:
        if extra := set(self.evaluations) ^ {"base", *self.checkpoints}:
            raise ValueError(
                "evaluations must be base and the checkpoints; not on both sides:"
                f" {', '.join(sorted(extra))}"
            )
        axes = {"base": "all"} | {name: each.axis for name, each in self.checkpoints.items()}
        for name, axis in axes.items():
            if self.evaluations[name].axis != axis:
                raise ValueError(f"evaluations.{name}.axis must be {axis}, as in checkpoints")

    def _check_name(self, name: str, checkpoint: Checkpoint) -> None:
        axis, split = checkpoint.axis, checkpoint.split
        allowed = [
            *self.taxonomy.axes[axis],
            *(joint for joint, each in self.splits.joint.items() if each.axis == axis),
        ]
        if self.splits.folds:
            folds = self.splits.folds
            allowed = list(chain.from_iterable(fold_slugs(each, folds) for each in allowed))
        if split not in allowed:
            where = (
                f"checkpoints.{name}" if split == name else f"checkpoints.{name}.split = {split!r}"
            )
            hint = (
                " (say which it learns from: split)"
                if split == name and checkpoint.method == "sft"
                else ""
            )
            raise ValueError(f"{where}: no such {axis}{hint}; allowed: {', '.join(allowed)}")
        wanted = f"sft-{split}" if checkpoint.method == "sft" else split
        if name != wanted:
            raise ValueError(
                f"checkpoints.{name}: with the split {split!r} and the method {checkpoint.method}"
                f" it must be called {wanted}"
            )

    def _check_folds(self) -> None:
        """ValueError if a checkpoint lacks a fold: a row of the report needs them all."""
        for row, members in self.rows.items():
            if self.splits.folds and len(members) < self.splits.folds:
                raise ValueError(
                    f"checkpoints: {row} has {len(members)} of the {self.splits.folds} folds of"
                    f" splits.folds ({', '.join(members)}): name them all, as"
                    f" {fold_slug(row, 1)}, or none"
                )

    def _check_sft(self, name: str, checkpoint: Checkpoint) -> None:
        """Check an SFT checkpoint's settings.

        Its budget must equal the GRPO checkpoint's of its split.
        """
        self.sft_for(name)
        if checkpoint.split not in self.checkpoints:
            return
        own, twin = self.grpo_for(name), self.grpo_for(checkpoint.split)
        if differing := [key for key in BUDGET if getattr(own, key) != getattr(twin, key)]:
            key = differing[0]
            raise ValueError(
                f"checkpoints.{name}: grpo.{key} is {getattr(own, key)!r}, but"
                f" {getattr(twin, key)!r} for checkpoints.{checkpoint.split}: both must see the"
                " same prompts, so give both the same `grpo`"
            )

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The modalities and question types."""

        def vocabulary(field: Any, categories: Mapping[str, Category]) -> Vocabulary:
            return Vocabulary(
                field,
                {
                    slug: taxonomy.Category(tuple(each.names), tuple(each.dicom))
                    for slug, each in categories.items()
                },
            )

        return Taxonomy(
            vocabulary("modality_type", self.modalities),
            vocabulary("question_type", self.question_types),
        )

    @cached_property
    def rows(self) -> dict[str, tuple[str, ...]]:
        """Row of the report -> its checkpoints: those of all folds, or one of the same name."""
        rows: dict[str, tuple[str, ...]] = {}
        for name in self.checkpoints:
            fold = parse_fold(name) if self.splits.folds else None
            row = fold[0] if fold else name
            rows[row] = (*rows.get(row, ()), name)
        return rows

    def joint_cells(self, split: str) -> tuple[str, ...]:
        """The slugs of a joint split; none of another split."""
        if split not in self.splits.joint:
            return ()
        joint = self.splits.joint[split]
        return self.taxonomy.axes[joint.axis] if joint.of == "all" else tuple(joint.of)

    def cells_of(self, split: str) -> tuple[str, ...]:
        """The slugs whose questions are in a split: itself, or those of a joint split."""
        return self.joint_cells(split) or (split,)

    def grpo_for(self, checkpoint: str) -> Grpo:
        """`grpo` with one checkpoint's overrides.

        ValueError names an override that is not allowed.
        """
        return _overridden(
            self.grpo, self.checkpoints[checkpoint].grpo, f"checkpoints.{checkpoint}.grpo"
        )

    def sft_for(self, checkpoint: str) -> Sft:
        """`sft` with one checkpoint's overrides; ValueError names a setting that is not allowed."""
        sft = _overridden(
            self.sft, self.checkpoints[checkpoint].sft, f"checkpoints.{checkpoint}.sft"
        )
        every = self.grpo_for(checkpoint).logging_steps
        if sft.save_steps % every:
            raise ValueError(
                f"checkpoints.{checkpoint}: sft.save_steps {sft.save_steps} is not a multiple of"
                f" grpo.logging_steps {every}"
            )
        return sft

    def require_checkpoint(self, name: str) -> Checkpoint:
        """The entry of one checkpoint; SettingsError with the known names if there is none."""
        return _require(self.checkpoints, name, "checkpoint")

    def require_evaluation(self, name: str) -> Evaluation:
        """The entry of one evaluation; SettingsError with the known names if there is none."""
        # users name checkpoints; the base is one more of them here
        return _require(self.evaluations, name, "checkpoint")


@cache
def shipped_taxonomy() -> Taxonomy:
    """OmniMedVQA's taxonomy, from the params.yaml beside this code."""
    return load_params(SHIPPED_PARAMS).taxonomy


def load_params(path: Path = layout.PARAMS) -> Params:
    """Read and check params.yaml.

    SettingsError names each bad key, its value and what is allowed.
    """
    return check_params(read_settings(path), path)


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML file of settings, unchecked; SettingsError if it is missing or holds none."""
    try:
        return parse_settings(read_text(path), path)
    except FileNotFoundError:
        raise SettingsError(f"{path} not found: run from the project's root") from None


def parse_settings(text: str, path: Path) -> dict[str, Any]:
    """The same of a text; `path` is what an error names."""
    try:
        tree = load_yaml(text, path)
    except InputError as error:
        raise SettingsError(str(error)) from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected groups of settings, got {type(tree).__name__}")
    return tree


def check_params(tree: dict[str, Any], path: Path) -> Params:
    """Settings as params.yaml holds them; SettingsError names `path` and each bad key."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(
            "\n       ".join(
                [f"{path} has settings that are not allowed:", *explain(error, "", Params, tree)]
            )
        ) from error


def _overridden(group: Group, overrides: dict[str, Any], key: str) -> Group:
    """A group with some keys changed.

    ValueError names, below `key`, a change that is not allowed.
    """
    model = type(group)
    try:
        return model.model_validate(group.model_dump() | overrides)
    except ValidationError as error:
        raise ValueError("; ".join(explain(error, key, model, overrides))) from error


def _require(entries: dict[str, Any], name: str, what: str) -> Any:
    if name not in entries:
        close = difflib.get_close_matches(name, entries, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingsError(
            f"unknown {what} {name!r}{hint or '.'} {layout.PARAMS} knows: {', '.join(entries)}"
        )
    return entries[name]


def explain(error: ValidationError, prefix: str, model: type[BaseModel], given: Any) -> list[str]:
    """One line a problem: dotted key, value, what is allowed."""
    reasons: dict[str, list[str]] = {}  # a value that fits none of several types has one for each
    for problem in error.errors():
        path = _settings_path(problem, given)
        key = ".".join(([prefix] if prefix else []) + path)
        if problem["type"] == "extra_forbidden":
            known = list(_known_keys(model, path[:-1]))
            close = difflib.get_close_matches(path[-1], known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            why = f"unknown key{hint or '.'} Allowed here: {', '.join(known)}"
            reasons.setdefault(f"{key}: ", []).append(why)
        elif problem["type"] == "missing":
            why = "missing; add it (see params.yaml in the repository's history for a default)"
            reasons.setdefault(f"{key}: ", []).append(why)
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "model_type":
                message = "a group of settings"
            # of a rule between settings the input is the whole group, and the message says which
            is_value = path and not isinstance(problem["input"], dict | list | BaseModel)
            shown = f" = {problem['input']!r}" if is_value else ""
            if path:
                message = f"{message[:1].lower()}{message[1:]}"
            reasons.setdefault(f"{key}{shown}: " if key else "", []).append(message)
    lines = []
    for key, messages in reasons.items():
        lines += [f"{key}{'; or '.join(messages)}"] if key else messages
    return lines


def _settings_path(problem: ErrorDetails, given: Any) -> list[str]:
    """The keys that lead to a setting, without pydantic's names for the types of a union."""
    path = []
    current = given
    location = problem["loc"]
    names_a_key = problem["type"] in ("missing", "extra_forbidden")
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        is_item = isinstance(current, list) and isinstance(part, int)
        if is_item or (isinstance(current, dict) and part in current):
            path.append(str(part))
            current = current[part]
        elif is_last and names_a_key:
            path.append(str(part))
    return path


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            # an entry of a dict of models: checkpoints.<name>
            continue
        annotation = fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        current = next(
            (
                a
                for a in (annotation, *arguments)
                if isinstance(a, type) and issubclass(a, BaseModel)
            ),
            current,
        )
    return list(getattr(current, "model_fields", {}))
