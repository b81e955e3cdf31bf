"""Switch params.yaml and .dvc files to a profile; print its needs and what this machine lacks.

    med-r1 profile full               the paper's setting; or `full-3b`, `sample`, a YAML file
    med-r1 profile full --dry-run     print everything, write nothing
    med-r1 profile full --elsewhere   write even if this machine cannot run it, for others

Profiles are in infra/profiles; docs/full-scale.md says how to write one. If a run here could not
finish, nothing is written and the exit code is not 0.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from stages.core import layout
from stages.core.dvc_files import parse_dvc_file
from stages.core.errors import InputError
from stages.core.machine import format_bytes
from stages.core.outputs import atomic_file
from stages.core.params import Params, check_params, parse_settings
from stages.profiles.checks import Machine, ProfileFinding, findings, read_machine
from stages.profiles.description import describe_needs
from stages.profiles.downloads import Download, downloads, split_files
from stages.profiles.pins import save_pin, with_import, with_released
from stages.profiles.schema import FOLDER, SAMPLE, Profile, load_profile, merge
from stages.profiles.splice import is_record, reset, set_values


def apply(name: str, *, dry_run: bool, elsewhere: bool) -> None:
    """Print what a profile changes, needs and lacks here, and write it.

    `dry_run`: write nothing; `elsewhere`: write even if a run cannot finish on this machine.
    InputError if the profile or params.yaml cannot be used, or the run cannot finish.
    """
    path, profile = load_profile(name)
    files = (layout.PARAMS, layout.DATA_DVC, layout.RELEASED_DVC)
    old = {file: _read(file) for file in files}
    new = _with_profile(path, profile, old)
    tree = parse_settings(new[layout.PARAMS], path)
    params = check_params(tree, path)
    for file, text in new.items():
        _print_diff(file, old[file], text)
    pinned, present = (
        parse_dvc_file(texts[layout.DATA_DVC], layout.DATA_DVC) for texts in (new, old)
    )
    fetched = downloads(profile, params, pinned, present)
    if released := new[layout.RELEASED_DVC]:
        fetched.append(split_files(parse_dvc_file(released, layout.RELEASED_DVC)))
    machine = read_machine()
    problems = findings(profile, params, machine, fetched, Path(), tree)
    _print_needs(profile, params, machine, fetched)
    _print_findings(problems)
    obstacles = sum(each.level == "stops" for each in problems)
    if obstacles and not elsewhere:
        raise InputError(
            f"{path}: a run of it cannot finish here, for {obstacles} reason(s) above; nothing was"
            " written"
        )
    if dry_run:
        print("dry run: nothing was written")
        return
    for file in (layout.DATA_DVC, layout.RELEASED_DVC):
        save_pin(old[file], file, Path())
    for file, text in new.items():
        if not text:
            file.unlink(missing_ok=True)
        elif text != old[file]:
            with atomic_file(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
    unchanged = " (no change)" if new == old else ""
    *names, last = [str(file) for file, text in new.items() if text]
    print(f"{', '.join(names)} and {last} are those of {path.stem}{unchanged}")


def _with_profile(path: Path, profile: Profile, old: dict[Path, str]) -> dict[Path, str]:
    """params.yaml and the .dvc files with the profile; empty if there is to be no such file.

    InputError names the profile if a value of it is not allowed.
    """
    sample, _ = reset(old[layout.PARAMS], layout.PARAMS)
    name = path.stem if path.parent == FOLDER else str(path)
    tree = parse_settings(sample, layout.PARAMS)
    if unknown := profile.groups.keys() - tree.keys():
        raise InputError(f"{path}: groups.{min(unknown)} is no group of {layout.PARAMS}")
    if profile.params or profile.groups:
        # before they are in params.yaml, so that errors name the file to fix
        check_params(merge(tree | profile.groups, profile.params), path)
    params = sample
    if name != SAMPLE:
        params = set_values(sample, profile.params, name, layout.PARAMS, profile.groups)
    return {
        layout.PARAMS: params,
        layout.DATA_DVC: with_import(old[layout.DATA_DVC], profile.data, Path()),
        layout.RELEASED_DVC: with_released(
            old[layout.RELEASED_DVC], profile.released, name, Path()
        ),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path != layout.PARAMS:
            return ""
        raise InputError(f"{path} not found: run from the project's root") from None


def _print_diff(path: Path, old: str, new: str) -> None:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{path} (before)", f"{path} (after)", n=0, lineterm=""
    )
    for line in lines:
        if not is_record(line[1:]):  # the records at the end repeat the replaced lines
            print(line)


def _print_needs(
    profile: Profile, params: Params, machine: Machine, fetched: list[Download]
) -> None:
    print(f"\n{profile.about}")
    for each in fetched:
        status = "already here" if each.is_local else "to fetch"
        print(f"{each.name}: {status}, {_format_size(each.size)}: {each.source}")
        print(f"  pinned by {each.pin}")
    for line in describe_needs(profile, params, machine):
        print(line)


def _format_size(size: int | None) -> str:
    if size is None:
        return "size unknown"
    # in GB, as on the pages of hubs and remotes
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else format_bytes(size)


def _print_findings(problems: list[ProfileFinding]) -> None:
    for each in problems:
        label = "MISSING" if each.level == "stops" else "note"
        print(f"{label}: {each.check}: {each.what}\n  -> {each.remedy}", file=sys.stderr)
    if not problems:
        print("nothing is missing here")
