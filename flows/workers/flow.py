"""The pipeline on several hosts: GPU stages on workers, other stages and all results here.

    med-r1 workers                           all of it
    med-r1 workers --only 'train@*'          these and what they need

A worker is `CUDA_VISIBLE_DEVICES=0 prefect worker start --pool gpu --limit 1`, one a GPU, on any
host that reaches Prefect's server, the git repository and the DVC remote. It clones the commit,
pulls the stage's inputs, runs it, and pushes the outputs with DVC's run-cache; this workspace then
replays the stage from there, and never computes it. docs/hosts.md says how to set it up.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from httpx import HTTPError
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed
from prefect.types import KeyValueLabels

from flows.dvc_api.client import Runner, StageError, StoppedError
from flows.dvc_api.graph import Graph, Stage, read_graph
from flows.reproduce import THREADS, ExecutionSite, Summary, bring_up_to_date, run_here, summarize
from flows.scheduling import durations
from flows.scheduling.schedule import Capacity, StageResult, StagesFailedError
from flows.scheduling.slots import Slots, find_slots
from flows.workers import checkout as clones
from flows.workers.remote_inputs import CodeSource, RemoteInputs, check
from stages.core.errors import ExitCode, InputError
from stages.core.provenance import collect_provenance

DEPLOYMENT: Final = "run-stage-on-worker/gpu"
AT_ONCE: Final = 48
"""GPUs that stages sent out may ask for together; how many run is decided by how many workers there
are.
"""
EVERY: Final = 2.0
"""Seconds between two looks at a stage that a worker has."""
PATIENCE: Final = 600.0
"""Seconds for which the server may be silent while a worker runs a stage."""
_UNFINISHED: Final = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


@flow(name="run-stage-on-worker", flow_run_name="{stage}")
def run_stage_on_worker(
    stage: str,
    repository: str,
    commit: str,
    inputs: dict[str, dict[str, Any]],
    versions: dict[str, str | None] | None = None,
) -> State[Any]:
    """Run one stage in this worker's clone and push its outputs to the shared DVC remote.

    Args:
        stage: As dvc.yaml names it, train@ct.
        repository: Git repository to clone, as this host reaches it.
        commit: Full id of the commit to run.
        inputs: Stage that makes an input -> its entry of dvc.lock.
        versions: Of the packages a result depends on, at the flow; differences here are warned of.
    """
    logger = get_run_logger()
    ours = collect_provenance({})["versions"]
    for name, version in (versions or {}).items():
        if version != ours.get(name):
            logger.warning(
                f"{name} is {ours.get(name)} here, {version} where the flow runs: results may"
                " differ in their last digits"
            )
    try:
        with clones.claim(repository, stage) as clone:
            logger.info(f"commit {commit[:12]} in {clone.root}")
            clones.check_out(clone, repository, commit)
            graph = read_graph(clone.root)
            (name,) = graph.select([stage])
            clones.pull_inputs(clone, graph, graph.stages[name], inputs)
            clones.clear_run_cache(clone)
            result = _run(clone, graph.stages[name])
            if result.state == "failed":
                logger.error(result.message)
                if result.code is not None:
                    _set_labels(code=int(result.code))
                return Failed(message=result.message.splitlines()[0])
            clones.push_result(clone, name)
            where = f"{socket.gethostname()}, {clone.root}"
            _set_labels(seconds=result.seconds, where=where)
            return Completed(name="Ran", message=f"{result.seconds:.1f} s on {where}")
    except InputError as error:
        return Failed(message=str(error))


def _set_labels(**labels: int | float | str) -> None:
    """Label this flow run with values for the host that waits for it; Prefect keeps label types."""
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(flow_run.id), labels)


def _run(clone: clones.Clone, stage: Stage) -> StageResult:
    runner = Runner(clone.root)
    try:
        return run_here(
            runner,
            stage,
            "sent by reproduce-on-workers",
            find_slots(clone.root),
            inherit_fds=[clone.lock_fd],
        )
    finally:
        runner.stop()


def _name_run() -> str:
    from prefect.runtime import flow_run

    only = flow_run.parameters.get("only")
    return f"reproduce on workers {', '.join(only) if only else 'everything'}"


@flow(name="reproduce-on-workers", flow_run_name=_name_run, task_runner=THREADS)  # type: ignore[arg-type]
def reproduce_on_workers(
    only: list[str] | None = None,
    repository: str | None = None,
    deployment: str = DEPLOYMENT,
    root: str | None = None,
) -> Summary:
    """Run every stale stage when its dependencies are done: GPU stages on workers, the others here.

    Args:
        only: Stages to bring up to date with all they need, by name, group or glob: train@ct,
            evaluate, train@*. Default: all.
        repository: Git repository that workers clone; this workspace's origin if left out.
        deployment: Of the flow run-stage-on-worker, "flow/deployment".
        root: Folder of the workspace; the current one if left out.
    """
    workspace = Path(root or Path.cwd()).resolve()
    try:
        graph = read_graph(workspace)
        asked = graph.upstream(graph.select(only)) if only else set(graph.stages)
        source = check(
            workspace, graph, [name for name in asked if graph.stages[name].gpus], repository
        )
        sender = Sender(workspace, graph, source, _find(deployment))
        place = ExecutionSite(
            Capacity(AT_ONCE, max(os.cpu_count() or 1, 1)),
            f"on workers of {deployment}",
            sender.run,
        )
        return bring_up_to_date(workspace, only, place)
    except (InputError, StagesFailedError) as error:  # what a person can mend needs no traceback
        return Failed(message=str(error), data=error)  # type: ignore[return-value]  # the caller of the flow gets the error


def _find(deployment: str) -> DeploymentResponse:
    """The deployment that stages are sent to.

    InputError if there is none; a warning if no worker is there to take them.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError) as error:
            raise InputError(
                f"the server knows no deployment {deployment!r}: `make dashboard` registers it, or "
                "`prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml`"
            ) from error
        pool = found.work_pool_name
        if not pool:
            raise InputError(
                f"the deployment {deployment!r} has no work pool: deploy it to one of type process"
            )
        if not any(
            worker.status == WorkerStatus.ONLINE
            for worker in client.read_workers_for_work_pool(pool)
        ):
            get_run_logger().warning(
                "no worker takes stages yet: on each host, for each GPU, prefect worker start"
                f" --pool {pool} --limit 1"
            )
        return found


class Sender:
    """Dispatch GPU stages of a workspace to workers and collect their results.

    Run the others here.
    """

    def __init__(
        self, root: Path, graph: Graph, source: CodeSource, deployment: DeploymentResponse
    ) -> None:
        self._graph = graph
        self._source = source
        self._deployment = deployment
        self._inventory = RemoteInputs(root, graph)
        self._versions = collect_provenance({})["versions"]

    def run(self, runner: Runner, stage: Stage, why: str) -> StageResult:
        """One stage to its end, wherever it runs. Called from a task's thread."""
        if not stage.gpus:
            return run_here(runner, stage, why, Slots((), runner.root, False))
        logger = get_run_logger()
        logger.info(f"{stage.description or stage.name} ({why})")
        try:
            start = time.monotonic()
            if _replay(runner, stage):
                logger.info("made before of the same inputs: taken from the run-cache")
                return StageResult(stage.name, "cached", time.monotonic() - start)
            inputs = self._inventory.push(stage)
            parameters = {
                "stage": stage.name,
                "repository": self._source.repository,
                "commit": self._source.commit,
                "inputs": inputs,
                "versions": self._versions,
            }
            labels, ended = self._await(runner, stage, self._send(stage, parameters))
            if not ended.is_completed():
                why = (ended.message or "without a word").removeprefix(f"{stage.name} failed: ")
                message = (
                    f"{stage.name} failed: its run on a worker {_HOW.get(ended.type, ended.name)}:"
                    f" {why}"
                )
                raise StageError(message, _code_of(labels))
            # a second look: an entry of the run-cache can be half written when it is read first
            if not (_replay(runner, stage) or _replay(runner, stage)):
                raise StageError(
                    f"{stage.name} failed: a worker has run it, but of other inputs than are here"
                    f" now: something was changed meanwhile (`dvc status {stage.name}`). Nothing"
                    " was computed here; commit or take back the change and run again"
                )
        except StoppedError as error:
            return StageResult(stage.name, "stopped", message=str(error))
        except (StageError, InputError) as error:
            logger.error(str(error))
            return StageResult(stage.name, "failed", message=str(error), code=error.code)
        except (HTTPError, PrefectException) as error:
            why = (
                f"{stage.name} failed: it could not be sent to a worker, for the server does not"
                f" answer as it should ({error!r}). Run again"
            )
            logger.error(why)
            return StageResult(stage.name, "failed", message=why)
        self._inventory.has(stage.name)
        seconds, where = labels.get("seconds"), labels.get("where")
        if not isinstance(seconds, int | float):
            return StageResult(stage.name, "ran")
        durations.record(runner.root, stage.name, seconds)
        return StageResult(stage.name, "ran", seconds, f"on {where}")

    def _send(self, stage: Stage, parameters: dict[str, Any]) -> UUID:
        """Start a worker run of the stage, or adopt one that an earlier flow abandoned."""
        logger = get_run_logger()
        unfinished = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED))
        )
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[self._deployment.id]))
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(
                deployment_filter=ours, flow_run_filter=unfinished, limit=200
            ):
                if run.parameters == parameters:
                    logger.info(
                        f"an earlier flow has sent it already, as run {run.name} ({run.id})"
                    )
                    return run.id
        sent = run_deployment(
            self._deployment.id,
            parameters=parameters,
            timeout=0,
            flow_run_name=stage.name,
            tags=[stage.group, "gpu"],
        )
        assert isinstance(sent, FlowRun)  # nothing to await in a thread
        logger.info(
            f"sent to the workers of pool {self._deployment.work_pool_name} as run {sent.name}"
            f" ({sent.id})"
        )
        return sent.id

    def _await(self, runner: Runner, stage: Stage, run: UUID) -> tuple[KeyValueLabels, State[Any]]:
        """The labels of a worker's run, and how it ended.

        StoppedError if the flow was stopped: then the run is, too. StageError if the server is
        gone.
        """
        logger = get_run_logger()
        heard, said = time.monotonic(), ""
        with get_client(sync_client=True) as client:
            while True:
                try:
                    if runner.stopped:
                        client.set_flow_run_state(run, State(type=StateType.CANCELLING))
                        raise StoppedError(
                            f"{stage.name} was stopped; what it had kept is used when it runs again"
                            " in the same clone"
                        )
                    found = client.read_flow_run(run)
                    state = found.state
                    heard = time.monotonic()
                except (HTTPError, PrefectException) as error:
                    if time.monotonic() - heard > PATIENCE:
                        raise StageError(
                            f"{stage.name} failed: for {PATIENCE / 60:.0f} minutes the server has"
                            f" not told how it goes ({error!r}). Its worker may still finish it:"
                            " start the server, then run again"
                        ) from error
                    state = None
                if state is not None:
                    if state.is_final():
                        return found.labels, state
                    if state.name != said:
                        said = str(state.name)
                        logger.info(
                            {"Running": "a worker runs it", "Late": "no worker is free yet"}.get(
                                said, said.lower()
                            )
                        )
                time.sleep(EVERY)


_HOW: Final = {
    StateType.FAILED: "failed",
    StateType.CRASHED: "crashed",
    StateType.CANCELLED: "was cancelled",
}


def _code_of(labels: KeyValueLabels) -> ExitCode | None:
    code = labels.get("code")
    return next((known for known in ExitCode if known == code), None)


def _replay(runner: Runner, stage: Stage) -> bool:
    """Take a stage's outputs from the run-cache, here or in the remote; False if it is in neither.

    It is never computed here.

    StageError if DVC fails for another reason.
    """
    # DVC runs commands by the user's shell: one that refuses
    refuses = {"SHELL": shutil.which("false") or "/bin/false"}
    try:
        runner.run(stage.name, lambda line: None, extra=refuses, options=["--pull"])
    except StageError as error:
        if not error.began:
            raise
        return False
    return True


def run(only: list[str] | None, repository: str | None, deployment: str) -> int:
    """Run the flow in the working directory and print how each stage ended; the exit code.

    InputError without a server.
    """
    if not PREFECT_API_URL.value():
        raise InputError(
            "PREFECT_API_URL is not set: workers and this flow meet at a server (docs/hosts.md)"
        )
    return summarize(
        lambda: reproduce_on_workers(only=only, repository=repository, deployment=deployment)
    )
