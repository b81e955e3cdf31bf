"""Publish a finished checkpoint: weights, processor, card and predictions, to a Hugging Face hub or a DVC remote.

    python -m stages.publishing.command ct --repo me/med-r1-ct            show what would be uploaded; nothing is
    python -m stages.publishing.command ct --repo me/med-r1-ct --yes      upload it; the token is HF_TOKEN's
    python -m stages.publishing.command ct --remote shared --yes          put it into a DVC remote instead, or as well

A stage of no pipeline: nothing leaves this machine by `dvc repro`.
"""

from __future__ import annotations

import argparse
import re

from stages.core.cli import run_stage
from stages.core.errors import InputError
from stages.core.params import load_params
from stages.publishing.bundle import Bundle, gather
from stages.publishing.dvc_remote import check_remote, push
from stages.publishing.hub_repository import upload

_MIB = 2**20


def main() -> None:
    """Check a checkpoint, show what would leave, and with --yes send it."""
    arguments = argparse.ArgumentParser(
        prog="python -m stages.publishing.command", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("checkpoint", help="a key of checkpoints in params.yaml")
    arguments.add_argument("--repo", metavar="OWNER/NAME", help="a model repository on the hub; made if it is not there")
    arguments.add_argument("--remote", metavar="NAME", help="a DVC remote, as `dvc remote list` names it")
    arguments.add_argument("--public", action="store_true", help="the repository is to be seen by everybody (default: private)")
    arguments.add_argument("--allow-dirty", action="store_true", help="publish what no commit describes")
    arguments.add_argument("--yes", action="store_true", help="do it; without, it is only shown")
    given = arguments.parse_args()
    if given.repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", given.repo):
        raise InputError(f"--repo {given.repo!r} is not of the form OWNER/NAME")
    if given.yes and not (given.repo or given.remote):
        raise InputError("publish where to? Name a repository of the hub with --repo OWNER/NAME, or a DVC remote with --remote NAME")
    bundle = gather(given.checkpoint, load_params(), given.repo, allow_dirty=given.allow_dirty)
    if given.remote:
        check_remote(given.remote)
    show(bundle, given.repo, given.remote, public=given.public)
    if not given.yes:
        print("\nNothing was uploaded. To do it, add --yes" + ("." if given.repo or given.remote else " and --repo or --remote."))
        return
    if given.repo:
        print(f"{bundle.checkpoint} -> {upload(bundle, given.repo, public=given.public)}")
    if given.remote:
        pin = push(bundle, given.remote)
        print(f"{bundle.checkpoint} -> DVC remote {given.remote}; `git add {pin} {pin.parent}/.gitignore` keeps where it is")


def show(bundle: Bundle, repo: str | None, remote: str | None, *, public: bool) -> None:
    """Print the card, every file with its size and hash, and where they go."""
    print(bundle.card)
    for item in bundle.items:
        print(f"{item.sha256()}  {item.size:>14,}  {item.name}")
    total = sum(item.size for item in bundle.items) / _MIB
    places = [f"hub repository {repo}, {'PUBLIC: seen by everybody' if public else 'private'}"] if repo else []
    places += [f"DVC remote {remote}"] if remote else []
    print(f"\n{len(bundle.items)} files, {total:.1f} MiB, to: {' and '.join(places) or 'nowhere yet'}")
    print(f"predictions/{bundle.checkpoint}.parquet holds ids and picture paths of test questions: look at them before data of patients")


if __name__ == "__main__":
    run_stage(main)
