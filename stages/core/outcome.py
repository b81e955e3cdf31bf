"""Outcome file of a stage process, `{"code", "message", "run"}`, for flows and launchers.

DVC exits with 255 whatever its stage exits with, so the stage itself writes its exit code
(`stages.core.errors.ExitCode`):

- under DVC, or a flow, to `.scratch/outcomes/<stage>.json`, the stage named by DVC_STAGE;
- as a rank that torchrun's launcher started, to the launcher's file (TORCHELASTIC_ERROR_FILE);
- run by hand, nowhere.

A file of an earlier run is never taken for one of this run: the flow puts a new token into the
environment of each run (MED_R1_RUN), the stage writes it beside the code, and the flow reads a file
with its own token only.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.core import layout
from stages.core.errors import ExitCode
from stages.core.outputs import write_json

STAGE: Final = "DVC_STAGE"
"""Environment variable: the name of the stage, as DVC sets it for a stage's command."""
RUN: Final = "MED_R1_RUN"
"""Environment variable: the token of this run."""
_LAUNCHED: Final = "TORCHELASTIC_ERROR_FILE"


@dataclass(frozen=True)
class StageOutcome:
    """How a stage process ended, and why if not well."""

    code: ExitCode
    message: str = ""


def outcome_path(root: Path, stage: str) -> Path:
    """The file that holds the outcome of a stage in a workspace."""
    return root / layout.SCRATCH / "outcomes" / f"{stage.replace('/', '-')}.json"


def write_outcome(outcome: StageOutcome) -> None:
    """Write the outcome of this process to where somebody reads it.

    Never raises OSError: an outcome must not hide the error it reports.
    """
    if launched := os.environ.get(_LAUNCHED):
        path = Path(launched)
    elif stage := os.environ.get(STAGE):
        path = outcome_path(Path(), stage)
    else:
        return
    content = {
        "code": int(outcome.code),
        "message": outcome.message,
        "run": os.environ.get(RUN, ""),
    }
    try:
        write_json(path, content)
    except OSError:
        # a full disk has no room for a second file, but the first one can be written over
        with suppress(OSError):
            path.write_text(json.dumps(content), encoding="utf-8")


def read_outcome(root: Path, stage: str, run: str) -> StageOutcome | None:
    """The outcome written by the run with this token; None if it is missing or unreadable."""
    try:
        content = json.loads(outcome_path(root, stage).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        parse_outcome(content) if isinstance(content, dict) and content.get("run") == run else None
    )


def parse_outcome(content: object) -> StageOutcome | None:
    """The outcome in the content of such a file; None if it is not one."""
    if not isinstance(content, dict):
        return None
    code, message = content.get("code"), content.get("message")
    if not isinstance(message, str) or code not in list(ExitCode):
        return None
    return StageOutcome(ExitCode(code), message)
