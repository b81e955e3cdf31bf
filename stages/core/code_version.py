"""The code that decides a stage's result: the Python files among its `deps` in dvc.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core.errors import InputError

PIPELINE: Final = Path("dvc.yaml")
_PACKAGE: Final = "stages"


def stage_code(stage: str, root: Path = Path()) -> list[Path]:
    """Sorted Python files among a stage's deps in dvc.yaml; `stage`: a name without key ("train").

    A folder among the `deps` stands for all Python files below it. Raises InputError if dvc.yaml,
    the stage in it or one of its files is missing.
    """
    code: set[Path] = set()
    for dep in _deps(root / PIPELINE, stage):
        if Path(dep).parts[0] != _PACKAGE:
            continue
        path = root / dep
        if not path.exists():
            raise InputError(
                f"{path} is missing, a dependency of stage {stage}: restore it, or remove it from"
                f" {root / PIPELINE}"
            )
        code |= {path} if path.is_file() else set(path.rglob("*.py"))
    return sorted(path for path in code if path.suffix == ".py")


def _deps(pipeline: Path, stage: str) -> list[str]:
    try:
        tree: Any = YAML(typ="safe").load(pipeline.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{pipeline} is missing: run stages from the root of a checkout, since it lists the"
            " code that decides their results"
        ) from None
    except (UnicodeDecodeError, YAMLError) as error:
        raise InputError(
            f"{pipeline} is not YAML ({error}): `git checkout {pipeline.name}` restores it"
        ) from error
    try:
        entry = tree["stages"][stage]
        # a stage with `foreach` or `matrix` has one list of deps for all its keys
        return [str(dep) for dep in entry.get("do", entry)["deps"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{pipeline} lists no deps of a stage {stage!r}: `git checkout {pipeline.name}`"
            " restores it"
        ) from error
