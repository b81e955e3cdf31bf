"""Publish to a hub repository, created if missing; all files in one commit.

The hub stores uploaded files under their hash: a re-run after an interruption sends only the
missing ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from stages.core.errors import InputError
from stages.core.services.hub import HubErrorKind, classify_error, endpoint, format_error
from stages.publishing.bundle import Bundle

_RESUMES: Final = "it sends only the missing files"
_REMEDIES: Final[Mapping[HubErrorKind | None, str]] = {
    "offline": "unset HF_HUB_OFFLINE",
    "unreachable": f"check the network and re-run the same command: {_RESUMES}",
    "unknown id": "check the owner in --repo, and that HF_TOKEN may see it",
    "gated": "ask the repository's owner for access",
    "no such revision": f"check that it has a branch main, and re-run the same command: {_RESUMES}",
    "token refused": "set HF_TOKEN to a valid token",
    "no right": "HF_TOKEN needs write access to it",
    "hub failed": f"re-run the same command later: {_RESUMES}",
}


def upload(bundle: Bundle, repo: str, *, public: bool) -> str:
    """Upload a bundle and delete other weight files of the repository; the URL of the commit.

    The token is only read from HF_TOKEN. Raises InputError if it is missing or rejected, if the hub
    is unreachable, and if the repository exists with another visibility than `public`.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise InputError(
            f"uploading to {repo} needs a token with write access: set it as HF_TOKEN in the"
            " environment"
        )
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        existing = api.model_info(repo)
        is_public = not existing.private
        if is_public != public:
            raise InputError(
                f"{repo} exists and is {'public' if is_public else 'private'}:"
                f" {'drop --public' if public else 'add --public'}, name another repository with"
                " --repo, or change its settings"
            )
        names = {item.name for item in bundle.items}
        weights = [
            each.rfilename
            for each in existing.siblings or []
            if "/" not in each.rfilename and ".safetensors" in each.rfilename
        ]
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(
                item.name, item.content if isinstance(item.content, bytes) else str(item.content)
            )
            for item in bundle.items
        ]
        changes += [CommitOperationDelete(name) for name in weights if name not in names]
        message = f"{bundle.checkpoint}, made with commit {bundle.commit[:12]}"
        return str(api.create_commit(repo, changes, commit_message=message).commit_url)
    except InputError:
        raise
    except Exception as error:
        kind = classify_error(error)
        # huggingface_hub raises the built-in ones for failed uploads and invalid names
        if kind is None and not isinstance(error, RuntimeError | OSError | ValueError):
            raise
        remedy = _REMEDIES.get(kind, f"re-run the same command: {_RESUMES}")
        raise InputError(
            f"{bundle.checkpoint} is not published to {endpoint()}/{repo} ({format_error(error)}):"
            f" {remedy}"
        ) from error
