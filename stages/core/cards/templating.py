"""Jinja templates for Markdown and HTML: undefined names are errors, values are escaped.

Templates are trusted; values are not, as a model or a data set wrote them. HTML has Jinja's own
escaping. In Markdown every value becomes one line of plain text, unless a filter here makes it a
code span, a code block or front matter, which keep it as it is and which it cannot end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from jinja2.bccache import Bucket, BytecodeCache
from markupsafe import Markup

from stages.core.yaml_files import dump_yaml

_ACTIVE: Final = re.compile(r"[|<>`*\\]|\][(\[:]|&#?\w+;")
"""What makes a text more than text; brackets alone, as of an interval, do not."""
_SPECIAL: Final = re.compile(r"([\\|<>`*_\[\]&!])")


Filters = Mapping[str, Any]


def render_markdown(path: Path, filters: Filters, /, **values: Any) -> str:
    """Fill a Markdown template, values escaped by `escape_markdown`; ends with one newline."""
    own = {
        "code": code_span,
        "code_block": code_block,
        "front_matter": front_matter,
        "python": lambda value: markdown(repr(value)),
    }
    # autoescape marks what macros and blocks return as safe; finalize escapes all other values
    template = _template(path, own | dict(filters), _MARKDOWN, finalize=_finalize)
    text = template.render(values)
    return text.rstrip("\n") + "\n"


def render_html(path: Path, filters: Filters, /, **values: Any) -> str:
    """Fill an HTML template; values are escaped."""
    return _template(path, filters, _HTML).render(values)


def markdown(text: str) -> Markup:
    """Mark a text as Markdown, to be put into a template as it is."""
    return Markup(text)  # noqa: S704 - callers escape, or made it from a template


def escape_markdown(text: str) -> Markup:
    """A text as one line of GitHub Markdown without markup, links or HTML, fit for a table cell."""
    line = " ".join(text.split())
    return markdown(_SPECIAL.sub(r"\\\1", line) if _ACTIVE.search(line) else line)


def code_span(text: object) -> Markup:
    """A short text on one line, as code; backticks in it become spaces."""
    return markdown("`" + (re.sub(r"[`\s]+", " ", str(text)) or " ") + "`")


def code_block(text: str) -> Markup:
    """A text of any lines as code, in a fence longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return markdown(f"{fence}text\n{text}\n{fence}")


def front_matter(fields: Mapping[str, Any]) -> Markup:
    """Fields as YAML, a line each, for the head of a model card."""
    return markdown(dump_yaml(dict(fields)))


class _CompiledTemplates(BytecodeCache):
    """Templates compiled by this process, as one is rendered for every checkpoint.

    For templates that are always rendered with the same options and filters: both are compiled in.
    """

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if code := self._code.get(bucket.key):
            # ignored if the template's text has changed
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key] = bucket.bytecode_to_string()


_MARKDOWN: Final = _CompiledTemplates()
_HTML: Final = _CompiledTemplates()


def _template(path: Path, filters: Filters, compiled: BytecodeCache, **options: Any) -> Template:
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        bytecode_cache=compiled,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters |= filters
    return environment.get_template(path.name)


def _finalize(value: Any) -> Any:
    return value if hasattr(value, "__html__") else escape_markdown(str(value))
