"""The reproduce flow: run every stale stage as soon as its dependencies are done, in parallel.

    med-r1 reproduce                                 all of it
    med-r1 reproduce --only 'train@*' --slots 2      these and what they need, two trainings at once

DVC decides what is stale and keeps the results: they are those of `dvc repro`, hash for hash.
Without a server this flow brings its own for as long as it runs (Prefect's ephemeral API on
SQLite); with PREFECT_API_URL it shows in that server's dashboard.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, Final

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_api.client import Runner, StageError, StoppedError, end_stages, orphans, read_status
from flows.dvc_api.graph import Graph, Stage, read_graph
from flows.dvc_api.output_sizes import read_output_sizes
from flows.dvc_api.stale_reasons import say_why
from flows.prefect_api import artifacts as show
from flows.prefect_api.client import require_server
from flows.scheduling import durations
from flows.scheduling.schedule import DONE, Capacity, StageResult, StagesFailedError, run_ready
from flows.scheduling.slots import Slots, find_slots
from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock

LOCK: Final = layout.SCRATCH / "flows" / "lock"
_TOLD: Final = 60.0
"""Seconds that Prefect gets to note which stages are not run, and why."""
THREADS: Final[ThreadPoolTaskRunner[Any]] = ThreadPoolTaskRunner(max_workers=64)
"""More than stages ever run at once."""


@dataclass(frozen=True)
class Summary:
    """Outcome of each stale stage in graph order.

    `clean`: DVC finds nothing stale among the targets.
    """

    results: tuple[StageResult, ...]
    clean: bool


@dataclass(frozen=True)
class ExecutionSite:
    """Where stages run: capacity, description of the GPU side, and how to run one stage."""

    capacity: Capacity
    words: str
    run: Callable[[Runner, Stage, str], StageResult]


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
) -> Summary:
    """Run every stale stage as soon as what it needs is done.

    Args:
        only: Stages to bring up to date with all they need, by name, group or glob: train@ct,
            evaluate, train@*. Default: all.
        slots: GPU stages at once: at most one per GPU. On a machine without GPUs one if left out.
        gpus: Indices of the GPUs to use; all that are visible if left out.
        root: Folder of the workspace; the current one if left out.
    """
    try:
        workspace = Path(root or Path.cwd()).resolve()
        return bring_up_to_date(workspace, only, on_this_host(find_slots(workspace, slots, gpus)))
    except (InputError, StagesFailedError) as error:  # what a person can mend needs no traceback
        return Failed(message=str(error), data=error)  # type: ignore[return-value]  # the caller of the flow gets the error


def bring_up_to_date(root: Path, only: Sequence[str] | None, place: ExecutionSite) -> Summary:
    """What the flow does, inside of a flow run.

    InputError or StagesFailedError if not all that was asked for is up to date.
    """
    logger = get_run_logger()
    with only_flow(root):
        graph = read_graph(root)
        if left := orphans(root):
            logger.warning(
                f"ending {len(left)} processes that an earlier run left behind, of"
                f" {', '.join({Path(each).stem for _, each in left})}"
            )
            end_stages({Path(record) for _, record in left})
        asked = graph.upstream(graph.select(only)) if only else set(graph.stages)
        stale = {name: reasons for name, reasons in read_status(root).items() if name in asked}
        names = graph.in_order(graph.downstream(stale) & asked)
        if not names:
            logger.info("Nothing is stale: data and pipelines are up to date")
            return Summary((), True)
        known, among = read_output_sizes(root), set(names)
        reasons = {
            name: say_why(
                graph, stale.get(name, {}), graph.in_order(graph.needs[name] & among), name in known
            )
            for name in names
        }
        logger.info(
            f"{len(names)} of {len(asked)} stages to bring up to date; GPU stages {place.words}"
        )
        results = _run(root, graph, names, reasons, place, logger)
        summary = Summary(
            tuple(results[name] for name in names), not set(read_status(root)) & asked
        )
    # the workspace is free by now: a server that is away is waited for by nobody else
    show.publish(root, summary.results, reasons)
    _judge(summary)
    return summary


def on_this_host(slots: Slots) -> ExecutionSite:
    """GPU stages in slots of this host, the others beside them."""
    capacity = Capacity(len(slots.names), max(os.cpu_count() or 1, 1))
    return ExecutionSite(
        capacity,
        f"in slots {', '.join(slots.names)}",
        lambda runner, stage, why: run_here(runner, stage, why, slots),
    )


@contextmanager
def only_flow(root: Path) -> Iterator[None]:
    """Hold the workspace: InputError if another flow has it."""

    def taken(process: str) -> InputError:
        return InputError(
            f"another flow (process {process}) runs in {root}: wait for it or cancel it, then start"
            " again"
        )

    with exclusive_lock(root / LOCK, on_conflict=taken, holder=str(os.getpid())):
        yield


def _run(
    root: Path,
    graph: Graph,
    names: Sequence[str],
    reasons: dict[str, str],
    place: ExecutionSite,
    logger: Any,
) -> dict[str, StageResult]:
    """Run the stages as tasks; name -> how it ended.

    If the flow is cancelled, the stages are stopped before this returns.
    """
    runner, ended = Runner(root), Queue[StageResult]()
    results: dict[str, StageResult] = {}
    skipped: list[PrefectFuture[Any]] = []

    @task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
    def run_stage(stage: str, why: str) -> State[Any]:
        result = place.run(runner, graph.stages[stage], why)
        results[stage] = result
        if result.state == "stopped":
            return Cancelled(name="Stopped", message=result.message)
        if result.state == "failed":
            why = result.message.splitlines()[0]  # the lines that led to it are in the log
            return Failed(message=why, data=StageError(why))
        return Completed(name=result.state.capitalize(), message=f"{result.seconds:.0f} s")

    @task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
    def skip_stage(stage: str, why: str) -> State[Any]:
        return Cancelled(name="Skipped", message=why)

    def begin(name: str) -> None:
        stage = graph.stages[name]
        submit = run_stage.with_options(
            name=stage.group,
            description=stage.description,
            tags=[stage.group, *(["gpu"] if stage.gpus else [])],
        )
        future = submit.submit(name, reasons[name])
        future.add_done_callback(lambda done: ended.put(results.get(name) or _crashed(name, done)))

    def skip(result: StageResult) -> None:
        logger.warning(f"{result.name} {result.message}")
        group = graph.stages[result.name].group
        skipped.append(
            skip_stage.with_options(name=group, tags=[group]).submit(result.name, result.message)
        )

    try:
        found = run_ready(graph, names, place.capacity, begin, ended, skip)
        wait(
            skipped, timeout=_TOLD
        )  # a flow that ends before they have said why is told that they crashed
        return found
    finally:
        runner.stop()


def run_here(
    runner: Runner, stage: Stage, why: str, slots: Slots, inherit_fds: Sequence[int] = ()
) -> StageResult:
    """Run one stage in GPU slots of this host, logging its lines to the current flow run.

    `inherit_fds`: as for `Runner.run`.
    """
    logger = get_run_logger()
    logger.info(f"{stage.description or stage.name} ({why})")
    watcher = show.Progress(stage)

    def report(line: str) -> None:
        logger.info(line)
        watcher.see(line)

    try:
        if stage.gpus:
            with slots.take(stage.gpus, lambda: runner.stopped) as (taken, locks):
                logger.info(f"in slot {', '.join(taken)}")
                outcome = runner.run(
                    stage.name,
                    report,
                    extra=slots.environment(taken),
                    inherit_fds=(*locks, *inherit_fds),
                )
        else:
            outcome = runner.run(stage.name, report, inherit_fds=inherit_fds)
    except (StoppedError, TimeoutError) as error:
        return StageResult(stage.name, "stopped", message=str(error))
    except (StageError, InputError) as error:
        return StageResult(stage.name, "failed", message=str(error), code=error.code)
    watcher.end()
    if outcome.how == "ran":
        durations.record(runner.root, stage.name, outcome.seconds)
    return StageResult(stage.name, outcome.how, outcome.seconds)


def _crashed(name: str, future: PrefectFuture[Any]) -> StageResult:
    """The result of a task that ended without one, e.g. because Prefect's server was unreachable.

    Never raises: the scheduler waits for it.
    """
    try:
        how = f"{future.state.name}: {future.state.message}"
    except Exception as error:  # to ask for the state takes the server, too
        how = f"without a readable state ({type(error).__name__}: {error})"
    return StageResult(name, "failed", message=f"{name} failed: its task ended {how}. Run again")


def _judge(summary: Summary) -> None:
    """StagesFailedError if anything is not up to date."""
    bad = [result for result in summary.results if result.state not in DONE]
    if bad:
        first = "\n".join(
            f"- {result.message.splitlines()[0]}" for result in bad if result.state != "skipped"
        )
        skipped = [result.name for result in bad if result.state == "skipped"]
        more = f"\nNot run because of that: {', '.join(skipped)}" if skipped else ""
        codes = [result.code for result in bad if result.code is not None]
        raise StagesFailedError(
            f"{len(bad) - len(skipped)} of {len(summary.results)} stages failed:\n{first}{more}",
            codes,
        )
    if not summary.clean:
        raise StagesFailedError(
            "all stages ended well, but `dvc status` is not clean: something was changed meanwhile;"
            " run again"
        )


def run(only: list[str] | None, slots: int | None, gpus: list[str] | None) -> int:
    """Run the flow in the working directory and print how each stage ended; the exit code."""
    return summarize(lambda: reproduce(only=only, slots=slots, gpus=gpus))


def summarize(run_flow: Callable[[], Summary]) -> int:
    """Run a flow from the command line, print each stage's outcome or the failure.

    The exit code.
    """
    require_server()
    try:
        summary = run_flow()
    except StagesFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show.print_summary(summary.results)
    return 0
