"""Terminal report: one row per checkpoint, summary sentences, and the path of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.reporting.headline import DISCLAIMER, conclusion
from stages.reporting.labels import percent, signed
from stages.reporting.parts import part_sentences
from stages.reporting.released import released_sentence
from stages.reporting.tables import Sheet, SheetCell, overview

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
    remedy = "" if page.exists() else " is missing: run `dvc pull` or `dvc repro`"
    console.print(Text(f"Page: {page}{remedy}"), soft_wrap=True)
    console.print(Text(f"{conclusion(metrics['summary'])} {DISCLAIMER}"))


def sentences(metrics: dict[str, Any]) -> list[str]:
    """Summary sentences: accuracy and gain, blind baseline, image, parts, splits, what is missing.

    There are sentences on the parts of questions only if some have several images or context.
    """
    lines = [
        summary_sentence(metrics["summary"]),
        blind_baseline_sentence(metrics["summary"]),
        image_sentence(metrics["summary"]),
    ]
    if "contributions" in metrics:
        lines += part_sentences(metrics["contributions"])
    if metrics["splits"]:
        lines.append(splits_sentence(metrics["splits"]))
    if metrics["missing"]:
        lines.append(f"Not in this report: {'; '.join(metrics['missing'])}.")
    return lines


def summary_sentence(summary: dict[str, Any]) -> str:
    """Sentence on accuracies and gains over the base."""
    n = summary["checkpoints"]
    return (
        f"Mean in-domain accuracy changes from {percent(summary['in_domain_base'])}% to"
        f" {percent(summary['in_domain'])}% ({signed(summary['in_domain_gain'])} points);"
        f" {summary['beat_base']} of {n} checkpoints beat the base. The 95% interval of the gain is"
        f" above zero for {summary['above_zero']}, below zero for {summary['below_zero']};"
        f" {summary['significant']} differences are significant after adjustment (Holm, 5%)."
    )


def blind_baseline_sentence(summary: dict[str, Any]) -> str:
    """Sentence on the accuracy of the rule that sees no image."""
    if summary["blind_baseline"] is None:
        return "Blind baseline: missing, so no accuracy here is evidence of image use."
    return (
        "Blind baseline: a rule that sees only the option texts is correct in"
        f" {percent(summary['blind_baseline'])}%; {summary['above_blind_baseline']} of"
        f" {summary['checkpoints']} checkpoints are above it with their 95% interval."
    )


def image_sentence(summary: dict[str, Any]) -> str:
    """Sentence on the contribution of the images."""
    if summary["visual_gain"] is None:
        return (
            "Visual gain: missing; at least one checkpoint was not tested with other images: set"
            " evaluate.ablations if it is off, or add test questions that show as many images."
        )
    return (
        "Visual gain: the real image instead of another adds"
        f" {signed(summary['visual_gain'])} points (base {signed(summary['base_visual_gain'])});"
        f" above zero with the 95% interval for {summary['sees']} of {summary['checkpoints']}."
    )


def splits_sentence(splits: dict[str, Any]) -> str:
    """Sentence on the split kind and the test questions with images seen in train."""

    def leak(kind: str) -> str:
        return " and ".join(
            f"{leaks['group']} of {leaks['test']} by {axis}"
            for axis, leaks in splits["leaks"][kind].items()
        )

    at_random = f" (at random: {leak('random')})" if splits["kind"] == "grouped" else ""
    known, images = splits["patients"]["known"], splits["patients"]["images"]
    if known == images:
        what, limit = "image, a copy of it or its patient", ""
    else:
        what = "image, a copy of it or its known patient" if known else "image or a copy of it"
        limit = f" Leaks by patient are unknown for {images - known} of {images} images."
    if released := splits.get("released"):
        limit += f" {released_sentence(released)}"
    kind = splits["kind"]
    if splits.get("folds"):
        kind = f"{kind}, {splits['folds']} folds, each tested by a checkpoint trained on the others"
    return (
        f"Splits: {kind}; test questions whose {what} is in train:"
        f" {leak(splits['kind'])}{at_random}.{limit}"
    )


def rich_table(sheet: Sheet, title: str, *, style: str = "", no_wrap: bool = False) -> Table:
    """A sheet for the terminal: numbers right-aligned, values coloured by trend."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, style=style)
    for column in sheet.columns:
        justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
        table.add_column(column.name, justify=justify, no_wrap=no_wrap)
    for rows in sheet.groups.values():
        for row in rows:
            table.add_row(*(_colored(cell) for cell in row.cells))
        table.add_section()
    return table


def _colored(cell: SheetCell) -> Text:
    text = Text(cell.text)
    if cell.trend:
        text.stylize(_COLORS[cell.trend], 0, len(str(cell.value)))
    return text
