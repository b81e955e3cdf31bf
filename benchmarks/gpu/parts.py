"""Parts of the GPU benchmark: what a result follows from, and a process that leaves nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.matrix import STYLES
from flows.dvc_api.processes import guarded
from stages.core import layout
from stages.core.code_version import stage_code
from stages.core.outputs import read_json
from stages.profiles.measured import evaluation_setting, training_setting
from stages.profiles.splice import reset

REPOSITORY: Final = Path(__file__).parents[2]
_CODE: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "benchmarks.grpo_step": (("train",), ("benchmarks/grpo_step",)),
    "benchmarks.evaluate": (("evaluate",), ("benchmarks/evaluate", "benchmarks/grpo_step")),
    "benchmarks.gpu.learning": (
        ("download", "resize", "splits", "prior", "base", "train", "evaluate", "report"),
        ("benchmarks/gpu/learning.py", "infra/sample", "infra/base"),
    ),
}
"""Module of a part -> stages whose code it measures, and its own files and folders."""


def origin(words: Sequence[str], device: dict[str, Any]) -> dict[str, Any]:
    """What a result follows from: command, device, hash of the code, settings of the profile.

    `words`: the module of a part, and its arguments.
    """
    return {
        "words": list(words),
        "device": device,
        "code": _code_hash(words[0]),
        "setting": _setting(words),
    }


def is_current(path: Path, device: dict[str, Any], words: Sequence[str] | None = None) -> bool:
    """Whether a result was measured on this device, by today's code and settings.

    `words`: and by this command.
    """
    if not path.exists():
        return False
    made_by = read_json(path, "").get("made_by", {})
    found = made_by.get("words")
    # earlier results do not name their code
    if "code" not in made_by or words not in (None, found):
        return False
    return bool(made_by == origin(found, device))


@cache
def _code_hash(module: str) -> str:
    stages, own = _CODE[module]
    files: set[Path] = set()
    for stage in stages:
        files.update(stage_code(stage, REPOSITORY))
    for name in own:
        path = REPOSITORY / name
        files.update([path] if path.is_file() else path.rglob("*.py"))
    return _hash_files(files)


def _hash_files(files: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files of the repository, in any order."""
    digest = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(REPOSITORY)} {content}\n".encode())
    return digest.hexdigest()


def _setting(words: Sequence[str]) -> dict[str, Any]:
    """The settings that a part measures, as JSON."""
    if words[0] == "benchmarks.gpu.learning":
        params = REPOSITORY / layout.PARAMS
        sample, _ = reset(params.read_text(encoding="utf-8"), params)
        return {"sample": hashlib.sha256(sample.encode()).hexdigest()}
    options = dict(zip(words[1::2], words[2::2], strict=True))
    tokens = int(options["--completions"])
    style = next(name for name, each in STYLES.items() if each == tokens)
    return _profile_setting(words[0], options["--profile"], style)


@cache
def _profile_setting(module: str, profile: str, style: Any) -> dict[str, Any]:
    from benchmarks.grpo_step.setting import profile_params  # imports torch

    params = profile_params(profile, style)
    is_training = module == "benchmarks.grpo_step"
    return training_setting(params) if is_training else evaluation_setting(params)


def run_part(command: Sequence[str], timeout: float) -> int | None:
    """Exit code of a command, or None if it did not end in `timeout` seconds.

    All its processes have then ended, and its temporary files are deleted: also on an exception,
    such as KeyboardInterrupt or that of `stages.core.cli.exit_on_termination`. A guard runs it in a
    session of its own and ends the group when this process closes a pipe, or is gone.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-part-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder) / "tmp"
        scratch.mkdir()
        process = subprocess.Popen(
            guarded(command, Path(folder) / "running"),
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.stdin.close()
            process.wait()
