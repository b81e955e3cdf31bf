"""Store of generated answers, one file per batch, so that a killed evaluation can be resumed.

A part is written atomically and never changed, so a killed process leaves complete parts only. Each
part holds the answers to its own questions, so several processes may write into one folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.generation.generate import Answers, Completion, Key
from stages.policy.fingerprint import prepare_state_folder

_PARTS: Final = "[0-9]*.json"


class AnswerStore:
    """The parts in a folder named by the fingerprint of everything that decides the answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_folder(self) -> None:
        """Create the folder and remove those of other fingerprints beside it.

        Raises InputError if it is not writable.
        """
        try:
            prepare_state_folder(self.folder)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise self._unwritable(error) from error

    def add(self, answers: Answers) -> None:
        """Write one batch as a part.

        Raises InputError if the folder is not writable; `run_stage` reports a full disk.
        """
        index, variant = next(iter(answers.completions))
        rows = [[*key, each.text, each.ids] for key, each in answers.completions.items()]
        try:
            write_json(
                self.folder / f"{index:07d}-{variant}-{len(rows)}.json",
                {"batch_size": answers.batch_size, "answers": rows},
            )
        except PermissionError as error:
            raise self._unwritable(error) from error

    def count(self) -> int:
        """Number of answers, read from the names of the parts."""
        return sum(int(part.stem.rpartition("-")[2]) for part in self.folder.glob(_PARTS))

    def read(self) -> tuple[dict[Key, Completion], list[int]]:
        """Read all answers and the sorted batch sizes they were generated with.

        A corrupt part is deleted: its questions count as unanswered.
        """
        completions: dict[Key, Completion] = {}
        sizes: set[int] = set()
        for part in sorted(self.folder.glob(_PARTS)):
            try:
                content = json.loads(part.read_text(encoding="utf-8"))
                answers = {
                    (int(index), str(variant)): Completion(str(text), tuple(map(int, ids)))
                    for index, variant, text, ids in content["answers"]
                }
                sizes.add(int(content["batch_size"]))
            except (KeyError, TypeError, ValueError):
                part.unlink()
                continue
            completions |= answers
        return completions, sorted(sizes)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.folder}, where answers are stored for resuming, is not writable ({error}):"
            " make it a writable folder"
        )
