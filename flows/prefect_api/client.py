"""Access to Prefect's server: whether it responds, and servers left by killed flows."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import psutil

from flows.dvc_api.processes import end_processes
from flows.prefect_api.environment import ADDRESS
from stages.core.errors import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

CLIENT_PASSWORD = "PREFECT_API_AUTH_STRING"  # noqa: S105  (name of a variable)
_EPHEMERAL = "PREFECT__SERVER_EPHEMERAL"
"""Set by Prefect in the environment of a server that serves one process."""
_OWNER = "FLOW_SERVER_OWNER"
"""Set by this project in the same environment: the id of that process."""


def server_responds(variables: Mapping[str, str], seconds: float = 5.0) -> bool:
    """Whether the Prefect server of these environment variables responds.

    Uses the proxies of the environment, except for a loopback address. InputError if the server
    requires a password, or rejects that of PREFECT_API_AUTH_STRING.
    """
    address = f"{variables[ADDRESS].rstrip('/')}/admin/version"
    user, _, password = variables.get(CLIENT_PASSWORD, "").partition(":")
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
            f"the Prefect server at {variables[ADDRESS]} requires a password: set"
            f" {CLIENT_PASSWORD} to user:password"
        )
    return reply.is_success


@contextmanager
def open_client(variables: Mapping[str, str]) -> Iterator[SyncPrefectClient]:
    """Prefect's client for the server of these environment variables, whatever this process has."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    address = {
        PREFECT_API_URL: variables[ADDRESS],
        PREFECT_API_AUTH_STRING: variables.get(CLIENT_PASSWORD),
    }
    with temporary_settings(address), get_client(sync_client=True) as client:
        yield client


def create_work_pools(client: SyncPrefectClient, names: Iterable[str]) -> None:
    """Create work pools of type process, or bring existing ones up to date.

    As `prefect work-pool create --overwrite` does, which takes seconds for each. InputError if the
    server refuses.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import PrefectException
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    for name in names:
        pool = WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template)
        try:
            client.create_work_pool(pool, overwrite=True)
        except (httpx.HTTPError, PrefectException) as error:
            raise InputError(f"the work pool {name!r} could not be created: {error}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_server() -> None:
    """Raise InputError if PREFECT_API_URL is set and its server does not respond.

    If it is not set, flows of this process start a server of their own; those that earlier, killed
    flows started are ended first.
    """
    if not os.environ.get(ADDRESS):
        end_processes(orphaned_servers())
        os.environ[_OWNER] = str(os.getpid())  # the server that Prefect starts inherits it
    elif not server_responds(os.environ):
        raise InputError(
            f"no Prefect server responds at {os.environ[ADDRESS]} ({ADDRESS}): start one with `make"
            f" dashboard`, or unset {ADDRESS} to run without one"
        )


def orphaned_servers() -> list[psutil.Process]:
    """Temporary servers that still run although the flow that started them was killed."""
    servers = []
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            is_temporary = _EPHEMERAL in variables and _OWNER in variables
            if is_temporary and not _has_owner(process, int(variables[_OWNER])):
                servers.append(process)
        except (psutil.Error, OSError, ValueError):
            continue
    return servers


def _has_owner(server: psutil.Process, owner: int) -> bool:
    """Whether the process that started a server still runs, and its id was not reused."""
    try:
        return psutil.Process(owner).create_time() <= server.create_time()
    except psutil.NoSuchProcess:
        return False
