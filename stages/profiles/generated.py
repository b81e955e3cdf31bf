"""Names and files of the profiles that `med-r1 use` writes; never replaces what a person wrote."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.settings.categories import MAX_SLUG, SLUG
from stages.core.yaml_files import read_text
from stages.corpus.archives.folder import ARCHIVES
from stages.profiles.schema import FOLDER

_MARK: Final = (
    "# Written by `med-r1 use`; `med-r1 profile sample` restores the sample's settings.\n"
)
_SOURCE: Final = "# source: "
_HASH: Final = "# sha256 of the lines below: "


def generated_text(source: Path, profile: str) -> str:
    """The file of a profile, which says where it comes from and whether it was edited since."""
    digest = hashlib.sha256(profile.encode()).hexdigest()
    return f"{_MARK}{_SOURCE}{source.resolve()}\n{_HASH}{digest}\n{profile}"


def original_profiles() -> list[str]:
    """Names of the profiles that were not written by `med-r1 use`."""
    paths = FOLDER.glob("*.yaml")
    return sorted(path.stem for path in paths if not read_text(path).startswith(_MARK))


def check_replaceable(path: Path, source: Path) -> None:
    """InputError unless a profile is new, or was generated from the same source and not edited."""
    if not path.is_file():
        return
    other_name = "choose another name with --name"
    text = read_text(path)
    if not text.startswith(_MARK):
        raise InputError(f"{path} is another profile: {other_name}")
    lines = text.removeprefix(_MARK).split("\n", 2)
    is_complete = len(lines) == 3 and lines[1].startswith(_HASH)
    if not is_complete or lines[0] != f"{_SOURCE}{source.resolve()}":
        raise InputError(f"{path} is the profile of {lines[0].removeprefix(_SOURCE)}: {other_name}")
    if hashlib.sha256(lines[2].encode()).hexdigest() != lines[1].removeprefix(_HASH):
        raise InputError(f"{path} was edited, which would be lost: delete it, or {other_name}")


def check_name(name: str) -> str:
    """A name for files; InputError unless it is one without doubt."""
    if not SLUG.fullmatch(name) or len(name) > MAX_SLUG:
        raise InputError(
            f"--name {name}: use at most {MAX_SLUG} lower-case letters and digits, with single"
            " hyphens between them"
        )
    return name


def default_name(source: Path) -> str:
    """A name from that of a folder or file; InputError if none can be made of it."""
    stem = source.resolve().name
    if source.is_file():
        suffix = next((each for each in ARCHIVES if stem.lower().endswith(each)), source.suffix)
        stem = stem[: len(stem) - len(suffix)]
    name = "-".join(re.findall(r"[a-z0-9]+", stem.casefold()))[:MAX_SLUG].strip("-")
    if not name:
        raise InputError(f"{source}: no name for files can be made of it: give one with --name")
    return name


def is_archive(path: Path) -> bool:
    """Whether a file has the suffix of an archive."""
    return path.is_file() and path.name.lower().endswith(ARCHIVES)
