"""What a profile has to fetch: how large, pinned by what, and whether it is here or can be had."""

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

SECONDS: Final = 10
"""That a server has to answer."""


@dataclass(frozen=True)
class Download:
    """A thing to fetch.

    `size` in bytes, None if it is not known; `pins`: what tells it from every other; `here`:
    nothing is left to do.
    """

    name: str
    source: str
    size: int | None
    pins: str
    here: bool


def downloads(profile: Profile, params: Params, pinned: DvcFile) -> list[Download]:
    """The corpus, by what data.dvc will hold, and the base."""
    needed = [_corpus(pinned)]
    if not Path(params.base.source).is_dir():
        known = profile.model
        hashes = (
            f", SHA-256 of {len(known.sha256)} files of weights"
            if known and known.sha256
            else "; no hash is known beside it"
        )
        needed.append(
            Download(
                "base",
                params.base.source,
                known.size if known else None,
                f"revision {params.base.revision}{hashes}" if params.base.revision else "nothing",
                params.base.revision is not None
                and cached(params.base.source, params.base.revision) is not None,
            )
        )
    return needed


def cached(source: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the local cache; None if it is not there, or not whole."""
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
    """Files of the cached base that differ from the pinned ones, by SHA-256."""
    folder = (
        cached(params.base.source, params.base.revision)
        if profile.model and not Path(params.base.source).is_dir()
        else None
    )
    if folder is None or profile.model is None:
        return []
    return [
        name
        for name, digest in profile.model.sha256.items()
        if not (folder / name).exists()
        or (len((folder / name).resolve().name) == 64 and (folder / name).resolve().name != digest)
    ]


def unreachable(download: Download, params: Params, size: int | None) -> str:
    """Why the source cannot be downloaded now.

    Empty if it can, or if only the transfer would tell.
    """
    if download.name == "base":
        return _hub(download.source, params.base.revision)
    scheme = urlsplit(download.source).scheme
    if scheme in ("http", "https"):
        return _http(download.source, size)
    return "" if scheme or Path(download.source).exists() else "there is no such file"


def _corpus(pinned: DvcFile) -> Download:
    dep, out = pinned.deps[0], pinned.outs[0]
    size = pinned.meta.get("size") if out.size is None else out.size
    sizes = [
        f"{kind} {value}"
        for kind, value in (("SHA-256", pinned.meta.get("sha256")), ("MD5", out.md5))
        if value
    ]
    path = Path(out.path)
    here = path.exists() and (size is None or path.is_dir() or path.stat().st_size == size)
    return Download(
        "corpus",
        dep.path,
        size,
        " and ".join(sizes) or "no hash yet: the first download pins it",
        here,
    )


def _http(address: str, size: int | None) -> str:
    # an address is one of http(s): only such come here
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        return f"its server answers {error.code} {error.reason}: is the address still right?"
    except (OSError, ValueError) as error:
        return f"its server is not reached ({getattr(error, 'reason', error)}): is there a network?"
    return (
        f"its server has {length} bytes of it, not {size}: another file"
        if length and size and int(length) != size
        else ""
    )


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
        HfApi().model_info(source, revision=revision, timeout=SECONDS)
    except RevisionNotFoundError:
        return (
            f"the hub has no commit {revision} of it: is base.revision right, or was it taken back?"
        )
    except RepositoryNotFoundError:
        return (
            "the hub knows no such model: is base.source spelt right, or is it private (HF_TOKEN)?"
        )
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, and it is not in the local cache"
    except HfHubHTTPError as error:
        return (
            "the hub answers"
            f" {error.response.status_code if error.response is not None else 'nothing'}"
        )
    except Exception as error:  # no network has as many names as there are libraries
        return f"the hub is not reached ({type(error).__name__}): is there a network?"
    return ""
