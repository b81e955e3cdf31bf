"""A sheet rendered as Markdown, HTML and in the terminal: the same cells, hostile text escaped."""

import html
import shutil
from pathlib import Path
from typing import Literal

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from stages.core.cards.templating import render_html, render_markdown
from stages.reporting import tables
from stages.reporting.labels import label
from stages.reporting.page import typeset
from stages.reporting.tables import CHECKPOINT, MISSING, Column, Sheet, SheetCell, SheetRow
from stages.reporting.terminal import rich_table

HOSTILE = "a | `b`\n<img src=x onerror=alert(1)> [bold]c[/bold]"
LOSS = SheetCell("-1.5", "-2.0", "-1.0", "down")
GAIN = SheetCell("+0.5", note="limit 1")
SHEET = Sheet(
    (
        CHECKPOINT,
        Column("words | <b>", "text"),
        Column("gain"),
        Column("blind baseline"),
        Column("n"),
    ),
    (
        SheetRow(
            (SheetCell("ct"), SheetCell(HOSTILE), LOSS, MISSING, SheetCell(1234)), "By modality"
        ),
        SheetRow(
            (SheetCell("mri"), SheetCell(lines=(HOSTILE, "last")), GAIN, SheetCell(), SheetCell(0)),
            "By modality",
        ),
    ),
)


def render(tmp_path: Path, medium: str) -> str:
    """Render SHEET with the macro of a medium, `md` or `html`."""
    shutil.copy(Path(tables.__file__).with_name(f"macros.{medium}.j2"), tmp_path)
    page = tmp_path / f"page.{medium}.j2"
    load = f'{{% from "macros.{medium}.j2" import table %}}\n'
    if medium == "md":
        page.write_text(load + "{{ table(sheet) -}}", encoding="utf-8")
        return render_markdown(page, dict.fromkeys(("clip", "lines", "percent"), str), sheet=SHEET)
    page.write_text(load + '{% call table(sheet, "id") %}Words{% endcall %}', encoding="utf-8")
    return render_html(page, {"heading": str, "label": label, "typeset": typeset}, sheet=SHEET)


def test_markdown_has_a_row_per_row_and_a_cell_per_cell(tmp_path: Path) -> None:
    text = render(tmp_path, "md")
    assert len(text.splitlines()) == 4
    assert text.splitlines()[2].endswith(" | -1.5 [-2.0 to -1.0] | missing | 1234 |")
    assert text.splitlines()[3].endswith("; last | +0.5 | - | 0 |")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert [token.type for token in tokens].count("td_open") == 10
    assert "<img" not in MarkdownIt("commonmark").enable("table").render(text)


def test_html_escapes_text_and_typesets_numbers(tmp_path: Path) -> None:
    text = render(tmp_path, "html")
    assert html.escape(HOSTILE, quote=False) in text
    assert "<img" not in text
    assert "<b>" not in text
    assert '<span class="down">\u22121.5</span> <small>\u22122.0 to \u22121.0</small>' in text
    assert "\u2013 <small>missing</small>" in text
    assert "1\u202f234" in text
    assert text.count("<tbody>") == 1
    assert "MRI" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_prints_markup_as_text(terminal: bool) -> None:
    system: Literal["standard"] | None = "standard" if terminal else None
    console = Console(width=160, force_terminal=terminal, color_system=system)
    with console.capture() as capture:
        console.print(rich_table(SHEET, "Title"))
    out = capture.get()
    assert "[bold]c[/bold]" in out
    assert "[-2.0 to -1.0]" in out
    assert ("\x1b[31m-1.5\x1b[0m" in out) is terminal
