"""What tests of flows share: one Prefect server, and workspaces that DVC has run once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.flows import corpora
from tests.flows.tiny import make_workspace, run


class RunByDvc(Protocol):
    """`run_by_dvc(keys, *stages)`: a tiny workspace in which plain `dvc repro` has run them.

    Made once for the same arguments: copy it to change it. All stages by default.
    """

    def __call__(self, keys: tuple[str, ...] = ..., *stages: str) -> Path:
        """The workspace's root."""


@pytest.fixture(scope="session")
def run_by_dvc(tmp_path_factory: pytest.TempPathFactory) -> RunByDvc:
    """Tiny workspaces that were run, as templates and for comparison."""
    made: dict[tuple[object, ...], Path] = {}

    def workspace(keys: tuple[str, ...] = ("a", "b", "c"), *stages: str) -> Path:
        if (keys, stages) not in made:
            root = make_workspace(tmp_path_factory.mktemp("run") / "workspace", keys)
            run("dvc", "repro", *stages, cwd=root)
            made[keys, stages] = root
        return made[keys, stages]

    return workspace


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of `corpora` without a champion: copy it with `copy_workspace` to change it."""
    return corpora.make_workspace(tmp_path_factory.mktemp("pipeline") / "workspace")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the API of one Prefect server, for all tests that do not test servers.

    To start one takes more processor time than most flows.
    """
    # importing Prefect takes seconds, and most tests need none of it
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_DATABASE_CONNECTION_URL,
        temporary_settings,
    )

    database = tmp_path_factory.mktemp("prefect") / "server.db"
    # the instance that Prefect's own threads find, which know no settings of a test
    server = SubprocessASGIServer()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server.port = int(probe.getsockname()[1])
    url = f"sqlite+aiosqlite:///{database}"
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: url}):
        server.start(timeout=120)
    yield server.api_url
    # threads of this process may still have logs and events to send
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        APILogWorker.drain_all()
        EventsWorker.drain_all()
    server.stop()


@pytest.fixture(scope="module")
def prefect_api(prefect_server: str) -> Iterator[str]:
    """The shared server records the flows that a module's tests run in this process; its API."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield prefect_server
