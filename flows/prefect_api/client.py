"""Prefect's server, as programs of this project reach it."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil

from flows.dvc_api.client import end_processes
from stages.core.errors import InputError

ADDRESS = "PREFECT_API_URL"
PASSWORD = "PREFECT_API_AUTH_STRING"  # noqa: S105  (its name)
_EPHEMERAL = "PREFECT__SERVER_EPHEMERAL"
"""What Prefect puts into the environment of a server that is there for one process."""
_OWNER = "FLOW_SERVER_OWNER"
"""And what we do: the number of that process."""


def answers(variables: Mapping[str, str], seconds: float = 5.0) -> bool:
    """Does the server that these environment variables name answer, and let us in?"""
    request = Request(f"{variables[ADDRESS].rstrip('/')}/admin/version")  # noqa: S310  (the user's own setting)
    if password := variables.get(PASSWORD):
        request.add_header("Authorization", f"Basic {b64encode(password.encode()).decode()}")
    try:
        with urlopen(request, timeout=seconds):  # noqa: S310
            return True
    except HTTPError as error:
        if error.code in (401, 403):
            raise InputError(f"the Prefect server at {variables[ADDRESS]} asks for a password: set {PASSWORD} to user:password") from error
        return False
    except (URLError, OSError, ValueError):
        return False


def require_server() -> None:
    """InputError if PREFECT_API_URL names a server that does not answer; without it, flows of this process bring one of their own."""
    if not os.environ.get(ADDRESS):
        end_processes(left_servers())
        os.environ[_OWNER] = str(os.getpid())  # the server that Prefect starts inherits it
    elif not answers(os.environ):
        raise InputError(
            f"no Prefect server answers at {os.environ[ADDRESS]} ({ADDRESS}): start one with `make dashboard`, or unset it to run without"
        )


def left_servers() -> list[psutil.Process]:
    """Servers that flows brought, and that go on though their flow was killed."""
    found = []
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            if _EPHEMERAL in variables and _OWNER in variables and not _owned(process, int(variables[_OWNER])):
                found.append(process)
        except (psutil.Error, OSError, ValueError):
            continue
    return found


def _owned(server: psutil.Process, owner: int) -> bool:
    """Is the process that brought a server there: under its number, and not one that was given it later."""
    try:
        return psutil.Process(owner).create_time() <= server.create_time()
    except psutil.NoSuchProcess:
        return False
