"""State of a Prefect server: version, runs it believes are running, slots it believes are used."""

from __future__ import annotations

import ast
import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import psutil

from flows.doctor.findings import Finding

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

SILENCE: Final = timedelta(minutes=15)
"""A run that gave no sign for so long is taken for dead; a live one sends a heartbeat every 3
minutes.
"""
_SECONDS: Final = 10.0
_WORKER: Final = "prefect.worker.name"
_CLOCKS: Final = timedelta(minutes=1)
"""By how much the server's clock may be behind this machine's."""


def server(silence: timedelta = SILENCE) -> list[Finding]:
    """All that can be asked of the server at PREFECT_API_URL.

    Where none is set, nothing is wrong.
    """
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    if not address:
        return [
            Finding(
                "Prefect server",
                "ok",
                "PREFECT_API_URL is not set: flows bring a server of their own",
            )
        ]
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException

    unusable = (
        HTTPError,
        PrefectException,
        RuntimeError,
        ValueError,
    )  # the last two: an answer that is not Prefect's
    with get_client(sync_client=True, httpx_settings={"timeout": _SECONDS}) as client:
        try:
            if (error := client.api_healthcheck()) is not None:
                return [_silent(address, error)]
            found = [_version(address, client.api_version())]
        except unusable as error:
            return [_silent(address, error)]
        try:
            return [*found, *zombies(client, silence), *leaked_slots(client)]
        except unusable as error:
            what = (
                f"the server refuses what it is asked ({type(error).__name__}), so its runs and"
                " slots are not known"
            )
            return [
                *found,
                Finding(
                    "flow runs",
                    "problem",
                    what,
                    "have server and client of one version, and look into the server's log",
                ),
            ]


def zombies(
    client: SyncPrefectClient, silence: timedelta = SILENCE, now: datetime | None = None
) -> list[Finding]:
    """Flow runs that the server believes are running although their process is gone or silent.

    `now`: the time of the server's clock; this machine's if None.
    """
    now = now or datetime.now(UTC)
    found = []
    alive = _active_runs(client, project_flows())
    for run in alive:
        if why := _is_gone(client, run, silence, now):
            found.append(
                Finding(
                    "flow runs",
                    "problem",
                    f"{run.name!r} ({run.id}) is {run.state_name} for the server, but {why}: it"
                    " will never end",
                    "have it marked as crashed: --fix",
                    partial(_crash, run, why),
                )
            )
    return found or [
        Finding(
            "flow runs",
            "ok",
            f"{len(alive)} unfinished, each with signs of life" if alive else "none is unfinished",
        )
    ]


def leaked_slots(client: SyncPrefectClient) -> list[Finding]:
    """Concurrency slots that the server takes for used though no run can be using them."""
    from prefect.client.schemas.objects import StateType

    leaks = []
    if not _active_runs(client, None):
        leaks += [
            (
                f"{limit.active_slots} of {limit.limit} slots of {limit.name!r}",
                f"prefect gcl update {limit.name} --active-slots 0",
            )
            for limit in client.read_global_concurrency_limits(limit=200, offset=0)
            if limit.active_slots
        ]
    for tag in client.read_concurrency_limits(limit=200, offset=0):
        gone = [
            each
            for each in tag.active_slots
            if client.read_task_run(each).state_type != StateType.RUNNING
        ]
        if gone:
            leaks.append(
                (
                    f"{len(gone)} of {tag.concurrency_limit} slots of tag {tag.tag!r}",
                    f"prefect concurrency-limit reset {tag.tag}",
                )
            )
    return [
        Finding(
            "Prefect slots",
            "warning",
            f"{what} are used by no run; new runs wait until they expire, if they do",
            remedy,
        )
        for what, remedy in leaks
    ] or [Finding("Prefect slots", "ok", "none is held by a run that is over")]


def worker_name(pool: str, number: int) -> str:
    """The prefix of this project's worker names, as in infra/worker.sh: pool, host, process id."""
    return f"{pool}-{socket.gethostname()}-{number}"


def project_flows(folder: Path = Path(__file__).parents[1]) -> list[str]:
    """Names of the flows that this project's code defines."""
    names = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in (
                node.decorator_list
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                else ()
            ):
                call = decorator if isinstance(decorator, ast.Call) else None
                if (
                    isinstance(target := call.func if call else decorator, ast.Name)
                    and target.id == "flow"
                ):
                    given = [
                        word.value.value
                        for word in (call.keywords if call else [])
                        if word.arg == "name" and isinstance(word.value, ast.Constant)
                    ]
                    names.append(str(given[0]) if given else node.name.replace("_", "-"))  # type: ignore[attr-defined]
    return names


def _active_runs(client: SyncPrefectClient, flows: Sequence[str] | None) -> list[FlowRun]:
    """Unfinished runs that have begun, of the named flows or of all."""
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_filter=(
            FlowFilter(name=FlowFilterName(any_=list(flows))) if flows is not None else None
        ),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
        ),
        limit=200,
    )


def _is_gone(client: SyncPrefectClient, run: FlowRun, silence: timedelta, now: datetime) -> str:
    """Why a run must be dead; empty if it may be alive."""
    host, _, number = (run.infrastructure_pid or "").rpartition(":")
    # a worker of a process pool gives the number alone
    if number.isdecimal() and (
        host == socket.gethostname()
        or (not host and _is_of_this_host(str(run.labels.get(_WORKER))))
    ):
        return (
            "" if may_be_process(int(number), run.start_time) else f"its process {number} is gone"
        )
    last = _last_sign(client, run, now)
    quiet = now - last
    return (
        f"it gave no sign of life for {quiet.total_seconds() / 60:.0f} minutes"
        if quiet > silence
        else ""
    )


def _is_of_this_host(worker: str) -> bool:
    return bool(re.fullmatch(rf"\w+-{re.escape(socket.gethostname())}-\d+", worker))


def may_be_process(number: int, begun: datetime | None) -> bool:
    """Is there a process of this number that may be the one that began then?

    After a restart another can have the number.
    """
    try:
        born = datetime.fromtimestamp(psutil.Process(number).create_time(), UTC)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    return begun is None or born <= begun + _CLOCKS


def _last_sign(client: SyncPrefectClient, run: FlowRun, now: datetime) -> datetime:
    """When a run last changed its state, sent a heartbeat, or logged a line."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.client.schemas.sorting import LogSort
    from prefect.events.filters import (
        EventFilter,
        EventOccurredFilter,
        EventOrder,
        EventResourceFilter,
    )

    signs = [
        each
        for each in (
            run.state.timestamp if run.state else None,
            run.start_time,
            run.expected_start_time,
        )
        if each
    ]
    logs = client.read_logs(
        LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])),
        limit=1,
        sort=LogSort.TIMESTAMP_DESC,
    )
    signs += [log.timestamp for log in logs]
    about = EventFilter(
        # the server's clock may be ahead of this one, by which the filter would end at now
        occurred=EventOccurredFilter.model_validate({"until": now + timedelta(days=1)}),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        order=EventOrder.DESC,
    )
    signs += [event.occurred for event in client.read_events(about, limit=1).events]
    return max(signs)


def _crash(run: FlowRun, why: str) -> str:
    """Mark a flow run and its task runs as crashed, which frees slots and waiting runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        TaskRunFilter,
        TaskRunFilterState,
        TaskRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    state: Any = Crashed(message=f"Marked by the doctor: {why}")
    unfinished = TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
            task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=unfinished)),
            limit=200,
        )
        for task in tasks:
            client.set_task_run_state(task.id, state, force=True)
        client.set_flow_run_state(run.id, state, force=True)
    return f"marked {run.name!r} and {len(tasks)} of its tasks as crashed"


def _version(address: str, theirs: str) -> Finding:
    from prefect import __version__ as ours

    what = f"{_shown(address)} answers, version {theirs}; this is {ours}"
    if theirs == ours:
        return Finding("Prefect server", "ok", what)
    same_minor = theirs.split(".")[:2] == ours.split(".")[:2]
    remedy = f"run the server with prefect {ours}: make install there, then restart it"
    return Finding(
        "Prefect server",
        "warning" if same_minor else "problem",
        f"{what}: requests may be refused",
        remedy,
    )


def _silent(address: str, error: Exception) -> Finding:
    if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
        what, remedy = (
            "which refuses this user",
            "set PREFECT_API_AUTH_STRING to what the server was started with",
        )
    else:
        what, remedy = (
            f"where no Prefect answers ({type(error).__name__})",
            "start it, or unset PREFECT_API_URL to run without one",
        )
    return Finding(
        "Prefect server",
        "problem",
        f"PREFECT_API_URL is {_shown(address)}, {what}: no flow can begin",
        remedy,
    )


def _shown(address: str) -> str:
    """An address without the password that may stand in it."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
