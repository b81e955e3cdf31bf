"""Reader for dvc.lock: command and outputs of each stage at its last run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.dvc_files import Out, first_problem
from stages.core.errors import InputError
from stages.core.yaml_files import load_yaml, read_text

LOCK_FILE: Final = "dvc.lock"
_MARKERS: Final = ("<<<<<<< ", "=======", ">>>>>>> ")
_RESTORE: Final = f"restore the committed one: `git checkout HEAD -- {LOCK_FILE}`"


class LockedStage(BaseModel):
    """One entry of dvc.lock."""

    model_config = ConfigDict(frozen=True)

    cmd: str | list[str] = ""
    outs: tuple[Out, ...] = ()

    @property
    def shell_command(self) -> str:
        """The command, or all commands joined, for a shell."""
        return self.cmd if isinstance(self.cmd, str) else " && ".join(self.cmd)


class _LockFile(BaseModel):
    stages: dict[str, LockedStage] = Field(default_factory=dict)


def read_locked_stages(root: Path) -> dict[str, LockedStage]:
    """Stage -> its entry in dvc.lock; none if nothing has run yet.

    InputError, with the remedy, if the file is unreadable, has a git conflict, or is malformed.
    """
    path = root / LOCK_FILE
    try:
        text = read_text(path)
    except FileNotFoundError:
        return {}
    except (OSError, InputError) as error:
        raise InputError(f"{path} cannot be read ({error}): {_RESTORE}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(_MARKERS):
            raise InputError(
                f"{path}, line {number}: unresolved git conflict. Take either side whole, "
                f"`git checkout --ours {LOCK_FILE}` or `--theirs`, then `git add {LOCK_FILE}`: "
                "stages that do not match it are re-run, or taken from the run cache"
            )
    try:
        return _LockFile.model_validate(load_yaml(text, path) or {}).stages
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}: {_RESTORE}") from error
    except InputError as error:
        raise InputError(f"{error}: {_RESTORE}") from error
