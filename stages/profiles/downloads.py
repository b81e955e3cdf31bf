"""Downloads of a profile: size, pin, whether they are local, and whether they can be fetched."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from stages.base.hub import FETCHED
from stages.core.dvc_files import DvcFile
from stages.core.params import Params
from stages.policy.weights import missing_parts
from stages.profiles.schema import Profile

TIMEOUT_S: Final = 10
"""Seconds within which a server must answer."""


@dataclass(frozen=True)
class Download:
    """A corpus or base to fetch.

    `size`: bytes, None if unknown; `pin`: the hashes or revision that identify it; `is_local`:
    nothing is left to fetch.
    """

    name: str
    source: str
    size: int | None
    pin: str
    is_local: bool


def downloads(profile: Profile, params: Params, pinned: DvcFile) -> list[Download]:
    """The corpus that data.dvc will import, and the base unless it is a folder."""
    needed = [_corpus(pinned)]
    if not Path(params.base.source).is_dir():
        needed.append(_base(profile, params))
    return needed


def cached(source: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the local cache; None if it is missing or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(source, revision=revision, local_files_only=True, **FETCHED)
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return folder if (folder / "config.json").exists() and not missing_parts(folder) else None


def wrong_weights(profile: Profile, params: Params) -> list[str]:
    """Files of the cached base that are missing or differ from the pinned ones, by SHA-256."""
    if profile.model is None or Path(params.base.source).is_dir():
        return []
    folder = cached(params.base.source, params.base.revision)
    if folder is None:
        return []
    return [
        name
        for name, digest in profile.model.sha256.items()
        if not _is_cached_as(folder / name, digest)
    ]


def unreachable(download: Download, params: Params, size: int | None) -> str:
    """Why the source cannot be fetched now; empty if it can, or if only a transfer would show.

    `size`: the bytes that the source should have, None if unknown.
    """
    if download.name == "base":
        return _hub(download.source, params.base.revision)
    scheme = urlsplit(download.source).scheme
    if scheme in ("http", "https"):
        return _http(download.source, size)
    return "" if scheme or Path(download.source).exists() else "there is no such file"


def _corpus(pinned: DvcFile) -> Download:
    dep = pinned.deps[0]
    out = pinned.outs[0]
    size = pinned.meta.get("size") if out.size is None else out.size
    digests = {"SHA-256": pinned.meta.get("sha256"), "MD5": out.md5}
    pins = [f"{kind} {digest}" for kind, digest in digests.items() if digest]
    path = Path(out.path)
    is_local = path.exists() and (size is None or path.is_dir() or path.stat().st_size == size)
    pin = " and ".join(pins) or "no hash yet: the first download pins it"
    return Download("corpus", dep.path, size, pin, is_local)


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
        is_local=cached(source, revision) is not None,
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
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
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
