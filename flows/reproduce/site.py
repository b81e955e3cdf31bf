"""Where stages run: on this host in its slots, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prefect import get_run_logger

from flows.dvc_api.graph import Stage
from flows.dvc_api.runner import Runner, StageError, StoppedError
from flows.prefect_api import artifacts
from flows.prefect_api.stage_output import ENVIRONMENT, OnProgress, StageOutput
from flows.scheduling import durations
from flows.scheduling.schedule import Capacity, StageResult
from flows.scheduling.slots import Slots
from stages.core.cores import available_cores
from stages.core.errors import InputError


@dataclass(frozen=True)
class ExecutionSite:
    """Where stages run: capacity, description of the GPU slots, and how to run one stage.

    `run` takes the reason why the stage is stale, and what to call with its progress.
    `cpu_environment`: what GPU stages find in their environment if they compute on this host's
    CPUs; None elsewhere.
    """

    capacity: Capacity
    description: str
    run: Callable[[Runner, Stage, str, OnProgress], StageResult]
    cpu_environment: Mapping[str, str] | None = None


def local_site(slots: Slots) -> ExecutionSite:
    """This host: GPU stages in its slots, other stages beside them."""
    return ExecutionSite(
        Capacity(len(slots.names), available_cores()),
        f"in slots {', '.join(slots.names)}",
        lambda runner, stage, why, on_progress: run_locally(runner, stage, why, slots, on_progress),
        slots.cpu_environment,
    )


def run_locally(
    runner: Runner,
    stage: Stage,
    why: str,
    slots: Slots,
    on_progress: OnProgress,
    inherit_fds: Sequence[int] = (),
) -> StageResult:
    """Run one stage on this host, in GPU slots if it needs some; logs to the current flow run.

    `inherit_fds`: as for `Runner.run`.
    """
    logger = get_run_logger()
    logger.info(f"{stage.description or stage.name} ({why})")
    output = StageOutput(logger, artifacts.ProgressArtifact(stage), on_progress)
    try:
        if stage.gpus:
            with slots.acquire(stage.gpus, lambda: runner.stopped) as (names, lock_fds):
                logger.info(f"in slot {', '.join(names)}")
                stage_run = runner.run(
                    stage.name,
                    output.write,
                    extra=slots.environment(names) | ENVIRONMENT,
                    inherit_fds=(*lock_fds, *inherit_fds),
                )
        else:
            stage_run = runner.run(
                stage.name, output.write, extra=ENVIRONMENT, inherit_fds=inherit_fds
            )
    except (StoppedError, TimeoutError) as error:
        return StageResult(stage.name, "stopped", message=str(error))
    except (StageError, InputError) as error:
        return StageResult(stage.name, "failed", message=str(error), code=error.code)
    output.finish()
    if stage_run.state == "ran":
        durations.record(runner.root, stage.name, stage_run.seconds)
    return StageResult(stage.name, stage_run.state, stage_run.seconds)
