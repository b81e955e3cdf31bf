"""The reproduce flow: run every stale stage as soon as its dependencies are done, in parallel.

    med-r1 reproduce                                 everything
    med-r1 reproduce --only 'train@*' --slots 2      these and what they need, two trainings at once
    med-r1 reproduce --slots-per-gpu 2               two trainings on each GPU

DVC decides what is stale and stores the results, which equal those of `dvc repro` hash for hash.
With PREFECT_API_URL the flow is recorded by that server; without it the flow starts a temporary one
(Prefect's ephemeral API on SQLite).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any, Final

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun, MissingResult
from prefect.futures import PrefectFuture, wait
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_api.client import read_status
from flows.dvc_api.graph import Graph, Stage, read_graph
from flows.dvc_api.output_sizes import read_output_sizes
from flows.dvc_api.preloading import preloaded_libraries
from flows.dvc_api.processes import end_stages, find_orphans
from flows.dvc_api.runner import Runner, StageError, StoppedError
from flows.dvc_api.stale_reasons import explain_staleness
from flows.prefect_api import artifacts
from flows.prefect_api.client import require_server
from flows.prefect_api.display import show_progress
from flows.prefect_api.stage_output import ENVIRONMENT, PROGRESS_RECORD, OnProgress, StageOutput
from flows.scheduling import durations
from flows.scheduling.run_progress import RunProgress
from flows.scheduling.schedule import (
    SUCCESSFUL,
    Capacity,
    StageResult,
    StagesFailedError,
    run_ready,
)
from flows.scheduling.slots import Slots, cpu_threads, find_slots
from stages.core import layout
from stages.core.distributed.matrix_product import measure_in_subprocess
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock

LOCK: Final = layout.SCRATCH / "flows" / "lock"
_SKIP_TIMEOUT_SECONDS: Final = 60.0
"""Time for Prefect to record skipped stages."""
_COMPARABLE_SECONDS: Final = 60.0
"""Runs from this time on are worth comparing between machines."""
THREADS: Final[ThreadPoolTaskRunner[Any]] = ThreadPoolTaskRunner(max_workers=64)
"""More threads than stages ever run at once."""


@dataclass(frozen=True)
class Summary:
    """Outcome of each stale stage in graph order; `clean`: no target is stale afterwards."""

    results: tuple[StageResult, ...]
    clean: bool


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


def _name_run() -> str:
    from prefect.runtime import flow_run

    only = flow_run.parameters.get("only")
    return f"reproduce {', '.join(only)}" if only else "reproduce everything"


@flow(name="reproduce", flow_run_name=_name_run, task_runner=THREADS)  # type: ignore[arg-type]
def reproduce(
    only: list[str] | None = None,
    slots: int | None = None,
    gpus: list[str] | None = None,
    root: str | None = None,
    slots_per_gpu: int = 1,
) -> Summary:
    """Run every stale stage as soon as its dependencies are done.

    Args:
        only: Stages to bring up to date with all they need, by name, group or glob: train@ct,
            evaluate, train@*. Default: all.
        slots: GPU stages at once, at most `slots_per_gpu` per GPU. Default on a machine without
            GPUs: one for each base.threads cores.
        gpus: Indices of the GPUs to use. Default: all visible GPUs.
        root: Folder of the workspace. Default: the working directory.
        slots_per_gpu: Stages that share a GPU, each with its part of the memory.
    """
    try:
        workspace = Path(root or Path.cwd()).resolve()
        site = local_site(find_slots(workspace, slots, gpus, slots_per_gpu))
        return bring_up_to_date(workspace, only, site)
    except (InputError, StagesFailedError) as error:  # user-fixable error: no traceback
        return Failed(message=str(error), data=error)  # type: ignore[return-value]  # the caller of the flow gets the error


def bring_up_to_date(root: Path, only: Sequence[str] | None, site: ExecutionSite) -> Summary:
    """Run all stale targets; called inside a flow run.

    InputError or StagesFailedError if not every target is up to date afterwards.
    """
    logger = get_run_logger()
    with workspace_lock(root):
        graph = read_graph(root)
        _end_orphans(root, logger)
        targets = graph.upstream(graph.select(only)) if only else set(graph.stages)
        stale = {name: reasons for name, reasons in read_status(root).items() if name in targets}
        names = graph.in_order(graph.downstream(stale) & targets)
        if not names:
            logger.info("Nothing is stale: data and pipelines are up to date")
            return Summary((), True)
        has_run = read_output_sizes(root).keys()
        selected = set(names)
        reasons = {}
        for name in names:
            after = graph.in_order(graph.needs[name] & selected)
            reasons[name] = explain_staleness(graph, stale.get(name, {}), after, name in has_run)
        logger.info(
            f"{len(names)} of {len(targets)} stages to bring up to date; GPU stages"
            f" {site.description}"
        )
        with preloaded_libraries(root, names, site.cpu_environment) as variables:
            results = _run(Runner(root, variables), graph, names, reasons, site, logger)
        clean = not read_status(root).keys() & targets
        summary = Summary(tuple(results[name] for name in names), clean)
    # after the lock is released: other flows need not wait for an unreachable server
    artifacts.publish(root, summary.results, reasons)
    _raise_if_incomplete(summary)
    return summary


def local_site(slots: Slots) -> ExecutionSite:
    """This host: GPU stages in its slots, other stages beside them."""
    return ExecutionSite(
        Capacity(len(slots.names), os.cpu_count() or 1),
        f"in slots {', '.join(slots.names)}",
        lambda runner, stage, why, on_progress: run_locally(runner, stage, why, slots, on_progress),
        slots.cpu_environment,
    )


@contextmanager
def workspace_lock(root: Path) -> Iterator[None]:
    """Lock the workspace for this flow; InputError if another flow holds it."""

    def locked(process: str) -> InputError:
        return InputError(
            f"another flow (process {process}) runs in {root}: wait for it or cancel it, then"
            " re-run"
        )

    with exclusive_lock(root / LOCK, on_conflict=locked, holder=str(os.getpid())):
        yield


def _end_orphans(root: Path, logger: Any) -> None:
    orphans = find_orphans(root)
    if orphans:
        records = {Path(record) for _, record in orphans}
        logger.warning(
            f"ending {len(orphans)} orphaned processes of an earlier run:"
            f" {', '.join(record.stem for record in records)}"
        )
        end_stages(records)


def _run(
    runner: Runner,
    graph: Graph,
    names: Sequence[str],
    reasons: dict[str, str],
    site: ExecutionSite,
    logger: Any,
) -> dict[str, StageResult]:
    """Run the stages as tasks; name -> result.

    If the flow is cancelled, the stages are stopped before this returns.
    """
    progress = RunProgress(runner.root, graph, names, site.capacity)
    finished = Queue[StageResult]()
    results: dict[str, StageResult] = {}
    skipped: list[PrefectFuture[Any]] = []

    @task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
    def run_stage(stage: str, why: str) -> State[Any]:
        progress.start(stage)
        result = site.run(runner, graph.stages[stage], why, partial(progress.report, stage))
        results[stage] = result
        end(stage)
        if result.state == "stopped":
            return Cancelled(name="Stopped", message=result.message)
        if result.state == "failed":
            cause = result.message.splitlines()[0]  # the stage's last lines are in the log
            return Failed(message=cause, data=StageError(cause))
        return Completed(name=result.state.capitalize(), message=f"{result.seconds:.0f} s")

    @task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
    def skip_stage(stage: str, why: str) -> State[Any]:
        return Cancelled(name="Skipped", message=why)

    def end(name: str) -> None:
        progress.finish(name)
        if progress.done < progress.total:
            done = f"{progress.done} of {progress.total} stages done; {progress.left()}"
            logger.info(done, extra=PROGRESS_RECORD)

    def start(name: str) -> None:
        stage = graph.stages[name]
        submit = run_stage.with_options(
            name=stage.group,
            description=stage.description,
            tags=[stage.group, "gpu"] if stage.gpus else [stage.group],
        )
        future = submit.submit(name, reasons[name])

        def ended(each: PrefectFuture[Any]) -> None:
            progress.finish(name)  # again, in case the task crashed
            finished.put(results.get(name) or _crashed(name, each))

        future.add_done_callback(ended)

    def skip(result: StageResult) -> None:
        logger.warning(f"{result.name} {result.message}")
        progress.finish(result.name)
        group = graph.stages[result.name].group
        skipped.append(
            skip_stage.with_options(name=group, tags=[group]).submit(result.name, result.message)
        )

    try:
        with show_progress(progress):
            outcomes = run_ready(graph, names, site.capacity, start, finished, skip)
        # Prefect marks tasks as crashed that are unfinished when their flow ends
        wait(skipped, timeout=_SKIP_TIMEOUT_SECONDS)
        return outcomes
    finally:
        runner.stop()


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


def _crashed(name: str, future: PrefectFuture[Any]) -> StageResult:
    """Result of a task that ended without one, e.g. because Prefect's server was unreachable.

    Never raises: the scheduler waits for the result.
    """
    try:
        state = f"{future.state.name}: {future.state.message}"
    except Exception as error:  # reading the state needs the server, too
        state = f"without a readable state ({type(error).__name__}: {error})"
    return StageResult(name, "failed", message=f"{name} failed: its task ended {state}. Re-run")


def _raise_if_incomplete(summary: Summary) -> None:
    """StagesFailedError if anything is not up to date."""
    skipped = [result.name for result in summary.results if result.state == "skipped"]
    failures = [
        result for result in summary.results if result.state not in (*SUCCESSFUL, "skipped")
    ]
    if failures or skipped:
        lines = [f"{len(failures)} of {len(summary.results)} stages failed:"]
        lines += [f"- {result.message.splitlines()[0]}" for result in failures]
        if skipped:
            lines.append(f"Not run because of that: {', '.join(skipped)}")
        codes = [result.code for result in failures if result.code is not None]
        raise StagesFailedError("\n".join(lines), codes)
    if not summary.clean:
        raise StagesFailedError(
            "all stages succeeded, but `dvc status` is not clean: a file was changed meanwhile;"
            " re-run"
        )


def run(
    only: list[str] | None, slots: int | None, gpus: list[str] | None, slots_per_gpu: int
) -> int:
    """Run the flow in the working directory and print outcomes and the time; the exit code."""
    start = time.monotonic()
    code = summarize(
        lambda: reproduce(
            only=only,
            slots=slots,
            gpus=gpus,
            slots_per_gpu=slots_per_gpu,
            return_state=True,
        )
    )
    if code == 0:
        print_time(time.monotonic() - start)
    return code


def print_time(seconds: float) -> None:
    """Print the time of a run; of a long one also how fast this machine is, to compare with."""
    cores = len(os.sched_getaffinity(0))
    print(f"Total: {seconds / 60:.1f} min on {cores} cores")
    threads = cpu_threads(Path.cwd())
    if seconds >= _COMPARABLE_SECONDS and threads is not None:
        print(f"This machine: {measure_in_subprocess(threads) or 'matrix products not measured'}")


def summarize(run_flow: Callable[[], State[Summary]]) -> int:
    """Run a flow and print each stage's outcome, or the failures; the exit code.

    `run_flow` returns the final state. Raises the error of a flow that failed for another reason
    than a failed stage.
    """
    require_server()
    state = run_flow()
    try:
        summary = state.result()
    except StagesFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MissingResult, FailedRun):
        # the server, asked twice after a slow answer, returns its copy of the state: without result
        return _print_state(state)
    artifacts.print_summary(summary.results)
    return 0


def _print_state(state: State[Any]) -> int:
    if state.is_completed():
        print(f"{state.name}: the outcome of each stage is in Prefect's dashboard and in the log")
        return 0
    print(f"error: {state.message}", file=sys.stderr)
    return 1
