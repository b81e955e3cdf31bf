"""DVC's Python objects of a workspace: opened only to read, without a process for each question.

Whatever changes a workspace goes through DVC's command line (`flows.dvc_api.client`) in a process
of its own: threads may not share a `dvc.repo.Repo`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stages.core.errors import InputError

if TYPE_CHECKING:
    from dvc.config import Config
    from dvc.repo import Repo

FOLDER: Final = ".dvc"
"""DVC's folder in a workspace."""


@contextlib.contextmanager
def open_repository(root: Path) -> Iterator[Repo]:
    """The repository at `root`, which is the process's working directory meanwhile.

    DVC names stages and resolves some paths from there. It waits for DVC's lock, and logs errors
    only, as its messages are about commands that nobody gave.
    """
    from dvc.repo import Repo

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.chdir(root), Repo(_wait_for_lock=True) as repo:
            yield repo
    finally:
        logger.setLevel(level)


def read_config(root: Path) -> dict[str, Any]:
    """DVC's settings in the workspace at `root`: section -> key -> value, relative paths resolved.

    Merged as by DVC from the system's, the user's, the repository's and the local file.
    `remote` has a section for each remote. InputError if a file cannot be parsed.
    """
    return dict(_open_config(root).read())


def cache_folder(root: Path) -> Path:
    """DVC's cache of stage outputs."""
    config = _open_config(root)
    return root / (config.read()["cache"].get("dir") or Path(str(config.dvc_dir), "cache"))


def write_config(root: Path, settings: dict[str, Any]) -> None:
    """Write settings, as `read_config` returns them, as the configuration of a new workspace."""
    from dvc.config import Config, merge

    folder = root / FOLDER
    folder.mkdir()
    with Config.init(str(folder)).edit(validate=False) as config:
        merge(config, settings)


def format_error(error: BaseException) -> str:
    """DVC's message, with its causes."""
    parts = []
    cause: BaseException | None = error
    while cause:
        parts.append(str(cause) or type(cause).__name__)
        cause = cause.__cause__
    return " - ".join(parts)


def _open_config(root: Path) -> Config:
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        # not validated, as by `dvc config`: a wrong value is reported by the command that needs it
        return Config(Repo.find_dvc_dir(str(root)), validate=False)
    except DvcException as error:
        raise InputError(
            f"DVC's configuration of {root} cannot be read: {format_error(error)}"
        ) from error
