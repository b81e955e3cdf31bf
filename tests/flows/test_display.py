"""The live display of a run: what it shows, and that log lines stay whole beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console
from rich.theme import Theme

from flows.dvc_api.graph import Graph, Stage
from flows.prefect_api.display import render, show_progress
from flows.prefect_api.stage_output import PROGRESS_RECORD
from flows.scheduling import durations
from flows.scheduling.run_progress import RunProgress
from flows.scheduling.schedule import Capacity
from stages.core.iteration.progress import Progress

NAMES = ("train@ct", "train@mri", "report")
WIDTH = 90


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(tmp_path: Path, clock: Clock) -> RunProgress:
    """train@ct at step 40 of 180 after 12 s, train@mri silent for 2 s, the report unknown."""
    stages = {name: Stage(name, "", (), (), int(name != "report"), 1.0) for name in NAMES}
    needs: dict[str, frozenset[str]] = dict.fromkeys(NAMES, frozenset())
    progress = RunProgress(tmp_path, Graph(stages, needs), NAMES, Capacity(2, 2), clock)
    progress.start("train@ct")
    clock.now = 10.0
    progress.start("train@mri")
    clock.now = 12.0
    progress.report("train@ct", Progress("ct", "step", 40, 180, "reward 0.71", 150))
    return progress


def terminal(**options: object) -> Console:
    """A console that believes it is a terminal, with a theme as empty as Prefect's."""
    return Console(
        file=StringIO(),
        force_terminal=True,
        width=WIDTH,
        theme=Theme(inherit=False),
        markup=False,
        _environ={"TERM": "xterm"},
        **options,  # type: ignore[arg-type]
    )


def test_a_row_per_running_stage_and_one_for_the_run(run: RunProgress) -> None:
    console = terminal(record=True)
    console.print(render(run))
    ct, mri, total = (line.split() for line in console.export_text().splitlines())
    assert ct[0] == "train@ct"
    assert " ".join(ct[2:]) == "step 40 of 180, reward 0.71 12 s"
    assert mri == ["train@mri", "2", "s"]
    assert " ".join(total[:2]) == "all stages"
    assert " ".join(total[3:]) == "0 of 3 stages, at least 3 min left 12 s"
    assert len(ct[1]) == 20, "the bar"


def test_stages_that_end_leave_the_display(run: RunProgress, tmp_path: Path) -> None:
    durations.record(tmp_path, "report", 4.0)
    run.finish("train@mri")
    run.finish("train@ct")
    console = terminal(record=True)
    console.print(render(run))
    (total,) = console.export_text().splitlines()
    assert total.split()[3:] == ["2", "of", "3", "stages,", "about", "4", "s", "left", "12", "s"]


def test_names_are_not_read_as_markup(tmp_path: Path) -> None:
    name = "train@[bold]"
    graph = Graph({name: Stage(name, "", (), (), 1, 1.0)}, {name: frozenset()})
    run = RunProgress(tmp_path, graph, [name], Capacity(1, 1))
    run.start(name)
    run.report(name, Progress("x", "step", 1, 2, "[/red]", 1))
    console = Console(file=StringIO(), record=True, width=WIDTH)
    console.print(render(run))
    text = console.export_text()
    assert name in text
    assert "[/red]" in text


@pytest.fixture
def handler() -> Iterator[PrefectConsoleHandler]:
    """Prefect's handler of the root logger, in place of all others."""
    root = logging.getLogger()
    others = list(root.handlers)
    prefect = PrefectConsoleHandler(stream=StringIO())
    prefect.setFormatter(logging.Formatter("%(message)s"))
    root.handlers[:] = [prefect]
    yield prefect
    root.handlers[:] = others


LONG = "error: " + "x" * 3 * WIDTH


def log_lines() -> None:
    logger = logging.getLogger("tests.display")
    logger.warning(LONG)
    logger.warning("ct: step 41 of 180", extra=PROGRESS_RECORD)


def test_on_a_terminal_log_lines_stand_whole_above_the_display(
    run: RunProgress, handler: PrefectConsoleHandler
) -> None:
    handler.console = terminal()
    with show_progress(run):
        log_lines()
    shown = handler.console.file.getvalue()  # type: ignore[attr-defined]
    assert LONG in shown
    assert "all stages" in shown.partition(LONG)[2], "the display is drawn again below the line"
    assert "step 41" not in shown, "the display shows progress, not the log"
    assert not handler.filters
    log_lines()
    assert "step 41" in handler.console.file.getvalue()  # type: ignore[attr-defined]


def test_the_display_ends_with_an_error_and_with_the_terminal_as_it_was(
    run: RunProgress, handler: PrefectConsoleHandler
) -> None:
    handler.console = terminal()
    with pytest.raises(KeyboardInterrupt), show_progress(run):
        raise KeyboardInterrupt
    shown = handler.console.file.getvalue()  # type: ignore[attr-defined]
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert shown.rfind(show) > shown.rfind(hide) >= 0
    assert not handler.filters


@pytest.mark.parametrize("kind", ["file", "dumb"])
def test_without_a_terminal_there_are_only_log_lines(
    run: RunProgress, handler: PrefectConsoleHandler, kind: str
) -> None:
    if kind == "dumb":
        handler.console = Console(
            file=StringIO(), force_terminal=True, width=WIDTH, _environ={"TERM": "dumb"}
        )
    with show_progress(run):
        log_lines()
    shown = handler.console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.replace("\x1b", "").splitlines() == [LONG, "ct: step 41 of 180"]
