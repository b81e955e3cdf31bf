"""The report in a terminal: one row a checkpoint, one sentence, and where the page is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.reporting.labels import percent, signed

WIDTH = 100


def print_report(metrics: dict[str, Any], page: Path) -> None:
    """Print the table of metrics.json, in colour on a terminal and as plain text elsewhere, at most 100 columns wide."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print(_table(metrics))
    console.print(Text(summary_sentence(metrics["summary"])))
    console.print(Text(splits_sentence(metrics["splits"])))
    console.print(Text(f"Page: {page}"), soft_wrap=True)


def summary_sentence(summary: dict[str, Any]) -> str:
    """How it went, in one sentence."""
    n = summary["checkpoints"]
    return (
        f"In-domain accuracy went from {percent(summary['in_domain_base'])}% to {percent(summary['in_domain'])}% on average "
        f"({signed(summary['in_domain_gain'])} points); {summary['beat_base']} of {n} checkpoints beat the base, "
        f"{summary['above_zero']} with a 95% interval above zero, {summary['below_zero']} with one below."
    )


def splits_sentence(splits: dict[str, Any]) -> str:
    """Which splits were used, and how many of their test questions show an image that was trained on, beside the published ones."""

    def leak(kind: str) -> str:
        return " and ".join(f"{found['group']} of {found['test']} by {axis}" for axis, found in splits["leaks"][kind].items())

    published = f" (published: {leak('published')})" if splits["kind"] != "published" else ""
    return f"Splits: {splits['kind']}; test questions with an image, a copy or a patient of train: {leak(splits['kind'])}{published}."


def _table(metrics: dict[str, Any]) -> Table:
    table = Table(title="Accuracy in %, gain in points, on the same questions as the base", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("checkpoint", no_wrap=True)
    for name in ("n", "base", "after", "gain", "95% interval", "macro", "base macro"):
        table.add_column(name, justify="right", no_wrap=True)
    for axis, base in metrics["base"].items():
        for name, entry in metrics["checkpoints"].items():
            if entry["axis"] == axis:
                own = entry["in_domain"]
                style = "green" if own["low"] > 0 else "red" if own["high"] < 0 else ""
                interval = f"{signed(own['low'])} to {signed(own['high'])}"
                shares = [percent(value) for value in (own["base"], own["accuracy"])]
                macros = [percent(value) for value in (entry["macro"], base["macro"])]
                table.add_row(name, str(own["n"]), *shares, Text(signed(own["gain"]), style), interval, *macros)
        table.add_section()
    return table
