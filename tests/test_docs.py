"""Documents name modules and definitions that exist, and link to pages and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ELSEWHERE = {"grpo_trainer.py"}
"""Med-R1's."""
CODE = re.compile(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)(?:::\w+)?`")
PLACE = re.compile(r"`(\w+)`\s+\(`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`\)")
"""A name, and the module that defines it."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def code_files() -> list[str]:
    folders = ("stages", "flows", "benchmarks", "tests", "infra")
    files: list[str] = []
    for folder in folders:
        files += [
            "/" + path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{folder}/**/*.py")
        ]
    return files


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_modules_exist(page: Path) -> None:
    files = code_files()
    named = set(CODE.findall(page.read_text(encoding="utf-8"))) - ELSEWHERE
    missing = [name for name in sorted(named) if not any(f.endswith(f"/{name}") for f in files)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_are_defined_in_the_modules_named_with_them(page: Path) -> None:
    files = code_files()
    missing = []
    for name, module in PLACE.findall(page.read_text(encoding="utf-8")):
        texts = [
            Path(f"{ROOT}{file}").read_text(encoding="utf-8")
            for file in files
            if file.endswith(f"/{module}")
        ]
        defined = re.compile(rf"^\s*(?:def|class) {name}\b|^{name}\b.*=", re.MULTILINE)
        if not any(map(defined.search, texts)):
            missing.append(f"{name} in {module}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target) if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            missing.append(f"{target}#{anchor}")
    assert not missing
