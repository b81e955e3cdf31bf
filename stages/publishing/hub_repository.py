"""Publish to a hub repository in one commit: everything or nothing.

What was uploaded before an interruption is kept by the hub under its hash, and not sent again.
"""

from __future__ import annotations

import os

from stages.core.errors import InputError
from stages.core.services.hub import classify_error, endpoint, format_error
from stages.publishing.bundle import Bundle


def upload(bundle: Bundle, repo: str, *, public: bool) -> str:
    """Upload; the address of the commit.

    What the repository held of another checkpoint's weights is taken out.

    The token is the environment's HF_TOKEN and nobody else's. Raises InputError without one, if the
    hub does not accept it or cannot be reached, and if the repository is public where a private one
    was asked for, or the other way round.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise InputError(
            f"uploading to {repo} needs a token with the right to write: set it as HF_TOKEN in the"
            " environment"
        )
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        there = api.model_info(repo)
        if bool(there.private) is public:
            raise InputError(
                f"{repo} is there and {'private' if there.private else 'public'}:"
                f" {'leave --public out' if public else 'give --public'}, name another with --repo,"
                " or change it in its settings"
            )
        names = {item.name for item in bundle.items}
        old = [
            each.rfilename
            for each in there.siblings or []
            if "/" not in each.rfilename and ".safetensors" in each.rfilename
        ]
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(
                item.name, item.content if isinstance(item.content, bytes) else str(item.content)
            )
            for item in bundle.items
        ]
        changes += [CommitOperationDelete(name) for name in old if name not in names]
        message = f"{bundle.checkpoint}, made with commit {bundle.commit[:12]}"
        return str(api.create_commit(repo, changes, commit_message=message).commit_url)
    except InputError:
        raise
    except Exception as error:
        what = classify_error(error)
        if what is None and not isinstance(error, RuntimeError | OSError | ValueError):
            raise
        remedy = {
            "offline": "unset HF_HUB_OFFLINE",
            "unreachable": (
                "check the network and run the same command again: what has arrived is not sent"
                " twice"
            ),
            "unknown id": "check the owner in --repo, and that HF_TOKEN may see it",
            "gated": "ask its owner",
            "no such revision": "look at it in a browser",
            "token refused": "set HF_TOKEN to a valid token",
            "no right": "HF_TOKEN needs the right to write there",
            "hub failed": "run the same command again later: what has arrived is not sent twice",
        }.get(what or "", "run the same command again: what has arrived is not sent twice")
        raise InputError(
            f"{bundle.checkpoint} is not published to {endpoint()}/{repo} ({format_error(error)}):"
            f" {remedy}"
        ) from error
