"""Evaluate the champion's weights on the challenger's test questions.

The weights are put where stage evaluate looks for the challenger's.

The stage's own command is run, in a folder of links to the workspace in which only `models/` and
`predictions/` are others. So what is compared differs in the weights alone, and the workspace is
left as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from flows.dvc_api.client import Runner, StageError
from flows.dvc_api.lock_file import read_locked_stages
from stages.core import layout
from stages.core.errors import InputError

FOLDER: Final = layout.SCRATCH / "flows" / "duel"
_OWN: Final = {layout.MODELS.name, layout.PREDICTIONS.name, layout.SCRATCH.name, ".git", ".dvc"}
"""What is not linked."""


class ChampionEvaluation:
    """Evaluates champions in one workspace; `stop` ends those that run and lets no other begin."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runner = Runner(root)

    @property
    def stopped(self) -> bool:
        """Was it told to stop."""
        return self._runner.stopped

    def weights(self, checkpoint: str) -> Path:
        """Where the champion's weights have to lie before `answer`."""
        return self.root / FOLDER / checkpoint / layout.model(checkpoint)

    def answer(
        self,
        checkpoint: str,
        report: Callable[[str], None],
        extra: Mapping[str, str] | None = None,
        inherit_fds: Iterable[int] = (),
    ) -> Path:
        """Run evaluate@<checkpoint> with the champion's weights; the path of its predictions.

        Lines go to `report`; `extra` and `inherit_fds` are as for a stage. StageError if it fails,
        StoppedError if it was stopped.
        """
        folder = self.root / FOLDER / checkpoint
        if not self.weights(checkpoint).is_dir():
            raise InputError(
                f"{self.weights(checkpoint)} is missing: fetch the champion's weights first"
            )
        try:
            command = read_locked_stages(self.root)[f"evaluate@{checkpoint}"].shell_command
        except KeyError:
            raise InputError(
                f"dvc.lock has no evaluate@{checkpoint}: run `dvc repro evaluate@{checkpoint}`"
            ) from None
        for entry in self.root.iterdir():
            if entry.name not in _OWN:
                link = folder / entry.name
                link.unlink(missing_ok=True)
                link.symlink_to(entry, target_is_directory=entry.is_dir())
        answers = folder / layout.predictions(checkpoint)
        answers.unlink(missing_ok=True)
        self._runner.watch(
            f"champion@{checkpoint}",
            ["sh", "-c", command],
            report,
            folder=folder,
            extra=extra,
            inherit_fds=inherit_fds,
        )
        if not answers.is_file():
            raise StageError(
                f"champion@{checkpoint}: `{command}` wrote no {layout.predictions(checkpoint)}"
            )
        return answers

    def clear(self) -> None:
        """Remove all weights and answers of champions that were put aside for comparing."""
        shutil.rmtree(self.root / FOLDER, ignore_errors=True)

    def stop(self) -> None:
        """End what runs; nothing begins any more."""
        self._runner.stop()
