"""What outputs weigh, by DVC's lock file or else as they lie there, and what room is left for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from flows.dvc_api.client import dvc
from flows.dvc_api.graph import Stage
from stages.core.disk_space import free_bytes
from stages.core.errors import InputError

LOCK_FILE: Final = "dvc.lock"
_MARKERS: Final = ("<<<<<<< ", "=======", ">>>>>>> ")
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Lock = Mapping[str, Mapping[str, int]]
"""Stage that has run -> path of an output -> its size in bytes then."""


def read_lock(root: Path) -> Lock:
    """What dvc.lock says of the outputs; empty if there is none. InputError if git or somebody else left it broken."""
    path = root / LOCK_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}. Take the last committed one: `git checkout HEAD -- {LOCK_FILE}`") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(_MARKERS):
            raise InputError(
                f"{path}, line {number}: a git conflict is not resolved. Take either side whole, `git checkout --ours {LOCK_FILE}` or "
                f"`--theirs`, then `git add {LOCK_FILE}`: what does not match it is run again, or taken from the run-cache"
            )
    try:
        stages = (yaml.load(text, Loader=_Loader) or {}).get("stages") or {}  # noqa: S506 - a safe loader
        return {
            name: {out["path"]: int(out.get("size") or 0) for out in entry.get("outs") or []}
            for name, entry in stages.items()
            if isinstance(entry, dict)
        }
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not what DVC writes ({error}). Take the last committed one: `git checkout HEAD -- {LOCK_FILE}`"
        ) from error


def out_size(root: Path, stage: Stage, lock: Lock) -> int | None:
    """Bytes of a stage's outputs, as after its last run or else as they lie there; None if one is not known at all."""
    recorded = _pinned(root / stage.name) if stage.name.endswith(".dvc") else lock.get(stage.name, {})
    sizes = [recorded.get(out) if out in recorded else tree_size(root / out) for out in stage.outs]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def tree_size(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder; None if there is neither. Hard links count once."""
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return None
    seen, total, waiting = set[tuple[int, int]](), 0, [str(path)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        info = entry.stat(follow_symlinks=False)
                        if (info.st_dev, info.st_ino) not in seen:
                            seen.add((info.st_dev, info.st_ino))
                            total += info.st_size
        except FileNotFoundError:  # removed while it was counted
            continue
    return total


def free_space(root: Path) -> int:
    """Bytes free for the workspace and DVC's cache: of two disks, on the one that has less."""
    return min(free_bytes(path) for path in (root, cache_folder(root)))


def cache_folder(root: Path) -> Path:
    """Where DVC keeps what stages made."""
    return root / dvc(root, "cache", "dir").strip()


def _pinned(path: Path) -> dict[str, int]:
    """Outputs and sizes that a .dvc file pins, by path from the root."""
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}  # noqa: S506 - a safe loader
        return {os.path.normpath(out["path"]): int(out["size"]) for out in content.get("outs") or [] if "size" in out}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return {}
