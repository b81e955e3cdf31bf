"""Prefect's server, as programs of this project reach it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping

import httpx
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
    """Whether the Prefect server that these environment variables name answers.

    Proxies of the environment are used, but never for an address of this machine. InputError if the
    server refuses the user and password that PREFECT_API_AUTH_STRING gives, or asks for them.
    """
    address = f"{variables[ADDRESS].rstrip('/')}/admin/version"
    user, _, password = variables.get(PASSWORD, "").partition(":")
    try:
        reply = httpx.get(
            address,
            auth=(user, password) if user else None,
            timeout=seconds,
            follow_redirects=True,
            trust_env=not is_loopback(httpx.URL(address).host),
        )
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise InputError(
            f"the Prefect server at {variables[ADDRESS]} asks for a password: set {PASSWORD} to"
            " user:password"
        )
    return reply.is_success


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_server() -> None:
    """Raise InputError if PREFECT_API_URL names a server that does not answer.

    Without it, flows of this process start a server of their own.
    """
    if not os.environ.get(ADDRESS):
        end_processes(left_servers())
        os.environ[_OWNER] = str(os.getpid())  # the server that Prefect starts inherits it
    elif not answers(os.environ):
        raise InputError(
            f"no Prefect server answers at {os.environ[ADDRESS]} ({ADDRESS}): start one with `make"
            " dashboard`, or unset it to run without"
        )


def left_servers() -> list[psutil.Process]:
    """Servers that flows brought, and that go on though their flow was killed."""
    found = []
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            if (
                _EPHEMERAL in variables
                and _OWNER in variables
                and not _owned(process, int(variables[_OWNER]))
            ):
                found.append(process)
        except (psutil.Error, OSError, ValueError):
            continue
    return found


def _owned(server: psutil.Process, owner: int) -> bool:
    """Whether the process that started a server still runs, and its id was not reused."""
    try:
        return psutil.Process(owner).create_time() <= server.create_time()
    except psutil.NoSuchProcess:
        return False
