"""Send GPU stages of a workspace to workers and collect their results through the run-cache."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from httpx import HTTPError
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectException
from prefect.types import KeyValueLabels

from flows.dvc_api.graph import Graph, Stage
from flows.dvc_api.runner import Runner, StageError, StoppedError
from flows.prefect_api.stage_output import OnProgress
from flows.reproduce.site import run_locally
from flows.scheduling import durations
from flows.scheduling.schedule import StageResult
from flows.scheduling.slots import Slots
from flows.workers.remote_inputs import CodeSource, RemoteInputs
from stages.core.errors import ExitCode, InputError
from stages.core.provenance import collect_provenance

POLL_SECONDS: Final = 2.0
"""Time between two queries of a worker run's state."""
SERVER_TIMEOUT_S: Final = 600.0
"""How long the server may be unreachable while a worker runs a stage."""
_UNFINISHED: Final = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
_HOW: Final = {
    StateType.FAILED: "failed",
    StateType.CRASHED: "crashed",
    StateType.CANCELLED: "was cancelled",
}
_PROGRESS: Final = {"Running": "a worker runs it", "Late": "no worker is free yet"}


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
