"""Answers that are kept batch by batch, so that an evaluation that is killed goes on where it was.

A part is a file that is written under another name and then renamed, and never changed: a process
that dies leaves whole parts only, and several may write into one folder, each the answers to
questions of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.generation.generate import Answers, Completion, Key
from stages.policy.fingerprint import state_folder

_PARTS: Final = "[0-9]*.json"


class AnswerStore:
    """The parts in a folder, which is named by the fingerprint of all that decides the answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_folder(self) -> None:
        """Make it, and remove what other settings left beside it. InputError if it cannot be
        written to.
        """
        try:
            state_folder(self.folder)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise self._unwritable(error) from error

    def add(self, answers: Answers) -> None:
        """Keep one batch. InputError if the folder cannot be written to; a full disk is told by
        `run_stage`.
        """
        (place, variant), *_ = answers.completions
        rows = [[*key, each.text, each.ids] for key, each in answers.completions.items()]
        try:
            write_json(
                self.folder / f"{place:07d}-{variant}-{len(rows)}.json",
                {"batch_size": answers.batch_size, "answers": rows},
            )
        except PermissionError as error:
            raise self._unwritable(error) from error

    def count(self) -> int:
        """How many answers there are, by the names of the parts."""
        return sum(int(part.stem.rpartition("-")[2]) for part in self.folder.glob(_PARTS))

    def read(self) -> tuple[dict[Key, Completion], list[int]]:
        """All answers, and the batch sizes they were made with. A part that is not whole is
        removed, as one that was never written.
        """
        found: dict[Key, Completion] = {}
        sizes: set[int] = set()
        for part in sorted(self.folder.glob(_PARTS)):
            try:
                content = json.loads(part.read_text(encoding="utf-8"))
                answers = {
                    (int(place), str(variant)): Completion(str(text), tuple(map(int, ids)))
                    for place, variant, text, ids in content["answers"]
                }
                sizes.add(int(content["batch_size"]))
            except (KeyError, TypeError, ValueError):
                part.unlink()
                continue
            found |= answers
        return found, sorted(sizes)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.folder}, where answers are kept as they come, cannot be written to ({error}):"
            " make it a folder that can be"
        )
