"""Use another corpus: inspect it, propose settings that fit it, and write them as a profile.

    med-r1 use ward                    what is in it, and what would be set
    med-r1 use ward --yes              set params.yaml and data.dvc; `med-r1 profile sample` reverts
    med-r1 use ward --scale full       the paper's model and settings, on GPUs

A form that the pipeline does not read as it is, such as a workbook or class folders, is converted
into corpora/<name> first. The profile is infra/profiles/<name>.yaml.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import atomic_file
from stages.core.params import Params, check_params, parse_settings
from stages.core.yaml_files import dump_yaml, read_text
from stages.corpus.archives.source import open_corpus
from stages.corpus.formats.convert import CORPUS, Conversion, convert, detect
from stages.corpus.formats.questions import ConversionOptions
from stages.corpus.inspection.command import plain, print_inspection
from stages.corpus.inspection.inspect import Inspection, inspect
from stages.profiles.command import apply
from stages.profiles.proposal import Word, groups_for, learn_words
from stages.profiles.schema import FOLDER, SAMPLE, merge
from stages.profiles.splice import reset

CONVERTED: Final = Path("corpora")
"""Folder of converted corpora, one each; git ignores it."""
_MARK: Final = "# Written by `med-r1 use`; `med-r1 profile sample` reverts it.\n"
_ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")
_EXAMPLES: Final = 3
_CHECKPOINT_SECONDS: Final = 62
"""Training and evaluating one checkpoint of the sample on 2 cores: 13 took 13 min 31 s."""
_CONCLUSIVE: Final = 100
"""Test questions below which an accuracy says little."""


@dataclass(frozen=True)
class Proposal:
    """What a corpus needs: its inspection, words that params.yaml lacks, and the profile."""

    inspection: Inspection
    words: list[Word]
    profile: dict[str, Any]
    left_out: list[str]
    """Splits without questions to train or to test, with their sizes."""


def use(
    source: Path,
    *,
    scale: str = SAMPLE,
    name: str | None = None,
    yes: bool = False,
    elsewhere: bool = False,
    options: ConversionOptions | None = None,
) -> bool:
    """Inspect a corpus and print the settings that fit it; write them with `yes`.

    `elsewhere`: write settings that this machine cannot run, for others. Whether they were written.
    InputError if the corpus or the settings cannot be used; nothing is then written.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if scale not in known:
        raise InputError(f"--scale {scale}: no such profile; known: {', '.join(known)}")
    if not source.exists():
        raise InputError(f"{source} is neither a file nor a folder: name the corpus")
    name = name or _slug(source)
    profile_path = FOLDER / f"{name}.yaml"
    if profile_path.is_file() and not read_text(profile_path).startswith(_MARK):
        raise InputError(f"{profile_path} is another profile: choose a name with --name")
    with _as_corpus(source, name, keep=yes, options=options or ConversionOptions()) as corpus:
        proposal = propose(corpus, name, scale)
        _print_proposal(corpus, proposal, scale)
    if not yes:
        print("nothing was written; repeat it with --yes to set this")
        return False
    _check_usable(proposal)
    with atomic_file(profile_path) as temporary:
        temporary.write_text(_MARK + dump_yaml(proposal.profile), encoding="utf-8")
    apply(name, dry_run=False, elsewhere=elsewhere)
    return True


def propose(corpus_path: Path, name: str, scale: str) -> Proposal:
    """The settings for a corpus that the pipeline reads. InputError if it cannot be read."""
    tree = _sample_settings()
    base = check_params(tree, layout.PARAMS)
    with (
        tempfile.TemporaryDirectory(prefix="use-") as scratch,
        open_corpus(corpus_path, base.corpus.limits, Path(scratch)) as corpus,
    ):
        taxonomy, words = learn_words(corpus, base.taxonomy)
        known = {
            group: {
                slug: {"names": list(each.names), "dicom": list(each.dicom)}
                for slug, each in vocabulary.categories.items()
            }
            for group, vocabulary in (
                ("modalities", taxonomy.modalities),
                ("question_types", taxonomy.question_types),
            )
        }
        matrix = {"checkpoints": {}, "evaluations": {"base": {"axis": "all"}}}
        everything = check_params(tree | known | matrix, layout.PARAMS)
        groups = groups_for(taxonomy, inspect(corpus, everything, images=False))
        if not groups["modalities"]:
            inspection = inspect(corpus, everything, images=False)
            return Proposal(inspection, words, {}, [])
        params = check_params(tree | groups, layout.PARAMS)
        inspection = inspect(corpus, params)
    groups = groups_for(taxonomy, inspection)
    return Proposal(
        inspection,
        words,
        _profile(corpus_path, name, scale, groups, inspection),
        _without_data(params, inspection),
    )


def _sample_settings() -> dict[str, Any]:
    """params.yaml without a profile."""
    text, _ = reset(read_text(layout.PARAMS), layout.PARAMS)
    return parse_settings(text, layout.PARAMS)


def _profile(
    corpus: Path, name: str, scale: str, groups: dict[str, Any], inspection: Inspection
) -> dict[str, Any]:
    inside = corpus.is_absolute() is False and (Path.cwd() / corpus).is_relative_to(Path.cwd())
    suffix = "" if corpus.is_dir() else "".join(corpus.suffixes[-2:])
    target = f"data/raw/{name}{suffix}"
    profile: dict[str, Any] = {
        "extends": scale,
        "about": f"the corpus {name}: {inspection.usable} questions",
        "data": {
            "deps": [{"path": str(corpus if inside else corpus.resolve())}],
            "outs": [{"path": target}],
        },
        "params": {"corpus": {"archive": target}},
        "groups": groups,
    }
    if scale != SAMPLE:
        # what the paper leaves open to leaks and to answers without the image
        settings = {"splits": {"kind": "grouped"}, "evaluate": {"ablations": True}}
        profile["params"] = merge(profile["params"], settings)
        profile["scale"] = {
            "questions": inspection.usable,
            "images": sum(inspection.images.values()),
        }
    return profile


def _without_data(params: Params, inspection: Inspection) -> list[str]:
    texts = []
    for axis, slugs in inspection.splits.items():
        for slug, (train, test) in slugs.items():
            if train < params.matrix.min_train or test < params.matrix.min_test:
                texts.append(f"{axis}/{slug}: {train} to train, {test} to test")
    return texts


def _check_usable(proposal: Proposal) -> None:
    if not proposal.inspection.usable:
        raise InputError("no record can be used: correct the corpus; nothing was written")
    stops = [each.kind for each in proposal.inspection.findings if each.level == "stops"]
    if stops:
        raise InputError(
            f"stage splits would refuse this corpus ({', '.join(stops)}): see above; nothing was"
            " written"
        )
    if not proposal.profile["groups"]["checkpoints"]:
        raise InputError(
            "no modality and no question type has questions to train and to test: add images;"
            " nothing was written"
        )


def _print_proposal(corpus: Path, proposal: Proposal, scale: str) -> None:
    inspection = proposal.inspection
    print_inspection(corpus, inspection, inspection.status())
    for word in proposal.words:
        print(plain(f"word {word}"))
    if not proposal.profile:
        return
    checkpoints = proposal.profile["groups"]["checkpoints"]
    print(f"\ncheckpoints: {', '.join(checkpoints) or 'none'}")
    for text in proposal.left_out:
        print(f"left out for lack of data: {text}")
    for name, each in checkpoints.items():
        train, test = inspection.splits[each["axis"]][each["split"]]
        line = f"{name}: {train} questions to train, {test} to test"
        if test < _CONCLUSIVE:
            margin = 196 * math.sqrt(0.25 / test)
            line += f"; so few leave an accuracy uncertain by about {margin:.0f} points"
        print(line)
    if scale == SAMPLE:
        minutes = max(round(len(checkpoints) * _CHECKPOINT_SECONDS / 60), 1)
        print(
            f"run time: about {minutes} minutes on 2 cores, by the times of the sample. The"
            " embedded base was trained on drawings: it shows that the pipeline works on your data,"
            " and says nothing of what a real model would learn from it; --scale full takes one"
        )


@contextmanager
def _as_corpus(
    source: Path, name: str, *, keep: bool, options: ConversionOptions
) -> Iterator[Path]:
    """A corpus that the pipeline reads: the source itself, or what it is converted into."""
    if source.name.lower().endswith(_ARCHIVES) or detect(source) == CORPUS:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="convert-", dir=Path.cwd() if keep else None) as work:
        folder = Path(work) / name
        _print_conversion(source, convert(source, folder, options))
        if not keep:
            yield folder
            return
        target = CONVERTED / name
        CONVERTED.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        folder.replace(target)
    yield target


def _print_conversion(source: Path, conversion: Conversion) -> None:
    print(
        f"{source}: {conversion.format}; {conversion.entries} entries, {conversion.questions} of"
        f" them questions about {conversion.images} images, {len(conversion.refusals)} refused; the"
        f" patient is known for {conversion.patients_known} images"
    )
    for refusal in conversion.refusals[:_EXAMPLES]:
        print(plain(f"  refused: {refusal}"))
    if len(conversion.refusals) > _EXAMPLES:
        print(f"  and {len(conversion.refusals) - _EXAMPLES} more")
    blind = conversion.blind
    print(
        f"  without the image, a rule of the wording answers {blind.highest:.1%}; chance is"
        f" {blind.chance:.1%}"
    )


def parse_bins(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Column -> bounds, from texts such as "age=0,40,60"; InputError for another form."""
    bins = {}
    for text in texts:
        column, equals, bounds = text.rpartition("=")
        try:
            values = [float(bound) for bound in bounds.split(",")]
        except ValueError:
            values = []
        if not column or not equals or values != sorted(set(values)) or len(values) < 2:
            raise InputError(f"--bins {text}: write a column and rising bounds, as age=0,40,60")
        bins[column] = tuple(values)
    return bins


def _slug(source: Path) -> str:
    """A name for files, from that of a folder or file."""
    stem = source.resolve().name
    for suffix in _ARCHIVES:
        stem = stem.removesuffix(suffix)
    stem = Path(stem).stem if source.is_file() else stem
    slug = "-".join(re.findall(r"[a-z0-9]+", stem.casefold()))[:40]
    if not slug:
        raise InputError(f"{source}: no name can be made of it: give one with --name")
    return slug
