"""Where a result comes from: commit, corpus, parameters, versions. Written into every result file.

Where a form has no room for it, as that of the published split files, it stands in a
provenance.json beside them. No wall clock and no host names: the same inputs give the same bytes.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.core import layout
from stages.core.dvc_files import read_dvc_file
from stages.core.git import is_dirty, last_commit
from stages.core.machine import installed

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "pillow", "numpy", "dvc")
CODE = (
    "stages",
    "infra/base",
    "infra/sample",
    "infra/requirements.lock",
    "params.yaml",
    "dvc.yaml",
    "data.dvc",
)
"""What decides a result. A commit elsewhere, of a new report or a schedule say, does not change
where a result comes from.
"""


def collect_provenance(params: dict[str, BaseModel | str]) -> dict[str, Any]:
    """Provenance of a result; `params`: the groups of params.yaml that the stage read.

    `git_commit` is the last commit that touched CODE, `git_dirty` whether it was changed since;
    None where git does not know.
    """
    return {
        "git_commit": last_commit(Path(), CODE),
        "git_dirty": is_dirty(Path(), CODE),
        "corpus": corpus_hash(),
        "params": {
            name: group.model_dump(mode="json") if isinstance(group, BaseModel) else group
            for name, group in params.items()
        },
        "versions": (
            {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES}
        ),
    }


def corpus_hash() -> str | None:
    """The pinned hash of the raw corpus ("md5:..."), from data.dvc; None if there is none."""
    try:
        outs = read_dvc_file(layout.DATA_DVC).outs
    except FileNotFoundError:
        return None
    return f"md5:{outs[0].md5}" if outs and outs[0].md5 else None
