"""Settings of the stages that make data: download, resize, splits."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.core.settings.group import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    SettingsGroup,
    Share,
)


class Category(SettingsGroup):
    """A modality or a question type. Its key, the slug, names splits, folders and checkpoints."""

    names: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1)]
    """Names that records may use, exactly; the first is written where a sheet uses another."""
    dicom: list[str] = Field(default_factory=list)
    """Values of Modality in the headers of DICOM files that are of this modality. Another specific
    value, as CT or US, refuses the record; a record without a modality takes that of the header.
    """


class CorpusLimits(SettingsGroup):
    """What a corpus may hold at most: beyond, it is refused as a bomb before it is unpacked."""

    max_members: PositiveInt
    """Files and folders in all."""
    max_member_mb: PositiveInt
    """MiB of one unpacked file. Files are read whole, one per core: this bounds the memory."""
    max_total_mb: PositiveInt
    """MiB of all files, unpacked."""
    max_ratio: PositiveInt
    """Bytes unpacked from each packed byte, of one file and of a compressed tar, beyond the first
    16 MiB.
    """


class CorpusSettings(SettingsGroup):
    """Stage download, and what stage resize reads in place."""

    archive: str
    """Path of the raw corpus, an archive, a folder of archives, or a folder; data.dvc puts it
    there.
    """
    limits: CorpusLimits


Level = Annotated[float, Field(ge=-1e9, le=1e9)]
"""A grey level of an image file."""


class Resize(SettingsGroup):
    """Stage resize."""

    size: Annotated[int, Field(ge=28, le=4096)]
    """Side of the square RGB images, in pixels."""
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    """The filter, by Pillow's names and formulas."""
    background: Literal["black", "white"]
    """What shows where an image is see-through."""
    deep_grey: (
        Literal["range", "percentiles", "depth"]
        | Annotated[list[Level], Field(min_length=2, max_length=2)]
    )
    """How grey of more than 8 bits, or real-valued, becomes 8-bit. range: from the image's darkest
    to its brightest pixel; percentiles: from its 0.5th to its 99.5th percentile, so that a few odd
    pixels do not set the range; depth: from 0 to the most that its type can hold (a real-valued one
    as range); [low, high]: these levels become black and white in all such images, as [-1000, 400]
    for CT that was exported in Hounsfield units. DICOM has rules of its own: group dicom.
    """
    frames: Literal["first", "refuse"]
    """Of an animation, or of a TIFF with several pages: show the first image, or quarantine the
    file. TIFF and GIF whose slices are asked for (group volume, or a question's own) are stacks.
    """
    shrink_on_load: bool
    """Decode large JPEG files at a half, a quarter or an eighth of their size, but at twice the
    size that is wanted or more: faster, and within a grey level on photographs, but not on pure
    noise.
    """
    max_megapixels: PositiveInt
    """Limit in millions of pixels; larger images are quarantined before they are decoded."""

    @model_validator(mode="after")
    def _window_has_a_width(self) -> Self:
        if isinstance(self.deep_grey, list) and self.deep_grey[0] >= self.deep_grey[1]:
            raise ValueError(f"deep_grey: [low, high] with low below high, not {self.deep_grey}")
        return self


class Cache(SettingsGroup):
    """Caches of earlier work in .scratch.

    Results do not depend on them, deleting them costs time only.
    """

    images_gb: PositiveFloat
    """Size limit of the cache of resized images, in GB (10^9 bytes); least recently used ones are
    evicted. They share disk space with data/images through hard links.
    """
    answers_gb: PositiveFloat
    """Size limit of the cache of generated answers, in GB; least recently used ones are evicted."""


class Quarantine(SettingsGroup):
    """Stages download and resize: how much each may refuse of what it reads before it stops.

    Every run, new data or not, is held to it.

    Beyond these limits something is wrong with the corpus. Retrain.max_refused is another thing:
    how much a drop of new data may have lost over both stages together before it is not worth
    training on; only flow retrain asks it, of data that passed here.
    """

    max_refused_share: Share
    """Of all records a stage reads, without those of `sets`."""
    max_refused_share_of_set: Share
    """Of the records of each source set, a record's `dataset`, that a stage reads."""
    min_refused: PositiveInt
    """Refused records, of a set or of all, below which a share says nothing and nothing stops."""
    sets: dict[str, Share]
    """Source set -> its own limit; 1.0 allows all of it to be refused. {}: none."""


Hounsfield = Annotated[float, Field(ge=-100_000, le=100_000)]


class Dicom(SettingsGroup):
    """Stage resize, for images that are DICOM files.

    What each of these means for grey: docs/ingest-dicom.md.
    """

    frame: Literal["middle", "first"]
    """Of the frames of a file, or the files of a series, the one that is asked about."""
    ct_window: Annotated[list[Hounsfield], Field(min_length=2, max_length=2)] | None
    """CT window as centre and width in Hounsfield units; null: the file's own window."""
    max_frames: PositiveInt
    """Of a file, and files of a series: more are refused."""
    max_total_pixels: PositiveInt
    """Rows x columns x frames: more are refused before any is decoded."""
    max_inflated_mb: PositiveInt
    """MiB that a deflated file may unpack to."""
    accept_burned_in: bool
    """Take images whose header says that text is burned into them."""
    accept_unflagged: bool
    """Take images of kinds that often have text burned in, if their header does not say that they
    have none.
    """
    context: Annotated[list[Literal["age", "sex"]], Field(max_length=2)] = Field(
        default_factory=list
    )
    """What of the header goes into the context of questions, where a record does not say it: the
    patient's age in bands of ten years, and sex. []: nothing.
    """

    @model_validator(mode="after")
    def _context_is_named_once(self) -> Self:
        if len(set(self.context)) < len(self.context):
            raise ValueError(f"context: {self.context} names one twice")
        return self

    @model_validator(mode="after")
    def _window_has_a_width(self) -> Self:
        if self.ct_window is not None and self.ct_window[1] < 1:
            raise ValueError(f"ct_window: the width, {self.ct_window[1]}, is less than 1")
        return self


class Volume(SettingsGroup):
    """Stage resize, for images of several slices or frames: DICOM, NIfTI, TIFF, GIF and folders.

    docs/ingest-dicom.md says how slices are ordered, oriented and refused.
    """

    plane: Literal["acquired", "axial", "coronal", "sagittal"]
    """Which slices are shown: those that were stored, or others, cut through all of them."""
    frames: Annotated[int, Field(ge=1, le=64)]
    """How many of a volume a question is about that names none. 1: the one that dicom.frame says.
    """
    selection: Literal["uniform", "center", "all"]
    """Which ones. uniform: the centres of as many equal parts of the volume; center: neighbours
    around its middle; all: every one, whatever `frames` says.
    """
    window: Annotated[list[Level], Field(min_length=2, max_length=2)] | None
    """Window as centre and width, in Hounsfield units for CT, of volumes of every modality; null:
    as dicom.ct_window and the file say; of NIfTI, which says nothing, from the 0.5th to the 99.5th
    percentile of the volume.
    """
    max_images: Annotated[int, Field(ge=1, le=64)]
    """Of a question; one with more is quarantined."""

    @property
    def several(self) -> bool:
        """Whether a question that names no slices is about several of them."""
        return self.frames > 1 or self.selection == "all"

    @model_validator(mode="after")
    def _frames_are_allowed(self) -> Self:
        if self.frames > self.max_images:
            raise ValueError(f"frames: {self.frames} are more than max_images, {self.max_images}")
        return self

    @model_validator(mode="after")
    def _window_has_a_width(self) -> Self:
        if self.window is not None and self.window[1] < 1:
            raise ValueError(f"window: the width, {self.window[1]}, is less than 1")
        return self


class Matrix(SettingsGroup):
    """Stage splits: which splits are trained on and tested, by the data they have."""

    min_train: PositiveInt
    """Training questions; a split with fewer is left out, and so is its checkpoint."""
    min_test: PositiveInt
    """Test questions; likewise."""
    strict: bool
    """Refuse the corpus instead."""


class JointSplit(SettingsGroup):
    """A split that is the union of others of one axis, for a checkpoint trained on all of them."""

    axis: Literal["modality", "task"]
    of: Annotated[list[str], Field(min_length=2)] | Literal["all"]
    """Slugs of the axis, or all of them."""


class ReleasedSplits(SettingsGroup):
    """Split files of others."""

    folder: str
    """Where they are; docs/splits.md says how they are named."""
    max_lost: Share
    """Share of a file's questions that may be missing in the corpus; more stops the stage."""


class Splits(SettingsGroup):
    """Stage splits."""

    kind: Literal["grouped", "random", "released"]
    """What training and testing use; the first two are always made. grouped: all questions of an
    image, of its copies and of its patient are on one side, the same on both axes. random: over
    questions, each axis by itself, as Med-R1 drew its splits. released: the files of `released`, as
    they are.
    """
    released: ReleasedSplits
    """For kind released."""
    train_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the questions that is trained on."""
    near_duplicates: Annotated[int, Field(ge=0, le=24)] | None
    """Hamming distance, of 256 bits, up to which two perceptual hashes are copies; null: equal
    pixels only.
    """
    patient_patterns: list[str]
    """Regular expressions, searched in the path of a source image; the first that is found gives,
    as its first group, an id that is the same for all images of a patient in a data set. [] if
    paths say nothing of patients.
    """
    seed: Seed
    folds: Annotated[int, Field(ge=2, le=10)] | None = None
    """For kind grouped: instead of one cut, every group is tested once, by a checkpoint that was
    trained on the other folds; the checkpoints of a split are `<split>-fold-<number>`. null: one
    cut.
    """
    joint: dict[str, JointSplit] = Field(default_factory=dict)
    """Name -> a union of splits; a checkpoint that is trained on it has its name."""

    @model_validator(mode="after")
    def _folds_are_grouped(self) -> Self:
        if self.folds is not None and self.kind != "grouped":
            raise ValueError(f"folds: only splits of kind grouped have folds, not {self.kind}")
        return self

    @model_validator(mode="after")
    def _patterns_have_a_group(self) -> Self:
        for pattern in self.patient_patterns:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(
                    f"patient_patterns: {pattern!r} is not a regular expression: {error}"
                ) from error
            if not groups:
                raise ValueError(
                    f"patient_patterns: {pattern!r} has no group: put what names the patient in"
                    " brackets"
                )
        return self


class DataTest(SettingsGroup):
    """One test of the corpus."""

    severity: Literal["error", "warning", "off"]
    """Effect of a failure: error stops stage splits before any training; warning is printed and
    reported; off skips the test.
    """
    limit: NonNegativeFloat
    """Largest value that passes (smallest for questions_of_modality and questions_of_type)."""


class DataTests(SettingsGroup):
    """Tests of the whole corpus (stage splits).

    See stages/corpus/splitting/data_tests.py and docs/ingest-quality.md.

    What a single record must hold, and that no id stands twice, is tested too, always as an error.
    """

    repeated_questions: DataTest
    """Share of the questions."""
    contradictions: DataTest
    """Share of the questions."""
    letter_bias: DataTest
    """Share of the questions, beyond chance."""
    majority_letter: DataTest
    """Share of a split's right answers."""
    majority_answer: DataTest
    """Share of a split's right answers."""
    single_answer_tests: DataTest
    """Test splits."""
    questions_of_modality: DataTest
    """Questions of the modality that has fewest."""
    questions_of_type: DataTest
    """Questions of the type that has fewest."""
    blank_images: DataTest
    """Share of the images, as in all that follow."""
    dark_or_bright_images: DataTest
    upscaled_images: DataTest
    extreme_aspect_images: DataTest
    duplicate_images: DataTest
