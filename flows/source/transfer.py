"""Resumable transfer of the corpus source, and pinning of the result.

    med-r1 fetch

DVC's own transfer always restarts from the first byte. So a single file is fetched by
flows/source/fetch.py, through DVC's file system and credentials, and `dvc commit` then writes
data.dvc exactly as `dvc update` would. Anything else (a folder, an import from a repository, a
versioned bucket) is left to `dvc update`. A `sha256` in data.dvc's `meta` is verified.
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
from flows.source.fetch import Checksum, fetch, remove_state
from stages.core import layout
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError
from stages.core.outputs import atomic_file


def fetch_and_pin(root: Path) -> None:
    """Fetch the source of data.dvc and pin it; then the split files of infra/released.dvc, if any.

    InputError if that fails; data.dvc is then unchanged, as after an interruption, from which the
    next call resumes.
    """
    _fetch_corpus(root)
    if (root / layout.RELEASED_DVC).is_file():
        out = read_dvc_file(root / layout.RELEASED_DVC).outs[0]
        if out.md5 is None or not (root / out.path).exists():
            dvc(root, "update", str(layout.RELEASED_DVC))


def _fetch_corpus(root: Path) -> None:
    fetched = _fetch(root)
    if fetched is None:
        dvc(root, "update", str(layout.DATA_DVC))
        return
    path = root / layout.DATA_DVC
    before = path.read_bytes()
    # DVC queries the source again, hashes the file, and writes data.dvc once its cache has it all
    dvc(root, "commit", "--force", str(layout.DATA_DVC))
    remove_state(root / fetched["target"])
    if (now := read_dvc_file(path).deps[0].identity) != fetched["identity"]:
        with atomic_file(path) as temporary:
            temporary.write_bytes(before)
        raise InputError(
            f"the source of {layout.DATA_DVC} changed from {fetched['identity']} to {now} while it"
            " was fetched: re-run the same command"
        )


def find_import(repo: Any) -> Any:
    """The DVC stage of data.dvc in the working directory; None if there is none.

    Of the pipeline, which takes longer to read than the source to answer, nothing is read.
    """
    from dvc.stage.exceptions import StageFileDoesNotExistError

    try:
        return repo.stage.load_one(str(layout.DATA_DVC))
    except StageFileDoesNotExistError:
        return None


def unreachable_error(name: str, error: BaseException | None = None) -> InputError:
    """Error for an unreachable source, with the cause beneath a misleading "not found"."""
    cause = error and (error.__cause__ or error.__context__)
    why = f" ({' '.join(str(cause).split()) or type(cause).__name__})" if cause else ""
    return InputError(
        f"the source {name} of {layout.DATA_DVC} is missing or unreachable{why}: restore it, or fix"
        f" its address in {layout.DATA_DVC}, and re-run"
    )


def _fetch(root: Path) -> dict[str, str] | None:
    """Fetch the file in another process; None if the source has to be left to `dvc update`.

    InputError if it fails.
    """
    # its own process keeps DVC's objects out of our threads; it exits when its stdin closes, which
    # also happens when this process is killed
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
    answer: dict[str, Any] = json.loads(lines[-1]) if lines and not code else {}
    if "identity" not in answer:
        raise InputError(
            answer.get("error")
            or f"the source of {layout.DATA_DVC} could not be fetched: exit code {code}"
        )
    return answer if answer["identity"] else None


def _fetch_here() -> dict[str, str]:
    """Fetch the source of data.dvc in the working directory; its identity and target path.

    The identity is empty if there is nothing to fetch, or nothing that can be fetched as one file.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        stage = find_import(repo)
        if stage is None or not stage.is_import or stage.is_repo_import or stage.is_db_import:
            return {"identity": ""}
        dep = stage.deps[0]
        out = stage.outs[0]
        try:
            kind = dep.fs.info(dep.fs_path)["type"]
        except FileNotFoundError as error:
            # `dvc update` would delete the present corpus before it noticed
            raise unreachable_error(dep.def_path, error) from error
        if dep.fs.version_aware or kind != "file":
            return {"identity": ""}
        now = dep.get_hash()
        # in the workspace or in DVC's cache (another profile's corpus may be in its place):
        # `dvc update` restores it from there
        if now == dep.hash_info and (not out.workspace_status() or not out.changed_cache()):
            return {"identity": ""}
        fetch(dep.fs.fs, dep.fs_path, Path(out.fs_path), _checksum(stage.meta), keep_state=True)
        return {"identity": str(now.value), "target": os.path.relpath(out.fs_path)}


def _checksum(meta: Any) -> Checksum | None:
    """The SHA-256 in data.dvc's `meta`, if any; InputError if malformed or parsed as a number."""
    if not isinstance(meta, dict) or "sha256" not in meta:
        return None
    digest = meta["sha256"]
    if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-fA-F]{64}", digest)):
        raise InputError(
            f"{layout.DATA_DVC}: meta.sha256 = {digest!r}: write 64 hex digits, in quotes, or"
            " remove it"
        )
    return Checksum("sha256", digest)


def _fetch_for_caller() -> int:
    """Print the identity and target of the fetched file as JSON, or {"error": reason}."""
    threading.Thread(target=_exit_with_caller, daemon=True).start()
    try:
        answer = _fetch_here()
    except InputError as error:
        answer = {"error": str(error)}
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # one line instead of a library's traceback
        cause = " ".join(str(error.__cause__ or error).split())
        answer = {
            "error": (
                f"the source of {layout.DATA_DVC} cannot be fetched"
                f" ({type(error).__name__}: {cause})"
            )
        }
    print(json.dumps(answer))
    return 0


def _exit_with_caller() -> None:
    """Exit at once when the caller does: a transfer needs no cleanup to be resumable."""
    os.read(0, 1)  # sys.stdin would block interpreter shutdown
    os._exit(130)


def run(root: Path) -> None:
    """Fetch and pin the source of data.dvc, and print the next command."""
    fetch_and_pin(root)
    print(f"{layout.DATA_DVC} pins the current version of its source; run `dvc repro` next")


if __name__ == "__main__":  # the process started by `_fetch`
    sys.exit(_fetch_for_caller())
