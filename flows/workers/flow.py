"""The pipeline on several hosts: GPU stages on workers, other stages and all results here.

    med-r1 workers                           everything
    med-r1 workers --only 'train@*'          these stages and their dependencies

A worker is `CUDA_VISIBLE_DEVICES=0 prefect worker start --pool gpu --limit 1`, one per GPU, on any
host that reaches Prefect's server, the git repository and the DVC remote. It clones the commit,
pulls the stage's inputs, runs it, and pushes the outputs with DVC's run-cache. This workspace then
replays the stage from the run-cache and never computes it. Setup: docs/hosts.md.
"""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows.dvc_api.graph import Stage, read_graph
from flows.dvc_api.runner import Runner
from flows.reproduce.flow import THREADS, bring_up_to_date, name_run
from flows.reproduce.site import ExecutionSite, run_locally
from flows.reproduce.summary import Summary, summarize
from flows.scheduling.schedule import Capacity, StageResult, StagesFailedError
from flows.scheduling.slots import find_slots
from flows.workers import checkout as clones
from flows.workers.remote_inputs import check
from flows.workers.sender import Sender
from stages.core.cores import available_cores
from stages.core.errors import InputError
from stages.core.provenance import collect_provenance

DEPLOYMENT: Final = "run-stage-on-worker/gpu"
MAX_GPUS_SENT: Final = 48
"""Upper limit on the GPUs of all stages sent out; the number of workers decides how many run."""


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


@flow(
    name="reproduce-on-workers",
    flow_run_name=partial(name_run, "reproduce on workers"),
    task_runner=THREADS,  # type: ignore[arg-type]
)
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
        capacity = Capacity(MAX_GPUS_SENT, available_cores())
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
