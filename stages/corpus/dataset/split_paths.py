"""What the path of a question file says: its split, and the modality or question type in it.

Projects name such files in their own ways: `Splits/question_type/test/Disease Diagnosis_test.json`
(Med-R1), `modality/ct/train.json` (here), `ct.test.json.gz`.
"""

from __future__ import annotations

import itertools
import re
from pathlib import PurePosixPath
from typing import Final, Literal, NamedTuple

from stages.taxonomy import Axis

_PARTS: Final[dict[str, Literal["train", "test"]]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLIT_NAMES: Final = frozenset({*_PARTS, "val", "valid", "dev"})
"""Names of folders and files that say which split is in them, and not which modality."""
_FOLDERS: Final[dict[str, Axis]] = {
    **dict.fromkeys(("modality", "modalities", "modality_type"), "modality"),
    **dict.fromkeys(("task", "tasks", "type", "types", "question_type", "question-type"), "task"),
}
"""Names of folders whose entries are of one modality, or of one question type, each."""
_SPLIT_END: Final = re.compile(rf"[_.-]({'|'.join(sorted(SPLIT_NAMES))})$", re.IGNORECASE)
_SUFFIX: Final = re.compile(r"\.[A-Za-z]+(?:\.gz)?$")


class SplitPath(NamedTuple):
    """A path taken apart."""

    words: tuple[str, ...]
    """Folders and the file's name, without those that name a split, and without its suffix."""
    splits: tuple[str, ...]
    """Names of splits in the path, in lower case, such as "train"."""

    def word(self, axis: Axis) -> str | None:
        """The word after a folder named for the axis, e.g. "ct" in `modality/ct/`."""
        for folder, word in itertools.pairwise(self.words):
            if _FOLDERS.get(folder.casefold()) == axis:
                return word
        return None

    @property
    def part(self) -> Literal["train", "test"] | None:
        """Whether its questions are for training or for testing; None if both, neither, or else."""
        parts = {_PARTS.get(name) for name in self.splits}
        return parts.pop() if len(parts) == 1 else None


def parse_split_path(path: PurePosixPath) -> SplitPath:
    """Words and splits of a relative path."""
    stem = _SUFFIX.sub("", path.name)
    splits = []
    if match := _SPLIT_END.search(stem):
        stem = stem[: match.start()]
        splits.append(match[1].casefold())
    words: list[str] = []
    for part in (*path.parts[:-1], stem):
        (splits if part.casefold() in SPLIT_NAMES else words).append(part)
    return SplitPath(tuple(words), tuple(name.casefold() for name in splits))
