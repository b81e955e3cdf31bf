"""Environment of Prefect in this project, the same for every entry point. Does not import Prefect.

Prefect reads its settings when it is imported: from the environment, and from the profile and
database in PREFECT_HOME, by default ~/.prefect. What a user keeps there for other projects, such as
a profile that names a server, must not decide how a flow of this one runs.
"""

from __future__ import annotations

import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from stages.core import layout
from stages.core.cores import available_cores
from stages.core.errors import InputError

HOME: Final = layout.SCRATCH / "prefect"
"""PREFECT_HOME of a workspace, unless the variable is set."""
ADDRESS: Final = "PREFECT_API_URL"
NO_TELEMETRY: Final = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
}
PATIENCE_S: Final = 120
"""Seconds that a temporary server may take to start on an idle machine."""
MAX_PATIENCE_S: Final = 900


def prefect_home(root: Path) -> Path:
    """PREFECT_HOME of flows and dashboard in this workspace."""
    return Path(os.environ.get("PREFECT_HOME") or (root / HOME).resolve())


def use_own_prefect(root: Path) -> None:
    """Set the environment of a flow that is started by hand; call before Prefect is imported.

    Without PREFECT_API_URL the flow starts a temporary server. Its database is named by Prefect's
    version, as an older version cannot open one that a newer version wrote. Variables that are set
    already stay. InputError if the folder cannot be written.
    """
    home = prefect_home(root)
    variables = {**NO_TELEMETRY, "PREFECT_HOME": str(home)}
    if not os.environ.get(ADDRESS):
        database = home / f"flows-{metadata.version('prefect')}.db"
        variables |= {
            # a profile may name a server that is gone; without one this flow starts its own
            "PREFECT_PROFILES_PATH": str(home / "flows.toml"),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(startup_seconds()),
        }
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise InputError(
            f"{home} cannot be written ({error.strerror}): set PREFECT_HOME to a folder that can"
        ) from error
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def startup_seconds() -> int:
    """Time that a temporary server may take to start: more on a machine with waiting processes."""
    waiting = os.getloadavg()[0] / available_cores()
    return min(round(PATIENCE_S * max(waiting, 1.0)), MAX_PATIENCE_S)
