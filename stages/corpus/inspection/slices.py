"""Slices of volumes that questions show, for the corpus check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stages.core.params import Volume
from stages.corpus.images.frames import shown_frames
from stages.corpus.inspection.volumes import FoundVolume
from stages.corpus.records.records import Record


class SlicesOfVolume(NamedTuple):
    """Slices, counted from 1, that a question shows or names of a volume of `slice_count`."""

    image: str
    slices: tuple[int, ...]
    slice_count: int

    def __str__(self) -> str:
        """As in "Images/chest, slices 4, 2 (of 5)"."""
        numbers = ", ".join(map(str, self.slices))
        noun = "slice" if len(self.slices) == 1 else "slices"
        return f"{self.image}, {noun} {numbers} (of {self.slice_count})"


class SliceExample(NamedTuple):
    """A question, and the slices of each of its volumes, in order."""

    where: str
    volumes: tuple[SlicesOfVolume, ...]

    def __str__(self) -> str:
        """As in "ward.csv, line 3 (q7): Images/chest, slices 4, 2 (of 5)"."""
        return f"{self.where}: {'; '.join(map(str, self.volumes))}"

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {"where": self.where, "volumes": [each._asdict() for each in self.volumes]}


@dataclass
class SliceQuestions:
    """Questions of one kind about volumes, and the first examples."""

    questions: int = 0
    examples: list[SliceExample] = field(default_factory=list)

    def add(self, example: SliceExample, limit: int) -> None:
        """Count a question; `limit`: of examples."""
        self.questions += 1
        if len(self.examples) < limit:
            self.examples.append(example)

    def lines(self, which: str) -> list[str]:
        """Their number with the examples; none if there are none. `which`: whose slices."""
        if not self.questions:
            return []
        lines = [f"  {which}: {self.questions} question(s)"]
        lines += [f"  - {example}" for example in self.examples]
        if more := self.questions - len(self.examples):
            lines.append(f"  - and {more} more")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "questions": self.questions,
            "examples": [example.as_json() for example in self.examples],
        }


class VolumeSlices:
    """What the questions of a corpus show of its volumes.

    Args:
        settings: What is shown where a question names no slices.
        max_examples: Per kind of question.
    """

    def __init__(self, settings: Volume, max_examples: int) -> None:
        self.settings = settings
        self._max_examples = max_examples
        self.selected = SliceQuestions()
        """Usable questions that show what the settings select."""
        self.named = SliceQuestions()
        """Usable questions that name their slices."""
        self.outside = SliceQuestions()
        """Questions that name slices which their volume does not have: they are refused."""

    @property
    def kinds(self) -> tuple[SliceQuestions, ...]:
        """All three."""
        return self.selected, self.named, self.outside

    def add(self, record: Record, found: Mapping[str, FoundVolume], *, usable: bool) -> None:
        """Count a question, unless none of its images is a volume.

        `found`: image path -> each volume; other images are not in it.
        """
        volumes = {path: found[path] for path in record.image_paths if path in found}
        if not volumes or not (usable or record.slices):
            return
        if record.slices:
            ((path, volume),) = volumes.items()  # slices are named of one volume
            count = volume.facts.frames
            outside = tuple(number for number in record.slices if number > count)
            kind = self.outside if outside else self.named
            slices = [SlicesOfVolume(path, outside or record.slices, count)]
        else:
            kind = self.selected
            slices = [
                SlicesOfVolume(path, self._select(volume), volume.facts.frames)
                for path, volume in volumes.items()
            ]
        if usable or kind is self.outside:
            kind.add(SliceExample(str(record.location), tuple(slices)), self._max_examples)

    def _select(self, volume: FoundVolume) -> tuple[int, ...]:
        """The slices that the settings select of a volume, counted from 1."""
        shown = shown_frames(volume.facts.frames, self.settings, ())
        indices = shown or (volume.representative,)
        return tuple(index + 1 for index in indices)

    def lines(self) -> list[str]:
        """What a person reads: settings, and each kind of question; none without volumes."""
        if not any(kind.questions for kind in self.kinds):
            return []
        volume = self.settings
        window = "null" if volume.window is None else str(volume.window)
        lines = [
            f"Slices of volumes (volume in params.yaml: plane {volume.plane}, frames"
            f" {volume.frames}, selection {volume.selection}, window {window}):"
        ]
        lines += self.selected.lines("selected by these settings")
        lines += self.named.lines("named by questions")
        lines += self.outside.lines("named by questions, and not in their volume (refused)")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "settings": self.settings.model_dump(mode="json", exclude={"max_images"}),
            "selected": self.selected.as_json(),
            "named": self.named.as_json(),
            "outside": self.outside.as_json(),
        }
