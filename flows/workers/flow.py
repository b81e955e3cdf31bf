"""The pipeline on several hosts: GPU stages on workers, other stages and all results here.

    med-r1 workers                           everything
    med-r1 workers --only 'train@*'          these stages and their dependencies

A worker is `CUDA_VISIBLE_DEVICES=0 prefect worker start --pool gpu --limit 1`, one per GPU, on any
host that reaches Prefect's server, the git repository and the DVC remote. It clones the commit,
pulls the stage's inputs, runs it, and pushes the outputs with DVC's run-cache. This workspace then
replays the stage from the run-cache and never computes it. Setup: docs/hosts.md.
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

from flows.dvc_api.graph import Graph, Stage, read_graph
from flows.dvc_api.runner import Runner, StageError, StoppedError
from flows.prefect_api.stage_output import OnProgress
from flows.reproduce import (
    THREADS,
    ExecutionSite,
    Summary,
    bring_up_to_date,
    run_locally,
    summarize,
)
from flows.scheduling import durations
from flows.scheduling.schedule import Capacity, StageResult, StagesFailedError
from flows.scheduling.slots import Slots, find_slots
from flows.workers import checkout as clones
from flows.workers.remote_inputs import CodeSource, RemoteInputs, check
from stages.core.errors import ExitCode, InputError
from stages.core.provenance import collect_provenance

DEPLOYMENT: Final = "run-stage-on-worker/gpu"
MAX_GPUS_SENT: Final = 48
"""Upper limit on the GPUs of all stages sent out; the number of workers decides how many run."""
POLL_SECONDS: Final = 2.0
"""Time between two queries of a worker run's state."""
SERVER_TIMEOUT_S: Final = 600.0
"""How long the server may be unreachable while a worker runs a stage."""
_UNFINISHED: Final = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


@flow(name="run-stage-on-worker", flow_run_name="{stage}")
def run_stage_on_worker(
    stage: str,
    repository: str,
    commit: str,
    inputs: dict[str, dict[str, Any]],
    versions: dict[str, str | None] | None = None,
    slots_per_gpu: int = 1,
) -> State[Any]:
    """Run one stage in this worker's clone and push its outputs to the shared DVC remote.

    Args:
        stage: Name in dvc.yaml, such as train@ct.
        repository: Git repository to clone, under an address that this host can reach.
        commit: Full id of the commit to run.
        inputs: Stage that produces an input -> its entry in dvc.lock.
        versions: Package versions on the flow's host; a warning is logged where ours differ.
        slots_per_gpu: Stages that share a GPU of this host, each with its part of the memory.
    """
    logger = get_run_logger()
    local_versions = collect_provenance({})["versions"]
    for name, version in (versions or {}).items():
        if version != local_versions.get(name):
            logger.warning(
                f"{name} is {local_versions.get(name)} here, {version} where the flow runs:"
                " results may differ in their last digits"
            )
    try:
        with clones.claim(repository, stage) as clone:
            logger.info(f"commit {commit[:12]} in {clone.root}")
            clones.check_out(clone, repository, commit)
            graph = read_graph(clone.root)
            (name,) = graph.select([stage])
            clones.pull_inputs(clone, graph, graph.stages[name], inputs)
            clones.clear_run_cache(clone)
            result = _run(clone, graph.stages[name], slots_per_gpu)
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
    """Label this flow run with values for the waiting host; labels retain their types."""
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(flow_run.id), labels)


def _run(clone: clones.Clone, stage: Stage, slots_per_gpu: int) -> StageResult:
    runner = Runner(clone.root)
    try:
        return run_locally(
            runner,
            stage,
            "sent by reproduce-on-workers",
            find_slots(clone.root, slots_per_gpu=slots_per_gpu),
            lambda progress: None,
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
    slots_per_gpu: int = 1,
) -> Summary:
    """Run every stale stage when its dependencies are done: GPU stages on workers, the others here.

    Args:
        only: Stages to bring up to date with their dependencies, by name, group or glob: train@ct,
            evaluate, train@*. Default: all.
        repository: Git repository that workers clone. Default: this workspace's origin.
        deployment: Of the flow run-stage-on-worker, "flow/deployment".
        root: Folder of the workspace. Default: the current one.
        slots_per_gpu: Stages that share a GPU of a worker's host, each with its part of the memory;
            as many workers per GPU must run.
    """
    workspace = Path(root or Path.cwd()).resolve()
    try:
        graph = read_graph(workspace)
        selected = graph.upstream(graph.select(only)) if only else set(graph.stages)
        gpu_stages = [name for name in selected if graph.stages[name].gpus]
        source = check(workspace, graph, gpu_stages, repository)
        sender = Sender(workspace, graph, source, _read_deployment(deployment), slots_per_gpu)
        capacity = Capacity(MAX_GPUS_SENT, max(os.cpu_count() or 1, 1))
        site = ExecutionSite(capacity, f"on workers of {deployment}", sender.run)
        return bring_up_to_date(workspace, only, site)
    except (InputError, StagesFailedError) as error:  # user-fixable error: no traceback
        return Failed(message=str(error), data=error)  # type: ignore[return-value]  # the caller of the flow gets the error


def _read_deployment(name: str) -> DeploymentResponse:
    """The deployment that runs stages on workers; logs a warning if no worker is online.

    InputError if there is no such deployment or it has no work pool.
    """
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except (ObjectNotFound, ValueError) as error:
            raise InputError(
                f"the server knows no deployment {name!r}: `make dashboard` registers it, or "
                "`prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml`"
            ) from error
        pool = deployment.work_pool_name
        if not pool:
            raise InputError(
                f"the deployment {name!r} has no work pool: deploy it to one of type process"
            )
        workers = client.read_workers_for_work_pool(pool)
        if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
            get_run_logger().warning(
                "no worker is online: on each host, for each GPU, run `prefect worker start"
                f" --pool {pool} --limit 1`"
            )
        return deployment


class Sender:
    """Dispatches a workspace's GPU stages to workers, collects results, runs other stages here."""

    def __init__(
        self,
        root: Path,
        graph: Graph,
        source: CodeSource,
        deployment: DeploymentResponse,
        slots_per_gpu: int = 1,
    ) -> None:
        self._graph = graph
        self._slots_per_gpu = slots_per_gpu
        self._source = source
        self._deployment = deployment
        self._remote_inputs = RemoteInputs(root, graph)
        self._versions = collect_provenance({})["versions"]

    def run(self, runner: Runner, stage: Stage, why: str, on_progress: OnProgress) -> StageResult:
        """Run one stage to its end, here or on a worker. Called from a task's thread.

        The progress of a stage on a worker is not known here.
        """
        if not stage.gpus:
            return run_locally(runner, stage, why, Slots((), runner.root, False), on_progress)
        logger = get_run_logger()
        logger.info(f"{stage.description or stage.name} ({why})")
        try:
            start = time.monotonic()
            if _replay(runner, stage):
                logger.info("restored from the run-cache: same inputs as an earlier run")
                return StageResult(stage.name, "cached", time.monotonic() - start)
            inputs = self._remote_inputs.push(stage)
            parameters = {
                "stage": stage.name,
                "repository": self._source.repository,
                "commit": self._source.commit,
                "inputs": inputs,
                "versions": self._versions,
            }
            if self._slots_per_gpu > 1:  # workers of an earlier version do not know it
                parameters["slots_per_gpu"] = self._slots_per_gpu
            labels, state = self._await(runner, stage, self._send(stage, parameters))
            if not state.is_completed():
                cause = (state.message or "no reason given").removeprefix(f"{stage.name} failed: ")
                message = (
                    f"{stage.name} failed: its run on a worker"
                    f" {_HOW.get(state.type, state.name)}: {cause}"
                )
                raise StageError(message, _code_of(labels))
            # twice: the first read may meet a half-written run-cache entry
            if not (_replay(runner, stage) or _replay(runner, stage)):
                raise StageError(
                    f"{stage.name} failed: a worker ran it, but its inputs here have changed"
                    f" since (`dvc status {stage.name}`). Nothing was computed here; commit or"
                    " revert the change and re-run"
                )
        except StoppedError as error:
            return StageResult(stage.name, "stopped", message=str(error))
        except (StageError, InputError) as error:
            logger.error(str(error))
            return StageResult(stage.name, "failed", message=str(error), code=error.code)
        except (HTTPError, PrefectException) as error:
            message = (
                f"{stage.name} failed: it could not be sent to a worker because of an error of the"
                f" server ({error!r}): re-run the same command"
            )
            logger.error(message)
            return StageResult(stage.name, "failed", message=message)
        self._remote_inputs.mark_pushed(stage.name)
        seconds = labels.get("seconds")
        if not isinstance(seconds, int | float):
            return StageResult(stage.name, "ran")
        durations.record(runner.root, stage.name, seconds)
        return StageResult(stage.name, "ran", seconds, f"on {labels.get('where')}")

    def _send(self, stage: Stage, parameters: dict[str, Any]) -> UUID:
        """Start a worker run of the stage, or adopt one that an earlier flow abandoned."""
        logger = get_run_logger()
        unfinished = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED))
        )
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[self._deployment.id]))
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(
                deployment_filter=ours, flow_run_filter=unfinished, limit=200
            )
            for run in runs:
                if run.parameters == parameters:
                    logger.info(f"already sent by an earlier flow as run {run.name} ({run.id})")
                    return run.id
        created = run_deployment(
            self._deployment.id,
            parameters=parameters,
            timeout=0,
            flow_run_name=stage.name,
            tags=[stage.group, "gpu"],
        )
        assert isinstance(created, FlowRun)  # nothing to await in a thread
        logger.info(
            f"sent to the workers of pool {self._deployment.work_pool_name} as run {created.name}"
            f" ({created.id})"
        )
        return created.id

    def _await(self, runner: Runner, stage: Stage, run: UUID) -> tuple[KeyValueLabels, State[Any]]:
        """Wait for a worker's run; its labels and final state.

        StoppedError if the flow was stopped, which cancels the run. StageError if the server is
        unreachable for SERVER_TIMEOUT_S.
        """
        logger = get_run_logger()
        last_contact = time.monotonic()
        logged_state = ""
        with get_client(sync_client=True) as client:
            while True:
                try:
                    if runner.stopped:
                        client.set_flow_run_state(run, State(type=StateType.CANCELLING))
                        raise StoppedError(
                            f"{stage.name} was stopped; it resumes from its saved state when it"
                            " runs again in the same clone"
                        )
                    flow_run = client.read_flow_run(run)
                    state = flow_run.state
                    last_contact = time.monotonic()
                except (HTTPError, PrefectException) as error:
                    if time.monotonic() - last_contact > SERVER_TIMEOUT_S:
                        raise StageError(
                            f"{stage.name} failed: the server was unreachable for"
                            f" {SERVER_TIMEOUT_S / 60:.0f} minutes ({error!r}). Its worker may"
                            " still finish it: start the server, then re-run the same command"
                        ) from error
                    state = None
                if state is not None:
                    if state.is_final():
                        return flow_run.labels, state
                    if state.name != logged_state:
                        logged_state = str(state.name)
                        logger.info(_PROGRESS.get(logged_state, logged_state.lower()))
                time.sleep(POLL_SECONDS)


_HOW: Final = {
    StateType.FAILED: "failed",
    StateType.CRASHED: "crashed",
    StateType.CANCELLED: "was cancelled",
}
_PROGRESS: Final = {"Running": "a worker runs it", "Late": "no worker is free yet"}


def _code_of(labels: KeyValueLabels) -> ExitCode | None:
    code = labels.get("code")
    return next((known for known in ExitCode if known == code), None)


def _replay(runner: Runner, stage: Stage) -> bool:
    """Restore a stage's outputs from the local or remote run-cache; False if neither has them.

    The stage is never computed here. StageError if DVC fails for another reason.
    """
    # DVC runs commands with the user's shell: use one that always fails
    failing_shell = {"SHELL": shutil.which("false") or "/bin/false"}
    try:
        runner.run(stage.name, lambda line: None, extra=failing_shell, options=["--pull"])
    except StageError as error:
        if not error.began:
            raise
        return False
    return True


def run(only: list[str] | None, repository: str | None, deployment: str, slots_per_gpu: int) -> int:
    """Run the flow in the working directory and print each stage's result; the exit code.

    InputError without a server.
    """
    if not PREFECT_API_URL.value():
        raise InputError(
            "PREFECT_API_URL is not set: set it to the address of the Prefect server that workers"
            " use too (docs/hosts.md)"
        )
    return summarize(
        lambda: reproduce_on_workers(
            only=only,
            repository=repository,
            deployment=deployment,
            slots_per_gpu=slots_per_gpu,
            return_state=True,
        )
    )
