"""DVC's cache and remote as an object store, addressed by hash.

Fetches objects that no file of the workspace refers to any more, and adds new ones. DVC's command
line runs in a temporary workspace that shares the cache and the remotes of the real one, with a
`.dvc` file for each object: so all kinds of remotes work and the real workspace stays untouched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from flows.dvc_api.client import dvc
from flows.dvc_api.lock_file import read_locked_stages
from flows.dvc_api.repository import cache_folder, read_config, write_config
from stages.core import layout
from stages.core.dvc_files import Out, read_dvc_file
from stages.core.errors import InputError
from stages.core.outputs import atomic_directory, atomic_file, read_json


class CachedObject(BaseModel):
    """A file or folder in DVC's cache: MD5 (ending in ".dir" for a folder), bytes, file count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
    size: int
    nfiles: int | None = None


def outputs(root: Path) -> dict[str, CachedObject]:
    """Path -> the object that dvc.lock pins there, for all outputs of all stages."""
    outs = chain.from_iterable(stage.outs for stage in read_locked_stages(root).values())
    return {out.path: _cached_as(out) for out in outs}


def _cached_as(out: Out) -> CachedObject:
    return CachedObject.model_validate(out.model_dump(include=set(CachedObject.model_fields)))


def add(root: Path, path: Path) -> CachedObject:
    """Copy a file to the cache, and to the default remote if there is one."""
    with _temporary_workspace(root) as (folder, remote):
        shutil.copyfile(path, folder / path.name)
        dvc(folder, "add", "--quiet", path.name)
        (out,) = read_dvc_file(folder / f"{path.name}.dvc").outs
        if remote:
            dvc(folder, "push", "--quiet", f"{path.name}.dvc")
    return _cached_as(out)


def push(root: Path, objects: Iterable[CachedObject]) -> bool:
    """Push cached objects to the default remote; False if there is none."""
    with _temporary_workspace(root) as (folder, remote):
        files = [_write_dvc_file(folder, f"object-{at}", each) for at, each in enumerate(objects)]
        if remote and files:
            dvc(folder, "push", "--quiet", *files)
    return remote


def fetch(root: Path, cached: CachedObject, target: Path, what: str) -> None:
    """Restore an object from the cache or the default remote to `target`, replacing it.

    Files may be read-only links into the cache. InputError, naming `what`, if neither has it.
    """
    if _copy_file(root, cached, target, what):
        return
    absent = missing(root, cached)
    with _temporary_workspace(root) as (folder, remote):
        file = _write_dvc_file(folder, "object", cached)
        if absent and not remote:
            raise InputError(
                f"{what} ({cached.md5}) is missing from DVC's cache, and there is no remote to"
                f" fetch it from: {_REMEDY}"
            )
        try:
            dvc(folder, "pull" if absent else "checkout", "--quiet", file)
        except InputError as error:
            raise InputError(
                f"{what} ({cached.md5}) is missing or incomplete in DVC's cache and its remote:"
                f" {_REMEDY}. DVC's error: {error}"
            ) from error
        restored = folder / "object"
        if restored.is_dir():
            with atomic_directory(target) as temporary:
                temporary.rmdir()
                shutil.move(restored, temporary)  # the target may be on another disk
        else:
            with atomic_file(target) as temporary:
                shutil.move(restored, temporary)


def _copy_file(root: Path, cached: CachedObject, target: Path, what: str) -> bool:
    """Copy an object that is a file in the local cache, without DVC; False if it is no such one.

    InputError if the file is damaged, which DVC would not notice.
    """
    path = _cache_path(cache_folder(root), cached.md5)
    if cached.md5.endswith(_FOLDER) or not path.is_file():
        return False
    with path.open("rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != cached.md5:
            raise InputError(
                f"{what} ({cached.md5}) is damaged in DVC's cache: delete {path}, and if there is"
                f" no remote to fetch it from again, {_REMEDY}"
            )
    with atomic_file(target) as temporary:
        shutil.copyfile(path, temporary)
    return True


_FOLDER: Final = ".dir"
"""End of the hash of a folder's listing."""
_REMEDY: Final = "restore a copy of the cache, or promote again with `med-r1 champion promote`"


def missing(root: Path, cached: CachedObject) -> int:
    """Number of the object's files that are not in the local cache."""
    cache = cache_folder(root)
    path = _cache_path(cache, cached.md5)
    if not cached.md5.endswith(_FOLDER):
        return int(not path.is_file())
    if not path.is_file():
        return cached.nfiles or 1
    entries = read_json(path, "`dvc fetch` it again")
    return sum(not _cache_path(cache, entry["md5"]).is_file() for entry in entries)


def _cache_path(cache: Path, md5: str) -> Path:
    """Where DVC's cache has the object of this hash."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


@contextmanager
def _temporary_workspace(root: Path) -> Iterator[tuple[Path, bool]]:
    """An empty workspace with `root`'s cache and remotes; whether there is a default remote."""
    parent = root / layout.FLOWS / "store"
    parent.mkdir(parents=True, exist_ok=True)
    # inside the workspace, so on its disk: links into the cache work there too
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        settings = read_config(root)
        settings["cache"]["dir"] = str(cache_folder(root))
        settings["core"] |= {"no_scm": "true", "analytics": "false"}
        write_config(folder, settings)
        yield folder, "remote" in settings["core"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_dvc_file(folder: Path, name: str, cached: CachedObject) -> str:
    """Write a `.dvc` file for an object; its name."""
    out = {"md5": cached.md5, "size": cached.size, "hash": "md5", "path": name}
    out |= {"nfiles": cached.nfiles} if cached.nfiles is not None else {}
    (folder / f"{name}.dvc").write_text(json.dumps({"outs": [out]}), encoding="utf-8")
    return f"{name}.dvc"
