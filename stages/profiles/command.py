"""Switch params.yaml and data.dvc to a profile; report its needs and what this machine lacks.

    med-r1 profile full               the paper's setting; or `full-3b`, `sample`, a YAML file
    med-r1 profile full --dry-run     show all of it, write nothing
    med-r1 profile full --elsewhere   write though this machine cannot run it: others will

Profiles lie in infra/profiles; docs/full-scale.md says how to write one. If a run here could not
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
from stages.profiles.checks import Machine, ProfileFinding, findings, look, say_needs
from stages.profiles.downloads import Download, downloads
from stages.profiles.pins import imported, keep
from stages.profiles.schema import FOLDER, SAMPLE, Profile, load_profile, merged
from stages.profiles.splice import reset, set_values


def apply(name: str, *, dry_run: bool, elsewhere: bool) -> None:
    """Print what a profile changes, takes and lacks here, and write it.

    `dry_run`: write nothing; `elsewhere`: write even if a run cannot finish on this machine.
    InputError if the profile or params.yaml cannot be used, or the run cannot finish.
    """
    path, profile = load_profile(name)
    old = {each: _read(each) for each in (layout.PARAMS, layout.DATA_DVC)}
    new = _written(path, profile, old)
    tree = parse_settings(new[layout.PARAMS], path)
    params = check_params(tree, path)
    for each, text in new.items():
        _show_diff(each, old[each], text)
    fetched = downloads(profile, params, parse_dvc_file(new[layout.DATA_DVC], layout.DATA_DVC))
    machine = look()
    found = findings(profile, params, machine, fetched, Path(), tree)
    _show(profile, params, machine, fetched, found)
    stops = [each for each in found if each.level == "stops"]
    if stops and not elsewhere:
        raise InputError(
            f"{path}: a run of it cannot finish here, for {len(stops)} reason(s) above; nothing was"
            " written"
        )
    if dry_run:
        print("dry run: nothing was written")
        return
    keep(old[layout.DATA_DVC], Path())
    for each, text in new.items():
        if text != old[each]:
            with atomic_file(each) as temporary:
                temporary.write_text(text, encoding="utf-8")
    print(
        f"{layout.PARAMS} and {layout.DATA_DVC} are those of {path.stem}"
        + ("" if new != old else ", as they were")
    )


def _written(path: Path, profile: Profile, old: dict[Path, str]) -> dict[Path, str]:
    """params.yaml and data.dvc with the profile.

    InputError names the profile if a value of it is not allowed.
    """
    sample, _ = reset(old[layout.PARAMS], layout.PARAMS)
    name = path.stem if path.parent == FOLDER else str(path)
    tree = parse_settings(sample, layout.PARAMS)
    if profile.params:
        # before it is written, so that the file named is the one to mend
        check_params(merged(tree, profile.params), path)
    params = sample if name == SAMPLE else set_values(sample, profile.params, name, layout.PARAMS)
    return {
        layout.PARAMS: params,
        layout.DATA_DVC: imported(old[layout.DATA_DVC], profile.data, Path()),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path == layout.DATA_DVC:
            return ""
        raise InputError(f"{path} not found: run from the project's root") from None


def _show_diff(path: Path, old: str, new: str) -> None:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{path} (now)", f"{path} (then)", n=0, lineterm=""
    )
    # what is kept at the end of the file repeats what is taken out
    for line in lines:
        if not line.startswith(("+#< ", "+#+ ", "-#< ", "-#+ ")):
            print(line)


def _show(
    profile: Profile,
    params: Params,
    machine: Machine,
    fetched: list[Download],
    problems: list[ProfileFinding],
) -> None:
    print(f"\n{profile.about}")
    for each in fetched:
        if each.size is None:
            size = "size not known"
        else:  # pages of hubs and remotes count in GB
            size = f"{each.size / 1e9:.1f} GB" if each.size >= 1e8 else format_bytes(each.size)
        print(
            f"{each.name}: {'here already' if each.here else 'to fetch'}, {size}: {each.source}\n "
            f" pinned by {each.pins}"
        )
    for line in say_needs(profile, params, machine):
        print(line)
    for one in problems:
        print(
            f"{'MISSING' if one.level == 'stops' else 'note'}: {one.check}: {one.what}\n  ->"
            f" {one.remedy}",
            file=sys.stderr,
        )
    if not problems:
        print("nothing is missing here")
