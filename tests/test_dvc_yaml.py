"""The dependencies of each stage in dvc.yaml are exactly the packages that its module imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
CORE = ROOT / "stages" / "core"


def code_deps(stage: str) -> set[str]:
    entry = PIPELINE[stage]
    deps = entry.get("do", entry)["deps"]
    return {dep for dep in deps if dep.startswith("stages/")}


def stage_module(stage: str) -> Path:
    module = ROOT / "stages" / f"{stage}.py"
    return module if module.is_file() else ROOT / "stages" / stage / "__main__.py"


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a module but those under `if TYPE_CHECKING:`, which no run executes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from runtime_nodes(child)


def imported_names(path: Path) -> Iterator[str]:
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[Path]:
    """Modules of stages/ that a module imports itself, stages/core aside."""
    files = (
        ROOT / f"{name.replace('.', '/')}.py"
        for name in imported_names(path)
        if name.startswith("stages.")
    )
    return {file for file in files if file.is_file() and CORE not in file.parents}


def closure(path: Path) -> set[Path]:
    reached, pending = {path}, [path]
    while pending:
        for module in imported_modules(pending.pop()) - reached:
            reached.add(module)
            pending.append(module)
    return reached


def as_dep(module: Path, deps: set[str]) -> str:
    """The innermost of `deps` that holds a module; else the folder that should be listed."""
    relative = module.relative_to(ROOT).as_posix()
    holders = [dep for dep in deps if relative == dep or relative.startswith(f"{dep}/")]
    if holders:
        return max(holders, key=len)
    return (
        relative if module.parent == ROOT / "stages" else module.parent.relative_to(ROOT).as_posix()
    )


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_depends_on_what_its_module_imports_and_on_nothing_else(stage: str) -> None:
    deps = code_deps(stage)
    imported = {as_dep(module, deps) for module in closure(stage_module(stage))}
    assert imported == deps


def test_no_stage_depends_on_code_that_cannot_change_a_result() -> None:
    assert not [
        dep for stage in PIPELINE for dep in code_deps(stage) if dep.startswith("stages/core")
    ]


def test_imports_for_type_checkers_alone_are_no_dependency(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "if TYPE_CHECKING:\n    import stages.grpo.trainer\nimport stages.taxonomy\n",
        encoding="utf-8",
    )
    assert list(imported_names(module)) == ["stages.taxonomy"]
