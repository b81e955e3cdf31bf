"""Fetch a base model from a Hugging Face hub at one commit, or take it from the local cache.

A commit never changes, so a complete copy in the cache is used without a network. Weight files are
downloaded here, because huggingface_hub (seen in 2.4) restarts a file after a kill and does not
verify its SHA-256. They are stored where huggingface_hub looks for them, `blobs/<sha256>`; it
downloads the small files itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stages.core.disk_space import find_shortages
from stages.core.errors import DiskFullError, InputError
from stages.core.file_lock import exclusive_lock
from stages.core.services.hub import classify_error, endpoint, format_error
from stages.policy.weights import WEIGHTS, missing_parts

COPIED_PATTERNS: Final = ["*.json", WEIGHTS, "*.txt", "*.jinja", "LICENSE*"]
"""Files copied into models/base: what opens a checkpoint, and its licence; no pickles, no code."""
RESERVE: Final = 256 * 2**20
"""Bytes that are left free on a disk."""
DOWNLOAD_FILTER: Final[dict[str, Any]] = {
    "allow_patterns": [*COPIED_PATTERNS, "README.md"],
    "ignore_patterns": ["*/*"],
}
"""Which files are downloaded: README.md has the licence, folders only other formats of weights."""
_GIB: Final = 2**30


def is_model_id(text: str) -> bool:
    """Whether a text has the form of a hub's ids: owner/name."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Folder of a hub model in the local cache; None if it is missing or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(model, revision=revision, local_files_only=True, **DOWNLOAD_FILTER)
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    # huggingface_hub cannot tell whether what an older version left there is complete
    return folder if (folder / "config.json").exists() and not missing_parts(folder) else None


def snapshot(model: str, revision: str, workspace: Path) -> Path:
    """Folder with the files of `model` at a commit, downloaded if the cache lacks any.

    `workspace`: the folder that the files will be copied to, whose disk must have room for them.
    Raises InputError if the model cannot be had (no such id or commit, no network, no access) or
    has no safetensors, DiskFullError if a disk is too small.
    """
    if not is_model_id(model):
        raise InputError(f"base.source = {model!r} is not a model id of the form owner/name")
    cached = cached_snapshot(model, revision)
    if cached is not None:
        _check_space(model, {workspace: sum(path.stat().st_size for path in cached.iterdir())})
        return cached
    with _hub_errors_explained(model, revision):
        files = _list(model, revision)
    blobs = _storage(model) / "blobs"
    missing = [file for file in files if not _is_complete(blobs / _blob(file), file.size)]
    _check_space(
        model,
        {
            _storage(model): sum(file.size - _bytes_fetched(blobs, file) for file in missing),
            workspace: sum(file.size for file in files),
        },
    )
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    with _hub_errors_explained(model, revision):
        for file in missing:
            if file.lfs is not None:
                _fetch(model, revision, file, blobs)
        return Path(snapshot_download(model, revision=revision, **DOWNLOAD_FILTER))


def resolve(model: str, name: str) -> str:
    """The commit that a branch or tag of a model points to now.

    InputError if the hub cannot be asked or lacks it, or if `model` is not an id.
    """
    from huggingface_hub import HfApi

    if not is_model_id(model):
        raise InputError(f"{model!r} is not of the form owner/name, as Qwen/Qwen2-VL-2B-Instruct")
    try:
        return str(HfApi().model_info(model, revision=name).sha)
    except Exception as error:
        what = classify_error(error)
        if what is None:
            raise
        why = {
            "offline": "HF_HUB_OFFLINE forbids asking the hub: unset it",
            "unreachable": (
                f"{endpoint()} cannot be reached ({format_error(error)}): check the network"
            ),
            "unknown id": (
                f"{endpoint()} has no such model that you may see: check the spelling; for a"
                " private one set HF_TOKEN"
            ),
            "no such revision": (
                f"{endpoint()} has this model, but no branch or tag {name!r}: leave it out for main"
            ),
        }
        raise InputError(f"{model}: {why.get(what, format_error(error))}") from error


def _list(model: str, revision: str) -> list[Any]:
    """The files of a commit that pass `DOWNLOAD_FILTER`."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    files = [
        file
        for file in HfApi().list_repo_tree(model, revision=revision)
        if isinstance(file, RepoFile)
    ]
    _check_names(model, revision, [file.path for file in files])
    return list(filter_repo_objects(files, key=lambda file: file.path, **DOWNLOAD_FILTER))


def _check_names(model: str, revision: str, names: list[str]) -> None:
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        present = f"only pickled ones ({pickled[0]}), which are never loaded" if pickled else "none"
        raise InputError(
            f"base.source = {model!r} at {revision}: no *.safetensors weights, {present}. Take a"
            " commit that has them, or convert them elsewhere and give the folder"
        )


def _check_space(model: str, needed: dict[Path, int]) -> None:
    """DiskFullError if a disk has too little room; `needed`: folder -> bytes to write there."""
    for folders, size, free in find_shortages(needed, RESERVE):
        raise DiskFullError(
            f"{model} needs {size / _GIB:.1f} GiB in {' and '.join(map(str, folders))}, where"
            f" {free / _GIB:.1f} GiB are free: free some space (`dvc gc --workspace` drops old"
            " results, `hf cache prune` old downloads), or set HF_HOME to a folder on a larger"
            " disk"
        )


def _fetch(model: str, revision: str, file: Any, blobs: Path) -> None:
    """Download (the rest of) one weight file into the cache; InputError if its hash is wrong."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part, blob = _part(blobs, file), blobs / _blob(file)
    with exclusive_lock(part), part.open("ab") as out:  # another process may be fetching it too
        if _is_complete(blob, file.size):
            part.unlink(missing_ok=True)
            return
        if (arrived := out.seek(0, os.SEEK_END)) > file.size:
            arrived = out.truncate(0)
        how = f"resumes from {arrived / _GIB:.2f} GiB of" if arrived else "fetches"
        print(f"base: {how} {file.path}, {file.size / _GIB:.2f} GiB", file=sys.stderr)
        address = hf_hub_url(model, file.path, revision=revision)
        http_get(
            address,
            out,
            resume_size=arrived,
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.path,
        )
        out.flush()
        os.fsync(out.fileno())
        with part.open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        if digest != file.lfs.sha256:
            part.unlink()
            raise InputError(
                f"{file.path} of {model} was downloaded with SHA-256 {digest} instead of"
                f" {file.lfs.sha256} and deleted: re-run"
            )
        part.replace(blob)


@contextmanager
def _hub_errors_explained(model: str, revision: str) -> Iterator[None]:
    """Turn an error of the hub into an InputError that states cause and remedy."""
    try:
        yield
    except Exception as error:
        what = classify_error(error)
        if what is None:
            raise
        which, hub = f"base.source = {model!r} at {revision}", endpoint()
        folder = "or set base.source to a folder with the model and base.revision to null"
        raise InputError(
            {
                "offline": (
                    f"{which} is incomplete in the local cache ({_storage(model)}), and"
                    " HF_HUB_OFFLINE forbids asking the hub: unset it, fill the cache where there"
                    f" is a network (`hf download {model} --revision {revision}`), {folder}"
                ),
                "unreachable": (
                    f"{which} is incomplete in the local cache ({_storage(model)}), and {hub}"
                    f" cannot be reached ({format_error(error)}): check the network and re-run,"
                    f" downloaded parts are kept; {folder}"
                ),
                "unknown id": (
                    f"{which}: {hub} has no such model that you may see. Check the spelling of the"
                    f" id; for a private one set HF_TOKEN; {folder}"
                ),
                "gated": (
                    f"{which}: its owner requires terms to be accepted: do so at {hub}/{model},"
                    f" then set HF_TOKEN; {folder}"
                ),
                "no such revision": (
                    f"{which}: {hub} has this model, but no such revision."
                    f" {hub}/{model}/commits/main lists those it has; or run `med-r1 base-commit"
                    f" {model}`; {folder}"
                ),
                "token refused": (
                    f"{which}: {hub} does not accept the token: set HF_TOKEN to a valid one, or"
                    " unset it for a public model"
                ),
                "no right": (
                    f"{which}: {hub} does not allow it with this token: ask its owner, {folder}"
                ),
                "hub failed": (
                    f"{which}: {hub} failed ({format_error(error)}): re-run later, downloaded"
                    f" parts are kept; {folder}"
                ),
            }[what]
        ) from error


def _storage(model: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{model.replace('/', '--')}"


def _blob(file: Any) -> str:
    """Name of a file in the cache: its hash on the hub."""
    return str(file.lfs.sha256 if file.lfs is not None else file.blob_id)


def _is_complete(blob: Path, size: int) -> bool:
    return blob.exists() and blob.stat().st_size == size


def _part(blobs: Path, file: Any) -> Path:
    return blobs / f"{_blob(file)}.part"


def _bytes_fetched(blobs: Path, file: Any) -> int:
    """Bytes of a file that an earlier run already downloaded."""
    part = _part(blobs, file)
    return min(part.stat().st_size, file.size) if part.exists() else 0
