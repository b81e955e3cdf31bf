"""Read .dvc files: what data.dvc imports and pins, and what `dvc add` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import InputError
from stages.core.yaml_files import load_yaml, read_text


class Out(BaseModel):
    """An output that DVC pins, in a .dvc file or dvc.lock; no hash and size before it was made."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    path: str
    md5: str | None = None
    """That of a folder ends in ".dir"."""
    size: int | None = None
    nfiles: int | None = None


class Repository(BaseModel):
    """The repository that a dependency is imported from."""

    model_config = ConfigDict(frozen=True, strict=True)

    url: str
    rev: str | None = None
    """Commit, tag or branch that is imported; the default branch if there is none."""


class Dependency(BaseModel):
    """What a .dvc file imports, with its hash or ETag as of the import."""

    model_config = ConfigDict(frozen=True, strict=True)

    path: str
    repo: Repository | None = None
    md5: str | None = None
    etag: str | None = None
    checksum: str | None = None

    @property
    def source(self) -> str:
        """Path or address, behind that of the repository if it is in one."""
        return f"{self.repo.url}: {self.path}" if self.repo else self.path

    @property
    def identity(self) -> str:
        """The hash or ETag; empty if there is none."""
        return self.md5 or self.etag or self.checksum or ""


class DvcFile(BaseModel):
    """A .dvc file; `meta` is free to its author."""

    model_config = ConfigDict(frozen=True)

    deps: tuple[Dependency, ...] = ()
    outs: tuple[Out, ...] = ()
    meta: dict[str, Any] = Field(default_factory=dict)


def read_dvc_file(path: Path) -> DvcFile:
    """A .dvc file. FileNotFoundError if it is missing, InputError if it is not what DVC writes."""
    return parse_dvc_file(read_text(path), path)


def parse_dvc_file(text: str, path: Path) -> DvcFile:
    """The same of a text; `path` is what an error names."""
    tree = load_yaml(text, path)
    try:
        return DvcFile.model_validate(tree or {})
    except ValidationError as error:
        problem = first_problem(error)
        raise InputError(f"{path}: {problem}: run `git checkout {path}`") from error


def first_problem(error: ValidationError) -> str:
    """Key and reason of the first thing that a model refused."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key}: {problem['msg']}" if key else problem["msg"]
