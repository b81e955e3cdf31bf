"""The champion's answers to the challenger's test questions: its weights, put where stage evaluate looks for the challenger's.

The stage's own command is run, in a folder of links to the workspace in which only `models/` and `predictions/` are others. So what is
compared differs in the weights alone, and the workspace is left as it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from flows import guard
from flows.dvc_client import RECORDS, TAIL, StageError, StoppedError, environment, explain
from flows.store import locked_stages
from stages import layout
from stages.errors import InputError

FOLDER: Final = layout.SCRATCH / "flows" / "duel"
_OWN: Final = {layout.MODELS.name, layout.PREDICTIONS.name, layout.SCRATCH.name, ".git", ".dvc"}
"""What is not linked."""


class Duel:
    """Evaluates champions in one workspace; `stop` ends those that run and lets no other begin."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def weights(self, checkpoint: str) -> Path:
        """Where the champion's weights have to lie before `answer`."""
        return self.root / FOLDER / checkpoint / layout.model(checkpoint)

    def answer(
        self, checkpoint: str, tell: Callable[[str], None], extra: Mapping[str, str] | None = None, held: Iterable[int] = ()
    ) -> Path:
        """Run the command of evaluate@<checkpoint> on the champion's weights; the file of its predictions.

        Lines go to `tell`; `extra` and `held` are as for a stage. StageError if it fails, StoppedError if it was stopped.
        """
        folder = self.root / FOLDER / checkpoint
        if not self.weights(checkpoint).is_dir():
            raise InputError(f"{self.weights(checkpoint)} is missing: fetch the champion's weights first")
        try:
            command = locked_stages(self.root)[f"evaluate@{checkpoint}"]["cmd"]
        except KeyError:
            raise InputError(f"dvc.lock has no evaluate@{checkpoint}: run `dvc repro evaluate@{checkpoint}`") from None
        for entry in self.root.iterdir():
            if entry.name not in _OWN:
                link = folder / entry.name
                link.unlink(missing_ok=True)
                link.symlink_to(entry, target_is_directory=entry.is_dir())
        answers = folder / layout.predictions(checkpoint)
        answers.unlink(missing_ok=True)
        self._run(f"champion@{checkpoint}", ["sh", "-c", command], folder, tell, extra, tuple(held))
        if not answers.is_file():
            raise StageError(f"champion@{checkpoint}: `{command}` wrote no {layout.predictions(checkpoint)}")
        return answers

    def clear(self) -> None:
        """Remove all weights and answers of champions that were put aside for comparing."""
        shutil.rmtree(self.root / FOLDER, ignore_errors=True)

    def stop(self) -> None:
        """End what runs; nothing begins any more."""
        self.stopped = True
        for process in list(self._running):
            _close(process)

    def _run(
        self,
        name: str,
        command: list[str],
        folder: Path,
        tell: Callable[[str], None],
        extra: Mapping[str, str] | None,
        held: tuple[int, ...],
    ) -> None:
        record = (self.root / RECORDS / f"{name}.pid").resolve()
        record.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guard.__file__)), str(record), *command],
            cwd=folder,
            env=environment(extra),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=held,
        )
        self._running.add(process)
        if self.stopped:
            _close(process)
        tail: deque[str] = deque(maxlen=TAIL)
        try:
            assert process.stdout
            for line in process.stdout:
                if shown := line.rstrip("\n").rpartition("\r")[2].rstrip():
                    tail.append(shown)
                    tell(shown)
        finally:
            # whatever went wrong here, it does not go on unwatched
            if sys.exc_info()[0] is not None:
                _close(process)
            code = process.wait()
            _close(process)
            self._running.discard(process)
        if self.stopped:
            raise StoppedError(f"{name} was stopped")
        if code:
            raise StageError(explain(name, code, list(tail)))


def _close(process: subprocess.Popen[str]) -> None:
    """Tell the guard that nobody waits any more."""
    try:
        assert process.stdin
        process.stdin.close()
    except BrokenPipeError:
        pass
