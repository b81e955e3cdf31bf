"""Start servers of preloaded libraries, and stages with and without one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from stages.core.distributed.handover import PRELOADED
from tests.workspaces import REPOSITORY

COMMAND = (sys.executable, "-m", "stages.core.distributed.preloaded")


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    socket: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=lambda: environment(None, {}))
    """That it was started with, and stages must have."""

    def forks(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def serving(folder: Path, *libraries: str, **variables: str) -> Iterator[Server]:
    """A server whose socket exists; `folder` is short, or no socket could lie in it."""
    folder.mkdir(parents=True)
    own = environment(None, variables)
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*COMMAND, str(folder / "socket"), *libraries],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            env=own,
            stdout=log,
            stderr=log,
            start_new_session=True,
            text=True,
        )
    server = Server(process, folder / "socket", folder / "log", own)
    with process:
        until(lambda: server.socket.exists() or process.poll() is not None)
        try:
            yield server
        finally:
            process.kill()


def start(
    folder: Path, *arguments: str, server: Server | None = None, **variables: str
) -> subprocess.Popen[str]:
    """`python -m stages.ARGUMENTS` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{arguments[0]}", *arguments[1:]],
        cwd=folder,
        env=environment(server, variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(server: Server | None, variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, or the server's with its socket, and `variables`."""
    if server:
        return {**server.environment, PRELOADED: str(server.socket), **variables}
    # the first changes between a fixture and its test; what is buffered must not be lost either
    left_out = ("PYTEST_CURRENT_TEST", "PYTHONUNBUFFERED")
    own = {name: value for name, value in os.environ.items() if name not in left_out}
    return own | dict(variables)


def finish(
    folder: Path,
    *arguments: str,
    server: Server | None = None,
    given: str = "",
    **variables: str,
) -> tuple[int, str, str]:
    """Exit code, output and errors of a stage."""
    process = start(folder, *arguments, server=server, **variables)
    out, err = process.communicate(given, timeout=300)
    return process.returncode, out, err


def kill(process: subprocess.Popen[str], server: Server) -> None:
    """SIGKILL a stage that runs in the only fork of `server`; returns when its fork has ended."""
    assert server.forks(), "the stage does its own work"
    process.kill()
    process.communicate()
    until(lambda: not server.forks())


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
