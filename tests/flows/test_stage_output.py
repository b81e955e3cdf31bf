"""Lines of a stage: all in the log, except that those about progress are few."""

from __future__ import annotations

import logging

import pytest

from flows.dvc_api.graph import Stage
from flows.prefect_api.artifacts import ProgressArtifact
from flows.prefect_api.stage_output import LINE_SECONDS, StageOutput
from stages.core.iteration.progress import Progress


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Artifact(ProgressArtifact):
    """An artifact that publishes nothing."""

    def __init__(self) -> None:
        super().__init__(Stage("train@ct", "", (), (), 1, 1.0))
        self.updates: list[Progress] = []

    def update(self, progress: Progress) -> None:
        self.updates.append(progress)


def test_all_lines_are_logged_but_few_of_those_about_progress(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, artifact = Clock(), Artifact()
    reported: list[Progress] = []
    output = StageOutput(logging.getLogger("stage"), artifact, reported.append, clock)
    with caplog.at_level(logging.INFO, "stage"):
        for count in range(10):
            clock.now = count * LINE_SECONDS / 4
            output.write(f"ct: step {count} of 10, reward 0.50, 9 s to go")
            output.write(f"warning {count}")
    lines = caplog.messages
    assert [line for line in lines if line.startswith("warning")] == [
        f"warning {count}" for count in range(10)
    ]
    progress = [each for each in caplog.records if getattr(each, "is_progress", False)]
    assert [each.getMessage().split(",")[0] for each in progress] == [
        "ct: step 4 of 10",
        "ct: step 8 of 10",
    ]
    assert len(lines) == 12
    assert [each.done for each in reported] == list(range(10))
    assert artifact.updates == reported
    assert reported[-1].note == "reward 0.50"
