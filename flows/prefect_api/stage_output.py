"""What a stage prints: to the log, to its progress artifact and to the display of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from flows.prefect_api.artifacts import ProgressArtifact
from stages.core.iteration import progress
from stages.core.iteration.progress import Progress, read_progress

OnProgress = Callable[[Progress], None]
"""Takes what a stage reports about its progress."""
LINE_SECONDS: Final = 30.0
"""Minimum time between two lines about the progress of one stage in the log."""
PROGRESS_RECORD: Final = {"is_progress": True}
"""Attributes of log records about progress, which a live display shows instead."""
ENVIRONMENT: Final = {progress.EVERY_VARIABLE: "2"}
"""Environment of a stage whose progress is displayed: a line every two seconds."""


class StageOutput:
    """Distributes the lines of one stage."""

    def __init__(
        self,
        logger: Any,
        artifact: ProgressArtifact,
        on_progress: OnProgress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`logger`: of the stage's task; `clock`: seconds."""
        self._logger = logger
        self._artifact = artifact
        self._on_progress = on_progress
        self._clock = clock
        self._last_line = clock()

    def write(self, line: str) -> None:
        """Log a line; of lines about progress one every `LINE_SECONDS`."""
        reported = read_progress(line)
        if reported is None:
            self._logger.info(line)
            return
        self._on_progress(reported)
        self._artifact.update(reported)
        if self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            self._logger.info(line, extra=PROGRESS_RECORD)

    def finish(self) -> None:
        """The stage has succeeded."""
        self._artifact.finish()
