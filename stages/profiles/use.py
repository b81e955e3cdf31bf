"""Use another corpus: inspect it, propose settings that fit it, and write them as a profile.

    med-r1 use ward                    what is in it, and what would be set
    med-r1 use ward --yes              set params.yaml and data.dvc; `med-r1 profile sample` reverts
    med-r1 use ward --scale full       the paper's model and settings, on GPUs

A form that the pipeline does not read as it is, such as a workbook or class folders, is converted
into corpora/<name> first. The profile is infra/profiles/<name>.yaml.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import atomic_file
from stages.core.yaml_files import dump_yaml
from stages.corpus.formats.convert import CORPUS, convert, detect
from stages.corpus.formats.questions import ConversionOptions
from stages.profiles.command import apply
from stages.profiles.generated import (
    check_name,
    check_replaceable,
    default_name,
    generated_text,
    is_archive,
    original_profiles,
)
from stages.profiles.proposals.image_settings import measure_scale
from stages.profiles.proposals.printing import print_conversion, print_proposal
from stages.profiles.proposals.propose import Proposal, check_usable, propose
from stages.profiles.schema import FOLDER, SAMPLE, merge

CONVERTED: Final = Path("corpora")
"""Folder of converted corpora, one each; git ignores it."""
_RAW: Final = Path("data/raw")


def use(
    source: Path,
    *,
    scale: str = SAMPLE,
    name: str | None = None,
    yes: bool = False,
    elsewhere: bool = False,
    folds: int | None = None,
    options: ConversionOptions | None = None,
) -> bool:
    """Inspect a corpus and print the settings that fit it; write them with `yes`.

    `elsewhere`: write settings that this machine cannot run, for others; `folds`: cross-validate.
    Whether they were written.
    InputError if the corpus or the settings cannot be used; nothing is then changed.
    """
    if scale not in (known := original_profiles()):
        raise InputError(f"--scale {scale}: no such profile; known: {', '.join(known)}")
    if not source.exists():
        raise InputError(f"{source} is neither a file nor a folder: name the corpus")
    name = check_name(name) if name else default_name(source)
    profile_path = FOLDER / f"{name}.yaml"
    check_replaceable(profile_path, source)
    for target in (_RAW / name, CONVERTED / name):
        _check_apart(source, target)
    layout.SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="use-", dir=layout.SCRATCH) as work:
        folder = _converted(source, Path(work) / name, options or ConversionOptions())
        proposal = propose(folder or source, folds, scale)
        print_proposal(folder or source, proposal, scale)
        check_usable(proposal)
        profile = _profile(CONVERTED / name if folder else source, name, scale, proposal)
        if not yes:
            _preview(Path(work), profile, scale)
            print("nothing was changed; repeat it with --yes to set this")
            return False
        with _in_place(folder, CONVERTED / name), _written(profile_path, source, profile):
            apply(name, dry_run=False, elsewhere=elsewhere)
    return True


def _check_apart(source: Path, target: Path) -> None:
    """InputError if a write to `target` would replace the source or a part of it."""
    one, other = source.resolve(), target.resolve()
    if one == other or one.is_relative_to(other) or other.is_relative_to(one):
        raise InputError(
            f"{source} overlaps with {target}, which is replaced by what is imported: move it"
            " elsewhere, or choose another --name"
        )


def _converted(source: Path, folder: Path, options: ConversionOptions) -> Path | None:
    """The folder that the source was converted into; None for one that is read as it is."""
    if is_archive(source) or _holds_archives(source) or detect(source) == CORPUS:
        return None
    print_conversion(source, convert(source, folder, options))
    return folder


def _holds_archives(source: Path) -> bool:
    return source.is_dir() and any(map(is_archive, source.iterdir()))


def _profile(corpus: Path, name: str, scale: str, proposal: Proposal) -> dict[str, Any]:
    resolved = corpus.resolve()
    is_inside = resolved.is_relative_to(Path.cwd().resolve())
    path = resolved.relative_to(Path.cwd().resolve()) if is_inside else resolved
    # the format of an archive is known by its name
    target = str(_RAW / name) + ("".join(corpus.suffixes[-2:]) if corpus.is_file() else "")
    profile: dict[str, Any] = {
        "extends": scale,
        "about": f"the corpus {name}: {proposal.inspection.usable} questions",
        "data": {"deps": [{"path": str(path)}], "outs": [{"path": target}]},
        "params": {"corpus": {"archive": target}, **proposal.params},
        "groups": proposal.groups,
    }
    if proposal.folds:
        profile["params"]["splits"] = {"folds": proposal.folds}
    if scale != SAMPLE:
        # what the paper leaves open to leaks and to answers without the image
        settings = {"splits": {"kind": "grouped"}, "evaluate": {"ablations": True}}
        profile["params"] = merge(profile["params"], settings)
        profile["scale"] = measure_scale(proposal.inspection, proposal.volume).model_dump()
    return profile


def _preview(folder: Path, profile: dict[str, Any], scale: str) -> None:
    """Print needs and obstacles of a profile for GPUs."""
    if scale == SAMPLE:
        return
    path = folder / "preview.yaml"
    path.write_text(dump_yaml(profile), encoding="utf-8")
    apply(str(path), dry_run=True, elsewhere=True)


@contextmanager
def _in_place(folder: Path | None, target: Path) -> Iterator[None]:
    """A converted corpus at its place while the settings are written; taken back on an error."""
    if folder is None:
        yield
        return
    target.parent.mkdir(exist_ok=True)
    before = folder.with_name("before")
    if target.exists():
        target.replace(before)
    folder.replace(target)
    try:
        yield
    except BaseException:
        shutil.rmtree(target)
        if before.exists():
            before.replace(target)
        raise


@contextmanager
def _written(path: Path, source: Path, profile: dict[str, Any]) -> Iterator[None]:
    """The profile's file while it is applied; on an error, the one before it."""
    before = path.read_bytes() if path.is_file() else None
    with atomic_file(path) as temporary:
        temporary.write_text(generated_text(source, dump_yaml(profile)), encoding="utf-8")
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        raise
