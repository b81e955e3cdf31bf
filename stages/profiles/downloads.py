"""Downloads of a profile: size, pin, whether they are local, and whether they can be fetched."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from stages.base.hub import cached_snapshot, is_model_id
from stages.core import layout
from stages.core.dvc_files import DvcFile
from stages.core.errors import InputError
from stages.core.params import Params
from stages.profiles.schema import Profile

TIMEOUT_S: Final = 10
"""Seconds within which a server must answer."""


@dataclass(frozen=True)
class Download:
    """A corpus or base to fetch.

    `size`: bytes, None if unknown; `pin`: the hashes or revision that identify it; `is_local`:
    nothing is left to fetch; `in_repository`: DVC imports it from another repository.
    """

    name: str
    source: str
    size: int | None
    pin: str
    is_local: bool
    in_repository: bool = False


def downloads(
    profile: Profile, params: Params, pinned: DvcFile, present: DvcFile
) -> list[Download]:
    """The corpus that data.dvc will import, and the base unless it is a folder.

    `pinned` is data.dvc with the profile, `present` the file in the workspace. InputError if
    `pinned` imports nothing.
    """
    needed = [_corpus(pinned, present)]
    if not Path(params.base.source).is_dir():
        needed.append(_base(profile, params))
    return needed


def split_files(pinned: DvcFile) -> Download:
    """The split files that infra/released.dvc imports from a repository."""
    dep, out = pinned.deps[0], pinned.outs[0]
    revision = dep.repo.rev if dep.repo and dep.repo.rev else "no revision"
    is_local = out.md5 is not None and Path(out.path).exists()
    return Download("split files", dep.source, out.size, revision, is_local, in_repository=True)


def wrong_weights(profile: Profile, params: Params) -> list[str]:
    """Files of the cached base that are missing or differ from the pinned ones, by SHA-256."""
    if profile.model is None or Path(params.base.source).is_dir():
        return []
    folder = cached_snapshot(params.base.source, params.base.revision)
    if folder is None:
        return []
    return [
        name
        for name, digest in profile.model.sha256.items()
        if not _is_cached_as(folder / name, digest)
    ]


def find_obstacle(download: Download, params: Params) -> str:
    """Why a source cannot be fetched now; empty if it can, or if only a transfer would show."""
    if download.name == "base":
        return _hub(download.source, params.base.revision)
    scheme = urlsplit(download.source).scheme
    if scheme in ("http", "https") and not download.in_repository:
        return _http(download.source, download.size)
    if scheme or download.in_repository or Path(download.source).exists():
        return ""
    return "there is no such file"


def _corpus(pinned: DvcFile, present: DvcFile) -> Download:
    if not pinned.deps or not pinned.outs:
        raise InputError(
            f"{layout.DATA_DVC} imports nothing: give the profile `data` with one path each in"
            " `deps` and `outs`, or restore the file"
        )
    dep = pinned.deps[0]
    out = pinned.outs[0]
    size = pinned.meta.get("size") if out.size is None else out.size
    digests = {"SHA-256": pinned.meta.get("sha256"), "MD5": out.md5}
    pins = [f"{kind} {digest}" for kind, digest in digests.items() if digest]
    path = Path(out.path)
    is_same = out.md5 is not None and out in present.outs
    is_local = path.exists() and (is_same or (path.is_file() and path.stat().st_size == size))
    pin = " and ".join(pins) or "no hash yet: the first download pins it"
    in_repository = dep.repo is not None
    return Download("corpus", dep.source, size, pin, is_local, in_repository)


def _base(profile: Profile, params: Params) -> Download:
    source = params.base.source
    revision = params.base.revision
    model = profile.model
    if revision is None:
        return Download("base", source, model.size if model else None, "nothing", is_local=False)
    if model and model.sha256:
        hashes = f", SHA-256 of {len(model.sha256)} weight files"
    else:
        hashes = "; the profile has no hashes"
    return Download(
        "base",
        source,
        model.size if model else None,
        f"revision {revision}{hashes}",
        is_local=cached_snapshot(source, revision) is not None,
    )


def _is_cached_as(path: Path, digest: str) -> bool:
    # the hub's cache links large files to blobs that are named by their SHA-256, others by another
    # hash
    blob = path.resolve().name
    return path.exists() and (len(blob) != 64 or blob == digest)


def _http(address: str, size: int | None) -> str:
    # the caller passes http(s) addresses only
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        return f"its server answers {error.code} {error.reason}: is the address still right?"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"its server cannot be reached ({reason}): is there a network?"
    if length and size and int(length) != size:
        return f"it has {length} bytes on the server, not {size}: it is another file"
    return ""


def _hub(source: str, revision: str | None) -> str:
    if not is_model_id(source):
        return "there is no such folder, and it is not a model id (owner/name)"
    if revision is None:
        return (
            f"base.revision is null, and a model id needs a commit: `med-r1 base-commit {source}`"
            " prints one"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().model_info(source, revision=revision, timeout=TIMEOUT_S)
    except RevisionNotFoundError:
        return f"the hub has no commit {revision} of it: is base.revision right, or was it deleted?"
    except RepositoryNotFoundError:
        return "the hub has no such model: is base.source right, or is it private (HF_TOKEN)?"
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, and it is not in the local cache"
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "nothing"
        return f"the hub answers {status}"
    except Exception as error:  # each library has its own exception for "no network"
        return f"the hub cannot be reached ({type(error).__name__}): is there a network?"
    return ""
