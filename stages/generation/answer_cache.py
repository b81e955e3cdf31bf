"""Cache of generated answers: an evaluation computes only what no earlier one has answered.

One file per window, named by a hash of everything that decides its answers: the policy, code,
settings and device, and the questions with the contents of their images. So an evaluation that was
killed resumes, and one of new data, or of a champion whose questions are mostly the same, takes
what it can from earlier ones. A file is written atomically and never changed; the folder may be
deleted at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.dataset.image_store import identity
from stages.generation.generate import Answers, Completion
from stages.generation.windows import BLANK, Key, Question, Variant, Window, shown_by

_INCOMPLETE: Final = ".incomplete"
_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_ABANDONED_SECONDS: Final = 3600.0


def window_key(policy_key: str, questions: Sequence[Question], window: Window) -> str:
    """Name of a window's answers: a hash of `policy_key`, which stands for all but the questions.

    Paths of images, positions and names of questions are no part of it. Raises InputError for an
    image that is missing.
    """
    content: list[object] = [policy_key]
    identities = {BLANK: BLANK}
    for index in window:
        variants = []
        for name, variant in questions[index].variants.items():
            for path in variant.images:
                if path not in identities:
                    identities[path] = _identity(path, variant)
            images = [identities[path] for path in variant.images]
            variants.append([name, variant.text, images])
        content.append(variants)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _identity(path: str, variant: Variant) -> str:
    try:
        return identity(path)
    except InputError as error:
        raise shown_by(variant, error) from error


class AnswerCache:
    """A folder of answered windows, which several processes may use at the same time."""

    def __init__(self, folder: Path) -> None:
        """Create the folder. Raises InputError if that is not possible."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in (*_NOT_WRITABLE, errno.EEXIST, errno.ENOTDIR):
                raise
            raise self._unwritable(error) from error

    def add(self, key: str, rows: Sequence[Key], answers: Answers) -> None:
        """Write the answers to the rows of a window, in their order.

        Raises InputError if the folder is not writable; `run_stage` reports a full disk.
        """
        completions = [answers.completions[row] for row in rows]
        content = {
            "batch_sizes": answers.batch_sizes,
            "answers": [[each.text, each.ids] for each in completions],
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        path = self._path(key)
        # a name of its own: two processes may have windows of equal content
        temporary = path.with_name(f".{key}.{os.getpid()}{_INCOMPLETE}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            raise self._unwritable(error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def has(self, key: str) -> bool:
        """Whether there is a file of this window."""
        return self._path(key).is_file()

    def read(self, key: str, rows: Sequence[Key]) -> Answers | None:
        """The answers to the rows of a window; None if there are none.

        A corrupt file is deleted.
        """
        path = self._path(key)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            completions = [
                Completion(str(text), tuple(map(int, ids))) for text, ids in content["answers"]
            ]
            sizes = sorted(map(int, content["batch_sizes"]))
            answers = Answers(dict(zip(rows, completions, strict=True)), sizes)
        except OSError:  # missing, or unreadable: generated again
            return None
        except (KeyError, TypeError, ValueError):
            with suppress(OSError):
                path.unlink()
            return None
        self._mark_used(path)
        return answers

    def trim(self, max_bytes: int) -> None:
        """Delete the least recently used windows until all take at most `max_bytes`.

        And what killed processes left half-written an hour ago or earlier.
        """
        files = []
        for path in self.folder.glob(f"*/.*{_INCOMPLETE}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        for path in self.folder.glob("*/*.json"):
            try:
                status = path.stat()
            except FileNotFoundError:  # deleted by another process
                continue
            files.append((status.st_mtime_ns, path, status.st_size))
        excess = sum(size for _, _, size in files) - max_bytes
        for _, path, size in sorted(files):
            if excess <= 0:
                break
            with suppress(OSError):  # what cannot be deleted stays: the answers are written
                path.unlink(missing_ok=True)
                excess -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _mark_used(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:  # a read-only cache, or deleted by another process: the order is a nicety
            return

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.folder}, where answers are saved for resuming and later evaluations, is not"
            f" writable ({error}): make it a writable folder"
        )
