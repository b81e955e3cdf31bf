"""Templates keep what models and data sets wrote as text, in Markdown as GitHub reads it."""

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from markdown_it.token import Token

from stages.core.cards.templating import (
    code_block,
    code_span,
    escape_markdown,
    front_matter,
    render_markdown,
)
from stages.core.yaml_files import load_yaml

HOSTILE = [
    "a | b",
    "a \\| b",
    "```\n# title\n```",
    "`code` and ``more``",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](https://example.org/p.png)",
    "[link](javascript:alert(1)) and [ref][1]",
    "**bold** _it_ *em*",
    "&lt;b&gt; &#60;b&#62;",
    "first\n\n| x | y |\r\n---\r- list",
    "{{ 7 * 7 }}{% if x %}",
    "<!-- open",
    "<https://example.org>",
]


def parse(text: str) -> list[Token]:
    """The tokens of GitHub tables and CommonMark, those within lines included."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [each for token in tokens for each in (token, *(token.children or []))]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_the_text_of_one_table_cell(text: str) -> None:
    document = f"| head | next |\n| --- | --- |\n| {escape_markdown(text)} | end |\n"
    tokens = parse(document)
    cells = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 2
    children = cells[0].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children) == " ".join(text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_the_text_of_a_paragraph(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md.j2"
    macro = "{% macro said(x) %}So: {{ x }}{% endmacro %}"
    page.write_text(macro + "{{ said(text) }}\n", encoding="utf-8")
    types = {token.type for token in parse(render_markdown(page, {}, text=text))}
    assert types - {"text_special"} == {"paragraph_open", "inline", "text", "paragraph_close"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_code_block_holds_the_very_text(text: str) -> None:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    tokens = parse(f"{code_block(text)}\n\nafter")
    fence, after = (token for token in tokens if token.type in ("fence", "text"))
    assert (fence.content, after.content) == (f"{text}\n", "after")


@pytest.mark.parametrize("text", [*HOSTILE, "", "`"])
def test_a_code_span_is_one_span_on_one_line(text: str) -> None:
    span = code_span(text)
    assert "\n" not in span
    types = [token.type for token in parse(f"x {span} y")]
    assert types == ["paragraph_open", "inline", "text", "code_inline", "text", "paragraph_close"]


def test_intervals_and_names_are_not_escaped() -> None:
    for text in ("58.3 [50.1 to 66.2]", "upscaled_images", "MMMU-H&M", "+1.0 - 2.0"):
        assert escape_markdown(text) == text


def test_front_matter_quotes_what_yaml_would_misread() -> None:
    fields = {"base_model": "a: b\n---\nc", "license": "no"}
    text = front_matter(fields)
    assert load_yaml(str(text), Path("front")) == fields
    assert "\n---\n" not in text


def test_an_undefined_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.md.j2").write_text("{{ missing }}", encoding="utf-8")
    with pytest.raises(UndefinedError, match=re.escape("'missing'")):
        render_markdown(tmp_path / "page.md.j2", {})


def test_a_compiled_template_serves_other_values_and_not_another_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md.j2"
    page.write_text("{{ name }} {{ 1 + 1 }}", encoding="utf-8")
    assert [render_markdown(page, {}, name=name) for name in ("a", "<b>")] == [
        "a 2\n",
        "\\<b\\> 2\n",
    ]
    page.write_text("{{ name }} {{ 2 + 2 }}", encoding="utf-8")
    assert render_markdown(page, {}, name="a") == "a 4\n"
