"""DVC's pipeline graph: stages and their dependencies.

Uses DVC's Python objects, only to read. Whatever changes a workspace goes through DVC's command
line (`flows.dvc_api.client`) in a process of its own: threads may not share a `dvc.repo.Repo`.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
from dvc.repo import Repo

from stages.core.errors import InputError


@dataclass(frozen=True)
class Stage:
    """One stage: name for `dvc repro` ("train@ct", "data.dvc"), deps, outs and `meta` of dvc.yaml.

    `gpus`: devices it needs; `minutes`: expected duration where no earlier run is recorded.
    """

    name: str
    description: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    gpus: int
    minutes: float

    @property
    def group(self) -> str:
        """The name without its key: `train` of `train@ct`."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Graph:
    """Stages by name in topological order, and the direct dependencies of each."""

    stages: Mapping[str, Stage]
    needs: Mapping[str, frozenset[str]]

    def upstream(self, names: Iterable[str]) -> set[str]:
        """The given stages and all that they need."""
        selected = set(names)
        return selected.union(*(nx.ancestors(self._edges, name) for name in selected))

    def downstream(self, names: Iterable[str]) -> set[str]:
        """The given stages and all that need them."""
        selected = set(names)
        return selected.union(*(nx.descendants(self._edges, name) for name in selected))

    def select(self, patterns: Iterable[str]) -> set[str]:
        """Stages that match any pattern: a name, a group ("train"), or a glob ("train@*").

        InputError for a pattern without a match.
        """
        selected: set[str] = set()
        for pattern in patterns:
            matches = {
                name
                for name, stage in self.stages.items()
                if stage.group == pattern or fnmatch.fnmatchcase(name, pattern)
            }
            if not matches:
                group = pattern.partition("@")[0]
                candidates = [name for name, stage in self.stages.items() if stage.group == group]
                raise InputError(
                    f"no stage of dvc.yaml matches {pattern!r}; there are:"
                    f" {', '.join(candidates or self.stages)}"
                )
            selected |= matches
        return selected

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The given stages, dependencies first."""
        selected = set(names)
        return [name for name in self.stages if name in selected]

    @cached_property
    def _edges(self) -> nx.DiGraph:
        """An edge from each stage to each that needs it directly."""
        return nx.from_dict_of_lists(self.needs, create_using=nx.DiGraph).reverse()


def overlap(one: str, other: str) -> bool:
    """Whether two paths are equal or one contains the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def read_graph(root: Path) -> Graph:
    """The graph of the workspace at `root`. InputError if dvc.yaml cannot be read."""
    from dvc.exceptions import DvcException

    try:
        repo = Repo(str(root))
        with repo:
            graph = repo.index.graph
            names = {stage: _name(stage, repo.root_dir) for stage in graph}
            # ties by name, so that the order does not depend on how DVC lists its files
            ordered = nx.lexicographical_topological_sort(
                graph.reverse(copy=False), key=names.__getitem__
            )
            stages = [_stage(stage, names[stage], repo.root_dir) for stage in ordered]
            needs = {
                names[stage]: frozenset(names[each] for each in graph.successors(stage))
                for stage in graph
            }
    except DvcException as error:
        raise InputError(
            f"DVC cannot read the pipeline in {root}: {error}. `dvc repro --dry` shows where"
        ) from error
    return Graph({stage.name: stage for stage in stages}, needs)


def _stage(stage: Any, name: str, root: str) -> Stage:
    meta = getattr(stage, "meta", None) or {}
    return Stage(
        name=name,
        description=getattr(stage, "desc", None) or "",
        deps=tuple(_path(dep, root) for dep in stage.deps),
        outs=tuple(_path(out, root) for out in stage.outs),
        gpus=int(meta.get("gpus", 0)),
        minutes=float(meta.get("minutes", 1)),
    )


def _name(stage: Any, root: str) -> str:
    """A stage's name for `dvc repro` in the root: DVC's own addresses are relative to the cwd."""
    file = os.path.relpath(stage.path, root)
    name = getattr(stage, "name", None)
    if name is None:
        return file
    return str(name) if file == "dvc.yaml" else f"{file}:{name}"


def _path(item: Any, root: str) -> str:
    return os.path.relpath(item.fs_path, root) if os.path.isabs(item.fs_path) else str(item)
