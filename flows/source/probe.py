"""The corpus source that `data.dvc` imports: detect new data without fetching it, and fetch it.

`dvc status` and `dvc repro` never contact the source: an import stays pinned until `dvc update`. A
probe reads only the identity of the source: the hash of a local file (DVC caches it by modification
time) or the ETag of an HTTP resource.
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
from flows.source.transfer import fetch_and_pin, find_import, unreachable_error
from stages.core import layout
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError

PROBE_TIMEOUT_S: Final = 300.0
"""Seconds within which a source must have answered."""


@dataclass(frozen=True)
class Probe:
    """State of a source; `identity`: hash or ETag, None if only fetching reveals it."""

    source: str
    changed: bool
    identity: str | None


@dataclass(frozen=True)
class PinnedCorpus:
    """The pinned corpus: path, MD5 and bytes of the archive, and the source it came from."""

    path: str
    md5: str
    size: int
    source: str


def probe(root: Path, timeout: float = PROBE_TIMEOUT_S) -> Probe:
    """Query the source of data.dvc.

    InputError if it is missing, unreachable, or does not answer within `timeout` seconds.
    """
    # its own process: it can be killed at the timeout, and keeps DVC's objects out of our threads
    paths = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "flows.source.probe"]
    try:
        process = subprocess.run(
            command,
            cwd=root,
            env=environment({"PYTHONPATH": paths}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"the source of {layout.DATA_DVC} did not answer within {timeout:.0f} s: check that it"
            " is reachable, then re-run"
        ) from None
    try:
        answer = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise InputError(
            f"the source of {layout.DATA_DVC} cannot be probed: the probe process ended with exit"
            f" code {process.returncode}: {process.stderr.strip()[-2000:]}"
        ) from None
    if "error" in answer:
        raise InputError(answer["error"])
    return Probe(**answer)


def debounce(
    look: Callable[[], Probe], first: Probe, seconds: float, report: Callable[[str], None]
) -> Probe:
    """Wait until `look` has returned the same state for `seconds`: no half-written data."""
    while seconds:
        report(f"{first.source} has changed; waiting until it is unchanged for {seconds:g} s")
        time.sleep(seconds)
        again = look()
        if again == first:
            break
        first = again
    return first


def update(root: Path) -> None:
    """Fetch and pin the source, resuming an earlier transfer.

    InputError if it fails; data.dvc is then unchanged.
    """
    fetch_and_pin(root)


def read_pin(root: Path) -> PinnedCorpus:
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


def _probe_here() -> Probe:
    """Query the source of data.dvc in the working directory through DVC's own objects."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            stage = find_import(repo)
            if stage is None or not stage.is_import:
                raise InputError(
                    f"{layout.DATA_DVC} imports nothing: create it with `dvc import-url` so that"
                    " new data can be detected"
                )
            dep: Any = stage.deps[0]
            if "repo" in dep.dumpd():
                state = dep.status()
                if "deleted" in state.values():
                    raise unreachable_error(str(dep))
                return Probe(str(dep), bool(state), None)
            try:
                # not dep.status(): over HTTP it starts a download to see whether the file exists
                current = dep.get_hash()
            except FileNotFoundError as error:
                raise unreachable_error(dep.def_path, error) from error
            return Probe(str(dep.def_path), current != dep.hash_info, str(current.value))
    except DvcException as error:
        raise InputError(f"the source of {layout.DATA_DVC} cannot be probed: {error}") from error


def main() -> int:
    """Print the state of the source as JSON, or {"error": reason}, then with exit code 1."""
    try:
        print(json.dumps(asdict(_probe_here())))
    except Exception as error:  # one line instead of a library's traceback
        message = " ".join(str(error).split())
        if not isinstance(error, InputError):
            kind = type(error).__name__
            message = f"the source of {layout.DATA_DVC} cannot be probed: {kind}: {message}"
        print(json.dumps({"error": message}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
