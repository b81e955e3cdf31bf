"""The report in a terminal: one row per checkpoint, a few sentences, and where the page is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.reporting.labels import percent, signed
from stages.reporting.tables import Cell, Sheet, overview

WIDTH: Final = 100
_COLORS: Final = {"up": "green", "down": "red"}


def print_report(metrics: dict[str, Any], page: Path) -> None:
    """Print the table of metrics.json, coloured on a terminal, at most 100 columns wide."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    title = "In %, differences in points, on each checkpoint's own test questions"
    console.print(rich_table(overview(metrics["checkpoints"]), title, no_wrap=True))
    for sentence in sentences(metrics):
        console.print(Text(sentence))
    console.print(
        Text(
            f"Page: {page}"
            if page.exists()
            else f"Page: {page} is not here: `dvc pull` or `dvc repro`"
        ),
        soft_wrap=True,
    )


def sentences(metrics: dict[str, Any]) -> list[str]:
    """Summary sentences: accuracy and gain, blind baseline, image, splits, missing numbers."""
    found = [
        summary_sentence(metrics["summary"]),
        blind_baseline_sentence(metrics["summary"]),
        image_sentence(metrics["summary"]),
    ]
    if metrics["splits"]:
        found.append(splits_sentence(metrics["splits"]))
    if metrics["missing"]:
        found.append(f"Not in this report: {'; '.join(metrics['missing'])}.")
    return found


def summary_sentence(summary: dict[str, Any]) -> str:
    """How it went, in one sentence."""
    n = summary["checkpoints"]
    return (
        f"In-domain accuracy went from {percent(summary['in_domain_base'])}% to"
        f" {percent(summary['in_domain'])}% on average ({signed(summary['in_domain_gain'])}"
        f" points); {summary['beat_base']} of {n} checkpoints beat the base,"
        f" {summary['above_zero']} with a 95% interval above zero, {summary['below_zero']} with one"
        f" below; {summary['significant']} gains or losses stand after adjusting for all tests"
        " (Holm, 5%)."
    )


def blind_baseline_sentence(summary: dict[str, Any]) -> str:
    """How far a rule without the image comes, in one sentence."""
    if summary["blind_baseline"] is None:
        return "Blind baseline: missing, so that no accuracy here says that the image was used."
    return (
        "Blind baseline: a rule that sees only the options' texts is right in"
        f" {percent(summary['blind_baseline'])}%; {summary['above_blind_baseline']} of"
        f" {summary['checkpoints']} checkpoints are above it with their 95% interval."
    )


def image_sentence(summary: dict[str, Any]) -> str:
    """What the images contribute, in one sentence."""
    if summary["visual_gain"] is None:
        return (
            "Visual gain: missing; ask the questions without their images too (evaluate.ablations)."
        )
    return (
        f"Visual gain: with the real instead of an exchanged image {signed(summary['visual_gain'])}"
        f" points (base {signed(summary['base_visual_gain'])}); above zero with the 95% interval"
        f" for {summary['sees']} of {summary['checkpoints']}."
    )


def splits_sentence(splits: dict[str, Any]) -> str:
    """Sentence on the splits used and their test questions with images seen in train."""

    def leak(kind: str) -> str:
        return " and ".join(
            f"{leaks['group']} of {leaks['test']} by {axis}"
            for axis, leaks in splits["leaks"][kind].items()
        )

    published = f" (published: {leak('published')})" if splits["kind"] != "published" else ""
    return (
        f"Splits: {splits['kind']}; test questions with an image, a copy or a patient of train:"
        f" {leak(splits['kind'])}{published}."
    )


def rich_table(sheet: Sheet, title: str, *, style: str = "", no_wrap: bool = False) -> Table:
    """A sheet for the terminal: numbers to the right, groups apart, values coloured by trend."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, style=style)
    for column in sheet.columns:
        justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
        table.add_column(column.name, justify=justify, no_wrap=no_wrap)
    for rows in sheet.groups.values():
        for row in rows:
            table.add_row(*(_colored(cell) for cell in row.cells))
        table.add_section()
    return table


def _colored(cell: Cell) -> Text:
    words = Text(cell.text)
    if cell.trend:
        words.stylize(_COLORS[cell.trend], 0, len(str(cell.value)))
    return words
