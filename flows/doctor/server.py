"""State of a Prefect server: version, dead runs, leaked concurrency slots."""

from __future__ import annotations

import ast
import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import psutil

from flows.doctor.findings import Finding

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

SILENCE: Final = timedelta(minutes=15)
"""Time without a sign of life after which a run counts as dead; a live run sends a heartbeat every
3 minutes.
"""
_TIMEOUT_SECONDS: Final = 10.0
_WORKER: Final = "prefect.worker.name"
_CLOCK_SKEW: Final = timedelta(minutes=1)
"""By how much the server's clock may be behind this machine's."""


def server(silence: timedelta = SILENCE) -> list[Finding]:
    """Version, dead runs and leaked slots of the server at PREFECT_API_URL; ok if none is set."""
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    if not address:
        what = "PREFECT_API_URL is not set: flows start a server of their own"
        return [Finding("Prefect server", "ok", what)]
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException

    # RuntimeError and ValueError: the server is not Prefect's, or answers in another format
    unusable = (HTTPError, PrefectException, RuntimeError, ValueError)
    with get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT_SECONDS}) as client:
        try:
            if (error := client.api_healthcheck()) is not None:
                return [_unreachable(address, error)]
            version = _version(address, client.api_version())
        except unusable as error:
            return [_unreachable(address, error)]
        try:
            return [version, *zombies(client, silence), *leaked_slots(client)]
        except unusable as error:
            what = (
                f"the server refuses requests ({type(error).__name__}): its runs and slots are"
                " unknown"
            )
            remedy = "use the same version for server and client, and check the server's log"
            return [version, Finding("flow runs", "problem", what, remedy)]


def zombies(
    client: SyncPrefectClient, silence: timedelta = SILENCE, now: datetime | None = None
) -> list[Finding]:
    """Flow runs that are unfinished for the server although their process is gone or silent.

    `now`: the time of the server's clock; this machine's if None.
    """
    now = now or datetime.now(UTC)
    problems = []
    active = _active_runs(client, project_flows())
    for run in active:
        if why := _cause_of_death(client, run, silence, now):
            problems.append(
                Finding(
                    "flow runs",
                    "problem",
                    f"{run.name!r} ({run.id}) is {run.state_name} for the server, but {why}: it"
                    " will never end",
                    "mark it as crashed: --fix",
                    partial(_crash, run, why),
                )
            )
    what = f"{len(active)} unfinished, each with signs of life" if active else "none is unfinished"
    return problems or [Finding("flow runs", "ok", what)]


def leaked_slots(client: SyncPrefectClient) -> list[Finding]:
    """Concurrency slots that are in use for the server although no run can be using them."""
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
        leaked = [
            each
            for each in tag.active_slots
            if client.read_task_run(each).state_type != StateType.RUNNING
        ]
        if leaked:
            leaks.append(
                (
                    f"{len(leaked)} of {tag.concurrency_limit} slots of tag {tag.tag!r}",
                    f"prefect concurrency-limit reset {tag.tag}",
                )
            )
    return [
        Finding(
            "Prefect slots",
            "warning",
            f"{what} are used by no run; new runs wait until they expire, if ever",
            remedy,
        )
        for what, remedy in leaks
    ] or [Finding("Prefect slots", "ok", "none is held by a finished run")]


def worker_name(pool: str, pid: int) -> str:
    """The prefix of this project's worker names, as in infra/worker.sh: pool, host, process id."""
    return f"{pool}-{socket.gethostname()}-{pid}"


def project_flows(folder: Path = Path(__file__).parents[1]) -> list[str]:
    """Names of the flows that this project's code defines."""
    names: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names += filter(None, map(_flow_name, repeat(node), node.decorator_list))
    return names


def _flow_name(function: ast.FunctionDef | ast.AsyncFunctionDef, decorator: ast.expr) -> str | None:
    """Name that `@flow` or `@flow(name=...)` gives a function; None for another decorator."""
    call = decorator if isinstance(decorator, ast.Call) else None
    target = call.func if call else decorator
    if not (isinstance(target, ast.Name) and target.id == "flow"):
        return None
    for keyword in call.keywords if call else []:
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return function.name.replace("_", "-")


def _active_runs(client: SyncPrefectClient, flows: Sequence[str] | None) -> list[FlowRun]:
    """Unfinished runs that have started, of the named flows or of all."""
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


def _cause_of_death(
    client: SyncPrefectClient, run: FlowRun, silence: timedelta, now: datetime
) -> str:
    """Why a run must be dead; empty if it may be alive."""
    host, _, pid = (run.infrastructure_pid or "").rpartition(":")
    if pid.isdecimal() and _is_local(host, run):
        alive = may_be_same_process(int(pid), run.start_time)
        return "" if alive else f"its process {pid} is gone"
    quiet = now - _last_sign(client, run, now)
    if quiet <= silence:
        return ""
    return f"it gave no sign of life for {quiet.total_seconds() / 60:.0f} minutes"


def _is_local(host: str, run: FlowRun) -> bool:
    """Whether a run is on this host.

    A worker of a process pool records process ids without a host: its own name has the host.
    """
    if host:
        return host == socket.gethostname()
    worker = str(run.labels.get(_WORKER))
    return bool(re.fullmatch(rf"\w+-{re.escape(socket.gethostname())}-\d+", worker))


def may_be_same_process(pid: int, run_start: datetime | None) -> bool:
    """Whether the process with this id may have started a run then: ids are reused."""
    try:
        created = datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    return run_start is None or created <= run_start + _CLOCK_SKEW


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

    changed = run.state.timestamp if run.state else None
    signs = [each for each in (changed, run.start_time, run.expected_start_time) if each]
    logs = client.read_logs(
        LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])),
        limit=1,
        sort=LogSort.TIMESTAMP_DESC,
    )
    signs += [log.timestamp for log in logs]
    about = EventFilter(
        # the server's clock may be ahead, and the default end of the filter is this machine's now
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

    what = f"{_without_password(address)} answers, version {theirs}; this is {ours}"
    if theirs == ours:
        return Finding("Prefect server", "ok", what)
    same_minor = theirs.split(".")[:2] == ours.split(".")[:2]
    remedy = f"run the server with prefect {ours}: `make install` there, then restart it"
    return Finding(
        "Prefect server",
        "warning" if same_minor else "problem",
        f"{what}: requests may be refused",
        remedy,
    )


def _unreachable(address: str, error: Exception) -> Finding:
    if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
        cause = "which refuses this user"
        remedy = "set PREFECT_API_AUTH_STRING to what the server was started with"
    else:
        cause = f"where no Prefect answers ({type(error).__name__})"
        remedy = "start it, or unset PREFECT_API_URL to run without one"
    return Finding(
        "Prefect server",
        "problem",
        f"PREFECT_API_URL is {_without_password(address)}, {cause}: no flow can start",
        remedy,
    )


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
