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
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any, Final

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_api.client import read_status
from flows.dvc_api.graph import Graph, read_graph
from flows.dvc_api.output_sizes import read_output_sizes
from flows.dvc_api.preloading import preloaded_libraries
from flows.dvc_api.processes import end_stages, find_orphans
from flows.dvc_api.runner import Runner, StageError
from flows.dvc_api.stale_reasons import explain_staleness
from flows.prefect_api import artifacts
from flows.prefect_api.display import show_progress
from flows.prefect_api.stage_output import PROGRESS_RECORD
from flows.reproduce.site import ExecutionSite, local_site
from flows.reproduce.summary import Summary, print_time, raise_if_incomplete, summarize
from flows.scheduling.run_progress import RunProgress
from flows.scheduling.schedule import (
    StageResult,
    StagesFailedError,
    run_ready,
)
from flows.scheduling.slots import find_slots
from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock

LOCK: Final = layout.FLOWS / "lock"
_SKIP_TIMEOUT_SECONDS: Final = 60.0
"""Time for Prefect to record skipped stages."""
THREADS: Final[ThreadPoolTaskRunner[Any]] = ThreadPoolTaskRunner(max_workers=64)
"""More threads than stages ever run at once."""


def name_run(what: str) -> str:
    """Name of the current flow run: what it does, and to which stages."""
    from prefect.runtime import flow_run

    return f"{what} {', '.join(flow_run.parameters.get('only') or ['everything'])}"


@flow(name="reproduce", flow_run_name=partial(name_run, "reproduce"), task_runner=THREADS)  # type: ignore[arg-type]
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
    raise_if_incomplete(summary)
    return summary


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


def _crashed(name: str, future: PrefectFuture[Any]) -> StageResult:
    """Result of a task that ended without one, e.g. because Prefect's server was unreachable.

    Never raises: the scheduler waits for the result.
    """
    try:
        state = f"{future.state.name}: {future.state.message}"
    except Exception as error:  # reading the state needs the server, too
        state = f"without a readable state ({type(error).__name__}: {error})"
    return StageResult(name, "failed", message=f"{name} failed: its task ended {state}. Re-run")


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
