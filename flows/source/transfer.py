"""Resumable transfer of the corpus source, and pinning of the result.

    med-r1 fetch

DVC's own transfer begins anew each time. So a single file is fetched by flows/source/fetch.py, from
the file system and with the credentials that DVC has for it, and `dvc commit` then writes data.dvc,
as `dvc update` would have. What is no single file (a folder, an import from a repository, a bucket
that keeps versions) is left to `dvc update`. If `meta` in data.dvc gives a `sha256`, the file must
have it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from flows.dvc_api.client import dvc, environment
from flows.source.fetch import Checksum, fetch, forget
from stages.core import layout
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError
from stages.core.outputs import atomic_file


def take(root: Path) -> None:
    """Fetch the source of data.dvc and pin it.

    InputError if that fails; data.dvc is then as it was.

    Stopped or killed meanwhile, it is as it was, too, and the next call goes on with what has come.
    """
    fetched = _fetch(root)
    if fetched is None:
        dvc(root, "update", str(layout.DATA_DVC))
        return
    path = root / layout.DATA_DVC
    before = path.read_bytes()
    # DVC asks the source once more, hashes what has come, and writes data.dvc when all is in its
    # cache
    dvc(root, "commit", "--force", str(layout.DATA_DVC))
    forget(root / fetched["target"])
    if (now := read_dvc_file(path).deps[0].identity) != fetched["identity"]:
        with atomic_file(path) as temporary:
            temporary.write_bytes(before)
        raise InputError(
            f"the source of {layout.DATA_DVC} changed from {fetched['identity']} to {now} while it"
            " was fetched: run again"
        )


def unreachable(name: str, error: BaseException | None = None) -> InputError:
    """Message for an unreachable source, with the error beneath a misleading "not found"."""
    cause = error and (error.__cause__ or error.__context__)
    why = f" ({' '.join(str(cause).split()) or type(cause).__name__})" if cause else ""
    return InputError(
        f"the source {name} of {layout.DATA_DVC} is gone, or cannot be reached{why}: mend it, and"
        " run again"
    )


def _fetch(root: Path) -> dict[str, str] | None:
    """Have another process fetch the file; None if the source is for `dvc update`.

    InputError if it fails.
    """
    # a process of its own: DVC's objects stay out of this one's threads. It ends when its standard
    # input does, as it does with this one
    paths = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with subprocess.Popen(
        [sys.executable, "-m", "flows.source.transfer"],
        cwd=root,
        env=environment({"PYTHONPATH": paths}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        lines = process.stdout.read().splitlines()
        code = process.wait()
    said: dict[str, Any] = json.loads(lines[-1]) if lines and not code else {}
    if "identity" not in said:
        raise InputError(
            said.get("error")
            or f"the source of {layout.DATA_DVC} could not be fetched: exit code {code}"
        )
    return said if said["identity"] else None


def _fetch_here() -> dict[str, str]:
    """Fetch the source of data.dvc in the working directory through DVC; its identity and location.

    The identity is empty if there is nothing to fetch, or nothing that can be fetched as one file.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        stage = next(
            (each for each in repo.index.stages if Path(each.path) == Path.cwd() / layout.DATA_DVC),
            None,
        )
        if stage is None or not stage.is_import or stage.is_repo_import or stage.is_db_import:
            return {"identity": ""}
        dep, out = stage.deps[0], stage.outs[0]
        try:
            kind = dep.fs.info(dep.fs_path)["type"]
        except FileNotFoundError as error:
            raise unreachable(
                dep.def_path, error
            ) from error  # `dvc update` would delete what there is before it finds that out
        if dep.fs.version_aware or kind != "file":
            return {"identity": ""}
        now = dep.get_hash()
        # in DVC's cache, though another corpus lies in its place, as behind a profile that is set
        # again: `dvc update` puts it there
        if now == dep.hash_info and (not out.workspace_status() or not out.changed_cache()):
            return {"identity": ""}
        fetch(dep.fs.fs, dep.fs_path, Path(out.fs_path), _checksum(stage.meta), noted=True)
        return {"identity": str(now.value), "target": os.path.relpath(out.fs_path)}


def _checksum(meta: Any) -> Checksum | None:
    """The SHA-256 in data.dvc's `meta`; None if it gives none.

    InputError if that is no SHA-256, or YAML takes it for a number.
    """
    if not isinstance(meta, dict) or "sha256" not in meta:
        return None
    digest = meta["sha256"]
    if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-fA-F]{64}", digest)):
        raise InputError(
            f"{layout.DATA_DVC}: meta.sha256 = {digest!r}: write 64 hex digits, in quotes, or take"
            " it out"
        )
    return Checksum("sha256", digest)


def _fetch_for_caller() -> int:
    """Print what was fetched as JSON, or why it was not."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        said = _fetch_here()
    except InputError as error:
        said = {"error": str(error)}
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # a reason in one line is more use than a library's traceback
        why = " ".join(str(error.__cause__ or error).split())
        said = {
            "error": (
                f"the source of {layout.DATA_DVC} is gone, or cannot be fetched"
                f" ({type(error).__name__}: {why})"
            )
        }
    print(json.dumps(said))
    return 0


def _end_with_caller() -> None:
    """What has come by then is kept: nothing has to be ended well."""
    os.read(0, 1)  # not sys.stdin, which waits for its reader when the process ends
    os._exit(130)


def run(root: Path) -> None:
    """Fetch and pin the source of data.dvc, and print what to do next."""
    take(root)
    print(f"{layout.DATA_DVC} pins what its source holds now; `dvc repro` takes it from there")


if __name__ == "__main__":  # the process that `_fetch` starts
    sys.exit(_fetch_for_caller())
