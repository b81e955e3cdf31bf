"""Density that ruff has no rule for: an expression must not have to be read twice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("stages", "flows", "benchmarks", "tests")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def violations(source: str) -> Iterator[tuple[int, str]]:
    """Line and kind of each nested conditional expression and comprehension with two `for`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.IfExp):
            inner = [child for child in ast.walk(node) if isinstance(child, ast.IfExp)]
            if len(inner) > 1:
                yield node.lineno, "nested conditional expression: use if statements"
        elif isinstance(node, COMPREHENSIONS) and len(node.generators) > 1:
            yield node.lineno, "comprehension with two `for`: use a loop or itertools"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_expression_nests_conditionals_or_loops(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, kind in violations(path.read_text(encoding="utf-8")):
            if folder == "tests" and kind.startswith("comprehension"):
                continue  # cases of a table, mostly
            found.append(f"{path.relative_to(ROOT)}:{line}: {kind}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("a if b else c", 0),
        ("a if b else c if d else e", 1),
        ("f(a if b else c) if d else e", 1),
        ("[x for x in y]", 0),
        ("{x for y in z for x in y}", 1),
        ("[[x for x in y] for y in z]", 0),
    ],
)
def test_the_rules_find_what_they_should(source: str, count: int) -> None:
    assert len(list(violations(source))) == count


def test_all_python_of_the_repository_is_covered() -> None:
    folders = {path.parent for path in ROOT.glob("*/*.py")}
    assert {folder.name for folder in folders} <= set(FOLDERS)
    assert not list(Path(ROOT).glob("*.py"))
