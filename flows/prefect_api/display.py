"""Live display of a run on a terminal: a line per running stage, and one for the whole run.

Prefect logs to a rich console. The display uses that console, so log lines appear above it, whole,
and do not tear it. Without a terminal there is no display, and the log has lines about progress.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from prefect.logging.handlers import PrefectConsoleHandler
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.prefect_api.stage_output import PROGRESS_RECORD
from flows.scheduling.durations import format_duration
from flows.scheduling.run_progress import RunProgress
from stages.core.iteration.progress import Progress

_REFRESHES_PER_SECOND: Final = 2
_BAR_WIDTH: Final = 20
_DONE_STYLE: Final = "green"
_OPEN_STYLE: Final = "bright_black"


@contextmanager
def show_progress(run: RunProgress) -> Iterator[None]:
    """Show a run while the block runs, if Prefect logs to a terminal; otherwise do nothing."""
    handler = _terminal_handler()
    if handler is None:
        yield
        return
    handler.addFilter(_is_not_progress)
    try:
        with Live(
            get_renderable=partial(render, run),
            console=handler.console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
        ):
            yield
    finally:
        handler.removeFilter(_is_not_progress)


def render(run: RunProgress) -> Table:
    """A row per running stage, in the order of their start, and a row for the run."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(width=_BAR_WIDTH)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True, justify="right")
    for stage, seconds in run.running():
        bar, text = _progress_cells(stage.progress)
        table.add_row(Text(stage.name), bar, Text(text), Text(format_duration(seconds)))
    table.add_row(
        Text("all stages", style="bold"),
        _bar(run.done, run.total),
        Text(f"{run.done} of {run.total} stages, {run.left()}"),
        Text(format_duration(run.elapsed)),
    )
    return table


def _progress_cells(progress: Progress | None) -> tuple[ProgressBar | Text, str]:
    """Bar and description of what a stage reported last; both empty if it has reported nothing."""
    if progress is None:
        return Text(), ""
    note = f", {progress.note}" if progress.note else ""
    text = f"{progress.unit} {progress.done} of {progress.total}{note}"
    return _bar(progress.done, progress.total), text


def _bar(done: int, total: int) -> ProgressBar:
    # Prefect's theme has none of rich's named styles
    return ProgressBar(
        total=total,
        completed=done,
        width=_BAR_WIDTH,
        style=_OPEN_STYLE,
        complete_style=_DONE_STYLE,
        finished_style=_DONE_STYLE,
    )


def _terminal_handler() -> PrefectConsoleHandler | None:
    """The handler by which Prefect logs to a terminal that can redraw lines; None without one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            console = handler.console
            if console.is_terminal and not console.is_dumb_terminal:
                return handler
    return None


def _is_not_progress(record: logging.LogRecord) -> bool:
    return not any(getattr(record, name, False) for name in PROGRESS_RECORD)
