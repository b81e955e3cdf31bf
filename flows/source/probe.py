"""The corpus source that `data.dvc` imports: detect new data without fetching it, and fetch it.

`dvc status` and `dvc repro` never look there: what is imported stays pinned until `dvc update`. A
probe asks for the identity of the source alone: the hash of a local file (DVC remembers it while
the file's time stays), the ETag of one behind HTTP.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flows.dvc_api.client import environment
from flows.source.transfer import take, unreachable
from stages.core import layout
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError

PATIENCE: Final = 300.0
"""Seconds in which a source must have answered."""


@dataclass(frozen=True)
class Probe:
    """State of a source: current hash or ETag (None if only fetching tells), `changed`."""

    source: str
    changed: bool
    identity: str | None


@dataclass(frozen=True)
class PinnedCorpus:
    """The pinned corpus: path, hash and bytes of the archive, and where it came from."""

    path: str
    md5: str
    size: int
    source: str


def probe(root: Path, patience: float = PATIENCE) -> Probe:
    """Ask the source of data.dvc.

    InputError if it is gone, cannot be reached, or does not answer within `patience` seconds.
    """
    # a process of its own: it can be given up, and DVC's objects stay out of this one's threads
    paths = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "flows.source.probe"]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment({"PYTHONPATH": paths}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"the source of {layout.DATA_DVC} did not answer within {patience:.0f} s: is it"
            " reachable? Try again later"
        ) from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise InputError(
            f"the source of {layout.DATA_DVC} cannot be asked: the process that asks it ended with"
            f" exit code {done.returncode}: {done.stderr.strip()[-2000:]}"
        ) from None
    if "error" in answer:
        raise InputError(answer["error"])
    return Probe(**answer)


def debounce(
    look: Callable[[], Probe], first: Probe, seconds: float, report: Callable[[str], None]
) -> Probe:
    """Wait until `look` has found the same state for `seconds`: no half-written data."""
    while seconds:
        report(f"{first.source} has changed; it is taken when it has stayed so for {seconds:g} s")
        time.sleep(seconds)
        again = look()
        if again == first:
            break
        first = again
    return first


def update(root: Path) -> None:
    """Fetch the source and pin it, going on where an earlier transfer was stopped.

    InputError if it fails; data.dvc is then as it was.
    """
    take(root)


def pinned(root: Path) -> PinnedCorpus:
    """What data.dvc pins; InputError if it is missing, imports nothing, or has no hash yet."""
    path = root / layout.DATA_DVC
    try:
        file = read_dvc_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: `git checkout {layout.DATA_DVC}`") from None
    if not file.deps or not file.outs or file.outs[0].md5 is None:
        raise InputError(
            f"{path} does not pin an import: `git checkout {layout.DATA_DVC}`, or `dvc update` it"
        )
    out = file.outs[0]
    return PinnedCorpus(out.path, str(out.md5), out.size or 0, file.deps[0].source)


def _ask() -> Probe:
    """Ask the source of data.dvc in the working directory, by DVC's own objects."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            # not by target: only files of the workspace count, as for `dvc update`
            stage = next(
                (
                    each
                    for each in repo.index.stages
                    if Path(each.path) == Path.cwd() / layout.DATA_DVC
                ),
                None,
            )
            if stage is None or not stage.is_import:
                raise InputError(
                    f"{layout.DATA_DVC} imports nothing: make it with `dvc import-url` so that new"
                    " data can be looked for"
                )
            dep: Any = stage.deps[0]
            if "repo" in dep.dumpd():
                state = dep.status()
                if "deleted" in state.values():
                    raise unreachable(str(dep))
                return Probe(str(dep), bool(state), None)
            try:
                # not dep.status(): over HTTP that begins to fetch the file to see whether it is
                # there
                found = dep.get_hash()
            except FileNotFoundError as error:
                raise unreachable(dep.def_path, error) from error
            return Probe(str(dep.def_path), found != dep.hash_info, str(found.value))
    except DvcException as error:
        raise InputError(f"the source of {layout.DATA_DVC} cannot be asked: {error}") from error


def main() -> int:
    """Print the state of the source as JSON, or {"error": reason}.

    Exit code 1 if it cannot be probed.
    """
    try:
        print(json.dumps(asdict(_ask())))
    except InputError as error:
        print(json.dumps({"error": " ".join(str(error).split())}))
        return 1
    except Exception as error:  # a reason in one line is more use than a library's traceback
        why = (
            f"the source of {layout.DATA_DVC} cannot be asked: {type(error).__name__}:"
            f" {' '.join(str(error).split())}"
        )
        print(json.dumps({"error": why}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
