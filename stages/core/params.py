"""params.yaml as one frozen model.

An unknown key, a missing one or a wrong value stops a stage before it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from stages import taxonomy
from stages.core import layout
from stages.core.errors import InputError, SettingsError
from stages.core.settings.categories import check_categories, check_joint
from stages.core.settings.checkpoints import check_checkpoints, check_evaluations
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
from stages.core.settings.evaluation import Evaluate, Evaluation, Report, Retrain
from stages.core.settings.explain import did_you_mean, explain
from stages.core.settings.group import SettingsGroup
from stages.core.settings.learning import (
    Base,
    Checkpoint,
    Grpo,
    Lora,
    Prompt,
    Sft,
    Towers,
    Tracking,
)
from stages.core.yaml_files import load_yaml, read_text
from stages.taxonomy import Taxonomy, Vocabulary, parse_fold

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
        check_checkpoints(self)
        check_evaluations(self)
        return self

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
        hint = did_you_mean(name, entries)
        raise SettingsError(
            f"unknown {what} {name!r}{hint or '.'} {layout.PARAMS} knows: {', '.join(entries)}"
        )
    return entries[name]
