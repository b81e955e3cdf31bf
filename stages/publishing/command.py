"""Publish a finished checkpoint to a Hugging Face hub or a DVC remote.

    med-r1 publish ct --repo me/med-r1-ct            list what would be uploaded
    med-r1 publish ct --repo me/med-r1-ct --yes      upload it with the token in HF_TOKEN
    med-r1 publish ct --remote shared --yes          push it to a DVC remote instead, or as well

Not a stage of the pipeline: `dvc repro` never uploads anything.
"""

from __future__ import annotations

import re

from stages.core.errors import InputError
from stages.core.params import load_params
from stages.publishing.bundle import Bundle, gather
from stages.publishing.dvc_remote import check_remote, push
from stages.publishing.hub_repository import upload

_MIB = 2**20


def run(
    checkpoint: str,
    repo: str | None,
    remote: str | None,
    *,
    public: bool,
    allow_dirty: bool,
    yes: bool,
) -> None:
    """Check a checkpoint, list what would be published and, with `yes`, publish it."""
    if repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise InputError(f"--repo {repo!r} is not of the form OWNER/NAME")
    if yes and not (repo or remote):
        raise InputError(
            "no destination: name a repository of the hub with --repo OWNER/NAME, or a DVC remote"
            " with --remote NAME"
        )
    bundle = gather(checkpoint, load_params(), repo, allow_dirty=allow_dirty)
    if remote:
        check_remote(remote)
    show(bundle, repo, remote, public=public)
    if not yes:
        print(
            "\nNothing was uploaded. To upload, add --yes"
            + ("." if repo or remote else " and --repo or --remote.")
        )
        return
    if repo:
        print(f"{bundle.checkpoint} -> {upload(bundle, repo, public=public)}")
    if remote:
        pin = push(bundle, remote)
        print(
            f"{bundle.checkpoint} -> DVC remote {remote}; `git add {pin} {pin.parent}/.gitignore`"
            " records where it is"
        )


def show(bundle: Bundle, repo: str | None, remote: str | None, *, public: bool) -> None:
    """Print the card, every file with its size and hash, and the destinations."""
    print(bundle.card)
    for item in bundle.items:
        print(f"{item.sha256()}  {item.size:>14,}  {item.name}")
    total = sum(item.size for item in bundle.items) / _MIB
    visibility = "PUBLIC: visible to everybody" if public else "private"
    destinations = [f"hub repository {repo}, {visibility}"] if repo else []
    destinations += [f"DVC remote {remote}"] if remote else []
    print(
        f"\n{len(bundle.items)} files, {total:.1f} MiB, to:"
        f" {' and '.join(destinations) or 'nowhere yet'}"
    )
    print(
        f"predictions/{bundle.checkpoint}.parquet contains ids and image paths of test questions:"
        " check that they do not identify patients"
    )
